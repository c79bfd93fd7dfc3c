"""Pictures that look alike, by a hash of how each looks (the difference hash of N. Krawetz)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image as PillowImage

BITS = 64
BANDS = 4
NEAR = 3
"""Hashes that differ in so many bits, or fewer, are of one picture that was scaled or saved anew.

Fewer than BANDS, so that two near hashes have at least one band of 16 bits in common.
"""


def difference_hash(picture: PillowImage.Image) -> int:
    """64 bits: whether each of 8 × 8 places is brighter than the one to its right."""
    small = np.asarray(picture.convert("L").resize((9, 8), PillowImage.Resampling.BOX), np.int16)
    bits = (small[:, :-1] > small[:, 1:]).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def is_flat(value: int) -> bool:
    """Whether a hash says nothing, as that of a plain or evenly shaded picture."""
    return value.bit_count() < 8 or value.bit_count() > BITS - 8


def alike(hashes: Sequence[tuple[str, int]]) -> Iterator[tuple[str, str, int]]:
    """Each name that looks like an earlier one: that one, it, and the bits that differ.

    Memory is that of the names; comparisons are only those within a band, so a million pictures
    take seconds.
    """
    seen: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(BANDS)]
    width = BITS // BANDS
    for index, (name, value) in enumerate(hashes):
        if is_flat(value):
            continue
        keys = [value >> (band * width) & (1 << width) - 1 for band in range(BANDS)]
        candidates = {i for band, key in zip(seen, keys, strict=True) for i in band.get(key, ())}
        near = (
            min(((hashes[i][1] ^ value).bit_count(), i) for i in candidates) if candidates else None
        )
        if near and near[0] <= NEAR:
            yield hashes[near[1]][0], name, near[0]
        else:  # what looks like an earlier picture is found by that one
            for band, key in zip(seen, keys, strict=True):
                band[key].append(index)
