"""What is done, stale and missing, told by the journals and the files alone: no model is loaded."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath

from lora_prep.dataset import Dataset, is_image
from lora_prep.journal import Entry, Journal
from lora_prep.types import Status


class State(StrEnum):
    """How an item of a step stands."""

    DONE = "done"
    """Its files are as they were made, from inputs that have not changed since."""
    STALE = "stale"
    """An input has changed since."""
    MISSING = "missing"
    """It was not done yet, or a file that was made is gone."""
    BY_HAND = "by hand"
    """A file was made or edited by somebody else; lora-prep leaves it alone."""
    SKIPPED = "skipped"
    FAILED = "failed"
    ORPHANED = "orphaned"
    """What it was made from is gone."""


OPEN = (State.STALE, State.MISSING, State.FAILED, State.ORPHANED)
"""States that somebody has to do something about."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one item stands."""

    key: str
    """Path of its first input relative to the root, or the item's own name where it has none."""
    state: State
    message: str = ""
    folder: str = ""
    """For normalize: the folder that it was run on, relative to the root."""


@dataclass
class Step:
    """A step of the chain, by the name of its journal."""

    name: str
    items: list[Standing] = field(default_factory=list)

    @property
    def counts(self) -> Counter[State]:
        """Number of items in each state."""
        return Counter(item.state for item in self.items)


def steps(dataset: Dataset) -> Iterator[Step]:
    """How each step that was ever run on the data set stands, and the masks in any case."""
    names = {p.stem for p in dataset.state.glob("*.jsonl") if p.stem.startswith(CHAIN)}
    masks = "masks" if dataset.masks.name == "masks" else f"masks-{dataset.masks.name}"
    for name in sorted(names | {masks}, key=lambda name: (_order(name), name)):
        path = dataset.state / f"{name}.jsonl"
        step = Step(name)
        if path.exists():
            with Journal(path, read_only=True) as journal:
                step.items.extend(_standing(entry, dataset.root, name) for entry in journal)
                step.items.extend(_not_begun(journal, dataset, name, masks=name == masks))
                if name.startswith("normalize"):
                    step.items = list(_with_folders(step.items, journal))
        else:
            step.items.extend(
                Standing(
                    dataset.key(sample.image),
                    State.BY_HAND if sample.mask.exists() else State.MISSING,
                )
                for sample in dataset
            )
        yield step


CHAIN = ("normalize", "detect", "masks", "embed", "augment", "priors")

OF_IMAGES = ("detect", "masks", "embed", "augment")
"""Steps whose items are the data set's images; a reference picture may lie elsewhere. The others
work on what lies beside the sources that they have had."""


def _order(name: str) -> int:
    return next((i for i, step in enumerate(CHAIN) if name.startswith(step)), len(CHAIN))


def _standing(entry: Entry, root: Path, step: str) -> Standing:
    match entry.status:
        case Status.FAILED:
            there = all((root / path).exists() for path in _sources(entry))
            return Standing(entry.key, State.FAILED if there else State.ORPHANED, entry.message)
        case Status.SKIPPED:
            return Standing(entry.key, State.SKIPPED, entry.message)
        case Status.KEPT:
            return Standing(entry.key, State.BY_HAND, entry.message)
        case _:
            return Standing(entry.key, *_made(entry, root, step))


def _made(entry: Entry, root: Path, step: str) -> tuple[State, str]:
    """How what was once made stands now."""
    for relative, stamp in entry.inputs.items():
        try:
            if not stamp.matches(root / relative):
                return State.STALE, f"{relative} has changed since"
        except OSError:
            return State.ORPHANED, f"{relative} is gone"
    for relative, stamp in entry.outputs.items():
        if step.startswith("masks") and not relative.endswith(".png"):
            continue  # a preview picture, which nobody has to keep
        path = root / relative
        try:
            if not stamp.matches(path) and not stamp.was_not_replaced(path):
                return State.BY_HAND, f"{relative} was edited"
        except OSError:
            return State.MISSING, f"{relative} is gone"
    return State.DONE, ""


def _sources(entry: Entry) -> list[str]:
    """The images that an item is made of. One that could not be read has its key alone."""
    return [path for path in entry.inputs or (entry.key,) if is_image(path)]


def _not_begun(journal: Journal, dataset: Dataset, step: str, *, masks: bool) -> Iterator[Standing]:
    """Images that have no entry in the journal yet."""
    known = {path for entry in journal for path in _sources(entry)[:1]}
    if step.startswith(OF_IMAGES):
        for sample in dataset:
            key = dataset.key(sample.image)
            if key not in known:
                made = masks and sample.mask.exists()
                yield Standing(key, State.BY_HAND if made else State.MISSING)
        return
    for folder in sorted({os.path.dirname(path) for path in known}):  # noqa: PTH120 a key
        place = dataset.root / folder
        for name in sorted(os.listdir(place)) if place.is_dir() else ():  # noqa: PTH208
            key = f"{folder}/{name}" if folder else name
            if key not in known and not name.startswith(".") and is_image(name):
                yield Standing(key, State.MISSING)


def _with_folders(items: Iterable[Standing], journal: Iterable[Entry]) -> Iterator[Standing]:
    """Tell each photograph of the folder that it was copied from.

    A copy `faces/a/b.jpg` of `../photos/a/b.heic` says `../photos`. What has no copy goes with the
    others in its folder, or else in the one above that.
    """
    of_items: dict[str, PurePosixPath] = {}
    of_places: dict[PurePosixPath, PurePosixPath] = {}
    for entry in journal:
        for output in list(entry.outputs)[:1]:
            photo = PurePosixPath(entry.key)
            folder = PurePosixPath(*photo.parts[: -output.count("/") or None])
            of_items[entry.key] = of_places[photo.parent] = of_places[folder] = folder
    for item in items:
        places = PurePosixPath(item.key).parents
        nearest = next((of_places[p] for p in places if p in of_places), places[0])
        yield replace(item, folder=str(of_items.get(item.key, nearest)))
