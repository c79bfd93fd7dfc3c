"""The end of a file, without decoding it."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_prep.validate.ends import missing_end
from tests.validate.made import encode, photo


def jpeg_with_preview() -> bytes:
    """A JPEG whose EXIF holds a whole JPEG: an end marker within the header."""
    preview = encode(photo((16, 16)), "JPEG")
    return encode(photo(), "JPEG", exif=b"Exif\0\0MM\0*" + preview)


WHOLE = {
    "baseline": ("JPEG", encode(photo(), "JPEG")),
    "progressive": ("JPEG", encode(photo(), "JPEG", progressive=True)),
    "grey": ("JPEG", encode(photo(mode="L"), "JPEG")),
    "preview": ("JPEG", jpeg_with_preview()),
    "png": ("PNG", encode(photo())),
    "webp": ("WEBP", encode(photo(), "WEBP")),
    "webp lossless": ("WEBP", encode(photo(), "WEBP", lossless=True)),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_files_pass_with_and_without_a_tail(kind: str) -> None:
    format, data = WHOLE[kind]
    assert missing_end(data, format) is None
    assert missing_end(data + b"\xff\xd8 a preview \xff\xd9", format) is None


@pytest.mark.parametrize("kind", WHOLE)
@given(part=st.floats(0, 1, exclude_max=True))
def test_every_cut_is_found(kind: str, part: float) -> None:
    format, data = WHOLE[kind]
    assert missing_end(data[: int(part * len(data))], format)


@given(part=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_changed_bit_of_a_png_is_found(part: float, bit: int) -> None:
    data = bytearray(WHOLE["png"][1])
    at = 8 + int(part * (len(data) - 8))
    data[at] ^= 1 << bit
    assert missing_end(bytes(data), "PNG")


@given(garbage=st.binary(max_size=200), format=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]))
def test_garbage_raises_nothing(garbage: bytes, format: str) -> None:
    missing_end(garbage, format)
    missing_end(WHOLE["baseline"][1][:20] + garbage, format)


def test_what_it_saves_one_from() -> None:
    """Pillow opens and verifies a JPEG of which half is missing."""
    data = encode(photo((256, 256)), "JPEG")
    half = data[: len(data) // 2]
    Image.open(io.BytesIO(half)).verify()
    assert missing_end(half, "JPEG") == "the JPEG data has no end: the file is cut off"
