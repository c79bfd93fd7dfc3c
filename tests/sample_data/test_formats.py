from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from sample_data.formats import Variant, icc_profile, write_variants
from sample_data.portraits import draw_portrait

PORTRAIT = draw_portrait(4, size=(120, 100), people=1, scale=(0.5, 0.6))
MODES = {
    "grey_16.png": "I;16",
    "grey.png": "L",
    "one_bit.png": "1",
    "palette.png": "P",
    "palette_clear.png": "P",
    "rgba.png": "RGBA",
    "la.png": "LA",
    "cmyk.jpg": "CMYK",
    "animated_gif.gif": "P",
}


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variant]:
    written = write_variants(tmp_path_factory.mktemp("formats"), PORTRAIT)
    return {variant.path.name: variant for variant in written}


def decode(path: Path) -> np.ndarray:
    """The displayed picture, uint8 RGB, by Pillow and lcms."""
    with Image.open(path) as file:
        if file.mode == "I;16":
            return np.repeat((np.asarray(file) >> 8)[..., None], 3, axis=2)
        picture = ImageOps.exif_transpose(file)
        profile = file.info.get("icc_profile")
        if profile:
            stored = ImageCms.ImageCmsProfile(BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            picture = ImageCms.profileToProfile(picture, stored, srgb, outputMode="RGB")
        assert picture is not None
        return np.asarray(picture.convert("RGBA"))[..., :3]


def error(variant: Variant, decoded: np.ndarray) -> float:
    difference = np.abs(decoded.astype(float) - variant.expected)
    return float(difference[slice(None) if variant.opaque is None else variant.opaque].mean())


def test_every_variant_decodes_to_what_is_expected(variants: dict[str, Variant]) -> None:
    assert len(variants) == 31
    assert len({variant.path.stem for variant in variants.values()}) == 31
    for variant in variants.values():
        decoded = decode(variant.path)
        assert decoded.shape == PORTRAIT.image.shape, variant.what
        assert error(variant, decoded) <= variant.tolerance, variant.what


def test_every_variant_is_stored_as_it_says(variants: dict[str, Variant]) -> None:
    for name, variant in variants.items():
        with Image.open(variant.path) as file:
            assert file.mode == MODES.get(name, "RGB"), name
            assert getattr(file, "n_frames", 1) == (2 if name.startswith("animated") else 1)
            turned = variant.path.stem[:6] in ("exif_5", "exif_6", "exif_7", "exif_8")
            assert file.size == ((120, 100) if turned else (100, 120)), name
    for name in ("rgb_16.png", "rgb_16_tiff.tif", "grey_16.png"):
        pixels = cv2.imread(str(variants[name].path), cv2.IMREAD_UNCHANGED)
        assert pixels.dtype == np.uint16
        assert pixels.max() > 30000
    for orientation in range(1, 9):
        with Image.open(variants[f"exif_{orientation}.jpg"].path) as file:
            assert file.getexif()[0x0112] == orientation


@pytest.mark.parametrize("name", ["icc_swapped.jpg", "icc_wide.png"])
def test_ignoring_a_profile_is_wrong(variants: dict[str, Variant], name: str) -> None:
    variant = variants[name]
    with Image.open(variant.path) as file:
        raw = np.asarray(file)
    assert error(variant, raw) > 1.5 * variant.tolerance


def test_transparent_variants_are_clear_somewhere(variants: dict[str, Variant]) -> None:
    for name in ("rgba.png", "la.png", "palette_clear.png"):
        variant = variants[name]
        assert variant.opaque is not None
        with Image.open(variant.path) as file:
            alpha = np.asarray(file.convert("RGBA"))[..., 3]
        assert ((alpha == 255) == variant.opaque).all()
        assert 0 < variant.opaque.mean() < 1


def test_the_second_frame_is_another_picture(variants: dict[str, Variant]) -> None:
    for kind in ("gif", "webp", "png"):
        variant = variants[f"animated_{kind}.{kind}"]
        with Image.open(variant.path) as file:
            file.seek(1)
            second = np.asarray(file.convert("RGB"))
        assert error(variant, second) > 20


def test_the_same_bytes_are_written_again(variants: dict[str, Variant], tmp_path: Path) -> None:
    for again in write_variants(tmp_path, PORTRAIT):
        assert again.path.read_bytes() == variants[again.path.name].path.read_bytes()


def test_a_profiles_name_has_to_fit() -> None:
    with pytest.raises(ValueError, match="13 characters"):
        icc_profile("short", None)
