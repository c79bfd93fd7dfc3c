"""Aspect buckets, and the one crop that an image, its mask and its landmarks share.

A model is trained on a few sizes of about the same area. Each image goes to the size whose aspect
ratio is nearest, is scaled to cover it, and what sticks out is cut off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from lora_prep.errors import UsageError
from lora_prep.types import Image, Mask


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A size in pixels."""

    width: int
    height: int

    @property
    def ratio(self) -> float:
        """Width over height."""
        return self.width / self.height


def buckets(
    resolution: int, *, step: int = 64, min_ratio: float = 0.5, max_ratio: float = 2.0
) -> tuple[Bucket, ...]:
    """Sizes of at most `resolution`² pixels, both sides multiples of `step`, as large as that lets.

    As kohya's sd-scripts makes them: for each width the greatest height that fits, and its mirror
    image, within the ratios. Raises UsageError where a number makes no sense.
    """
    if step < 1 or resolution < step or not 0 < min_ratio <= 1 <= max_ratio:
        raise UsageError(
            f"no bucket fits: resolution {resolution} has to be at least the step {step}, and the "
            f"ratios {min_ratio} to {max_ratio} have to enclose 1"
        )
    found = set()
    side = resolution // step * step
    found.add(Bucket(side, side))
    for width in range(step, resolution * 4, step):
        height = resolution * resolution // width // step * step
        if height < step:
            break
        for bucket in (Bucket(width, height), Bucket(height, width)):
            if min_ratio <= bucket.ratio <= max_ratio:
                found.add(bucket)
    return tuple(sorted(found))


def nearest(sizes: Sequence[Bucket], width: int, height: int) -> Bucket:
    """The bucket whose aspect ratio is nearest on a logarithmic scale; of equal ones the larger."""
    ratio = math.log(width / height)
    return min(sizes, key=lambda b: (abs(math.log(b.ratio) - ratio), -b.width * b.height, b))


@dataclass(frozen=True, slots=True)
class Crop:
    """Image pixels to bucket pixels: scale, cut, and mirror."""

    source: tuple[int, int]
    """Width and height of the image."""
    scaled: tuple[int, int]
    """Width and height after scaling; at least the bucket's."""
    left: int
    top: int
    bucket: Bucket
    flip: bool = False

    @classmethod
    def of(
        cls,
        width: int,
        height: int,
        bucket: Bucket,
        *,
        at: tuple[float, float] = (0.5, 0.5),
        centre: tuple[float, float] | None = None,
        flip: bool = False,
    ) -> "Crop":
        """Scale to cover the bucket; cut at `at`, a fraction of what sticks out in x and in y.

        With `centre`, a point of the image, the cut is made so that this point comes as near to the
        bucket's middle as it can.
        """
        scale = max(bucket.width / width, bucket.height / height)
        scaled = (
            max(round(width * scale), bucket.width),
            max(round(height * scale), bucket.height),
        )
        spare = scaled[0] - bucket.width, scaled[1] - bucket.height
        if centre is None:
            left, top = round(spare[0] * at[0]), round(spare[1] * at[1])
        else:
            left = round(centre[0] * scaled[0] / width - bucket.width / 2)
            top = round(centre[1] * scaled[1] / height - bucket.height / 2)
        left, top = min(max(left, 0), spare[0]), min(max(top, 0), spare[1])
        return cls((width, height), scaled, left, top, bucket, flip)

    def image(self, image: Image) -> UInt8[np.ndarray, "h w 3"]:
        """The image as trained on. Lanczos upwards and area averages downwards."""
        smaller = self.scaled[0] < self.source[0]
        how = cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4
        trained: Image = self._cut(_resized(image, self.scaled, how))
        return trained

    def mask(self, mask: Mask) -> Float[np.ndarray, "h w"]:
        """The mask's weights, float32 from 0 to 1, by area averages: coverage is kept."""
        smaller = self.scaled[0] < self.source[0]
        how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        grey = self._cut(_resized(mask.astype(np.float32), self.scaled, how))
        # In steps of 1/256 of a grey level, so that white stays exactly 1 whatever was averaged.
        weights: Float[np.ndarray, "h w"] = np.rint(grey * 256) / np.float32(255 * 256)
        return weights

    def points(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Points x, y, where 0 is the middle of the first pixel, as detectors and OpenCV count.

        When mirrored, the order of the points stays as it is: see `landmarks`.
        """
        factor = np.array(self.scaled, np.float64) / self.source
        moved = (points + 0.5) * factor - 0.5 - (self.left, self.top)
        if self.flip:
            moved[:, 0] = self.bucket.width - 1 - moved[:, 0]
        return moved

    def landmarks(self, landmarks: Float[np.ndarray, "5 2"]) -> Float[np.ndarray, "5 2"]:
        """The five landmarks, in their order: mirrored, the left eye has become the right one."""
        moved = self.points(landmarks)
        return moved[[1, 0, 2, 4, 3]] if self.flip else moved

    def _cut(self, array: Any) -> Any:
        part = array[
            self.top : self.top + self.bucket.height, self.left : self.left + self.bucket.width
        ]
        return np.ascontiguousarray(part[:, ::-1] if self.flip else part)


def _resized(
    array: UInt8[np.ndarray, "_ _ 3"] | Float[np.ndarray, "_ _"], size: tuple[int, int], how: int
) -> Any:
    if (array.shape[1], array.shape[0]) == size:
        return array
    return cv2.resize(array, size, interpolation=how)
