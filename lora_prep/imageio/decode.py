"""From a file's bytes to its header, its picture, or its mask."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from lora_prep.errors import ItemError
from lora_prep.imageio import colour, formats
from lora_prep.types import Image, Mask

MAX_PIXELS = 200_000_000
"""Larger pictures are refused before anything is decoded: they are decompression bombs or mistakes.

Pillow itself refuses WebP, GIF and TIFF files from 179 million pixels on, whatever limit is asked.
"""

_UPRIGHT = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}
"""What turns a picture upright, by EXIF orientation (tag 0x0112)."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture's file says about it, nothing decoded."""

    format: str
    """Pillow's name: JPEG (MPO too), PNG, WEBP, BMP, TIFF, GIF, AVIF, JPEG2000 or HEIF."""
    width: int
    """As displayed, with the orientation applied."""
    height: int
    stored_width: int
    """As stored, before the orientation is applied."""
    stored_height: int
    mode: str
    """Pillow's mode once loaded, such as RGB, L, P, I;16, CMYK, RGBA, 1."""
    bits: int
    """Bits of a channel as stored: 1, 8, 12, 16 or 32; 8 for fewer, and where the format hides it.
    """
    orientation: int
    """EXIF 1 to 8; 1 where there is none or an invalid one."""
    animated: bool
    """It holds more than one picture, of which only the first is used. The previews that cameras
    and phones append to a JPEG do not count."""
    icc: bool
    """It has an ICC profile."""
    gps: bool
    """Its EXIF data has a GPS block."""


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of a file, given all of its bytes.

    Raises ItemError with code "empty", "unreadable" (no image, or damaged), "too-large" or
    "unsupported" (an image that cannot be read here, with what to do). Does not find damage behind
    the header: decode for that.
    """
    return open_image(data, max_pixels=max_pixels)[1]


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image:
    """The picture, upright, as sRGB: H×W×3 uint8, C-contiguous, writable, owned by the caller.

    Orientation and ICC profile are applied (a damaged profile is ignored), alpha is composited over
    white, 16 bits are scaled to 8, CMYK is converted; of several frames the first is taken. Safe to
    call in threads, and decodes without holding the interpreter's lock.

    Raises ItemError as `read_header` does, and "unreadable" for a file that is damaged or cut off:
    missing ends are found in every format, changed bytes surely only in PNG, which has checksums.
    """
    image, header = _load(data, max_pixels)
    return _pixels(_upright(colour.to_rgb(image, header.bits), header))


def decode_mask(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Mask:
    """The mask as trainers read it: H×W uint8, upright, 255 = train, C-contiguous, writable.

    Colour and palette masks count by their red channel, alpha and ICC profile are ignored, and 16
    bits are scaled to 8. Raises ItemError as `decode_image` does.
    """
    image, header = _load(data, max_pixels)
    return _pixels(_upright(colour.to_weights(image, header.bits), header))


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[ImageFile, Header]:
    """The picture, opened and not yet loaded, and its header. ItemError as `read_header`."""
    if not data:
        raise ItemError(
            "the file is empty (0 bytes): copy it again from its source, or delete it", code="empty"
        )
    name = formats.detect(data)
    if name is None:
        raise ItemError(
            "not an image, or of an unknown format: convert it to PNG or JPEG, or delete it",
            code="unreadable",
        )
    opener = formats.opener(name)
    with _damage(name):
        image = opener(io.BytesIO(data), "")
        header = _header(name, image, data)
    if header.width * header.height > max_pixels:
        raise ItemError(
            f"{header.width}×{header.height} is more than the limit of {max_pixels:,} pixels: "
            "scale it down, or delete it",
            code="too-large",
        )
    return image, header


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """Turn what Pillow raises for a damaged file into ItemError.

    It documents none of it: 260,000 mutated files of all formats raised OSError, SyntaxError,
    ValueError, RuntimeError, TypeError, KeyError, IndexError and OverflowError, and its source has
    assertions, too. One bad file of 20,000 must not end a run, hence every Exception; only
    Pillow's reading belongs into this block, so that it hides no mistake of ours.
    """
    try:
        yield
    except (
        PillowImage.DecompressionBombError,
        PillowImage.DecompressionBombWarning,
        MemoryError,
    ) as error:
        raise ItemError(
            f"too large to decode ({_one_line(error)}): scale it down, or delete it",
            code="too-large",
        ) from error
    except Exception as error:
        raise ItemError(
            f"the {name} data is damaged, cut off or of an unknown kind ({_one_line(error)}): "
            "copy the file again from its source, or convert it to PNG",
            code="unreadable",
        ) from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:120])


def _header(name: str, image: ImageFile, data: bytes) -> Header:
    orientation, gps = _orientation_and_gps(image, data)
    width, height = image.size
    bits = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 32, "F": 32}.get(image.mode, 8)
    if isinstance(image, TiffImageFile):  # whose size has the orientation applied
        width, height = image.tag_v2[256], image.tag_v2[257]
        bits = 1 if image.mode == "1" else max(8, image.tag_v2[258][0])
    elif isinstance(image, PngImageFile):
        bits = 16 if data[24] == 16 else bits  # 16-bit colours, which load as 8 bits
    turned = orientation >= 5
    return Header(
        format=name,
        width=height if turned else width,
        height=width if turned else height,
        stored_width=width,
        stored_height=height,
        mode=image.mode,
        bits=bits,
        orientation=orientation,
        animated=name != "JPEG" and _is_animated(image),
        icc=bool(image.info.get("icc_profile")),
        gps=gps,
    )


def _orientation_and_gps(image: ImageFile, data: bytes) -> tuple[int, bool]:
    """From EXIF; (1, False) where that is damaged: the picture may be fine.

    Like Pillow's `exif_transpose`, which trainers use, this takes the orientation from XMP where
    EXIF has none.
    """
    if isinstance(image, PngImageFile) and "exif" not in image.info:
        behind_pixels = _png_chunk(data, b"eXIf")
        if behind_pixels:
            image.info["exif"] = b"Exif\0\0" + behind_pixels
    try:
        exif = PillowImage.Image.getexif(image)  # PngImageFile's own would decode the pixels
        orientation = exif.get(0x0112)
        return (int(orientation) if orientation in _UPRIGHT else 1), 0x8825 in exif
    except Exception:  # see _damage
        return 1, False


def _png_chunk(data: bytes, name: bytes) -> bytes | None:
    at = 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == name:
            return data[at + 8 : at + 8 + length]
        at += 12 + length
    return None


def _is_animated(image: ImageFile) -> bool:
    """Looks no further than the second frame: counting them all takes as long as the file likes."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # see _damage; the first frame may be fine
        return True


def _load(data: bytes, max_pixels: int) -> tuple[ImageFile, Header]:
    image, header = open_image(data, max_pixels=max_pixels)
    with _damage(header.format):
        if header.format == "PNG":
            PngImageFile(io.BytesIO(data)).verify()  # the checksums, which loading does not look at
        image.load()
    return image, header


def _upright(image: PillowImage.Image, header: Header) -> PillowImage.Image:
    if header.orientation == 1 or header.format == "TIFF":  # which Pillow turns while loading
        return image
    return image.transpose(_UPRIGHT[header.orientation])


def _pixels(image: PillowImage.Image) -> UInt8[np.ndarray, "..."]:
    """The pixels of an L or RGB picture.

    Copied in strips of about 2 MB: at once, Pillow goes through two more copies of the picture,
    which takes half as long as decoding a JPEG does; a strip stays in the processor's cache.
    """
    width, height = image.size
    shape = (height, width) if image.mode == "L" else (height, width, 3)
    pixels = np.empty(shape, np.uint8)
    step = max(1, 2**19 // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels
