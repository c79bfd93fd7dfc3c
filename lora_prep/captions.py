"""Captions: the `.txt` file beside each image. What is wrong with them, and filling the gaps."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from lora_prep import imageio
from lora_prep.dataset import Dataset, Sample
from lora_prep.errors import UsageError

PLACEHOLDERS = ("trigger", "stem", "folder")
"""What a template may hold in braces."""

MAX_BYTES = 1 << 20
"""A longer file is no caption."""


class Fault(StrEnum):
    """What is wrong with a caption."""

    MISSING = "missing"
    EMPTY = "empty"
    """No text but white space: trainers train the image on an empty prompt, or drop it."""
    NOT_UTF8 = "not UTF-8"
    TOO_LONG = "too long"
    DUPLICATE = "duplicate"
    """Another image has the very same caption: the model cannot tell them apart by text."""
    WITHOUT_TRIGGER = "without trigger"


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault of one image's caption."""

    sample: Sample
    fault: Fault
    message: str = ""


def read(sample: Sample) -> str | Fault:
    """The caption of an image, without white space around it; or why there is none."""
    try:
        with sample.caption.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError:
        return Fault.MISSING
    if len(data) > MAX_BYTES:
        return Fault.TOO_LONG
    try:
        return data.decode("utf-8-sig").strip() or Fault.EMPTY
    except UnicodeDecodeError:
        return Fault.NOT_UTF8


def check(dataset: Dataset, trigger: str = "") -> Iterator[Finding]:
    """All faults, image by image; with a `trigger`, captions that lack that word, too."""
    by_text: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset:
        text = read(sample)
        if isinstance(text, Fault):
            yield Finding(sample, text)
            continue
        if trigger and not contains(text, trigger):
            yield Finding(sample, Fault.WITHOUT_TRIGGER)
        by_text[text].append(sample)
    for group in by_text.values():
        for sample in group[1:]:
            yield Finding(sample, Fault.DUPLICATE, f"the same as {group[0].name}")


def contains(text: str, trigger: str) -> bool:
    """Whether the trigger stands in the text as words of its own, in any case."""
    return re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", text, re.IGNORECASE) is not None


def render(template: str, sample: Sample, trigger: str = "") -> str:
    """A caption from a template: `a photo of {trigger}`; `{stem}` and `{folder}` name the file.

    Raises UsageError where the template is not understood, or wants a trigger that is not given.
    """
    values = {
        "trigger": trigger,
        "stem": sample.image.stem.replace("_", " "),
        "folder": sample.image.parent.name.replace("_", " "),
    }
    unknown = sorted(set(re.findall(r"\{([^{}]*)\}", template)) - {*PLACEHOLDERS})
    if unknown or re.sub(r"\{[^{}]*\}", "", template).strip("{}") != re.sub(
        r"\{[^{}]*\}", "", template
    ):
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        named = f"{{{unknown[0]}}}" if unknown else "a single brace"
        raise UsageError(f"the template {template!r} has {named} in it; there are {known}")
    if "{trigger}" in template and not trigger:
        raise UsageError(f"the template {template!r} wants a trigger word: give --trigger")
    text = re.sub(r"\{([^{}]*)\}", lambda found: values[found[1]], template)
    return re.sub(r"\s+", " ", text).strip()


def write(sample: Sample, text: str) -> None:
    """Put a caption beside its image, atomically. Raises DatasetError."""
    imageio.replace(sample.caption, text.encode() + b"\n")
