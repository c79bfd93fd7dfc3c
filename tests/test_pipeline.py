"""Which steps `lora-prep run` takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_prep import pipeline
from lora_prep.errors import UsageError


def test_masks_and_validate_unless_more_is_asked_for() -> None:
    assert pipeline.chosen((), {}, photos=False) == ("masks", "validate")


def test_the_configuration_asks_for_more() -> None:
    tables = {
        "captions": {"fill": "a photo of ohwx"},
        "masks": {"faces": "reference"},
        "augment": {"preset": "light"},
        "priors": {"class": "a person"},
        "export": {"to": "kohya"},
    }
    wanted = "normalize captions embed masks augment priors validate export"
    assert pipeline.chosen((), tables, photos=True) == tuple(wanted.split())


def test_tables_that_name_nothing_to_make_ask_for_nothing() -> None:
    tables = {"captions": {"trigger": "x"}, "priors": {"steps": 20}, "masks": {"faces": "all"}}
    assert pipeline.chosen((), tables, photos=False) == ("masks", "validate")


@given(st.permutations(pipeline.STEPS), st.integers(1, len(pipeline.STEPS)))
def test_named_steps_run_in_the_order_of_the_chain(steps: list[str], count: int) -> None:
    found = pipeline.chosen(steps[:count], {}, photos=True)
    assert sorted(found) == sorted(steps[:count])
    assert sorted(found, key=pipeline.STEPS.index) == list(found)


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(UsageError, match="'mask'; there are normalize, captions"):
        pipeline.chosen(("mask",), {}, photos=False)


def test_normalize_wants_photographs() -> None:
    with pytest.raises(UsageError, match="--photos"):
        pipeline.chosen(("normalize",), {}, photos=False)
