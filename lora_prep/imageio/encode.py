"""From arrays to a file's bytes: the same bytes for the same pixels, and nothing but pixels."""

import io
from typing import Literal, TypeAlias, assert_never

import cv2
import numpy as np
from PIL import Image as PillowImage

from lora_prep.errors import ItemError
from lora_prep.imageio import colour, jpeg
from lora_prep.imageio.decode import MAX_PIXELS, decode_image, open_image
from lora_prep.types import Image, Mask

ImageFormat: TypeAlias = Literal["jpeg", "png", "webp", "bmp", "tiff"]

_FORMATS: dict[str, ImageFormat] = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".png": "png",
    ".webp": "webp",
    ".bmp": "bmp",
    ".tif": "tiff",
    ".tiff": "tiff",
}
"""By suffix: what trainers read."""

_LONGEST_SIDE = {"jpeg": 65_500, "webp": 16_383}


def encode_mask(mask: Mask) -> bytes:
    """The mask (H×W uint8) as an 8-bit grey PNG without metadata."""
    return _png(mask)


def encode_image(
    image: Image, format: ImageFormat, *, quality: int = 95, lossless: bool = False
) -> bytes:
    """The picture (H×W×3 sRGB uint8) as a file without metadata.

    `quality`, 1 to 100, counts for JPEG (always with full-resolution colour, 4:4:4) and WebP;
    `lossless` for WebP only. Raises ItemError ("too-large") where the format has no room for it.
    """
    height, width = image.shape[:2]
    if max(height, width) > _LONGEST_SIDE.get(format, max(height, width)):
        raise ItemError(
            f"{width}×{height} does not fit into {format.upper()}, whose sides end at "
            f"{_LONGEST_SIDE[format]} pixels: scale it down, or name it .png",
            code="too-large",
        )
    match format:
        case "png":
            return _png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        case "jpeg":
            return _save(image, "JPEG", quality=quality, subsampling=0)
        case "webp":
            return _save(image, "WEBP", quality=quality, lossless=lossless)
        case "bmp":
            return _save(image, "BMP")
        case "tiff":
            return _save(image, "TIFF", compression="tiff_adobe_deflate")
        case _:
            assert_never(format)


def normalized_suffix(suffix: str) -> str:
    """The suffix that the `normalized` copy of a file with this suffix has.

    The same, case included, where trainers read such files; ".png" for others (.heic, .gif, ...).
    """
    return suffix if suffix.lower() in _FORMATS else ".png"


def normalized(data: bytes, suffix: str, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """A picture file's bytes as every trainer reads them alike, for `normalized_suffix(suffix)`.

    Upright, 8-bit sRGB in three channels, and without any metadata (EXIF, GPS, XMP, IPTC, comments,
    thumbnails, ICC profile). A JPEG that is all that already, metadata aside, keeps its compressed
    data bit for bit; everything else is encoded again: JPEG at quality 95 with 4:4:4 colour, WebP
    without loss unless it was lossy itself. The suffix decides the format, whatever the content
    was, so that name and content agree.

    Raises ItemError as `decode_image` does, and "too-large" as `encode_image` does.
    """
    format = _FORMATS.get(suffix.lower(), "png")
    if format == "jpeg":
        stripped = _stripped_jpeg(data, max_pixels)
        if stripped is not None:
            decode_image(stripped, max_pixels=max_pixels)  # raises where it is cut off
            return stripped
    image = decode_image(data, max_pixels=max_pixels)
    return encode_image(image, format, lossless=not _is_lossy_webp(data))


def _stripped_jpeg(data: bytes, max_pixels: int) -> bytes | None:
    """None where the pixels have to change as well, or where the file is no JPEG."""
    image, header = open_image(data, max_pixels=max_pixels)
    if (header.format, header.mode, header.orientation) != ("JPEG", "RGB", 1):
        return None
    if not colour.is_srgb(image.info.get("icc_profile")):
        return None
    return jpeg.strip(data)


def _is_lossy_webp(data: bytes) -> bool:
    """Whether the still picture of a WebP file is in a `VP8 ` chunk (lossless: `VP8L`)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return False
    at = 12
    while at + 8 <= len(data):
        if data[at : at + 4] == b"VP8 ":
            return True
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    return False


def _png(pixels: np.ndarray) -> bytes:
    """OpenCV's encoder: three to five times as fast as Pillow's for about the same size."""
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise ItemError(f"a PNG of {pixels.shape} cannot be encoded", code="too-large")
    return data.tobytes()


def _save(image: Image, format: str, **options: int | str) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()
