"""How a number is spread over the images, ready to be drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

BARS = 24
WIDTH, HEIGHT = 360, 96

Scale = Literal["linear", "log"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar in pixels of the drawing, and what it stands for."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """A drawing of WIDTH × HEIGHT pixels."""

    title: str
    note: str
    bars: Sequence[Bar]
    low: str
    """What stands at the left end of the axis."""
    high: str
    median: str
    count: int
    mark: float | None = None
    """Where a threshold is drawn, in pixels from the left."""
    mark_label: str = ""

    @property
    def summary(self) -> str:
        """The drawing in words."""
        return f"{self.count} images from {self.low} to {self.high}, median {self.median}"


def histogram(
    title: str,
    note: str,
    values: Sequence[float],
    form: str,
    *,
    scale: Scale = "linear",
    mark: float | None = None,
    mark_label: str = "",
) -> Histogram | None:
    """A histogram of finite values; None where there is none.

    `form` is a format specification for the values, such as `.0%`. A log scale is for values that
    are not negative; those below 0.1 count as 0.1.
    """
    if not values:
        return None
    placed = [_place(v, scale) for v in values]
    low, high = min(placed), max(placed)
    if mark is not None:
        low, high = min(low, _place(mark, scale)), max(high, _place(mark, scale))
    span = high - low
    counts = [0] * BARS
    for value in placed:  # one value alone stands in the middle
        counts[min(int((value - low) / span * BARS), BARS - 1) if span else BARS // 2] += 1
    tallest, step = max(counts), WIDTH / BARS
    bars = []
    for i, count in enumerate(counts):
        if count:
            height = max(2.0, HEIGHT * count / tallest)
            start, end = (_value(low + span * n / BARS, scale) for n in (i, i + 1))
            label = f"{format(start, form)} to {format(end, form)}: {count}"
            bars.append(
                Bar(
                    round(i * step, 2), round(HEIGHT - height, 2), step - 1, round(height, 2), label
                )
            )
    return Histogram(
        title,
        note,
        bars,
        format(_value(low, scale), form),
        format(_value(low + span, scale), form),
        format(median(values), form),
        len(values),
        None if mark is None else round((_place(mark, scale) - low) / (span or 1) * WIDTH, 2),
        mark_label,
    )


def _place(value: float, scale: Scale) -> float:
    return math.log10(max(value, 0.1)) if scale == "log" else value


def _value(place: float, scale: Scale) -> float:
    return 10.0**place if scale == "log" else place
