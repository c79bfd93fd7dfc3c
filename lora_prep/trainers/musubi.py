"""musubi-tuner, after its source of June 2026 (30c658c): it has no masked loss.

Images are scaled to cover the nearest of its aspect buckets and cut about the middle; EXIF
orientation is not applied.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from lora_prep.errors import ItemError
from lora_prep.trainers.folders import Folders, belongs
from lora_prep.trainers.pixels import (
    Fit,
    Picture,
    area_or_lanczos,
    cover,
    half_up,
    orientation,
    stopped,
    unmasked,
)
from lora_prep.trainers.view import Layout, Seen

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
STEP = 16
"""Of most of its image models."""


def bucket(width: int, height: int, layout: Layout) -> Fit:
    """Widths from half the side to the side in steps of 16, the heights that fill the area."""
    area = layout.resolution**2
    size = (layout.resolution, layout.resolution)
    if layout.buckets:
        sizes = set()
        side = math.isqrt(area)
        for wide in range(side // 2 // STEP * STEP, side + STEP, STEP):
            high = area // max(wide, STEP) // STEP * STEP
            sizes |= {(wide, high), (high, wide)}
        ratio = width / height
        size = min(sorted(s for s in sizes if all(s)), key=lambda s: abs(s[0] / s[1] - ratio))
    return cover((width, height), size, half_up)


@dataclass(frozen=True)
class Musubi:
    """musubi-tuner's view."""

    layout: Layout

    @cached_property
    def folders(self) -> Folders:
        """Its folders."""
        return Folders(self.layout)

    def names(self) -> list[str]:
        """Images in the folder itself."""
        return self.folders.names(SUFFIXES)

    def problems(self) -> list[str]:
        """None: that it uses no mask is said of each image."""
        return []

    def see(self, name: str) -> Seen:
        """Without a mask, whatever there is."""
        try:
            image = self.folders.image(name)
        except ItemError as error:
            return stopped(f"stops: {error}")
        turned = orientation(image)
        fit = bucket(*image.size, self.layout)

        def cut(picture: Picture) -> Picture:
            return fit(picture, area_or_lanczos)

        note = "musubi-tuner has no masked loss: everything is trained"
        notes = (f"EXIF orientation {turned} is not applied",) if turned != 1 else ()
        meant = belongs(self.folders.any_mask(name), image, cut, turned=turned)
        return unmasked(cut(image.convert("RGB")), note=note, notes=notes, meant=meant)
