"""kohya's sd-scripts, after its source of February 2026 (48d368f): library/train_util.py.

Two routes. RGBA: with the subset's `alpha_mask`, an image's own alpha is its mask, and takes every
step with it. Mask folder (`conditioning_data_dir` with `--masked_loss`): the image is scaled to
cover its bucket and cut, the mask is stretched to it, so that they lie differently wherever the
image's shape is not its bucket's (mended upstream after that snapshot); missing and extra masks
stop the training. EXIF orientation is not applied. Latents: area. loss = mean(e·m) an image.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from lora_prep.errors import ItemError
from lora_prep.trainers.folders import Folders, belongs
from lora_prep.trainers.pixels import (
    Fit,
    Picture,
    Size,
    area_or_lanczos,
    cover,
    half_up,
    lanczos,
    middle,
    orientation,
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

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
STEP = 64
SMALLEST = 256
"""`min_bucket_reso`."""


def buckets(layout: Layout) -> list[Size]:
    """Every width in steps of 64 and the greatest height within the area, and the mirror images."""
    area = layout.resolution**2
    side = int(math.sqrt(area) // STEP) * STEP
    sizes = {(side, side)}
    if layout.buckets:
        largest = max(layout.max_bucket, layout.resolution)
        for width in range(SMALLEST, largest + 1, STEP):
            height = min(largest, area // width // STEP * STEP)
            if height >= SMALLEST:
                sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def bucket(width: int, height: int, layout: Layout) -> Fit:
    """An image of a bucket's very size stays as it is; others go to the nearest aspect ratio.

    Raises ItemError where `bucket_no_upscale` leaves a side that is less than a bucket's.
    """
    if layout.buckets and layout.no_upscale:
        scaled = _shrunk(width, height, layout.resolution**2)
        if min(scaled) < STEP:
            raise ItemError(
                f"with bucket_no_upscale, {width}×{height} px have no bucket: one side would be "
                f"less than {STEP} px",
                code="too-small",
            )
        return middle(scaled, (_steps(scaled[0]), _steps(scaled[1])))
    if not layout.buckets:
        size = (layout.resolution, layout.resolution)
    else:
        sizes = buckets(layout)
        ratio = width / height
        nearest = min(sizes, key=lambda s: abs(s[0] / s[1] - ratio))
        size = (width, height) if (width, height) in sizes else nearest
    return cover((width, height), size, half_up)


def longest_side(resolution: int) -> int:
    """`max_bucket_reso` as `lora-prep export` sets it: sd-scripts' 1024 cuts tall images."""
    return 2 * resolution


def large_enough(width: int, height: int, layout: Layout) -> Size:
    """What `lora-prep export` enlarges an image to, so that no bucket is larger."""
    size = (width, height)
    for _ in range(4):  # the rounded size may fall to the next bucket
        wanted = bucket(*size, layout).scaled
        if wanted[0] <= size[0] and wanted[1] <= size[1]:
            break
        size = wanted
    return size


def _shrunk(width: int, height: int, area: int) -> Size:
    """For `bucket_no_upscale`: at most the area, one side in steps, the one that fits better."""
    if width * height <= area:
        return width, height
    ratio = width / height
    wide = _steps(int(math.sqrt(area * ratio) + 0.5))
    high = _steps(int(math.sqrt(area / ratio) + 0.5))
    by_width = wide / _steps(int(wide / ratio + 0.5))
    by_height = _steps(int(high * ratio + 0.5)) / high
    if abs(by_width - ratio) < abs(by_height - ratio):
        return wide, int(wide / ratio + 0.5)
    return int(high * ratio + 0.5), high


def _steps(side: int) -> int:
    return max(side // STEP * STEP, STEP)


@dataclass(frozen=True)
class Kohya:
    """sd-scripts' view."""

    layout: Layout

    @cached_property
    def folders(self) -> Folders:
        """Its folders."""
        return Folders(self.layout)

    def names(self) -> list[str]:
        """Images in the folder itself."""
        return self.folders.names(SUFFIXES)

    @cached_property
    def _mask_route(self) -> bool:
        return self.layout.masks is not None and not self.layout.alpha_mask

    def problems(self) -> list[str]:
        """It asserts that every image has a mask and every mask an image, once at the start."""
        layout = self.layout
        found: list[str] = []
        if not self._mask_route:
            return found
        if self.folders.mask_folder_missing:
            return [f"there is no folder {layout.masks}, and kohya only warns of that"]
        if layout.class_images:
            found.append(
                "conditioning_data_dir and is_reg do not combine: no class image is trained; take "
                "the RGBA route"
            )
        if not layout.masked_loss:
            found.append("--masked_loss is not given: the masks are loaded and not used")
        names = self.names()
        if missing := [name for name in names if not self._masks_of(name)]:
            found.append(
                f"AssertionError at the start: missing conditioning data for {len(missing)} "
                f"images ({missing[0]})"
            )
        stems = {PurePosixPath(name).stem for name in names}
        held = {s for s, p in self.folders.masks.items() if any(q.suffix in SUFFIXES for q in p)}
        extra = sorted(held - stems)
        if extra and not layout.prepared:
            found.append(
                f"AssertionError at the start: extra conditioning data for {len(extra)} images "
                f"({extra[0]})"
            )
        return found

    def _masks_of(self, name: str) -> list[Path]:
        return [p for p in self.folders.of_stem(name) if p.suffix.lower() in SUFFIXES]

    def see(self, name: str) -> Seen:
        """By the route that the layout says: `alpha_mask`, or a mask folder."""
        try:
            image = self.folders.image(name)
            if self.layout.alpha_mask:
                return self._by_alpha(name, image)
            return self._by_folder(name, image)
        except ItemError as error:
            return stopped(f"stops: {error}")

    def _by_alpha(self, name: str, image: Picture) -> Seen:
        mask_file: Path | None = self.layout.images / name
        notes: tuple[str, ...] = ()
        if self.layout.prepared:
            mask_file = self.folders.prepared_mask(name)
            rgba = _with_alpha(image, mask_file, self.layout)
            source = mask_file
        else:
            source = self.folders.any_mask(name)
            rgba = image.convert("RGBA")
            turned = orientation(image)
            if turned != 1:
                notes = (f"EXIF orientation {turned} is not applied: the image is trained lying",)
        fit = bucket(*rgba.size, self.layout)
        cut = fit(rgba, area_or_lanczos)
        has_alpha = rgba.getchannel("A").getextrema() != (255, 255)
        meant = belongs(source, image, lambda p: fit(p, area_or_lanczos), turned=orientation(image))
        picture = cut.convert("RGB")
        if not has_alpha:
            note = "the image has no alpha, or an opaque one: everything is trained"
            return unmasked(picture, note=note, notes=notes, meant=meant)
        if rgba.width < fit.scaled[0] or rgba.height < fit.scaled[1]:
            notes += (
                "smaller than its bucket: scaling it up with its alpha makes black what the mask "
                "leaves out; set bucket_no_upscale, or give larger images",
            )
        aligned = unit(cut.getchannel("A"))
        if meant is None:
            meant = aligned
        return seen(
            picture,
            aligned,
            to_latents(aligned, "area"),
            mask_file=mask_file,
            used=True,
            meant=meant,
            notes=notes,
        )

    def _by_folder(self, name: str, image: Picture) -> Seen:
        turned = orientation(image)
        fit = bucket(*image.size, self.layout)
        picture = fit(image.convert("RGB"), area_or_lanczos)
        notes: tuple[str, ...] = ()
        if turned != 1:
            notes = (f"EXIF orientation {turned} is not applied: the image is trained lying",)
        meant = belongs(
            self.folders.any_mask(name), image, lambda p: fit(p, area_or_lanczos), turned=turned
        )
        if self.layout.masks is None or not self.layout.masked_loss:
            note = "no conditioning_data_dir is set: everything is trained"
            if self.layout.masks is not None:
                note = "--masked_loss is not given: everything is trained"
            return unmasked(picture, note=note, notes=notes, meant=meant)
        candidates = self._masks_of(name)
        if not candidates:
            problem = "AssertionError at the start: missing conditioning data"
            return unmasked(picture, problem=problem, notes=notes, meant=meant)
        mask_file = candidates[0]
        try:
            mask = read(mask_file)
        except ItemError as error:
            return stopped(f"stops: {error}", mask_file=mask_file, notes=notes)
        if mask.size != image.size:
            problem = (
                "AssertionError in training: size of conditioning image is not match "
                f"({mask.width}×{mask.height}, the image {image.width}×{image.height})"
            )
            return stopped(problem, mask_file=mask_file, notes=notes)
        stretched = mask.convert("RGB").getchannel("R")
        if stretched.size != fit.size:
            stretched = area_or_lanczos(stretched, fit.size)
        aligned = unit(stretched)
        if fit.scaled != fit.size:
            notes += ("the image is cut to its bucket, the mask is stretched; RGBA is cut alike",)
        return seen(
            picture,
            aligned,
            to_latents(aligned, "area"),
            mask_file=mask_file,
            used=True,
            meant=meant,
            notes=(*notes, *remarks(mask)),
        )


def _with_alpha(image: Picture, mask_file: Path | None, layout: Layout) -> Picture:
    """As `lora-prep export --to kohya` writes it: colours and alpha enlarged apart."""
    size = large_enough(*image.size, layout)
    colours = image.convert("RGB")
    rgba = (colours if size == image.size else lanczos(colours, size)).convert("RGBA")
    if mask_file is not None:
        mask = upright(read(mask_file)).convert("RGB").getchannel("R")
        if mask.size != image.size:
            raise ItemError(
                f"the mask is {mask.width}×{mask.height}, the image {image.width}×{image.height}: "
                "lora-prep export refuses them"
            )
        rgba.putalpha(mask if size == image.size else lanczos(mask, size))
    return rgba
