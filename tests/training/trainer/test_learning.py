"""Do the losses do what they are for? Short trainings of a toy, with each term on and off."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.learning import DOP, FULL, INVERTED, MASKED, PRIOR, Measured, Toy

STEPS = 40


class Runs:
    """Each run once, however many tests look at it."""

    def __init__(self, folder: Path) -> None:
        self.toy = Toy(folder)
        self.base = self.toy.measure(None)
        print(f"{'run':45}", *(f"{name:>8}" for name in ("in", "out", "drift", "class")))
        self._kept: dict[str, Measured] = {}

    def __call__(self, losses: Mapping[str, Any], *, priors: bool = False) -> Measured:
        key = repr((losses, priors))
        if key not in self._kept:
            self._kept[key] = run = self.toy.train(losses, steps=STEPS, priors=priors)
            figures = (run.inside, run.outside, run.drift, run.class_drift)
            print(f"{', '.join(losses):45}", *(f"{figure:8.3f}" for figure in figures))
        return self._kept[key]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    torch.set_num_threads(1)
    return Runs(tmp_path_factory.mktemp("toy"))


def off(losses: dict[str, Any], name: str) -> dict[str, Any]:
    """The same with one term without effect."""
    return {**losses, name: {**losses[name], "weight": 0.0}}


# ------------------------------------------------------------------ the claims
def learns_inside_alone(run: Measured, base: Measured) -> bool:
    return run.inside < 0.8 * base.inside and run.outside > 0.9 * base.outside


def stays_outside(run: Measured, masked_alone: Measured) -> bool:
    return run.drift < 0.4 * masked_alone.drift


def keeps_the_class(run: Measured, full: Measured) -> bool:
    return run.class_drift < 0.6 * full.class_drift


def slides(amounts: list[float]) -> bool:
    """Whether more strength is more of it over the whole range, and clearly so at either end."""
    print("slider", [f"{amount:+.3f}" for amount in amounts])
    rises = all(a < b for a, b in itertools.pairwise(amounts))
    return rises and amounts[0] < -0.03 and amounts[-1] > 0.03


def test_masked_training_learns_inside_and_leaves_outside(runs: Runs) -> None:
    assert learns_inside_alone(runs(MASKED), runs.base)
    # Without the mask the outside is learned as well, and the claim fails.
    assert runs(FULL).outside < 0.75 * runs.base.outside
    assert not learns_inside_alone(runs(FULL), runs.base)


def test_with_the_inverted_mask_prior_the_outside_does_not_drift(runs: Runs) -> None:
    both = {**MASKED, **INVERTED}
    assert stays_outside(runs(both), runs(MASKED))
    assert learns_inside_alone(runs(both), runs.base)
    assert not stays_outside(runs(off(both, "inverted_mask_prior")), runs(MASKED))


@pytest.mark.parametrize(("term", "priors"), [(PRIOR, True), (DOP, False)], ids=["images", "dop"])
def test_class_drift_falls(runs: Runs, term: dict[str, Any], priors: bool) -> None:
    kept = runs({**FULL, **term}, priors=priors)
    assert keeps_the_class(kept, runs(FULL))
    assert kept.inside < 0.85 * runs.base.inside  # and the subject is learned all the same
    without = runs(off({**FULL, **term}, next(iter(term))), priors=priors)
    assert not keeps_the_class(without, runs(FULL))


def test_a_slider_is_monotone_over_its_range(runs: Runs) -> None:
    def slide(pairs: str) -> list[float]:
        return runs.toy.slide(runs.toy.slider(20, pairs))

    assert slides(slide("pairs"))
    # The same training, of pairs that do not differ and of pairs the other way round, does not.
    assert not slides(slide("equal"))
    swapped = slide("swapped")
    assert not slides(swapped)
    assert slides(swapped[::-1])
