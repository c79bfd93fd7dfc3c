"""Text on a picture, in any script where OpenCV brings its fonts along (5 or later)."""

import unicodedata
from collections.abc import Callable

import cv2
import numpy as np
from PIL import ImageFont

from lora_prep.types import Image

Colour = tuple[int, int, int]

_SANS = cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None
"""Latin, Greek, Cyrillic, Arabic, Chinese, Japanese, Korean and more; Pillow's own is ASCII."""
_WEIGHT = 400


def write(canvas: Image, at: tuple[int, int], text: str, colour: Colour, size: int) -> None:
    """Draw one line, the top of its letters at `at` (x, y), into an RGB canvas, in place."""
    left, top = at
    if _SANS is not None:
        cv2.putText(canvas, text, (left, top + size), colour, _SANS, size, _WEIGHT)
        return
    letters = _pillow(size).getmask(_ascii(text), "L")
    width, height = letters.size
    alpha = np.asarray(letters, np.float32).reshape(height, width, 1) / 255
    part = canvas[top : top + height, left : left + width]
    alpha = alpha[: part.shape[0], : part.shape[1]]
    part[:] = np.rint(part * (1 - alpha) + np.array(colour, np.float32) * alpha)


def width(text: str, size: int) -> int:
    """How many pixels a line takes."""
    if _SANS is not None:
        box = cv2.getTextSize((1 << 20, size), text, (0, size), _SANS, size, _WEIGHT)
        return int(box[2])
    return int(_pillow(size).getlength(_ascii(text)))


def fitted(text: str, size: int, room: int) -> str:
    """The text, or as much of it as fits before an ellipsis. Control codes become `?`."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if width(text, size) <= room:
        return text
    kept = _most(len(text), lambda n: width(f"{text[:n]}…", size) <= room)
    return f"{text[:kept].rstrip()}…"


def lines(text: str, size: int, room: int, most: int) -> list[str]:
    """Words broken into at most so many lines; what does not fit is left out of the last."""
    found: list[str] = []
    words = text.split()
    while words and len(found) < most:
        if len(found) == most - 1:
            return [*found, fitted(" ".join(words), size, room)]
        line = words.pop(0)
        while words and width(f"{line} {words[0]}", size) <= room:
            line += f" {words.pop(0)}"
        found.append(fitted(line, size, room))
    return found


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to the limit that fits, where all smaller ones do; 0 if none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _pillow(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow without FreeType"
    return font


def _ascii(text: str) -> str:
    """Without accents, other scripts as `?`: Pillow's own font has boxes for them."""
    plain = unicodedata.normalize("NFKD", text.replace("×", "x").replace("·", "-"))
    return "".join(c if c.isascii() else "?" for c in plain if not unicodedata.combining(c))
