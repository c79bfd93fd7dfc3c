"""The strengths that a slider was trained for, kept in its LoRA file.

A LoRA does k·(alpha/rank)·B·A at strength k, so which strengths make sense is a property of the
file: "2 to 4, not 0 to 1" holds for one slider and for no other. These keys of the safetensors
metadata say it, all of them texts:

| key | value |
|---|---|
| `lora_prep.slider.range` | JSON, the weakest and the strongest strength: `[-1.0, 1.0]` |
| `lora_prep.slider.kind` | `textual` (prompts), `visual` (image pairs), `stated` (set by hand) |
| `lora_prep.slider.positive` | prompt or folder of the end at the highest strength, if known |
| `lora_prep.slider.negative` | the same of the other end |
| `lora_prep.slider.target` | the prompt that slides; missing or empty: any |
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from lora_prep.errors import UsageError

Kind = Literal["textual", "visual", "stated"]

RANGE = "lora_prep.slider.range"
KIND = "lora_prep.slider.kind"
POSITIVE = "lora_prep.slider.positive"
NEGATIVE = "lora_prep.slider.negative"
TARGET = "lora_prep.slider.target"

KEYS = (RANGE, KIND, POSITIVE, NEGATIVE, TARGET)
"""All keys of the metadata that a slider has."""

_TITLES = ("ss_output_name", "modelspec.title", "name", "title")
"""Where trainers keep a LoRA's name in the metadata."""


@dataclass(frozen=True, slots=True)
class SliderRecord:
    """What a slider's file says about its strengths. Raises UsageError for an impossible range."""

    low: float
    high: float
    kind: Kind = "textual"
    positive: str = ""
    negative: str = ""
    target: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(
                f"a slider's range goes from a lower to a higher number, not {self.low:g} to "
                f"{self.high:g}"
            )

    def to_metadata(self) -> dict[str, str]:
        """The keys to add to a safetensors file's metadata; texts that are empty are left out."""
        texts = {POSITIVE: self.positive, NEGATIVE: self.negative, TARGET: self.target}
        return {
            RANGE: json.dumps([float(self.low), float(self.high)]),
            KIND: self.kind,
            **{key: text for key, text in texts.items() if text},
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "SliderRecord | None":
        """What the metadata of a file says; None where it has no range.

        Raises UsageError where it has one that makes no sense.
        """
        if RANGE not in metadata:
            return None
        try:
            low, high = json.loads(metadata[RANGE])
            if isinstance(low, bool) or isinstance(high, bool):
                raise ValueError
            low, high = float(low), float(high)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"its metadata says {RANGE} = {metadata[RANGE][:60]!r}: it wants two numbers, "
                "such as [-1.0, 1.0] (`lora-prep slider set-range` writes it)"
            ) from error
        kind = metadata.get(KIND, "stated")
        return cls(
            low,
            high,
            kind if kind in get_args(Kind) else "stated",  # type: ignore[arg-type]
            metadata.get(POSITIVE, ""),
            metadata.get(NEGATIVE, ""),
            metadata.get(TARGET, ""),
        )


@dataclass(frozen=True, slots=True)
class Documented:
    """A range that a slider's author gives and its file does not hold."""

    name: str
    version: str
    low: float
    high: float
    note: str


DOCUMENTED = (
    Documented(
        "klein_slider_anatomy",
        "1.5",
        2.0,
        4.0,
        "weights from 0 to 1, usual for other LoRAs, have no visible effect",
    ),
)
"""Public sliders whose range is known only from what their author says."""


def documented(stem: str, metadata: Mapping[str, str]) -> Documented | None:
    """The documented slider that a file is, by its name (without suffix) or the metadata's titles.

    Spelling counts loosely (`Klein-Slider-Anatomy_v1.5`). A name with another version is another
    file, which the documentation says nothing about.
    """
    for text in (stem, *(metadata.get(key, "") for key in _TITLES)):
        words = re.sub(r"[^a-z0-9.]+", "_", text.lower())
        for one in DOCUMENTED:
            if one.name not in words:
                continue
            rest = words.partition(one.name)[2]
            version = re.search(r"v_?(\d+(?:[._]\d+)*)", rest)
            if version is None or version[1].replace("_", ".") == one.version:
                return one
    return None


def outside(weight: float, low: float, high: float) -> str:
    """Why a strength is not one that the slider was made for; empty where it is."""
    if low <= weight <= high:
        return ""
    side = "below" if weight < low else "above"
    return f"weight {weight:g} is {side} the range of this slider, {low:g} to {high:g}"
