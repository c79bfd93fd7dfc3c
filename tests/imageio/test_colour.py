"""Profiles and inks: pixels come out as the colours that they stand for."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from lora_prep import imageio
from lora_prep.imageio import colour
from tests.imageio import pictures
from tests.imageio.pictures import encode, scene

SWAPPED = scene()[..., ::-1]


def difference(image: np.ndarray, expected: np.ndarray) -> int:
    assert image.shape == expected.shape
    return int(np.abs(image.astype(int) - expected).max())


@pytest.mark.parametrize(
    ("format", "tolerance", "options"),
    [
        ("JPEG", 6, {"quality": 95, "subsampling": 0}),
        ("PNG", 2, {}),
        ("WEBP", 2, {"lossless": True}),
        ("TIFF", 2, {}),
        ("AVIF", 26, {"quality": 95}),
    ],
)
def test_a_profile_is_applied(format, tolerance, options):
    """Red and blue trade places in this profile: ignoring it is off by 190."""
    data = encode(scene(), format, icc_profile=pictures.rgb_profile("bgr"), **options)
    assert imageio.read_header(data).icc
    assert difference(imageio.decode_image(data), SWAPPED) <= tolerance
    assert difference(scene(), SWAPPED) > 150


def test_a_profile_counts_under_alpha_and_in_palettes():
    profile = pictures.rgb_profile("bgr")
    half = np.full((24, 40), 128, np.uint8)
    data = encode(np.dstack([scene(), half]), "PNG", icc_profile=profile)
    over_white = np.rint(SWAPPED * (128 / 255) + 127)
    assert difference(imageio.decode_image(data), over_white) <= 2
    palette = Image.fromarray(scene()).quantize(64)
    expected = np.asarray(palette.convert("RGB"))[..., ::-1]
    data = encode(palette, "PNG", icc_profile=profile)
    assert difference(imageio.decode_image(data), expected) <= 2


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    "profile",
    [pictures.linear_grey_profile(), pictures.rgb_profile(linear=True)],
    ids=["grey", "RGB"],
)
def test_grey_with_a_profile(format, profile):
    """Grey files come with either kind. Ignoring it is off by 73."""
    light = np.arange(256, dtype=np.uint8)[None]
    share = light / 255
    curve = np.where(share <= 0.0031308, share * 12.92, 1.055 * share ** (1 / 2.4) - 0.055)
    image = imageio.decode_image(encode(light, format, icc_profile=profile))
    expected = np.dstack([np.rint(curve * 255)] * 3)
    assert difference(image[:, 8:], expected[:, 8:]) <= 2
    assert difference(image, expected) <= 10  # Little CMS interpolates the darkest levels


@pytest.mark.parametrize(
    "profile",
    [
        b"garbage",
        pictures.rgb_profile("bgr")[:300],
        pictures.rgb_profile("bgr").replace(b"para", b"none"),
        pictures.key_only_profile(),
        pictures.linear_grey_profile(),
    ],
    ids=["garbage", "cut off", "tags of no kind", "for CMYK", "for grey"],
)
def test_a_profile_that_does_not_fit_is_ignored(profile):
    data = encode(scene(), "PNG", icc_profile=profile)
    assert difference(imageio.decode_image(data), scene()) == 0
    assert colour.is_srgb(profile)


@pytest.mark.parametrize(
    "profile",
    [
        None,
        pictures.rgb_profile(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ],
    ids=["none", "made by hand", "Little CMS's own"],
)
def test_srgb_goes_by_its_colours_not_its_name(profile):
    assert colour.is_srgb(profile)
    data = encode(scene(), "PNG", icc_profile=profile)
    assert difference(imageio.decode_image(data), scene()) == 0


def test_other_colours_are_not_srgb():
    assert not colour.is_srgb(pictures.rgb_profile("bgr"))


def _cmyk() -> np.ndarray:
    """Inks: cyan, magenta, yellow and black rise one after the other."""
    rising = np.linspace(0, 255, 64, dtype=np.uint8)
    inks = np.zeros((16, 64, 4), np.uint8)
    for ink in range(4):
        inks[4 * ink : 4 * ink + 4, :, ink] = rising
    return inks


def _plain(inks: np.ndarray) -> np.ndarray:
    share = inks / 255
    return np.rint(255 * (1 - share[..., :3]) * (1 - share[..., 3:]))


def test_cmyk_without_a_profile():
    picture = Image.fromarray(_cmyk(), "CMYK")
    for format, tolerance in (("TIFF", 1), ("JPEG", 8)):
        data = encode(picture, format, **({"quality": 100} if format == "JPEG" else {}))
        assert difference(imageio.decode_image(data), _plain(_cmyk())) <= tolerance
        assert imageio.read_header(data).mode == "CMYK"


def test_cmyk_with_a_profile():
    """Of this printer's inks only black works: the plain conversion is off by 255."""
    data = encode(Image.fromarray(_cmyk(), "CMYK"), "TIFF", icc_profile=pictures.key_only_profile())
    image = imageio.decode_image(data).astype(int)
    assert image[:12].min() >= 253
    assert image[12:, 0].min() >= 253
    assert image[12:, -1].max() <= 2
    assert (np.diff(image[13, :, 1]) <= 0).all()


def test_ycck():
    """Adobe's other CMYK: the numbers of a CMYK file are read as YCC and black."""
    data = encode(Image.fromarray(_cmyk(), "CMYK"), "JPEG", quality=100)
    flag = data.index(b"Adobe") + 11
    assert data[flag] == 0
    ycck = data[:flag] + b"\x02" + data[flag + 1 :]
    stored = 255 - np.asarray(Image.open(io.BytesIO(data))).astype(float)
    y, cb, cr, key = np.moveaxis(stored, -1, 0)
    red = y + 1.402 * (cr - 128)
    green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
    blue = y + 1.772 * (cb - 128)
    rgb = np.clip(np.dstack([red, green, blue]), 0, 255)
    # Adobe stores inks inverted, and YCCK converts to 255 - RGB.
    assert difference(imageio.decode_image(ycck), _plain(np.dstack([rgb, 255 - key]))) <= 4
