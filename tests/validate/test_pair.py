"""Reading files that anything may have happened to."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_prep.dataset import Dataset
from lora_prep.validate import PAIR_CHECKS
from lora_prep.validate.listing import Listing
from lora_prep.validate.pair import Pair, Reading, read_pair
from tests.validate.made import Data, ellipse, encode, photo

SEEDS = [
    *(encode(photo(), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF")),
    encode(photo(mode="RGBA")),
    encode(photo(mode="LA")),
    encode(photo().quantize(8), transparency=2),
    encode(photo(mode="CMYK"), "JPEG"),
    encode(Image.fromarray(ellipse().astype(np.uint16))),
]

CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)


def read(root: Path, content: bytes) -> Pair:
    """Read a pair of which both files have this content."""
    data = Data(root)
    data.image("a.png", content)
    data.mask("a.png", content)
    return read_pair(Listing.of(Dataset.at(root)), "a.png", "a.png", Reading(deep=True))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.sampled_from(SEEDS), changes=CHANGES, cut=st.floats(0, 1))
def test_damage_never_raises(
    tmp_path: Path, seed: bytes, changes: list[tuple[float, int]], cut: float
) -> None:
    content = bytearray(seed)
    for part, value in changes:
        content[int(part * len(content))] = value
    pair = read(tmp_path, bytes(content[: max(1, int(4 * cut * len(content)))]))
    issues = [issue for check in PAIR_CHECKS for issue in check(pair)]
    assert {issue.path for issue in issues} <= {"faces/a.png", "masks/a.png"}
    for file in (pair.image, pair.mask):
        assert file is not None
        assert file.header or file.problem


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    levels=st.lists(st.integers(0, 255), min_size=1, max_size=12),
    mode=st.sampled_from(["L", "RGB", "RGBA", "LA"]),
)
def test_levels_are_counted_alike_in_every_mode(
    tmp_path: Path, levels: list[int], mode: str
) -> None:
    grey = Image.fromarray(np.array([levels], np.uint8))
    mask = read(tmp_path, encode(grey.convert(mode))).mask
    assert mask is not None
    assert list(mask.counts) == np.bincount(levels, minlength=256).tolist()
    assert mask.brightest == max(levels)
    assert mask.weight == pytest.approx(sum(levels) / 255)
