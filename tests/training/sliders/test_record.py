from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_prep.errors import UsageError
from lora_prep.training import sliders
from lora_prep.training.sliders import KEYS, SliderRecord, documented, outside

numbers = st.floats(-100, 100)
RANGE = "lora_prep.slider.range"


@given(numbers, numbers, st.text(), st.text(), st.text())
def test_what_is_written_is_read_back(
    low: float, high: float, positive: str, negative: str, target: str
) -> None:
    low, high = sorted((low, high))
    if low == high:
        high += 1
    record = SliderRecord(low, high, "visual", positive, negative, target)
    metadata = record.to_metadata()
    assert set(metadata) <= set(KEYS)
    assert all(isinstance(text, str) for text in metadata.values())
    assert SliderRecord.from_metadata({**metadata, "ss_network_dim": "4"}) == record


def test_a_file_without_a_range_has_none() -> None:
    assert SliderRecord.from_metadata({"ss_network_dim": "4"}) is None


def test_a_range_of_unknown_origin_counts_as_stated() -> None:
    found = SliderRecord.from_metadata({RANGE: "[0, 3]", "lora_prep.slider.kind": "newer"})
    assert found == SliderRecord(0.0, 3.0, "stated")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "[1]",
        "[1, 2, 3]",
        '["a", 1]',
        "[true, 2]",
        "[2, 1]",
        "[1, NaN]",
        "null",
        "[" * 100_000,
        f"[1, 1{'0' * 400}]",
    ],
    ids=lambda text: text[:12],
)
def test_a_broken_range_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="range"):
        SliderRecord.from_metadata({RANGE: text})


@pytest.mark.parametrize(
    ("stem", "metadata", "known"),
    [
        ("klein_slider_anatomy_v1.5", {}, True),
        ("Klein-Slider-Anatomy v1_5", {}, True),
        ("klein_slider_anatomy", {}, True),
        ("pytorch_lora_weights", {"ss_output_name": "klein_slider_anatomy_v1.5"}, True),
        ("klein_slider_anatomy_v2.0", {}, False),
        ("klein_slider_anatomy_v1.55", {}, False),
        ("klein_slider_hands", {}, False),
        ("anatomy", {}, False),
    ],
)
def test_a_documented_slider_is_known_by_its_name(
    stem: str, metadata: Mapping[str, str], known: bool
) -> None:
    found = documented(stem, metadata)
    assert (found is not None) == known
    assert found is None or (found.low, found.high, found.version) == (2.0, 4.0, "1.5")


def test_weights_outside() -> None:
    assert outside(2, 2, 4) == outside(4, 2, 4) == ""
    assert "1 is below the range of this slider, 2 to 4" in outside(1, 2, 4)
    assert "above" in outside(4.01, 2, 4)


def test_the_steps_are_there_and_nothing_else() -> None:
    assert all(hasattr(sliders, name) for name in sliders.__all__)
    with pytest.raises(AttributeError, match="no attribute 'textual_stop'"):
        sliders.textual_stop  # noqa: B018
