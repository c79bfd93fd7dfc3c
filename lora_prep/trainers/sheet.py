"""A contact sheet of what trainers see: a row an image, a column a view."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from lora_prep.trainers.view import Seen
from lora_prep.types import Image

CELL = 288
"""Side of the square that a picture is fitted into."""
CAPTION = 76
MARGIN = 12
HEAD = 92

PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (105, 105, 105)
GOOD, BAD = (0, 110, 60), (190, 20, 30)
BELONGS = (255, 214, 0)
"""Outline of the mask where it belongs."""
NOTHING = np.array((24, 28, 64), np.float32)
"""What has no weight turns into this."""

LEGEND = (
    "bright: what the loss counts, at latent resolution; dark: what it leaves out; "
    "yellow: where the mask belongs"
)


@dataclass(frozen=True, slots=True)
class Row:
    """An image and what each view makes of it, in the order of the columns."""

    name: str
    seen: Sequence[Seen]


def draw(title: str, columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    """The sheet as a PNG file."""
    width = MARGIN + len(columns) * (CELL + MARGIN)
    height = HEAD + len(rows) * (CELL + CAPTION + MARGIN) + MARGIN
    sheet = PillowImage.new("RGB", (max(width, 2 * CELL), height), PAPER)
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(17), ImageFont.load_default(13)
    pen.text((MARGIN, 10), _fitted(title, large, sheet.width - 2 * MARGIN), INK, large)
    for i, line in enumerate(_lines(LEGEND, small, sheet.width - 2 * MARGIN, 2)):
        pen.text((MARGIN, 34 + 15 * i), line, FAINT, small)
    for i, column in enumerate(columns):
        pen.text((MARGIN + i * (CELL + MARGIN), HEAD - 26), column, INK, large)
    for j, row in enumerate(rows):
        top = HEAD + j * (CELL + CAPTION + MARGIN)
        for i, seen in enumerate(row.seen):
            left = MARGIN + i * (CELL + MARGIN)
            _cell(sheet, pen, small, (left, top), row.name, seen)
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def overlay(seen: Seen) -> Image:
    """The image as trained on, darkened by the weights that it misses, with the mask's outline."""
    height, width = seen.image.shape[:2]
    weights = cv2.resize(seen.weights, (width, height), interpolation=cv2.INTER_NEAREST)
    shown = np.clip(weights, 0, 1)[:, :, None] * 0.8 + 0.2
    picture: Image = np.rint(seen.image * shown + NOTHING * (1 - shown)).astype(np.uint8)
    if seen.meant is not None:
        edges = (seen.meant >= 0.5).astype(np.uint8)
        outlines, _ = cv2.findContours(edges, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        thick = max(1, round(max(height, width) / CELL * 1.5))
        cv2.drawContours(picture, outlines, -1, BELONGS, thick)
    return picture


def caption(seen: Seen) -> str:
    """What is said in a few words."""
    if not seen.image.size:
        return seen.problem
    height, width = seen.image.shape[:2]
    words = [f"{width}×{height}", f"share {seen.share:.0%}"]
    if seen.inside is not None and seen.used:
        words.append(f"inside {seen.inside:.0%}")
    if seen.agreement is not None and seen.used:
        words.append(f"IoU {seen.agreement:.2f}")
    return " · ".join(words)


def _cell(
    sheet: PillowImage.Image,
    pen: ImageDraw.ImageDraw,
    font: "ImageFont.FreeTypeFont | ImageFont.ImageFont",
    at: tuple[int, int],
    name: str,
    seen: Seen,
) -> None:
    left, top = at
    if seen.image.size:
        picture = PillowImage.fromarray(overlay(seen))
        picture.thumbnail((CELL, CELL), PillowImage.Resampling.LANCZOS)
        right, down = (CELL - picture.width) // 2, (CELL - picture.height) // 2
        sheet.paste(picture, (left + right, top + down))
    else:
        pen.rectangle((left, top, left + CELL, top + CELL), outline=BAD, width=2)
        pen.line((left, top, left + CELL, top + CELL), BAD, 2)
    below = top + CELL
    good = "mask used" if seen.used else "MASK NOT USED"
    colour = GOOD if seen.good else BAD
    pen.text((left, below + 4), _fitted(f"{good} · {name}", font, CELL), colour, font)
    notes = [seen.problem] if seen.problem else list(seen.notes)
    # Pillow's own font has no multiplication sign.
    facts = _fitted(caption(seen).replace("×", "x"), font, CELL)
    said = [facts] if seen.image.size else []
    rest = _lines("; ".join(notes), font, CELL, 4 - len(said) - 1)
    for i, line in enumerate([*said, *rest]):
        pen.text((left, below + 21 + 16 * i), line, INK if i == 0 and said else FAINT, font)


def _fitted(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _lines(
    text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int, most: int
) -> list[str]:
    """Words broken into lines; what does not fit is left out of the last."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < most:
        line = words.pop(0)
        if len(lines) == most - 1:
            line = " ".join([line, *words])
            words = []
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        lines.append(_fitted(line, font, width))
    return lines
