"""What the checks need to know of an image and its mask. Each file is read once, here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image as PillowImage
from PIL import ImageChops

from lora_prep.errors import ItemError
from lora_prep.imageio import Header, decode_image
from lora_prep.imageio.colour import is_srgb
from lora_prep.imageio.decode import open_image
from lora_prep.validate.ends import END_IS_KNOWN, missing_end
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
        return PurePosixPath(self.path).suffix


@dataclass(frozen=True, slots=True)
class Picture(File):
    """What is known of an image."""

    srgb: bool = True
    """False where an ICC profile says that its colours are not sRGB."""
    transparent: bool = False
    """Some of its pixels are."""


@dataclass(frozen=True, slots=True)
class Weights(File):
    """What is known of a mask."""

    in_alpha: bool = False
    """The alpha channel says something else than the colours do."""
    coloured: bool = False
    """Red, which some trainers read, and brightness, which others read, differ."""
    counts: Sequence[int] = ()
    """Number of pixels of each level, 0 to 255; empty where trainers do not agree on the levels."""

    @property
    def brightest(self) -> int:
        """The highest level; -1 without counts."""
        return max((level for level, count in enumerate(self.counts) if count), default=-1)

    @property
    def weight(self) -> float:
        """Sum of the weights, in pixels of full weight."""
        return sum(level * count for level, count in enumerate(self.counts)) / 255


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, and the mask of its name where there is one."""

    image: Picture
    mask: Weights | None


def read_pair(listing: Listing, image: str, mask: str | None, *, deep: bool) -> Pair:
    """Read an image and its mask; `deep` decodes the image, too. Safe to call in threads."""
    dataset = listing.dataset
    return Pair(
        _read_image(listing, dataset.images / image, listing.image_key(image), deep=deep),
        None if mask is None else _read_mask(listing, dataset.masks / mask, listing.mask_key(mask)),
    )


def _read_image(listing: Listing, path: Path, key: str, *, deep: bool) -> Picture:
    outside = _leads_outside(listing, path)
    try:
        data = _read(path)
        picture, header = open_image(data, max_pixels=MAX_PIXELS)
    except ItemError as error:
        return Picture(key, problem=error, outside=outside)
    srgb = is_srgb(picture.info.get("icc_profile"))
    problem, transparent = None, False
    try:
        _check_end(data, header)
        if picture.has_transparency_data:
            transparent = _levels(_convert(picture, "RGBA").getchannel("A"))[0] < 255
        elif deep or header.format not in END_IS_KNOWN:
            decode_image(data, max_pixels=MAX_PIXELS)
    except ItemError as error:
        problem = error
    return Picture(key, header, problem, outside, srgb, transparent)


def _read_mask(listing: Listing, path: Path, key: str) -> Weights:
    outside = _leads_outside(listing, path)
    header = None
    try:
        data = _read(path)
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
    return Weights(
        key, header, None, outside, in_alpha, coloured, red.histogram() if agreed else ()
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


def _far_apart(a: PillowImage.Image, b: PillowImage.Image) -> bool:
    return a is not b and _levels(ImageChops.difference(a, b))[1] > FAR_APART
