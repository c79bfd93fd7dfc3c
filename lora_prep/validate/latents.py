"""A mask as the training sees it: scaled to the resolution, then to 1/8 or 1/16 of it."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from lora_prep.types import Mask

ASPECTS = tuple(2 ** (i / 3 - 1) for i in range(7))
"""The aspect ratios of diffusion-pipe's usual buckets: seven in even steps from 1:2 to 2:1."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How a picture is scaled for training, from its stored size."""

    width: int
    height: int
    scale: float
    """Pixels in training to a pixel of the file: 1 or less."""

    @classmethod
    def of(cls, width: int, height: int, resolution: int) -> "Grid":
        """For a trainer that scales larger pictures down to an area of `resolution` squared.

        Those that scale smaller ones up, too, see more of a mask, never less.
        """
        return cls(width, height, min(1.0, resolution / math.sqrt(width * height)))

    def cell(self, factor: int) -> float:
        """Side of one element of the latents, in pixels of the file."""
        return factor / self.scale

    def may_vanish(self, weight: float, box: tuple[int, int, int, int] | None) -> bool:
        """Whether a mask is worth a closer look: small, or thin within its box."""
        if box is None:
            return False
        x0, y0, x1, y1 = box
        sides = min(x1 - x0, y1 - y0)
        thin = weight < 0.3 * (x1 - x0) * (y1 - y0)
        return thin or sides < 3 * self.cell(16)

    def peak(self, mask: Mask, factor: int) -> float:
        """The largest weight, 0 to 1, after scaling by area to 1/`factor`."""
        width = max(round(self.width * self.scale / factor), 1)
        height = max(round(self.height * self.scale / factor), 1)
        small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
        return float(small.max()) / 255

    def specks(self, mask: Mask) -> int:
        """White islands that are smaller than one element at 1/8, where there is a larger one."""
        x, y, width, height = cv2.boundingRect(mask)
        if not width or not height:
            return 0
        white = (mask[y : y + height, x : x + width] >= 128).view(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(white, connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        limit = self.cell(8) ** 2
        return int((areas < limit).sum()) if (areas >= limit).any() else 0


def lost_to_bucket(
    width: int, height: int, box: tuple[float, float, float, float]
) -> tuple[float, float]:
    """How much of a box is cut away by a crop about the centre to the nearest bucket's shape.

    Returns the share of the box's area, 0 to 1, and the bucket's aspect ratio (width / height).
    """
    ratio = width / height
    aspect = min(ASPECTS, key=lambda a: abs(math.log(a / ratio)))
    kept_width, kept_height = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    x0, y0, x1, y1 = box
    area = (x1 - x0) * (y1 - y0)
    inside_x = min(x1, left + kept_width) - max(x0, left)
    inside_y = min(y1, top + kept_height) - max(y0, top)
    if area <= 0:
        return 0.0, aspect
    return 1 - max(inside_x, 0.0) * max(inside_y, 0.0) / area, aspect
