"""diffusion-pipe, after its source of August 2026 (8f83dbf): utils/dataset.py, models/base.py.

Any file of the same stem in the flat `mask_path` is the mask; its red channel counts; EXIF
orientation is not applied to either. `ImageOps.fit` takes both to one of the aspect buckets; the
latents take the nearest pixel. loss = mean(e·m) over everything, so small masks learn slowly.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from lora_prep.dataset import file_names
from lora_prep.errors import ItemError
from lora_prep.trainers.folders import Folders, belongs
from lora_prep.trainers.pixels import (
    Picture,
    Size,
    orientation,
    read,
    remarks,
    rounded,
    seen,
    stopped,
    to_latents,
    unit,
    unmasked,
)
from lora_prep.trainers.view import Layout, Seen

STEP = 16
"""`pixels_round_to_multiple` of its pipelines."""
PASSED_OVER = (".txt", ".npz", ".json", ".parquet", ".bak", ".db")


def bucket(width: int, height: int, layout: Layout) -> Size:
    """The aspect ratio nearest on a logarithmic scale, at an area of the resolution squared."""
    ratios = [1.0]
    if layout.buckets:
        ratios = np.geomspace(layout.min_ratio, layout.max_ratio, layout.ratios).round(3).tolist()
    ratio = min(sorted(set(ratios)), key=lambda r: abs(math.log(width / height) - math.log(r)))
    wide = math.sqrt(layout.resolution**2 * ratio)
    return rounded(wide, STEP), rounded(layout.resolution**2 / wide, STEP)


def over_white(picture: Picture) -> Picture:
    """RGB; what is transparent becomes white."""
    if picture.mode == "RGBA" or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        canvas = PillowImage.new("RGBA", picture.size, (255, 255, 255))
        canvas.alpha_composite(picture)
        picture = canvas
    return picture.convert("RGB")


@dataclass(frozen=True)
class DiffusionPipe:
    """diffusion-pipe's view."""

    layout: Layout

    @cached_property
    def folders(self) -> Folders:
        """Its folders."""
        return Folders(self.layout)

    def names(self) -> list[str]:
        """Every file in the folder itself that does not end like something else."""
        found = {PurePosixPath(n).suffix.lower() for n in file_names(self.layout.images)}
        return self.folders.names(found - set(PASSED_OVER))

    def problems(self) -> list[str]:
        """A mask folder that is not there is an error at the start."""
        if self.folders.mask_folder_missing:
            return [f"RuntimeError at the start: Invalid mask_path: {self.layout.masks}"]
        return []

    def see(self, name: str) -> Seen:
        """Same stem, whatever the ending; without one it warns and trains on everything."""
        try:
            image = self.folders.image(name)
        except ItemError as error:
            return stopped(f"skipped with a warning: {error}")
        size = bucket(*image.size, self.layout)
        turned = orientation(image)

        def fit(picture: Picture) -> Picture:
            return ImageOps.fit(picture, size)

        notes = self._notes(name, turned)
        picture = fit(over_white(image))
        candidates = self.folders.of_stem(name)
        meant = belongs(self.folders.any_mask(name), image, fit, turned=turned)
        if not candidates:
            note = "no mask of this stem in mask_path: everything is trained, with a warning"
            if self.layout.masks is None:
                note = "no mask_path is set: everything is trained"
            return unmasked(picture, note=note, notes=notes, meant=meant)
        mask_file = candidates[-1]
        if len(candidates) > 1:
            notes += (f"{len(candidates)} masks of this stem: which one counts is left to chance",)
        try:
            mask = read(mask_file)
        except ItemError as error:
            return stopped(f"stops while caching: {error}", mask_file=mask_file, notes=notes)
        if mask.size != image.size:
            problem = (
                f"ValueError while caching: Mask shape {mask.size[::-1]} was not the same as "
                f"image shape {image.size[::-1]}"
            )
            return stopped(problem, mask_file=mask_file, notes=notes)
        aligned = unit(fit(mask.convert("RGB")).getchannel("R"))
        weights = to_latents(aligned, "nearest-exact")
        return seen(
            picture,
            aligned,
            weights,
            mask_file=mask_file,
            used=True,
            meant=meant,
            notes=(*notes, *remarks(mask)),
        )

    def _notes(self, name: str, turned: int) -> tuple[str, ...]:
        notes = []
        if turned != 1:
            notes.append(f"EXIF orientation {turned} is not applied: the image is trained lying")
        caption = (self.layout.images / name).with_suffix(".txt")
        if not self.layout.prepared and not caption.is_file():
            notes.append("no caption: left out of the training unless skip_empty_caption is false")
        return tuple(notes)
