"""What somebody decided about each image, in `.lora-prep/review.json`: accepted or rejected.

A decision is about bytes: it counts as long as the image is the one that was looked at and, where
the mask was accepted, the mask is, too. `lora-prep review` writes the file; whoever reads images
for a trainer asks `rejected` which of them to leave out.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from lora_prep import imageio
from lora_prep.dataset import Dataset, Sample
from lora_prep.errors import DatasetError
from lora_prep.journal import NOT_AN_ENTRY, Entry, Journal, Stamp, exclusive
from lora_prep.types import Json, Status

FILE_NAME = "review.json"
SCHEMA = 1

_writing = threading.Lock()


class Verdict(StrEnum):
    """What was decided."""

    ACCEPTED = "accepted"
    """The image and its mask are good."""
    REJECTED = "rejected"
    """The image is not to be trained on."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is known of one image."""

    verdict: Verdict | None
    """None: its mask was edited, and nothing decided yet."""
    edited: bool
    """Whether its mask was edited on the page."""
    image: Stamp
    mask: Stamp | None
    """None where there was no mask."""
    when: str
    """UTC, as in ISO 8601."""
    made: str = ""
    """The journal's line about the mask, taken out of it when the mask was accepted."""

    def holds(self, sample: Sample) -> bool:
        """Whether it is about the files that are there now."""
        return _is(self.image, sample.image) and (
            self.verdict is not Verdict.ACCEPTED or _is(self.mask, sample.mask)
        )

    def to_json(self) -> Json:
        """As JSON values."""
        return {
            "verdict": self.verdict,
            "edited": self.edited,
            "image": _stamp_to_json(self.image),
            "mask": self.mask and _stamp_to_json(self.mask),
            "when": self.when,
            **({"made": self.made} if self.made else {}),
        }

    @classmethod
    def from_json(cls, value: Json) -> "Decision":
        """What `to_json` gave. Raises one of `NOT_AN_ENTRY` on anything else."""
        verdict, mask, made = value["verdict"], value["mask"], str(value.get("made", ""))
        if made:
            Entry.from_line(made)
        return cls(
            None if verdict is None else Verdict(verdict),
            bool(value["edited"]),
            _stamp(value["image"]),
            None if mask is None else _stamp(mask),
            str(value["when"]),
            made,
        )


def read(dataset: Dataset) -> dict[str, Decision]:
    """The decisions that hold, by the image's name.

    Raises DatasetError where the file cannot be understood.
    """
    known = _load(path(dataset))
    found = ((sample, known.get(dataset.key(sample.image))) for sample in dataset if known)
    return {s.name: decision for s, decision in found if decision and decision.holds(s)}


def rejected(dataset: Dataset) -> frozenset[str]:
    """Names of the images that are not to be trained on."""
    return frozenset(n for n, d in read(dataset).items() if d.verdict is Verdict.REJECTED)


def check(dataset: Dataset) -> None:
    """Raises DatasetError where the file of decisions cannot be read or understood."""
    _load(path(dataset))


def path(dataset: Dataset) -> Path:
    """Where the decisions are kept."""
    return dataset.state / FILE_NAME


def decide(dataset: Dataset, sample: Sample, verdict: Verdict | None) -> Decision:
    """Write down a verdict, or take it back (None).

    An accepted mask that lora-prep made is taken out of the stage's journal, so that it counts as
    made by hand from now on and no stage replaces it; taking the verdict back puts it there again.
    Raises DatasetError where the file or the journal cannot be written, or another lora-prep is
    working on the data set.
    """
    with _writing:
        known = _load(path(dataset))
        key = dataset.key(sample.image)
        before = known.get(key)
        made = before.made if before else ""
        if verdict is Verdict.ACCEPTED:
            made = _disown(dataset, sample) or made
        elif made:
            _own(dataset, sample, made)
            made = ""
        edited = before is not None and before.edited and _is(before.image, sample.image)
        decision = _decision(sample, verdict, edited=edited, made=made)
        _save(dataset, {**known, key: decision})
    return decision


def note_edit(dataset: Dataset, sample: Sample) -> Decision:
    """Write down that a mask was edited; what was decided about the image stays."""
    with _writing:
        known = _load(path(dataset))
        key = dataset.key(sample.image)
        before = known.get(key)
        verdict = before.verdict if before and _is(before.image, sample.image) else None
        decision = _decision(sample, verdict, edited=True, made="")
        _save(dataset, {**known, key: decision})
    return decision


def _decision(sample: Sample, verdict: Verdict | None, *, edited: bool, made: str) -> Decision:
    mask = _stamp_of(sample.mask) if sample.mask.is_file() else None
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Decision(verdict, edited, _stamp_of(sample.image), mask, when, made)


def _load(file: Path) -> dict[str, Decision]:
    try:
        value = json.loads(file.read_bytes())
        return {str(k): Decision.from_json(v) for k, v in value["images"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DatasetError(f"cannot read {file}: {error.strerror}") from error
    except NOT_AN_ENTRY as error:
        raise DatasetError(
            f"{file} is not what lora-prep wrote: mend it, or move it away to start over"
        ) from error


def _save(dataset: Dataset, decisions: Mapping[str, Decision]) -> None:
    value = {"schema": SCHEMA, "images": {k: d.to_json() for k, d in sorted(decisions.items())}}
    imageio.make_folder(dataset.state)
    imageio.replace(path(dataset), json.dumps(value, indent=0).encode() + b"\n")


def _disown(dataset: Dataset, sample: Sample) -> str:
    """Have the journal forget that lora-prep made this mask; returns the line that it had."""
    for entry, journal, relative in _entry(dataset, sample):
        stamp = entry.outputs.get(relative)
        if entry.status is not Status.DONE or stamp is None or not _is(stamp, sample.mask):
            return ""
        others = {place: s for place, s in entry.outputs.items() if place != relative}
        message = "accepted in lora-prep review: left as it is (--force replaces it)"
        journal.append(
            replace(entry, status=Status.KEPT, outputs=others, code="kept", message=message)
        )
        return entry.to_line()
    return ""


def _own(dataset: Dataset, sample: Sample, line: str) -> None:
    """Give a mask back that `_disown` took out, if it is still what was made then."""
    was = Entry.from_line(line)
    for entry, journal, relative in _entry(dataset, sample):
        if relative not in entry.outputs and _is(was.outputs.get(relative), sample.mask):
            journal.append(was)


def _entry(dataset: Dataset, sample: Sample) -> Iterator[tuple[Entry, Journal, str]]:
    """The journal of the masks, open for writing, and its entry about this one; or nothing."""
    folder = dataset.masks.name
    file = dataset.state / ("masks.jsonl" if folder == "masks" else f"masks-{folder}.jsonl")
    if not file.is_file():
        return
    with exclusive(dataset.state), Journal(file) as journal:
        entry = journal.get(dataset.key(sample.image))
        if entry:
            yield entry, journal, dataset.key(sample.mask)


def _is(stamp: Stamp | None, file: Path) -> bool:
    """Whether a file is what it was; no stamp stands for no file."""
    try:
        return stamp is not None and stamp.matches(file)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DatasetError(f"cannot read {file}: {error.strerror}") from error


def _stamp_of(file: Path) -> Stamp:
    try:
        with file.open("rb") as opened:
            seen = file.stat()
            return Stamp.of_input(opened.read(), seen)
    except OSError as error:
        raise DatasetError(f"cannot read {file}: {error.strerror}") from error


def _stamp_to_json(stamp: Stamp) -> Json:
    return [stamp.sha256, stamp.size, stamp.stat]


def _stamp(value: Json) -> Stamp:
    sha256, size, stat = value
    return Stamp(str(sha256), int(size), None if stat is None else tuple(int(v) for v in stat))
