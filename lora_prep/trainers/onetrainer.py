"""OneTrainer, after its source of August 2026 (23df383) and mgds (3a6994a).

`<stem>-masklabel.png` beside the image, as grey, EXIF orientation applied; without one everything
is trained. Image and mask are scaled to cover the nearest aspect bucket, bilinear, each from its
own size, and cut alike; the mask goes on to the latents by an antialiased 1/8. c = clamp(m,
unmasked_weight, 1), loss = mean(e·c), divided by mean(c) with `normalize_masked_area_loss`.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image as PillowImage

from lora_prep.errors import ItemError
from lora_prep.trainers.folders import Folders, belongs
from lora_prep.trainers.pixels import (
    Fit,
    Picture,
    bilinear,
    middle,
    read,
    remarks,
    rounded,
    seen,
    stopped,
    to_latents,
    unmasked,
    upright,
)
from lora_prep.trainers.view import Layout, Seen

SUFFIXES = (".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".avif", ".jxl")
POSTFIX = "-masklabel"
STEP = 64
"""Quantization of its buckets, for most models."""
ASPECTS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)


def bucket(width: int, height: int, layout: Layout) -> Fit:
    """The nearest height over width of `ASPECTS` and their inverses, at the resolution's area."""
    side = layout.resolution
    sizes = [(rounded(side, STEP), rounded(side, STEP))]
    if layout.buckets:
        long = [side * math.sqrt(a) for a in ASPECTS]
        pairs = [(rounded(side * side / x, STEP), rounded(x, STEP)) for x in long]
        sizes = sorted({*pairs, *((b, a) for a, b in pairs)})
    aspect = height / width
    size = min(sizes, key=lambda s: abs(s[1] / s[0] - aspect))
    if aspect > size[1] / size[0]:
        return middle((size[0], round(height * size[0] / width)), size)
    return middle((round(width * size[1] / height), size[1]), size)


@dataclass(frozen=True)
class OneTrainer:
    """OneTrainer's view."""

    layout: Layout

    @cached_property
    def folders(self) -> Folders:
        """Its folders."""
        return Folders(self.layout)

    def names(self) -> list[str]:
        """Images in the folder itself that are no masks."""
        found = self.folders.names(SUFFIXES)
        return [n for n in found if not PurePosixPath(n).stem.endswith((POSTFIX, "-condlabel"))]

    def problems(self) -> list[str]:
        """It says nothing about masks at the start."""
        if not self.layout.masked_loss:
            return ["masked_training is not set: no mask is looked for"]
        return []

    def see(self, name: str) -> Seen:
        """See the module."""
        layout = self.layout
        path = layout.images / name
        try:
            image = upright(read(path))
        except ItemError as error:
            return stopped(f"stops: {error}")
        fit = bucket(*image.size, layout)
        picture = fit(image.convert("RGB"), bilinear)
        mask_file = self._mask(name)
        source = mask_file or self.folders.any_mask(name)
        meant = belongs(source, image, lambda p: fit(p, bilinear))
        if mask_file is None or not layout.masked_loss:
            note = f"no {path.stem}{POSTFIX}.png beside the image: everything is trained"
            if not layout.masked_loss:
                note = "masked_training is not set: everything is trained"
            return unmasked(picture, note=note, meant=meant)
        try:
            mask = upright(read(mask_file))
        except ItemError as error:
            return stopped(f"stops: {error}", mask_file=mask_file)
        notes = _remarks(mask)
        if mask.size != image.size:
            notes += (f"a mask of {mask.width}×{mask.height} px is scaled to the image's size",)
        aligned = np.asarray(fit(_values(mask), bilinear))
        weights = np.clip(to_latents(aligned, "bilinear"), layout.unmasked_weight, 1)
        mean = float(weights.mean())
        return seen(
            picture,
            np.clip(aligned, 0, 1),
            weights,
            mask_file=mask_file,
            used=True,
            meant=meant,
            scale=1 / mean if layout.normalize and mean else 1.0,
            notes=notes,
        )

    def _mask(self, name: str) -> Path | None:
        if self.layout.prepared:
            return self.folders.prepared_mask(name)
        image = self.layout.images / name
        path = image.with_name(f"{image.stem}{POSTFIX}.png")
        return path if path.is_file() else None


def _values(mask: Picture) -> Picture:
    """Grey over 255, mode F. torchvision leaves 16 bits as they are: they go far above 1."""
    if mask.mode.startswith("I"):
        return PillowImage.fromarray(np.asarray(mask, np.float32) / np.float32(255))
    grey = mask.convert("RGB").convert("L") if mask.mode != "L" else mask
    return PillowImage.fromarray(np.asarray(grey, np.float32) / np.float32(255))


def _remarks(mask: Picture) -> tuple[str, ...]:
    if mask.mode.startswith("I"):
        return ("the mask has 16 bits: everything from 255 of 65535 on is white",)
    return remarks(mask)
