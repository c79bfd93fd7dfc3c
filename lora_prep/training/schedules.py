"""The weight of a term over the training: constant, warmed up, or by step."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lora_prep.errors import UsageError


@runtime_checkable
class Schedule(Protocol):
    """A weight for each optimizer step."""

    def at(self, step: int) -> float:
        """The weight at `step`, counted from 0."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same weight at every step."""

    weight: float

    def __post_init__(self) -> None:
        _check(self.weight)

    def at(self, step: int) -> float:
        """The weight."""
        return self.weight


@dataclass(frozen=True)
class WarmUp:
    """From `start` to `weight` in a straight line over `steps`, then constant."""

    weight: float
    steps: int
    start: float = 0.0
    after: int = 0
    """Steps to stay at `start` before."""

    def __post_init__(self) -> None:
        _check(self.weight)
        _check(self.start)
        if self.steps < 1 or self.after < 0:
            raise UsageError(f"a warm-up of {self.steps} steps after {self.after} cannot be")

    def at(self, step: int) -> float:
        """The weight at `step`."""
        done = min(max((step - self.after) / self.steps, 0.0), 1.0)
        return self.start + done * (self.weight - self.start)


@dataclass(frozen=True)
class Steps:
    """Another weight from each of some steps on: `Steps(((0, 0.0), (500, 0.1)))`."""

    weights: tuple[tuple[int, float], ...]
    """(first step, weight), by step; 0 before the first."""

    def __post_init__(self) -> None:
        firsts = [first for first, _ in self.weights]
        if not firsts or firsts != sorted(set(firsts)) or firsts[0] < 0:
            raise UsageError(f"steps of a weight have to rise from 0 or more, and are {firsts}")
        for _, weight in self.weights:
            _check(weight)

    def at(self, step: int) -> float:
        """The weight at `step`."""
        return next((weight for first, weight in reversed(self.weights) if first <= step), 0.0)


def as_schedule(weight: float | Schedule) -> Schedule:
    """A number is a constant. Raises UsageError for what is neither."""
    if isinstance(weight, Schedule):
        return weight
    return Constant(weight)


def fixed(schedule: Schedule) -> float | None:
    """The weight where it is the same at every step, else None, as for any schedule of yours."""
    found: set[float] = set()
    if isinstance(schedule, Constant):
        found = {schedule.weight}
    elif isinstance(schedule, WarmUp):
        found = {schedule.start, schedule.weight}
    elif isinstance(schedule, Steps):
        found = {schedule.at(0), *(weight for _, weight in schedule.weights)}
    return found.pop() if len(found) == 1 else None


def _check(weight: object) -> None:
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight < 0:  # type: ignore[operator,arg-type]
        raise UsageError(f"a term's weight is {weight!r}: give a number from 0 upwards")
