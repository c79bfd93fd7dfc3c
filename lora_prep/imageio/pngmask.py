"""What a mask's PNG file says about its levels, without making a picture of it.

A mask is long runs of one level. With the `Sub` filter (PNG specification, 9.2), which OpenCV and
so lora-prep write, a run is one byte that differs from 0 and a row of zeros, so the levels can be
counted from the few places where they change. That takes a sixth of the time of decoding. Whatever
is not such a file is left to the decoder: it is slower, and says what is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import UInt8
from zlib_ng import zlib_ng

from lora_prep.types import Mask

Rows = UInt8[np.ndarray, "height stride"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HARMLESS = frozenset({b"pHYs", b"tIME", b"gAMA", b"sRGB", b"cHRM", b"bKGD", b"sBIT"})
_NONE, _SUB = 0, 1
_DAMAGED = cast(type[Exception], zlib_ng.error)  # whose stub says that it is an instance
_BUSY = 16
"""With more changes than one in this many pixels, decoding is as quick."""
_FEW = 4000
"""Changes that are never too many."""


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of a grey picture."""

    width: int
    height: int
    counts: Sequence[int]
    """Number of pixels of each level, 0 to 255."""
    box: tuple[int, int, int, int] | None
    """x0, y0, x1, y1 around all that is not black; None where all is."""
    white_corners: int
    """How many of the four corner pixels are 128 or more."""
    one_run_a_row: bool
    """Every row of the box has one run that is not black: no islands beside each other."""


def read_levels(data: bytes, *, max_pixels: int) -> Levels | None:
    """The levels of an 8-bit grey PNG file, all checksums compared.

    None for any other kind of file, a damaged one, one that is larger than `max_pixels`, and one
    that is not made of runs: decode it to know.
    """
    rows = _rows(data, max_pixels)
    return None if rows is None else _runs(rows)


def runs_to_mask(data: bytes, *, max_pixels: int) -> Mask | None:
    """The picture that `read_levels` tells of, in a third of the decoder's time; None as there."""
    rows = _rows(data, max_pixels)
    if rows is None:
        return None
    filters = rows[:, 0]
    plain = filters == _NONE
    if not (plain | (filters == _SUB)).all():
        return None
    mask = np.cumsum(rows[:, 1:], axis=1, dtype=np.uint8)
    mask[plain] = rows[plain, 1:]
    return mask


def _rows(data: bytes, max_pixels: int) -> Rows | None:
    """The rows as they are compressed: the filter's number, then the filtered pixels."""
    found = _compressed(data)
    if found is None:
        return None
    width, height, compressed = found
    if not 0 < width * height <= max_pixels:
        return None
    size = height * (width + 1)
    inflate = zlib_ng.decompressobj()
    try:
        raw = inflate.decompress(compressed, size + 1)  # a bomb is larger than its header says
    except _DAMAGED:
        return None
    if len(raw) != size or not inflate.eof:
        return None
    return np.frombuffer(raw, np.uint8).reshape(height, width + 1)


def _compressed(data: bytes) -> tuple[int, int, bytes] | None:
    """Width, height and compressed pixels, if nothing else in the file has a say in them."""
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR":
        return None
    view, at, parts = memoryview(data), 8, []
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if zlib_ng.crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return None
        if kind == b"IDAT":
            parts.append(view[at + 8 : end])
        elif kind == b"IEND":
            width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
            eight_bit_grey = data[24:29] == b"\x08\0\0\0\0"
            return (width, height, b"".join(parts)) if eight_bit_grey else None
        elif kind != b"IHDR" and kind not in _HARMLESS:
            return None
        at = end + 4
    return None


def _runs(rows: Rows) -> Levels | None:
    """Count the levels from the places where they change."""
    height, stride = rows.shape
    width = stride - 1
    filters = rows[:, 0]
    plain = filters == _NONE
    if not (plain | (filters == _SUB)).all():
        return None
    flat = (_as_sub(rows, plain) if plain.any() else rows).reshape(-1)
    at = _nonzero(flat)
    at = at[at % stride != 0]
    if len(at) > max(flat.size // _BUSY, _FEW):
        return None
    row = at // stride
    change = flat[at]
    total = np.cumsum(change, dtype=np.uint8)  # wraps around, as the filter does
    is_first = np.ones(len(row), np.bool_)  # the first change of its row
    is_first[1:] = row[1:] != row[:-1]
    starts = np.flatnonzero(is_first)
    each = np.append(starts[1:], len(at)) - starts
    level = total - np.repeat(total[starts] - change[starts], each)
    end = np.minimum(np.append(at[1:], flat.size), (row + 1) * stride)
    counts = np.bincount(level, weights=end - at, minlength=256).astype(np.int64)
    counts[0] = width * height - counts[1:].sum()
    lit = level > 0
    box, one_run_a_row = None, False
    if lit.any():
        left, right = (at % stride - 1)[lit].min(), (end - 1 - row * stride)[lit].max()
        top, bottom = int(row[lit][0]), int(row[lit][-1]) + 1
        box = (int(left), top, int(right), bottom)
        rows_lit = row[lit]
        one_run_a_row = len(rows_lit) == bottom - top and bool((rows_lit[1:] > rows_lit[:-1]).all())
    corners = _corners(at, end, level, width, height)
    return Levels(width, height, counts.tolist(), box, corners, one_run_a_row)


def _corners(at: np.ndarray, end: np.ndarray, level: np.ndarray, width: int, height: int) -> int:
    stride, white = width + 1, 0
    for y in {0, height - 1}:
        for x in {0, width - 1}:
            place = y * stride + 1 + x
            run = int(np.searchsorted(at, place, side="right")) - 1
            white += run >= 0 and end[run] > place and level[run] >= 128
    return int(white)


def _as_sub(rows: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """The same rows, those without a filter filtered."""
    filtered = rows.copy()
    filtered[plain, 2:] = rows[plain, 2:] - rows[plain, 1:-1]
    return filtered


def _nonzero(flat: np.ndarray) -> np.ndarray:
    """Where bytes are not 0: eight at a time, since nearly all are."""
    whole = flat.size // 8 * 8
    words = np.flatnonzero(flat[:whole].view(np.uint64) != 0)
    inside = np.flatnonzero(flat[:whole].reshape(-1, 8)[words] != 0)
    tail = np.flatnonzero(flat[whole:]) + whole
    return np.concatenate([words[inside >> 3] * 8 + (inside & 7), tail])
