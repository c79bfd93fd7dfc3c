"""One portrait in every odd way that image files store pixels, for the tests of decoders."""

import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageCms

from lora_prep.types import BoolMask, Image
from sample_data.portraits import Portrait

ORIENTATION = 0x0112
GPS = 0x8825
_UNTURN = {
    # EXIF orientation: how upright pixels have to be stored, so that a viewer shows them upright.
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_90,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_270,
}
_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}


@dataclass(frozen=True, slots=True)
class Variant:
    """A file, and what a decoder should make of it."""

    path: Path
    what: str
    expected: Image
    """uint8 RGB (height, width, 3), upright, sRGB."""
    tolerance: float
    """Largest allowed mean absolute difference to `expected`, in steps of 1/255."""
    opaque: BoolMask | None = None
    """Where to compare; None for everywhere. What a decoder shows elsewhere is its own choice."""


def write_variants(out: Path, portrait: Portrait) -> list[Variant]:
    """Write the portrait in all formats, one stem each, into a folder; gives what was written.

    The portrait should be colourful and not square: else ignoring a profile or an orientation
    shows less.
    """
    out.mkdir(parents=True, exist_ok=True)
    return [
        *_turned(out, portrait.image),
        *_deep(out, portrait.image),
        *_few_colours(out, portrait.image),
        *_transparent(out, portrait),
        *_colour_spaces(out, portrait.image),
        *_codecs(out, portrait.image),
        *_animated(out, portrait.image),
    ]


def save_turned(path: Path, image: Image, orientation: int, *, gps: bool = False) -> None:
    """Save an upright image turned, with the EXIF orientation (1 to 8) that turns it back.

    The format goes by the path's suffix. `gps` adds a made-up position.
    """
    picture = PillowImage.fromarray(image)
    if orientation != 1:
        picture = picture.transpose(_UNTURN[orientation])
    exif = PillowImage.Exif()
    exif[ORIENTATION] = orientation
    if gps:
        # IFD entries: latitude reference and value, longitude reference and value.
        position = exif.get_ifd(GPS)
        position.update({1: "N", 2: (12.0, 34.0, 56.0), 3: "E", 4: (65.0, 43.0, 21.0)})
    options: dict[str, Any] = {
        ".jpg": _JPEG,
        ".png": {"format": "PNG"},
        ".webp": {"format": "WEBP", "lossless": True},
    }[path.suffix]
    picture.save(path, exif=exif, **options)


def save_16_bit_rgb(path: Path, image: Image) -> None:
    """Save an RGB image with 16 bits a channel, as PNG or TIFF by the path's suffix.

    Every value v becomes 257·v, so that 255 becomes 65535.
    """
    _encode(path, cv2.cvtColor(image, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257)


def save_cmyk(path: Path, image: Image) -> None:
    """Save an RGB image as a CMYK JPEG, by the plain complement (no profile)."""
    PillowImage.fromarray(image).convert("CMYK").save(path, **_JPEG)


def grey(image: Image) -> NDArray[np.uint8]:
    """Luma (height, width) of an RGB image, ITU-R BT.601, as Pillow computes it."""
    return np.asarray(PillowImage.fromarray(image).convert("L"))


def icc_profile(description: str, colorants: NDArray[np.float64] | None) -> bytes:
    """An sRGB-like display profile with other primaries.

    `colorants` has the XYZ (D50) of red, green, blue in its rows; None swaps sRGB's red and blue.
    `description` must be as long as lcms's name of its sRGB profile, 13 characters. The layout is
    that of ICC.1:2010, sections 7.2 and 7.3: a 128-byte header, then the table of tags.
    """
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[24:36] = struct.pack(">6H", 2024, 1, 1, 0, 0, 0)  # else the time of day gets in
    data[84:100] = bytes(16)
    old_name, new_name = (s.encode("utf-16-be") for s in ("sRGB built-in", description))
    if len(old_name) != len(new_name) or old_name not in data:
        raise ValueError(f"the description {description!r} must have 13 characters")
    data = data.replace(old_name, new_name)
    entries = {}
    for index in range(struct.unpack_from(">I", data, 128)[0]):
        entry = 132 + 12 * index
        entries[bytes(data[entry : entry + 4])] = entry
    if colorants is None:
        red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
        data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
        return bytes(data)
    for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True):
        offset = struct.unpack_from(">I", data, entries[name] + 4)[0]
        struct.pack_into(">3i", data, offset + 8, *(round(float(v) * 65536) for v in xyz))
    return bytes(data)


WIDE = np.array([(0.7977, 0.2880, 0.0000), (0.1352, 0.7119, 0.0000), (0.0313, 0.0001, 0.8249)])
"""XYZ of very wide primaries at white D50: those of ROMM RGB (ISO 22028-2)."""


def _turned(out: Path, image: Image) -> list[Variant]:
    variants = []
    for orientation in range(1, 9):
        path = out / f"exif_{orientation}.jpg"
        save_turned(path, image, orientation, gps=orientation == 6)
        variants.append(Variant(path, f"JPEG, EXIF orientation {orientation}", image, 3.0))
    for suffix in ("png", "webp"):
        path = out / f"exif_6_{suffix}.{suffix}"
        save_turned(path, image, 6)
        variants.append(Variant(path, f"{suffix.upper()}, EXIF orientation 6", image, 0.0))
    return variants


def _deep(out: Path, image: Image) -> list[Variant]:
    luma = grey(image)
    colour_png, colour_tiff, grey_png = (
        out / name for name in ("rgb_16.png", "rgb_16_tiff.tif", "grey_16.png")
    )
    save_16_bit_rgb(colour_png, image)
    save_16_bit_rgb(colour_tiff, image)
    _encode(grey_png, luma.astype(np.uint16) * 257)
    return [
        Variant(colour_png, "PNG, RGB with 16 bits", image, 0.0),
        Variant(colour_tiff, "TIFF, RGB with 16 bits, deflate", image, 0.0),
        Variant(grey_png, "PNG, grey with 16 bits (Pillow: I;16)", _three(luma), 0.0),
    ]


def _few_colours(out: Path, image: Image) -> list[Variant]:
    picture = PillowImage.fromarray(image)
    palette = picture.quantize(200)
    one_bit = picture.convert("1")
    files = (
        ("grey", "PNG, grey (L)", picture.convert("L")),
        ("one_bit", "PNG, one bit", one_bit),
        ("palette", "PNG, palette", palette),
    )
    variants = []
    for stem, what, stored in files:
        path = out / f"{stem}.png"
        stored.save(path)
        variants.append(Variant(path, what, np.asarray(stored.convert("RGB")), 0.0))
    return variants


def _transparent(out: Path, portrait: Portrait) -> list[Variant]:
    """Opaque where the first person is, clear elsewhere, with the picture still below."""
    image, opaque = portrait.image, portrait.people[0].person_mask
    alpha = np.where(opaque, 255, 0).astype(np.uint8)
    luma = grey(image)
    rgba, la, palette = (out / f"{stem}.png" for stem in ("rgba", "la", "palette_clear"))
    PillowImage.fromarray(np.dstack([image, alpha])).save(rgba)
    PillowImage.fromarray(np.dstack([luma, alpha])).save(la)

    few = PillowImage.fromarray(image).quantize(200)
    indices = np.where(opaque, np.asarray(few), 255).astype(np.uint8)
    stored = PillowImage.fromarray(indices)
    colours = few.getpalette() or []
    stored.putpalette(colours + [0] * (768 - len(colours)))
    stored.save(palette, transparency=255)
    few_colours = np.asarray(few.convert("RGB"))
    return [
        Variant(rgba, "PNG, RGBA", image, 0.0, opaque),
        Variant(la, "PNG, grey with alpha (LA)", _three(luma), 0.0, opaque),
        Variant(palette, "PNG, palette with a clear colour", few_colours, 0.0, opaque),
    ]


def _colour_spaces(out: Path, image: Image) -> list[Variant]:
    cmyk, swapped, wide = (out / n for n in ("cmyk.jpg", "icc_swapped.jpg", "icc_wide.png"))
    save_cmyk(cmyk, image)
    picture = PillowImage.fromarray(image)
    reversed_channels = PillowImage.fromarray(np.ascontiguousarray(image[..., ::-1]))
    reversed_channels.save(swapped, icc_profile=icc_profile("swapped R & B", None), **_JPEG)
    profile = icc_profile("wide for test", WIDE)
    to_wide = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), _open_profile(profile), "RGB", "RGB"
    )
    stored = ImageCms.applyTransform(picture, to_wide)
    assert stored is not None
    stored.save(wide, icc_profile=profile)
    return [
        Variant(cmyk, "JPEG, CMYK without a profile", image, 3.0),
        Variant(swapped, "JPEG, ICC profile with red and blue swapped", image, 3.0),
        Variant(wide, "PNG, ICC profile with very wide primaries", image, 1.0),
    ]


def _codecs(out: Path, image: Image) -> list[Variant]:
    picture = PillowImage.fromarray(image)
    files: tuple[tuple[str, str, dict[str, Any], float], ...] = (
        ("progressive.jpg", "JPEG, progressive", {**_JPEG, "progressive": True}, 3.0),
        ("lossy.webp", "WebP, lossy", {"quality": 90}, 6.0),
        ("lossless.webp", "WebP, lossless", {"lossless": True}, 0.0),
        ("bitmap.bmp", "BMP", {}, 0.0),
        ("deflate.tif", "TIFF, deflate", {"compression": "tiff_adobe_deflate"}, 0.0),
        ("av1.avif", "AVIF", {"quality": 90, "subsampling": "4:4:4"}, 4.0),
    )
    variants = []
    for name, what, options, tolerance in files:
        picture.save(out / name, **options)
        variants.append(Variant(out / name, what, image, tolerance))
    return variants


def _animated(out: Path, image: Image) -> list[Variant]:
    """Two frames: the portrait, then its negative."""
    first, second = PillowImage.fromarray(image), PillowImage.fromarray(255 - image)
    few = first.quantize(255)
    gif, webp, png = (out / f"animated_{kind}.{kind}" for kind in ("gif", "webp", "png"))
    few.save(gif, save_all=True, append_images=[second.quantize(255)], duration=200)
    first.save(webp, save_all=True, append_images=[second], duration=200, lossless=True)
    first.save(png, save_all=True, append_images=[second], duration=200)
    return [
        Variant(gif, "GIF, two frames", np.asarray(few.convert("RGB")), 0.0),
        Variant(webp, "WebP, two frames", image, 0.0),
        Variant(png, "PNG, two frames", image, 0.0),
    ]


def _three(luma: NDArray[np.uint8]) -> Image:
    return np.repeat(luma[..., None], 3, axis=2)


def _open_profile(data: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(BytesIO(data))


def _encode(path: Path, pixels: NDArray[np.uint16]) -> None:
    """Write pixels, BGR or grey, as cv2 does; deflate in a TIFF."""
    options = [cv2.IMWRITE_TIFF_COMPRESSION, 8] if path.suffix == ".tif" else []
    written, data = cv2.imencode(path.suffix, pixels, options)
    if not written:
        raise ValueError(f"{path}: cv2 cannot write {path.suffix} with {pixels.dtype} pixels")
    path.write_bytes(data.tobytes())
