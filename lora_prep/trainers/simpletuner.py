"""SimpleTuner, after its source of August 2026 (bc8e6ab): multiaspect/image.py, training_sample.py.

A `conditioning` data set of type `mask` beside the images': a mask for every image, of the same
name including the ending. Its red channel counts, EXIF orientation is applied to both, and the
mask takes the image's own steps. Latents: area. loss = mean(e·m). Set `crop_style` to `center`.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_prep.errors import ItemError
from lora_prep.trainers.folders import Folders, belongs
from lora_prep.trainers.pixels import (
    Fit,
    lanczos,
    middle,
    read,
    remarks,
    rounded,
    seen,
    stopped,
    to_latents,
    unit,
    unmasked,
    upright,
)
from lora_prep.trainers.view import Layout, Seen

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tiff", ".tif", ".jxl")
STEP = 64
"""`aspect_bucket_alignment`."""


def bucket(width: int, height: int, layout: Layout) -> Fit:
    """The image's aspect ratio to two decimals, at the resolution's area, in steps of 64.

    What is not quite a square, and has a ratio of 1.00 nevertheless, is cut out of the middle
    without being scaled down (`calculate_new_size_by_pixel_area`).
    """
    side = rounded(layout.resolution, STEP)
    ratio = max(round(width / height, 2), 0.01) if layout.buckets else 1.0
    if ratio == 1:
        whole = width == height or width < side
        return middle((side, side) if whole else (width, max(height, side)), (side, side))
    size = (rounded(side * math.sqrt(ratio), STEP), rounded(side / math.sqrt(ratio), STEP))
    if size[0] == size[1]:
        size = (side, side)
    wide, high = size if size[0] < size[1] else (int(size[1] * ratio), size[1])
    if size[0] < size[1]:
        high = int(wide / ratio)
    more = (size[0] - wide, size[1] - high)
    if more[0] > 0:
        wide, high = size[0], high + int(more[0] / ratio)
    elif more[1] > 0:
        wide, high = wide + int(more[1] * ratio), size[1]
    return middle((max(wide, size[0]), max(high, size[1])), size)


@dataclass(frozen=True)
class SimpleTuner:
    """SimpleTuner's view."""

    layout: Layout

    @cached_property
    def folders(self) -> Folders:
        """Its folders."""
        return Folders(self.layout)

    def names(self) -> list[str]:
        """Images in the folder and all folders in it."""
        return self.folders.names(SUFFIXES, recursive=True)

    def problems(self) -> list[str]:
        """Every image needs a mask, and the other way round."""
        if self.layout.masks is None:
            return []
        if self.folders.mask_folder_missing:
            return [f"stops: no folder {self.layout.masks}"]
        missing = [name for name in self.names() if self._mask(name) is None]
        if missing:
            return [f"stops: {len(missing)} images have no mask of the same name ({missing[0]})"]
        return []

    def see(self, name: str) -> Seen:
        """See the module."""
        layout = self.layout
        try:
            image = upright(read(layout.images / name))
        except ItemError as error:
            return stopped(f"stops, or left out: {error}")
        fit = bucket(*image.size, layout)
        picture = fit(image.convert("RGB"), lanczos)
        notes: tuple[str, ...] = ()
        if fit.scaled == image.size and min(image.size) > 1.25 * fit.size[0]:
            notes = (
                "nearly a square: cut out of the middle without being scaled down; crop it to an "
                "exact square",
            )
        mask_file = self._mask(name)
        source = mask_file or self.folders.any_mask(name)
        meant = belongs(source, image, lambda p: fit(p, lanczos))
        if mask_file is None:
            if layout.masks is None:
                note = "no conditioning data set: everything is trained"
                return unmasked(picture, note=note, notes=notes, meant=meant)
            problem = f"stops: no mask named {name}, ending included"
            return unmasked(picture, problem=problem, notes=notes, meant=meant)
        try:
            mask = upright(read(mask_file))
        except ItemError as error:
            return stopped(f"stops: {error}", mask_file=mask_file)
        notes += remarks(mask)
        if mask.size != image.size:
            notes += (f"a mask of {mask.width}×{mask.height} px is scaled to the image's size",)
        aligned = unit(fit(mask.convert("RGB").getchannel("R"), lanczos))
        return seen(
            picture,
            aligned,
            to_latents(aligned, "area"),
            mask_file=mask_file,
            used=True,
            meant=meant,
            notes=notes,
        )

    def _mask(self, name: str) -> Path | None:
        if self.layout.prepared:
            return self.folders.prepared_mask(name)
        path = self.layout.masks and self.layout.masks / name
        return path if path and path.is_file() else None
