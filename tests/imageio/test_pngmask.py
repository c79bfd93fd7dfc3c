"""The levels of a mask, without decoding it: the same as with, or nothing at all."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_prep.imageio import decode_mask, encode_mask
from lora_prep.imageio.pngmask import read_levels, runs_to_mask
from tests.validate.made import encode

LIMIT = 10**8


def blob(height: int, width: int, level: int = 255) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    axes = (max(width // 3, 1), max(height // 3, 1))
    cv2.ellipse(mask, (width // 2, height // 2), axes, 0, 0, 360, level, -1)
    return mask


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.lists(st.tuples(*[st.integers(0, 70)] * 4, st.integers(0, 255)), max_size=4),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_levels_are_those_of_the_decoded_mask(
    height: int, width: int, boxes: list[tuple[int, int, int, int, int]], inverted: bool
) -> None:
    mask = np.full((height, width), 255 if inverted else 0, np.uint8)
    for x, y, w, h, level in boxes:
        mask[y : y + h, x : x + w] = level
    found = read_levels(encode_mask(mask), max_pixels=LIMIT)
    assert found is not None
    assert (found.width, found.height) == (width, height)
    assert found.counts == np.bincount(mask.ravel(), minlength=256).tolist()
    assert found.box == Image.fromarray(mask).getbbox()
    corners = {(y, x) for y in (0, height - 1) for x in (0, width - 1)}
    assert found.white_corners == sum(mask[corner] >= 128 for corner in corners)
    if found.one_run_a_row:
        starts = np.diff((mask > 0).astype(int), axis=1, prepend=0) == 1
        assert (starts.sum(axis=1) <= 1).all()
    picture = runs_to_mask(encode_mask(mask), max_pixels=LIMIT)
    assert picture is not None
    assert np.array_equal(picture, mask)


@pytest.mark.parametrize("size", [(64, 48), (100, 333), (512, 512), (1, 500), (500, 1)])
def test_masks_as_lora_prep_writes_them_are_understood(size: tuple[int, int]) -> None:
    mask = blob(*size, level=200)
    found = read_levels(encode_mask(mask), max_pixels=LIMIT)
    assert found is not None
    assert found.counts == np.bincount(mask.ravel(), minlength=256).tolist()


def test_rows_without_a_filter_are_understood() -> None:
    mask = blob(60, 80)
    raw = b"".join(b"\0" + row.tobytes() for row in mask)
    found = read_levels(png(80, 60, zlib.compress(raw)), max_pixels=LIMIT)
    assert found is not None
    assert found.counts == np.bincount(mask.ravel(), minlength=256).tolist()
    picture = runs_to_mask(png(80, 60, zlib.compress(raw)), max_pixels=LIMIT)
    assert picture is not None
    assert np.array_equal(picture, mask)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(width: int, height: int, pixels: bytes, more: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


GOOD = png(8, 4, zlib.compress(b"\x01\xff\0\0\0\0\0\0\0" * 4))


def test_a_hand_made_file_is_understood() -> None:
    found = read_levels(GOOD, max_pixels=LIMIT)
    assert found is not None
    assert found.counts[255] == 32
    assert found.box == (0, 0, 8, 4)
    assert found.white_corners == 4


@pytest.mark.parametrize(
    "data",
    {
        "empty": b"",
        "no PNG": b"\xff\xd8\xff" * 20,
        "signature alone": GOOD[:8],
        "cut": GOOD[:-14],
        "bit flipped": GOOD[:45] + bytes([GOOD[45] ^ 1]) + GOOD[46:],
        "bomb": png(8, 4, zlib.compress(b"\x01" + b"\0" * 10**6)),
        "too few rows": png(8, 4, zlib.compress(b"\x01" + b"\0" * 8)),
        "no zlib": png(8, 4, b"\0" * 40),
        "no pixels": png(0, 0, zlib.compress(b"")),
        "other filters": png(8, 4, zlib.compress(b"\x04\xff\0\0\0\0\0\0\0" * 4)),
        "turned by EXIF": png(8, 4, zlib.compress(b"\x01" + b"\0" * 35), chunk(b"eXIf", b"II*\0")),
        "transparent": png(8, 4, zlib.compress(b"\x01" + b"\0" * 35), chunk(b"tRNS", b"\0\0")),
        "colours": encode(Image.new("RGB", (8, 8))),
        "one bit": encode(Image.new("1", (8, 8))),
        "16 bits": cv2.imencode(".png", np.zeros((8, 8), np.uint16))[1].tobytes(),
        "noise": encode_mask(np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)),
    }.values(),
)
def test_everything_else_is_left_to_the_decoder(data: bytes) -> None:
    assert read_levels(data, max_pixels=LIMIT) is None


def test_large_pictures_are_not_inflated() -> None:
    assert read_levels(GOOD, max_pixels=31) is None
    assert runs_to_mask(GOOD, max_pixels=31) is None


@given(st.binary(max_size=40), st.integers(0, 2000))
@settings(max_examples=200, deadline=None)
def test_damage_never_raises_and_is_never_believed(junk: bytes, at: int) -> None:
    whole = encode_mask(blob(90, 70))
    at %= len(whole)
    damaged = whole[:at] + junk + whole[at + len(junk) :]
    found = read_levels(damaged, max_pixels=LIMIT)
    if found is not None:
        counts = np.bincount(decode_mask(damaged).ravel(), minlength=256).tolist()
        assert found.counts == counts
