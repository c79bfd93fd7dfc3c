"""A contact sheet: every picture of a folder on one page, to look at."""

from pathlib import Path

import cv2
import numpy as np

from lora_prep import imageio
from lora_prep.dataset import image_names
from lora_prep.errors import DatasetError
from lora_prep.types import Image

CELL, COLUMNS, LABEL = 320, 4, 24
PAPER, INK = (255, 255, 255), (40, 40, 40)


def contact_sheet(folder: Path) -> Image:
    """The pictures of a folder in rows of four, each 312 pixels at the most, above its name.

    Raises DatasetError where there is none.
    """
    names = sorted(image_names(folder))
    if not names:
        raise DatasetError(f"there is no picture in {folder}")
    cells = [_cell(folder / name) for name in names]
    rows = [_row(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    return np.vstack(rows)


def _row(cells: list[Image]) -> Image:
    """Cells side by side, as high as the highest of them, with empty ones where they are few."""
    row = np.full((max(map(len, cells)), CELL * COLUMNS, 3), PAPER, np.uint8)
    for i, cell in enumerate(cells):
        row[: len(cell), i * CELL : (i + 1) * CELL] = cell
    return row


def _cell(path: Path) -> Image:
    """A picture with its name below, at the left."""
    picture = imageio.decode_image(path.read_bytes())
    height, width = picture.shape[:2]
    scale = (CELL - 8) / max(height, width)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    cell = np.full((high + LABEL + 8, CELL, 3), PAPER, np.uint8)
    cell[4 : 4 + high, 4 : 4 + wide] = cv2.resize(picture, (wide, high), interpolation=how)
    where = (4, high + LABEL - 4)
    cv2.putText(cell, path.stem[:38], where, cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
    return cell
