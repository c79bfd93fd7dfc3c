"""Family T: what is left of a good pair once a trainer has cropped, scaled and cached it."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lora_prep.validate.check import Check, Findings, error, warning
from lora_prep.validate.latents import lost_to_bucket
from lora_prep.validate.listing import Listing, stem_of
from lora_prep.validate.masks import DIM, LATENT_CELL
from lora_prep.validate.pair import Pair

HALF = 0.5
"""A mask whose largest weight is less has no element of the latents that is rather in than out."""

CUT = 0.25
"""Part of the face that may be cropped away."""

LATENTS = "_latent_cache"
"""ai-toolkit's folder."""

SMALLEST_FACE = 64
"""Pixels in training: eight elements of the latents across the face."""


@warning(
    "T001",
    "Mask that vanishes in training",
    reason="trainers scale the image to their resolution and the mask to 1/8 of that: no element "
    "has half of the mask's weight, and diffusion-pipe and ai-toolkit, which take the nearest "
    "pixel, may see nothing of it.",
    fix="crop the image closer to the face, or train at a larger resolution (--resolution)",
)
def vanishes_at_8(pair: Pair) -> Findings:
    """Scaled by area to 1/8 of the size in training. Black masks are M005."""
    peaks = _peaks(pair)
    if pair.mask and peaks and peaks[0] < HALF * pair.mask.brightest / 255:
        yield pair.mask.path, f"at 1/8 of {pair.resolution} px its largest weight is {peaks[0]:.2f}"


@warning(
    "T002",
    "Mask that vanishes within the model's patches",
    reason="FLUX, SD3 and Qwen-Image see patches of 2 × 2 latents, 16 pixels of the image: none "
    "of them is rather in the mask than out.",
    fix="crop the image closer to the face, or train at a larger resolution (--resolution)",
)
def vanishes_at_16(pair: Pair) -> Findings:
    """Scaled by area to 1/16 of the size in training. Silent where it vanishes at 1/8 (T001)."""
    peaks = _peaks(pair)
    if pair.mask and peaks:
        half = HALF * pair.mask.brightest / 255
        if peaks[1] < half <= peaks[0]:
            message = f"at 1/16 of {pair.resolution} px its largest weight is {peaks[1]:.2f}"
            yield pair.mask.path, message


@warning(
    "T003",
    "Face that a bucket's crop cuts off",
    reason="trainers crop about the centre to the nearest of their shapes; diffusion-pipe's usual "
    "ones go from 1:2 to 2:1.",
    fix="crop the image to the face yourself, no longer than 2:1",
)
def cropped_off(pair: Pair) -> Findings:
    """The largest detected face, or else what the mask covers."""
    header = pair.image.header
    if header is None:
        return
    what, box = _subject(pair)
    if box is None:
        return
    lost, aspect = lost_to_bucket(header.width, header.height, box)
    if lost > CUT:
        shape = f"1:{1 / aspect:.3g}" if aspect < 1 else f"{aspect:.3g}:1"
        yield pair.image.path, f"cropped to {shape}, {lost:.0%} of the {what} is lost"


@warning(
    "T004",
    "Face that is small in training",
    reason="below 64 pixels at the trainer's resolution, eight elements of the latents, there is "
    "no likeness to learn.",
    fix="crop the image closer to the face, or take it out",
)
def small_face(pair: Pair) -> Findings:
    """The largest face that `lora-prep detect` or `masks` found."""
    header = pair.image.header
    if header and pair.image.faces:
        face = pair.image.faces[0]
        scale = min(1.0, pair.resolution / (header.width * header.height) ** 0.5)
        side = min(face.width, face.height) * scale
        if side < SMALLEST_FACE:
            yield pair.image.path, f"the largest face is {side:.0f} px at {pair.resolution} px"


@error(
    "T005",
    "Trainer's cache that is out of date",
    reason="the trainer takes the latents, masks or texts that it kept rather than the files: what "
    "was changed since is not trained.",
    fix="delete the cache; diffusion-pipe: start once with --regenerate_cache",
)
def stale_cache(listing: Listing) -> Findings:
    """kohya's `<stem>*.npz`; ai-toolkit's `_latent_cache`; diffusion-pipe's `cache`.

    The first two are named after the images, and compared with them one by one. diffusion-pipe's
    is not, and some of it is written at every start: what is newer than its oldest file counts.
    """
    yield from _stale_npz(listing)
    yield from _stale_latents(listing)
    oldest = _oldest(listing.dataset.images / "cache")
    if oldest is not None:
        changed = [key for key, when in _sources(listing) if when > oldest]
        if changed:
            yield listing.image_key("cache"), f"parts are older than {_and_more(changed)}"


def _stale_latents(listing: Listing) -> Findings:
    """ai-toolkit's, beside the images: `_latent_cache/<stem>_<hash>.safetensors`.

    Of several for one image the newest counts: those of other settings stay where they are.
    """
    images = listing.dataset.images
    changed: dict[str, list[str]] = defaultdict(list)
    made: dict[str, dict[str, float]] = {}
    for name in listing.images.images:
        place, _, file = stem_of(name).rpartition("/")
        folder = f"{place}/{LATENTS}" if place else LATENTS
        if folder not in made:
            made[folder] = _by_owner(images / folder)
        when = made[folder].get(file)
        if when is not None and _when(images / name) > when:
            changed[folder].append(listing.image_key(name))
    for folder, keys in changed.items():
        yield listing.image_key(folder), f"it has older latents of {_and_more(keys)}"


def _by_owner(folder: Path) -> dict[str, float]:
    """When the newest file of each stem was written: the name without what follows the last `_`."""
    newest: dict[str, float] = {}
    with suppress(OSError):
        for path in folder.iterdir():
            stem = path.stem.rpartition("_")[0]
            newest[stem] = max(_when(path), newest.get(stem, 0.0))
    return newest


def _and_more(keys: Sequence[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def _stale_npz(listing: Listing) -> Findings:
    """kohya names them after the image: `a.npz`, `a_0768x1024_sdxl.npz`."""
    images = listing.dataset.images
    for name in listing.images.others:
        if not name.endswith(".npz"):
            continue
        stem = stem_of(name)
        owner = next((s for s in _shorter(stem) if s in listing.image_stems), None)
        if owner is None:
            continue
        source = listing.image_stems[owner][0]
        if _when(images / source) > _when(images / name):
            yield listing.image_key(name), f"older than {listing.image_key(source)}"


def _shorter(stem: str) -> Iterator[str]:
    """`a_b_1x1_sdxl`, `a_b_1x1`, `a_b`, `a`."""
    while stem:
        yield stem
        stem, _, _ = stem.rpartition("_")


def _peaks(pair: Pair) -> tuple[float, float] | None:
    """Of masks that are neither black (M005) nor labels (M004)."""
    mask = pair.mask
    if mask and mask.brightest > DIM and mask.weight >= LATENT_CELL:
        return mask.peaks
    return None


def _subject(pair: Pair) -> tuple[str, tuple[float, float, float, float] | None]:
    header = pair.image.header
    if pair.image.faces and header:
        x0, y0, x1, y1 = pair.image.faces[0].box
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, header.width), min(y1, header.height))
        return "face", box
    mask = pair.mask
    if mask and mask.box and mask.header and header and mask.header.orientation == 1:
        x0, y0, x1, y1 = mask.box
        whole = (header.width, header.height)
        covers = (x1 - x0) * (y1 - y0) > 0.5 * whole[0] * whole[1]  # a person, not a face
        if (mask.header.width, mask.header.height) == whole and not covers:
            return "mask", mask.box
    return "", None


def _sources(listing: Listing) -> Iterator[tuple[str, float]]:
    dataset = listing.dataset
    for name in listing.images.images:
        yield listing.image_key(name), _when(dataset.images / name)
    for name in listing.masks.images:
        yield listing.mask_key(name), _when(dataset.masks / name)
    for name in listing.captions.values():
        yield listing.image_key(name), _when(dataset.images / name)


def _oldest(folder: Path) -> float | None:
    """When the oldest file in a folder and those below was written; None without any."""
    times = (_when(Path(place, name)) for place, _, names in os.walk(folder) for name in names)
    return min(times, default=None)


def _when(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


LISTING_CHECKS: tuple[Check[Listing], ...] = (stale_cache,)
PAIR_CHECKS: tuple[Check[Pair], ...] = (vanishes_at_8, vanishes_at_16, cropped_off, small_face)
