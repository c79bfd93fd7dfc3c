"""From any picture that Pillow has decoded to 8-bit sRGB."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from lora_prep.errors import ItemError

_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")


def to_rgb(image: Image.Image, bits: int) -> Image.Image:
    """The loaded picture as sRGB, mode RGB: profile applied, alpha composited over white.

    White, because what lies under transparent pixels is arbitrary (often black, or what was erased)
    and must not be learned; diffusion-pipe composites over white too. CMYK without a profile goes
    through Pillow's plain conversion. Raises ItemError ("unsupported") as `to_grey` does.
    """
    profile = image.info.get("icc_profile")
    if image.mode in _DEEP_MODES:
        image = to_grey(image, bits)
    if not image.has_transparency_data:
        return _to_srgb(image, profile)
    image = _plain_alpha(image)
    opaque = image.convert("RGBA")
    colours = opaque.convert("L") if image.mode in ("L", "LA") else opaque.convert("RGB")
    result = Image.new("RGB", image.size, "white")
    result.paste(_to_srgb(colours, profile), mask=opaque.getchannel("A"))
    return result


def to_weights(image: Image.Image, bits: int) -> Image.Image:
    """The loaded mask as mode L, the way trainers read it: the red channel, whatever the alpha."""
    if image.mode in _DEEP_MODES:
        return to_grey(image, bits)
    if image.mode in ("1", "L"):
        return image if image.mode == "L" else image.convert("L")
    if image.has_transparency_data:
        return _plain_alpha(image).convert("RGBA").getchannel("R")
    return image.convert("RGB").getchannel("R")


def to_grey(image: Image.Image, bits: int) -> Image.Image:
    """A picture of one deep channel as mode L: black stays 0, the format's white becomes 255.

    `bits` tells 12-bit values from 16-bit ones. Floating-point values must lie between 0 and 1.
    Raises ItemError ("unsupported") where the range is not known.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # written so that NaN fails too
            raise _unknown_range("floating-point", low, high, "0 to 1")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if low < 0 or high > 65535:
        raise _unknown_range("32-bit", low, high, "0 to 65535")
    white = 4095 if bits == 12 else 65535
    scaled = (values.astype(np.uint32) * 255 + white // 2) // white
    return Image.fromarray(scaled.astype(np.uint8))


def is_srgb(profile: bytes | None) -> bool:
    """Whether RGB pixels with this ICC profile are sRGB as they are."""
    return not profile or _transform(profile, "RGB") is None


def _unknown_range(kind: str, low: float, high: float, expected: str) -> ItemError:
    return ItemError(
        f"its {kind} pixels run from {low:g} to {high:g}, not from {expected}: "
        "save it as an 8-bit or 16-bit PNG",
        code="unsupported",
    )


def _plain_alpha(image: Image.Image) -> Image.Image:
    """Grey with premultiplied alpha, which Pillow converts to nothing else, as grey with alpha."""
    return image.convert("LA") if image.mode == "La" else image


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode not in ("L", "CMYK"):
        image = _as_rgb(image)
    if profile:
        if image.mode == "L" and _transform(profile, "L") is None:
            image = _as_rgb(image)  # grey pixels often come with an RGB profile
        transform = _transform(profile, image.mode)
        if transform is not None:
            return transform.apply(image)
    return _as_rgb(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Pillow's `convert` copies a picture that is RGB already."""
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=32)  # a camera writes the same profile into each of its pictures
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """To sRGB; None where the profile is sRGB already, is damaged, or is for another mode.

    Relative colorimetric with black point compensation, as Photoshop does by default.
    """
    try:
        transform = ImageCms.ImageCmsTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            "RGB",
            intent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ValueError):
        return None
    return None if mode == "RGB" and _changes_nothing(transform) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether colours all over the cube stay within 2 of 255: sRGB under one of its many names."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    result = np.asarray(transform.apply(Image.fromarray(cube)))
    return bool(np.abs(result.astype(np.int16) - cube).max() <= 2)
