"""Small values that travel between the layers. Images and masks stay NumPy arrays."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8

Image: TypeAlias = UInt8[np.ndarray, "height width 3"]
"""sRGB, 8 bit, rows from the top, upright (orientation applied)."""

Mask: TypeAlias = UInt8[np.ndarray, "height width"]
"""Training weight of each pixel: 255 = train, 0 = ignore."""

BoolMask: TypeAlias = Bool[np.ndarray, "height width"]
"""True inside."""

Json: TypeAlias = Any
"""A value that `json` can write."""

Point: TypeAlias = tuple[float, float]


class Region(StrEnum):
    """What a mask covers."""

    FACE = "face"
    HEAD = "head"
    PERSON = "person"


@dataclass(frozen=True, slots=True)
class Face:
    """A detected face, in pixels of the upright image (x to the right, y down)."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1; pixel edges, so the width is x1 - x0. May reach over the image's border."""

    score: float
    """The detector's confidence, 0 to 1. Comparable only within one detector."""

    landmarks: tuple[Point, Point, Point, Point, Point] | None = None
    """Centre of the eye on the image's left, eye on its right, nose tip, mouth corner on the
    image's left, mouth corner on its right: insightface's order. None where the detector has none.
    They count from pixel centres, as OpenCV does: (0, 0) is the middle of the first pixel, which is
    (0.5, 0.5) as the box counts. In an image mirrored to `width`, x becomes width - 1 - x."""

    @property
    def width(self) -> float:
        """Width of the box in pixels."""
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        """Height of the box in pixels."""
        return self.box[3] - self.box[1]

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return self.width * self.height

    @property
    def centre(self) -> Point:
        """Centre of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def to_json(self) -> dict[str, Json]:
        """This face as JSON values, coordinates rounded to a hundredth of a pixel."""
        return {
            "box": [round(v, 2) for v in self.box],
            "score": round(self.score, 4),
            "landmarks": self.landmarks and [[round(x, 2), round(y, 2)] for x, y in self.landmarks],
        }

    @classmethod
    def from_json(cls, value: Json) -> "Face":
        """The face that `to_json` wrote. Raises KeyError, TypeError or ValueError on others."""
        x0, y0, x1, y1 = (float(v) for v in value["box"])
        points = value["landmarks"]
        if points is not None:
            a, b, c, d, e = ((float(x), float(y)) for x, y in points)
            points = (a, b, c, d, e)
        return cls((x0, y0, x1, y1), float(value["score"]), points)


class Severity(StrEnum):
    """How bad an issue is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Issue:
    """Something that a check found."""

    code: str
    """Stable, like a linter's: a letter for the family and three digits."""
    severity: Severity
    path: str
    """Relative to the data set's root, with forward slashes."""
    message: str
    fix: str
    """What to do about it."""


class Status(StrEnum):
    """How an item ended."""

    DONE = "done"
    """Computed and written now."""
    FRESH = "fresh"
    """Nothing to do: same input, same settings, and the output is what was written."""
    KEPT = "kept"
    """An output exists that lora-prep did not write: it was left alone."""
    SKIPPED = "skipped"
    """Left out on request, and nothing was written."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one item ended, and what to tell about it."""

    key: str
    """The item: its input's path relative to the data set's root, with forward slashes."""
    status: Status
    code: str = ""
    """For failures and skips: a short stable word, such as `no-face`."""
    message: str = ""
    info: dict[str, Json] | None = None
    """Facts about the result (coverage, number of faces, ...)."""
    warnings: tuple[str, ...] = ()
