"""ai-toolkit, after its source of August 2026 (27a03a9): toolkit/buckets.py, dataloader_mixins.py.

`mask_path/<stem>` with .jpg, .jpeg, .png or .webp, in this order, flat even for images in
sub-folders; or, with `alpha_mask`, the image's own alpha. Grey counts, black weighs
`mask_min_value`; EXIF orientation is applied. A mask of another size is scaled silently. Latents:
the nearest pixel. m ← m/mean(m) over the batch, then mean(e·m): a batch of black masks is NaN, and
an image without a mask among images with one gets zeros. The blur by up to 0.5 % of the shorter
side, which it draws at random, is left out here.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from lora_prep.errors import ItemError
from lora_prep.trainers.folders import Folders, belongs
from lora_prep.trainers.pixels import (
    Fit,
    Picture,
    Size,
    bicubic,
    ceiling,
    cover,
    read,
    remarks,
    seen,
    stopped,
    to_latents,
    unit,
    unmasked,
    upright,
)
from lora_prep.trainers.view import Layout, Seen

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
STEP = 64
"""`bucket_tolerance`."""

_WIDE = (
    "2048x512 1984x512 1920x512 1856x512 1792x576 1728x576 1664x576 1600x640 1536x640 1472x704 "
    "1408x704 1344x704 1344x768 1280x768 1216x832 1152x832 1152x896 1088x896 1088x960 1024x960 "
    "8192x128"
)
_PAIRS = [(int(a), int(b)) for a, _, b in (text.partition("x") for text in _WIDE.split())]
SDXL: tuple[Size, ...] = ((1024, 1024), *_PAIRS, *((b, a) for a, b in _PAIRS))
"""The sizes that SDXL was trained on, at 1024 squared."""


def bucket(width: int, height: int, resolution: int) -> Fit:
    """The size of SDXL's, scaled, of which the least has to be cut off; small images stay small."""
    scale = min(resolution, int((width * height) ** 0.5)) / 1024

    def fitting(side: int) -> int:
        return int(side * scale) // STEP * STEP

    def cut_off(size: Size) -> int:
        larger = max(size[0] / width, size[1] / height)
        wide, high = int(width * larger), int(height * larger)
        return (wide - size[0]) * high + (high - size[1]) * wide

    sizes = [size for size in ((fitting(w), fitting(h)) for w, h in SDXL) if all(size)]
    if (width, height) in sizes:
        best = (width, height)
    else:
        best = min(sizes or [(STEP, STEP)], key=cut_off)
    return cover((width, height), best, ceiling)


@dataclass(frozen=True)
class AiToolkit:
    """ai-toolkit's view."""

    layout: Layout

    @cached_property
    def folders(self) -> Folders:
        """Its folders."""
        return Folders(self.layout)

    def names(self) -> list[str]:
        """Images in the folder and all folders in it."""
        return self.folders.names(SUFFIXES, recursive=True)

    def problems(self) -> list[str]:
        """Masks that it would take for images; a mask folder that is not there."""
        layout = self.layout
        if layout.masks is None:
            return []
        images, masks = Path(os.path.realpath(layout.images)), Path(os.path.realpath(layout.masks))
        if images == masks or images in masks.parents:
            return [
                f"the masks are trained as images: {masks.name} lies in folder_path, which is "
                "searched with all its sub-folders; put it beside the images"
            ]
        if self.folders.mask_folder_missing:
            return [f"no folder {layout.masks}: everything is trained, without a word"]
        return []

    def see(self, name: str) -> Seen:
        """See the module."""
        layout = self.layout
        try:
            image = upright(read(layout.images / name))
        except ItemError as error:
            return stopped(f"left out, or stops: {error}")
        fit = bucket(*image.size, layout.resolution)
        picture = fit(image.convert("RGB"), bicubic)
        meant = belongs(self.folders.any_mask(name), image, lambda p: fit(p, bicubic))
        notes: tuple[str, ...] = ()
        mask_file = layout.images / name if layout.alpha_mask else self._mask(name)
        if mask_file is None:
            return self._without(picture, meant)
        try:
            mask = image if layout.alpha_mask else upright(read(mask_file))
        except ItemError as error:
            return stopped(f"stops: {error}", mask_file=mask_file)
        if layout.alpha_mask:
            if mask.mode != "RGBA":
                problem = f"stops: alpha_mask is set, and the image is {mask.mode}, not RGBA"
                return stopped(problem, mask_file=mask_file)
            grey = mask.getchannel("A")
        else:
            notes = remarks(mask)
            grey = mask.convert("RGB").convert("L")
        if grey.size != image.size:
            notes += (f"a mask of {grey.width}×{grey.height} px is scaled to the image's size",)
        aligned = unit(fit(grey, bicubic))
        if meant is None:
            meant = aligned
        low = layout.mask_min_value
        weights = low + (1 - low) * to_latents(aligned, "nearest")
        mean = float(weights.mean())
        problem = "" if mean else "NaN: the mask is black, and it divides by its mean"
        return seen(
            picture,
            aligned,
            weights,
            mask_file=mask_file,
            used=True,
            meant=meant,
            scale=1 / mean if mean else 0.0,
            notes=notes,
            problem=problem,
        )

    def _mask(self, name: str) -> Path | None:
        """Its own order of endings, in lower case only."""
        found = {p.name: p for p in self.folders.of_stem(name)}
        stem = PurePosixPath(name).stem
        return next((found[stem + s] for s in SUFFIXES if stem + s in found), None)

    def _without(self, picture: Picture, meant: Float[np.ndarray, "H W"] | None) -> Seen:
        layout = self.layout
        if layout.masks is None:
            return unmasked(picture, note="no mask_path is set: everything is trained", meant=meant)
        note = "no mask .jpg, .jpeg, .png or .webp of this stem: everything is trained, in silence"
        if layout.batch_size == 1 or not self.folders.masks:
            return unmasked(picture, note=note, meant=meant)
        black = np.zeros((picture.height, picture.width), np.float32)
        return seen(
            picture,
            black,
            to_latents(black, "nearest"),
            mask_file=None,
            used=False,
            meant=None,
            scale=0.0,
            problem="no mask: in a batch with masked images its weights are all 0, and nothing of "
            "it is learned",
        )
