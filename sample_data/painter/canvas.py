"""A canvas that polygons are painted on, with exact pixel coverage.

Coordinates are continuous, x to the right and y down: pixel (row, column) covers the square from
(column, row) to (column + 1, row + 1). Colours are sRGB from 0 to 1.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from sample_data.painter.curves import Points

Array = NDArray[np.float32]
SUBSAMPLES = 4
"""Coverage is counted on a grid of SUBSAMPLES × SUBSAMPLES points a pixel."""


@dataclass(frozen=True, slots=True)
class Patch:
    """How much of each pixel a shape covers, from 0 to 1, inside a window of the canvas."""

    x: int
    y: int
    alpha: Array

    @property
    def rows(self) -> slice:
        """The window's rows."""
        return slice(self.y, self.y + self.alpha.shape[0])

    @property
    def columns(self) -> slice:
        """The window's columns."""
        return slice(self.x, self.x + self.alpha.shape[1])

    def within(self, other: "Patch") -> "Patch":
        """The part of this shape that lies inside the other."""
        x0, y0 = max(self.x, other.x), max(self.y, other.y)
        x1 = max(x0, min(self.columns.stop, other.columns.stop))
        y1 = max(y0, min(self.rows.stop, other.rows.stop))
        mine = self.alpha[y0 - self.y : y1 - self.y, x0 - self.x : x1 - self.x]
        theirs = other.alpha[y0 - other.y : y1 - other.y, x0 - other.x : x1 - other.x]
        return Patch(x0, y0, mine * theirs)

    def times(self, factor: Array | float) -> "Patch":
        """This shape, thinned by a factor for all pixels or for each."""
        return Patch(self.x, self.y, self.alpha * np.float32(factor))

    def mask(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """The pixels of the canvas of which the shape covers at least half."""
        mask = np.zeros(shape, bool)
        mask[self.rows, self.columns] = self.alpha >= 0.5
        return mask


class Canvas:
    """The picture while it is painted: `pixels` is (height, width, 3) float32."""

    def __init__(self, pixels: Array) -> None:
        self.pixels = pixels

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def cover(self, *outlines: Points, soft: float = 0.0) -> Patch:
        """What closed outlines cover, counted even-odd; `soft` blurs it, as a sigma in pixels.

        cv2 counts the points on an outline as inside: a shape is an eighth of a pixel too large.
        """
        corners = np.concatenate(outlines)
        margin = 1 + int(3 * soft)
        height, width = self.shape
        x0, y0 = np.floor(corners.min(axis=0)).astype(int) - margin
        x1, y1 = np.ceil(corners.max(axis=0)).astype(int) + margin
        # The blur needs what lies just outside the canvas; nothing needs more.
        left, top = max(x0, -margin), max(y0, -margin)
        right, bottom = min(x1, width + margin), min(y1, height + margin)
        if right <= max(left, 0) or bottom <= max(top, 0) or left >= width or top >= height:
            return Patch(0, 0, np.zeros((0, 0), np.float32))
        n = SUBSAMPLES if soft < 1 else 1
        fine = np.zeros(((bottom - top) * n, (right - left) * n), np.uint8)
        scaled = [(outline - (left, top)) * n - 0.5 for outline in outlines]
        cv2.fillPoly(fine, [np.rint(p * 16).astype(np.int32) for p in scaled], 255, cv2.LINE_8, 4)
        alpha = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
        if soft > 0:
            alpha = cv2.GaussianBlur(alpha, (0, 0), soft)
        x, y = max(left, 0), max(top, 0)
        inside = alpha[y - top : height - top, x - left : width - left]
        return Patch(x, y, inside.astype(np.float32) / np.float32(255))

    def paint(self, patch: Patch, colour: Array | tuple[float, float, float]) -> None:
        """Lay a colour, (3,) or one for each pixel of the patch, over what is there."""
        if patch.alpha.size == 0:
            return
        under = self.pixels[patch.rows, patch.columns]
        under += patch.alpha[..., None] * (np.asarray(colour, np.float32) - under)

    def darken(self, patch: Patch, amount: float) -> None:
        """Multiply by 1 − amount where the patch is full; a negative amount lightens."""
        self.pixels[patch.rows, patch.columns] *= 1 - np.float32(amount) * patch.alpha[..., None]


def grow(small: Array, height: int, width: int) -> Array:
    """A small array of colours or weights, stretched smoothly."""
    large: Array = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return large


TILE = 1024


@cache
def _tile(kind: str) -> Array:
    """A square of noise, the same in every process: mean 0, standard deviation 1, wraps around."""
    rng = np.random.default_rng(20240607)
    white = rng.standard_normal((TILE, TILE)).astype(np.float32)
    if kind == "grain":
        return white
    wrapped = np.pad(white, 96, mode="wrap")
    sigma_x, sigma_y = {"strands": (0.7, 22.0), "cloth": (1.2, 1.2), "clouds": (14.0, 14.0)}[kind]
    blurred = cv2.GaussianBlur(wrapped, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)[96:-96, 96:-96]
    return np.ascontiguousarray((blurred - blurred.mean()) / blurred.std())


def noise(
    kind: str,
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    angle: float = 0.0,
    zoom: float = 1.0,
) -> Array:
    """Noise (height, width), mean 0, standard deviation about 1, from a random place of a tile.

    `kind` is grain, cloth, clouds, or strands (which run down the picture); `angle` in degrees
    turns it clockwise, `zoom` enlarges it.
    """
    x, y = (float(v) for v in rng.uniform(0, TILE, 2))
    if angle == 0 and zoom == 1 and shape[0] < TILE and shape[1] < TILE:
        rows, columns = np.arange(shape[0]) + int(y), np.arange(shape[1]) + int(x)
        tile = _tile(kind)
        return tile.take(rows, axis=0, mode="wrap").take(columns, axis=1, mode="wrap")
    turn = np.deg2rad(angle)
    cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
    inverse = np.array([[cos, sin, x], [-sin, cos, y]])
    result: Array = cv2.warpAffine(
        _tile(kind),
        inverse,
        (shape[1], shape[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_WRAP,
    )
    return result
