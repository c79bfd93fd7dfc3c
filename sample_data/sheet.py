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
    """The pictures of a folder in rows of four, each in a cell of 320 pixels above its name.

    Raises DatasetError where there is none.
    """
    names = sorted(image_names(folder))
    if not names:
        raise DatasetError(f"there is no picture in {folder}")
    cells = [_cell(folder / name) for name in names]
    while len(cells) % COLUMNS:
        cells.append(np.full_like(cells[0], PAPER))
    rows = [np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    return np.vstack(rows)


def _cell(path: Path) -> Image:
    picture = imageio.decode_image(path.read_bytes())
    height, width = picture.shape[:2]
    scale = (CELL - 8) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(
        picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    cell = np.full((CELL + LABEL, CELL, 3), PAPER, np.uint8)
    top, left = (CELL - size[1]) // 2, (CELL - size[0]) // 2
    cell[top : top + size[1], left : left + size[0]] = small
    where = (6, CELL + LABEL - 8)
    cv2.putText(cell, path.stem[:38], where, cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
    return cell
