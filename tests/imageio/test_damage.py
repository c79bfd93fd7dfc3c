"""Damaged files of every format: an image within the limit or an ItemError, nothing else."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_prep import imageio
from lora_prep.errors import ItemError
from tests.imageio import pictures
from tests.imageio.pictures import encode, exif, scene

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about the damage

MAX_PIXELS = 100_000


def _samples() -> list[bytes]:
    rgb = Image.fromarray(scene())
    alpha = Image.fromarray(np.dstack([scene(), scene()[..., 0]]))
    palette = rgb.quantize(16)
    deep = Image.fromarray(scene()[..., 0].astype(np.uint16) * 257)
    tags = {"exif": exif(6, gps=True), "icc_profile": pictures.rgb_profile("bgr")}

    def animated(format: str) -> bytes:
        return encode(rgb, format, save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)])

    return [
        encode(rgb, "JPEG", comment="words", **tags),
        encode(rgb, "JPEG", progressive=True, restart_marker_blocks=2),
        encode(rgb.convert("CMYK"), "JPEG", icc_profile=pictures.key_only_profile()),
        animated("MPO"),
        encode(rgb, "PNG", **tags),
        encode(palette, "PNG", transparency=bytes(range(0, 160, 10))),
        encode(alpha, "PNG"),
        encode(deep, "PNG"),
        encode(rgb.convert("1"), "PNG"),
        animated("PNG"),
        encode(rgb, "WEBP", **tags),
        encode(alpha, "WEBP", lossless=True),
        animated("WEBP"),
        encode(rgb, "BMP"),
        encode(palette, "BMP"),
        encode(rgb, "TIFF", tiffinfo={274: 6}, icc_profile=pictures.rgb_profile("bgr")),
        encode(rgb, "TIFF", compression="tiff_adobe_deflate"),
        encode(rgb.convert("LAB"), "TIFF"),
        encode(rgb.convert("CMYK"), "TIFF"),
        encode(deep, "TIFF"),
        encode(palette, "TIFF"),
        animated("TIFF"),
        encode(palette, "GIF", transparency=2),
        animated("GIF"),
        encode(rgb, "AVIF", **tags),
        encode(alpha, "AVIF"),
        encode(rgb, "JPEG2000"),
        encode(deep, "JPEG2000"),
    ]


SAMPLES = _samples()
INTERESTING = st.sampled_from([0, 1, 2, 7, 8, 16, 127, 128, 254, 255])
PLACES = st.one_of(st.integers(0, 80), st.integers(0, 600), st.integers(0, 10_000))


def _mended(png: bytes) -> bytes:
    """Checksums made right again, so that damage gets past them."""
    chunks, at = [png[:8]], 8
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        body = png[at:end]
        chunks.append(body + zlib.crc32(body[4:]).to_bytes(4, "big"))
        at = end + 4
    return b"".join(chunks)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(PLACES) % (len(data) + 1)
        match draw(
            st.sampled_from(["change", "change", "flood", "cut", "insert", "repeat", "end"])
        ):
            case "change":
                data[at : at + 1] = bytes([draw(INTERESTING | st.integers(0, 255))])
            case "flood":
                data[at : at + 4] = draw(
                    st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])
                )
            case "cut":
                del data[at : at + draw(st.sampled_from([1, 2, 4, 30]))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=4))
            case "repeat":
                data[at:at] = data[at : at + 12]
            case "end":
                del data[at:]
    if data.startswith(b"\x89PNG") and draw(st.booleans()):
        return _mended(bytes(data))
    return bytes(data)


@settings(max_examples=800, deadline=None)
@given(data=damaged(), suffix=st.sampled_from([".jpg", ".png", ".webp", ".gif", ".tif"]))
def test_damage_is_an_item_error_or_a_picture(data, suffix):
    header = image = mask = None
    try:
        header = imageio.read_header(data, max_pixels=MAX_PIXELS)
        image = imageio.decode_image(data, max_pixels=MAX_PIXELS)
        mask = imageio.decode_mask(data, max_pixels=MAX_PIXELS)
        copy = imageio.normalized(data, suffix, max_pixels=MAX_PIXELS)
    except ItemError as error:
        told = error
    else:
        told = None
        assert imageio.decode_image(copy).shape == image.shape
        assert mask.shape == image.shape[:2]
    if told is not None:
        assert told.code in ("empty", "unreadable", "too-large", "unsupported")
        assert str(told).isprintable()
        assert len(str(told)) < 260
    if header is not None:
        assert header.width * header.height <= MAX_PIXELS
        assert header.orientation in range(1, 9)
    if image is not None:
        assert image.shape == (header.height, header.width, 3)
        assert image.flags.writeable


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([s[:30] for s in SAMPLES]))
def test_garbage_behind_any_signature(garbage, signature):
    for read in (imageio.read_header, imageio.decode_image, imageio.decode_mask):
        try:
            read(signature + garbage, max_pixels=MAX_PIXELS)
        except ItemError as error:
            assert error.code  # noqa: PT017
