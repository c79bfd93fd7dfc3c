"""A contact sheet of what trainers see: a row an image, a column a view."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from lora_prep import imageio
from lora_prep.trainers import lettering
from lora_prep.trainers.lettering import Colour
from lora_prep.trainers.view import Seen
from lora_prep.types import Image

CELL = 288
"""Side of the square that a picture is fitted into."""
MARGIN = 16
LARGE, SMALL = 17, 13
LINE = 17
LINES = 5
"""Below a picture, at most."""

PAPER, INK, FAINT, FRAME = (255, 255, 255), (20, 20, 20), (105, 105, 105), (218, 218, 224)
GOOD, BAD = (0, 110, 60), (190, 20, 30)
BELONGS = (255, 214, 0)
"""Outline of the mask where it belongs."""
NOTHING = np.array((24, 28, 64), np.float32)
"""What has no weight fades to this."""

LEGEND = (
    "bright: what the loss counts, at latent resolution; dark: what it leaves out; "
    "yellow: where the mask belongs"
)


@dataclass(frozen=True, slots=True)
class Row:
    """An image and what each view makes of it, in the order of the columns."""

    name: str
    seen: Sequence[Seen]


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    colour: Colour


def draw(title: str, columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    """The sheet as a PNG file."""
    width = max(MARGIN + len(columns) * (CELL + MARGIN), 2 * (CELL + MARGIN))
    room = width - 2 * MARGIN
    legend = lettering.lines(LEGEND, SMALL, room, 3)
    parts = [_head(title, legend, columns, width)]
    parts += [_row(row, width) for row in rows]
    return imageio.encode_image(np.concatenate(parts), "png")


def overlay(seen: Seen) -> Image:
    """The image as trained on, faded where the weights miss it, with the mask's outline."""
    height, width = seen.image.shape[:2]
    weights = cv2.resize(seen.weights, (width, height), interpolation=cv2.INTER_NEAREST)
    shown = np.clip(weights, 0, 1)[:, :, None]
    grey = seen.image.mean(2, keepdims=True, dtype=np.float32)
    faded = grey * 0.3 + NOTHING * 0.7
    picture: Image = np.rint(seen.image * shown + faded * (1 - shown)).astype(np.uint8)
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


def _head(title: str, legend: Sequence[str], columns: Sequence[str], width: int) -> Image:
    height = MARGIN + LARGE + 10 + len(legend) * LINE + 14 + LARGE + 10
    part = _paper(height, width)
    fitted = lettering.fitted(title, LARGE, width - 2 * MARGIN)
    lettering.write(part, (MARGIN, MARGIN), fitted, INK, LARGE)
    for i, line in enumerate(legend):
        top = MARGIN + LARGE + 10 + i * LINE
        lettering.write(part, (MARGIN, top), line, FAINT, SMALL)
    for i, column in enumerate(columns):
        left = MARGIN + i * (CELL + MARGIN)
        lettering.write(part, (left, height - LARGE - 10), column, INK, LARGE)
    return part


def _row(row: Row, width: int) -> Image:
    """As high as its highest picture and its longest caption."""
    pictures = [_fitted(overlay(seen)) if seen.image.size else _crossed() for seen in row.seen]
    below = [_said(row.name, seen) for seen in row.seen]
    high = max(picture.shape[0] for picture in pictures)
    part = _paper(high + 6 + max(map(len, below)) * LINE + MARGIN, width)
    for i, (picture, lines) in enumerate(zip(pictures, below, strict=True)):
        left = MARGIN + i * (CELL + MARGIN)
        tall, wide = picture.shape[:2]
        right, down = left + (CELL - wide) // 2, (high - tall) // 2
        part[:high, left : left + CELL] = FRAME
        part[down : down + tall, right : right + wide] = picture
        for j, line in enumerate(lines):
            lettering.write(part, (left, high + 6 + j * LINE), line.text, line.colour, SMALL)
    return part


def _said(name: str, seen: Seen) -> list[_Line]:
    """Whether the mask counts, of which image, the figures, and what is wrong."""
    verdict = "mask used" if seen.used else "MASK NOT USED"
    if seen.used and seen.problem:
        verdict = "MASK USED WRONGLY"
    texts = [_Line(f"{verdict} · {name}", GOOD if seen.good else BAD)]
    if seen.image.size:
        texts.append(_Line(caption(seen), INK))
    found = [_Line(lettering.fitted(t.text, SMALL, CELL), t.colour) for t in texts]
    notes = "; ".join([seen.problem, *seen.notes] if seen.problem else seen.notes)
    more = lettering.lines(notes, SMALL, CELL, LINES - len(found))
    return found + [_Line(line, FAINT) for line in more]


def _fitted(picture: Image) -> UInt8[np.ndarray, "tall wide 3"]:
    scale = min(CELL / max(picture.shape[:2]), 1)
    size = tuple(max(round(side * scale), 1) for side in picture.shape[1::-1])
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture


def _crossed() -> Image:
    """Stands for an image at which the trainer stops."""
    part = _paper(CELL // 2, CELL)
    cv2.rectangle(part, (0, 0), (CELL - 1, CELL // 2 - 1), BAD, 2)
    cv2.line(part, (0, 0), (CELL - 1, CELL // 2 - 1), BAD, 2)
    return part


def _paper(height: int, width: int) -> Image:
    return np.full((height, width, 3), PAPER, np.uint8)
