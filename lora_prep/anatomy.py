"""Where face, head and body should be, from a face's box and landmarks alone.

The geometry that masks are prompted with, judged by and started from. People are made of ellipses
here; their sizes were measured on hand-traced photographs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import Float

from lora_prep.types import BoolMask, Face, Region

Box: TypeAlias = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels; x1 and y1 are one past the last."""

Outline: TypeAlias = Float[np.ndarray, "_ 2"]
"""Corners of a closed polygon."""


def ellipse(down: float, half_width: float, half_height: float) -> Outline:
    """An ellipse as a polygon of 64 corners, its centre `down` below the origin."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return np.stack([half_width * np.cos(angle), down + half_height * np.sin(angle)], axis=1)


def symmetric(*right: tuple[float, float]) -> Outline:
    """A polygon from its right half, from the top to the bottom, and the mirror image of it."""
    half = np.array(right, np.float64)
    return np.concatenate([half, half[::-1] * (-1, 1)])


# In half widths and half heights of the face, from its centre, y down.
FACE = ellipse(0.0, 0.98, 1.0)
HEAD = ellipse(-0.3, 1.3, 1.3)
BODY = symmetric((0.62, 0.7), (0.68, 1.3), (2.1, 2.0), (2.85, 2.5), (2.95, 1000))


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a face is and how it is turned: its own ellipse, not the box around it."""

    x: float
    y: float
    half_width: float
    half_height: float
    roll: float
    """Radians, clockwise as seen."""

    @classmethod
    def of(cls, face: Face) -> "Frame":
        """From the box, and the line through the eyes where there are landmarks.

        The box around an ellipse with half axes a, b that is turned by r reaches
        √(a² cos² r + b² sin² r) to the sides and √(a² sin² r + b² cos² r) up and down; this is
        solved for a and b, with a / b held between .6 and 1 as it is badly conditioned near 45°.
        """
        roll = 0.0
        if face.landmarks:
            (left_x, left_y), (right_x, right_y) = face.landmarks[:2]
            roll = math.atan2(right_y - left_y, right_x - left_x)
        if abs(math.sin(roll)) < 1e-6:
            return cls(*face.centre, face.width / 2, face.height / 2, roll)
        across, down = (face.width / 2) ** 2, (face.height / 2) ** 2
        cos, sin = math.cos(roll) ** 2, math.sin(roll) ** 2
        a, b = across * cos - down * sin, down * cos - across * sin
        ratio = min(max(a / b, 0.36), 1.0) if a * b > 0 else 0.55
        half_height = math.sqrt((across + down) / (1 + ratio))
        return cls(*face.centre, half_height * math.sqrt(ratio), half_height, roll)

    def upright(self) -> "Frame":
        """The same, turned to the image's nearest axis: bodies hang straight down."""
        quarter = math.pi / 2
        roll = round(self.roll / quarter) * quarter
        return Frame(self.x, self.y, self.half_width, self.half_height, roll)

    def place(self, outline: Outline) -> Outline:
        """From half widths and half heights of the face to pixels of the image."""
        right, down = outline[:, 0] * self.half_width, outline[:, 1] * self.half_height
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        return np.stack(
            [self.x + right * cos - down * sin, self.y + right * sin + down * cos], axis=1
        )


def outlines(face: Face, region: Region) -> list[Outline]:
    """What the region of a face would look like if people were made of ellipses, in pixels.

    The face is an ellipse in the detector's box; the head is larger by the hair and the ears; the
    person has shoulders and a body that goes down beyond every image. They turn with the line
    through the eyes where the face has landmarks.
    """
    frame = Frame.of(face)
    if region is Region.FACE:
        return [frame.place(FACE)]
    head = frame.place(HEAD)
    return [head] if region is Region.HEAD else [head, frame.upright().place(BODY)]


def fill(
    shapes: Sequence[Outline],
    height: int,
    width: int,
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    scale: tuple[float, float] = (1.0, 1.0),
) -> BoolMask:
    """Pixels inside any of the polygons, and those that an outline runs through.

    Args:
        shapes: in pixels of the image.
        height: of the mask that is returned.
        width: of the mask that is returned.
        origin: the mask's upper left corner, x and y in pixels of the image.
        scale: pixels of the mask to a pixel of the image, in x and y.
    """
    canvas = np.zeros((height, width), np.uint8)
    for shape in shapes:
        # Pixel centres lie at halves; fillPoly takes coordinates with 4 binary digits of fraction.
        corners = np.clip((shape - origin) * scale - 0.5, -30_000, 30_000)
        cv2.fillPoly(canvas, [np.rint(corners * 16).astype(np.int32)], 1, shift=4)
    return canvas.view(np.bool_)


def region_box(face: Face, region: Region, height: int, width: int) -> Box:
    """A box around a face's region for a segmenter's prompt, inside the image.

    For the face the detector's own box; for head and person that of their `outlines`, which follow
    the tilt of the head. At least one pixel large.
    """
    x0, y0, x1, y1 = face.box
    if region is not Region.FACE:
        corners = np.concatenate(outlines(face, region))
        (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    left = min(max(math.floor(x0), 0), width - 1)
    top = min(max(math.floor(y0), 0), height - 1)
    right = max(min(math.ceil(x1), width), left + 1)
    bottom = max(min(math.ceil(y1), height), top + 1)
    return left, top, right, bottom
