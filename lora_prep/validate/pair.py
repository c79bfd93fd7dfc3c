"""What the checks need to know of an image and its files. Each file is read once, here."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageChops

from lora_prep.errors import ItemError
from lora_prep.faces import FaceRecord, faces_path
from lora_prep.imageio import Header, decode_image, decode_mask
from lora_prep.imageio.colour import is_srgb
from lora_prep.imageio.decode import open_image
from lora_prep.imageio.pngmask import read_levels, runs_to_mask
from lora_prep.types import Face
from lora_prep.validate.drift import Placement, placement
from lora_prep.validate.ends import END_IS_KNOWN, missing_end
from lora_prep.validate.heads import plain_jpeg
from lora_prep.validate.latents import Grid
from lora_prep.validate.likeness import difference_hash
from lora_prep.validate.listing import Listing

MAX_PIXELS = 2 * (1024**3 // 4 // 3)
"""Pillow's own limit, about 179 million: the trainers' Pillow raises DecompressionBombError."""

MAX_BYTES = 2**30
"""Larger files are not read: they would fill the memory, and no training image is that large."""

FAR_APART = 16
"""Levels of 255. Less than that between two readings of a mask does not change the training."""


@dataclass(frozen=True, slots=True)
class File:
    """What is known of any file."""

    path: str
    """Relative to the data set's root, with forward slashes."""
    header: Header | None = None
    """None where it cannot be read."""
    problem: ItemError | None = None
    """Why it cannot be read, as a whole or to its end."""
    outside: bool = False
    """It is a link to a file outside the data set."""

    @property
    def suffix(self) -> str:
        """The ending of its name, as written: `.JPG`."""
        return os.path.splitext(self.path)[1]  # noqa: PTH122 a name, not a path


@dataclass(frozen=True, slots=True)
class Picture(File):
    """What is known of an image."""

    srgb: bool = True
    """False where an ICC profile says that its colours are not sRGB."""
    transparent: bool = False
    """Some of its pixels are."""
    hash: int | None = None
    """Of how it looks (see `likeness`); None where it was not decoded."""
    faces: tuple[Face, ...] = ()
    """Those that were detected in this very file, the largest first."""


@dataclass(frozen=True, slots=True)
class Weights(File):
    """What is known of a mask."""

    in_alpha: bool = False
    """The alpha channel says something else than the colours do."""
    coloured: bool = False
    """Red, which some trainers read, and brightness, which others read, differ."""
    counts: Sequence[int] = ()
    """Number of pixels of each level, 0 to 255; empty where trainers do not agree on the levels."""
    brightest: int = -1
    """The highest level; -1 without counts."""
    weight: float = 0.0
    """Sum of the weights, in pixels of full weight."""
    box: tuple[int, int, int, int] | None = None
    """x0, y0, x1, y1 around all that is not black, as stored; None without counts."""
    white_corners: int = 0
    """How many of its four corner pixels are 128 or more."""
    peaks: tuple[float, float] | None = None
    """The largest weight, 0 to 1, that is left of it on a grid of 1/8 and of 1/16 of the picture in
    training; None where it is too large to vanish."""
    specks: int = 0
    """White islands smaller than one element of the latents; counted by --deep."""


@dataclass(frozen=True, slots=True)
class Caption:
    """What is known of a caption."""

    path: str
    """Relative to the data set's root, with forward slashes."""
    data: bytes | None
    """None where it cannot be read."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read: what it costs is up to the checks that are on."""

    deep: bool = False
    """Decode the images, too."""
    drift: bool = False
    """Compare the masks with the edges in the images."""
    resolution: int = 1024
    """The trainer's: pictures of a larger area than its square are scaled down to that."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, and the mask and caption of its name where there are such."""

    image: Picture
    mask: Weights | None
    caption: Caption | None = None
    placement: Placement | None = None
    """Where the mask's border fits the picture; None where that was not looked for."""
    resolution: int = 1024


def read_pair(listing: Listing, image: str, mask: str | None, reading: Reading) -> Pair:
    """Read an image and what belongs to it. Safe to call in threads."""
    dataset = listing.dataset
    path = dataset.images / image
    picture, data = _read_image(listing, path, image, reading)
    weights, mask_data, caption, fit = None, b"", None, None
    if mask is not None:
        key = listing.mask_key(mask)
        weights, mask_data = _read_mask(listing, dataset.masks / mask, key, reading)
    if (name := listing.captions.get(image)) is not None:
        caption = Caption(listing.image_key(name), _read_caption(dataset.images / name))
    if reading.drift and weights and weights.counts and picture.header and not picture.problem:
        fit = _placement(data, mask_data, picture.faces)
    return Pair(picture, weights, caption, fit, reading.resolution)


def _placement(image: bytes, mask: bytes, faces: Sequence[Face]) -> Placement | None:
    try:
        picture, weights = decode_image(image), decode_mask(mask)
    except ItemError:
        return None  # said of the file itself
    return placement(picture, weights, faces) if picture.shape[:2] == weights.shape else None


def _read_caption(path: Path) -> bytes | None:
    try:
        return _read(path)
    except ItemError:
        return None


def _read_faces(listing: Listing, image: str, data: bytes) -> tuple[Face, ...]:
    """The recorded faces of this very file, the largest first."""
    if not listing.has_faces:
        return ()
    try:
        record = faces_path(listing.dataset, listing.dataset.sample(image)).read_bytes()
        known = FaceRecord.from_bytes(record)
    except (OSError, KeyError, TypeError, ValueError):
        return ()
    if known.sha256 != hashlib.sha256(data).hexdigest():
        return ()
    return tuple(sorted(known.faces, key=lambda face: -face.area))


def _read_image(listing: Listing, path: Path, name: str, how: Reading) -> tuple[Picture, bytes]:
    key, outside = listing.image_key(name), _leads_outside(listing, path)
    try:
        data = _read(path)
        plain = plain_jpeg(data)
        if plain and plain.width * plain.height <= MAX_PIXELS:
            picture, header = None, plain
        else:
            picture, header = open_image(data, max_pixels=MAX_PIXELS)
    except ItemError as error:
        return Picture(key, problem=error, outside=outside), b""
    srgb = picture is None or is_srgb(picture.info.get("icc_profile"))
    problem, transparent, look = None, False, None
    try:
        _check_end(data, header)
        if picture is not None and picture.has_transparency_data:
            transparent = _levels(_convert(picture, "RGBA").getchannel("A"))[0] < 255
        if how.deep:
            look = _decode(data, header)
        elif header.format not in END_IS_KNOWN:
            decode_image(data, max_pixels=MAX_PIXELS)
    except ItemError as error:
        problem = error
    faces = _read_faces(listing, name, data)
    return Picture(key, header, problem, outside, srgb, transparent, look, faces), data


def _decode(data: bytes, header: Header) -> int:
    """Decode a picture for the damage in it; gives its hash.

    A JPEG is decoded to an eighth of its size: all of its data is read for that, and two thirds of
    the time go into what is left out.
    """
    if header.format != "JPEG":
        return difference_hash(PillowImage.fromarray(decode_image(data, max_pixels=MAX_PIXELS)))
    picture, _ = open_image(data, max_pixels=MAX_PIXELS)
    picture.draft("L", (max(header.stored_width // 8, 1), max(header.stored_height // 8, 1)))
    return difference_hash(_convert(picture, "L"))


def _read_mask(listing: Listing, path: Path, key: str, how: Reading) -> tuple[Weights, bytes]:
    outside = _leads_outside(listing, path)
    try:
        data = _read(path)
    except ItemError as error:
        return Weights(key, None, error, outside), b""
    found = read_levels(data, max_pixels=MAX_PIXELS)
    if found is None:
        weights = _decoded_mask(key, data, outside)
    else:
        width, height = found.width, found.height
        header = Header("PNG", width, height, width, height, "L", 8, 1, False, False, False)
        weights = Weights(
            key,
            header,
            outside=outside,
            **_weighed(found.counts),
            box=found.box,
            white_corners=found.white_corners,
        )
    if weights.counts and weights.header:
        islands = how.deep and not (found and found.one_run_a_row)
        weights = _on_grids(weights, data, weights.header, how.resolution, islands=islands)
    return weights, data


def _weighed(counts: Sequence[int]) -> dict[str, Any]:
    levels = np.array(counts, np.int64)
    lit = np.flatnonzero(levels)
    weight = float(levels @ np.arange(256)) / 255
    return {"counts": counts, "brightest": int(lit[-1]) if len(lit) else -1, "weight": weight}


def _on_grids(
    weights: Weights, data: bytes, header: Header, resolution: int, *, islands: bool
) -> Weights:
    """Add what the latents see of a mask: for small ones, and where there may be islands."""
    grid = Grid.of(header.stored_width, header.stored_height, resolution)
    small = weights.weight > 0 and grid.may_vanish(weights.weight, weights.box)
    if weights.box is None or not (small or islands):
        return weights
    mask = runs_to_mask(data, max_pixels=MAX_PIXELS)
    if mask is None:
        mask = decode_mask(data, max_pixels=MAX_PIXELS)
    return replace(
        weights,
        peaks=(grid.peak(mask, 8), grid.peak(mask, 16)) if small else None,
        specks=grid.specks(mask) if islands else 0,
    )


def _decoded_mask(key: str, data: bytes, outside: bool) -> Weights:
    header = None
    try:
        picture, header = open_image(data, max_pixels=MAX_PIXELS)
        _check_end(data, header)
        grey = _convert(picture, "L")
        red = grey if picture.mode in ("1", "L") else _convert(picture, "RGB").getchannel("R")
        alpha = None
        if picture.has_transparency_data:
            alpha = _convert(picture, "RGBA").getchannel("A")
    except ItemError as error:
        return Weights(key, header, error, outside)
    in_alpha = alpha is not None and len(set(_levels(alpha))) == 2 and _far_apart(alpha, red)
    coloured = _far_apart(red, grey)
    agreed = header.bits <= 8 and not in_alpha and not coloured
    if not agreed:
        return Weights(key, header, None, outside, in_alpha, coloured)
    width, height = red.size
    corners = [(x, y) for x in {0, width - 1} for y in {0, height - 1}]
    return Weights(
        key,
        header,
        None,
        outside,
        **_weighed(red.histogram()),
        box=red.getbbox(),
        white_corners=sum(_level(red, place) >= 128 for place in corners),
    )


def _read(path: Path) -> bytes:
    """All bytes of a file. Raises ItemError where it cannot be read or is far too large."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise ItemError("the file is larger than 1 GiB", code="too-large")
            return file.read()
    except OSError as error:
        raise ItemError(f"cannot be read: {error.strerror}", code="unreadable") from error


def _check_end(data: bytes, header: Header) -> None:
    if message := missing_end(data, header.format):
        raise ItemError(message, code="unreadable")


def _leads_outside(listing: Listing, path: Path) -> bool:
    """Whether a file is a link that leads out of the data set's folders."""
    if not os.path.islink(path):  # noqa: PTH114 this one never raises
        return False
    dataset = listing.dataset
    target = Path(os.path.realpath(path))
    inside = (Path(os.path.realpath(p)) for p in (dataset.root, dataset.images, dataset.masks))
    return not any(target.is_relative_to(folder) for folder in inside)


def _convert(picture: PillowImage.Image, mode: str) -> PillowImage.Image:
    """Decode into a mode. Raises ItemError where the pixels are damaged."""
    try:
        picture.load()
        return picture if picture.mode == mode else picture.convert(mode)
    except Exception as error:  # Pillow documents none of what it raises for damaged files
        raise ItemError(f"the pixels cannot be decoded: {error}", code="unreadable") from error


def _levels(channel: PillowImage.Image) -> tuple[int, int]:
    """The lowest and the highest level of a grey picture."""
    low, high = channel.getextrema()
    assert isinstance(low, int)
    assert isinstance(high, int)
    return low, high


def _level(channel: PillowImage.Image, place: tuple[int, int]) -> int:
    level = channel.getpixel(place)
    assert isinstance(level, int)
    return level


def _far_apart(a: PillowImage.Image, b: PillowImage.Image) -> bool:
    return a is not b and _levels(ImageChops.difference(a, b))[1] > FAR_APART
