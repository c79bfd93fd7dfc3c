"""A stage in shards: job arrays that know nothing of each other, and a merge that misses nothing.

Each shard takes the items whose name's hash falls to it, and writes a journal and holds a lock of
its own, below `.lora-prep/shards/<stage>/<i>-of-<n>`. The merge checks that every item is in the
journal of its shard, and appends them all to the stage's journal.
"""

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_prep.attempt import Attempt
from lora_prep.dataset import STATE_FOLDER
from lora_prep.errors import DatasetError, UsageError
from lora_prep.journal import Journal, exclusive
from lora_prep.stage import Item, Stage, Worker
from lora_prep.types import Json, Status

_folder_name = re.compile(r"(\d{1,6})-of-(\d{1,6})").fullmatch


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of a stage's items, from 1 on."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From `3/8`. Raises UsageError."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--shard {text}: write 3/8 for the third of eight, from 1/8 to 8/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, item: Item, root: Path) -> bool:
        """Whether an item falls to this shard."""
        return shard_of(item, root, self.count) == self.index


def shard_of(item: Item, root: Path, count: int) -> int:
    """The shard that an item falls to, 1 to `count`.

    By the name of its first input, so that all variants of an image are made where it is decoded,
    and an image that is added to the data set moves no other.
    """
    name = item.key
    if item.inputs:
        name = Path(os.path.relpath(item.inputs[0], root)).as_posix()
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest) % count + 1


@dataclass(frozen=True)
class ShardOf:
    """A stage with the items of one shard alone."""

    stage: Stage
    shard: Shard
    root: Path

    @property
    def name(self) -> str:
        """The stage's."""
        return self.stage.name

    @property
    def batch_size(self) -> int:
        """The stage's."""
        return self.stage.batch_size

    @property
    def journal(self) -> Path:
        """Where this shard's entries go."""
        place = f"{self.shard.index}-of-{self.shard.count}"
        return _folder(self.root, self.name) / place / "journal.jsonl"

    def settings(self) -> Mapping[str, Json]:
        """The stage's: an item comes out the same in any shard."""
        return self.stage.settings()

    @cached_property
    def _length(self) -> int:
        return sum(1 for _ in self.items())

    def __len__(self) -> int:
        return self._length

    def items(self) -> Iterator[Item]:
        """Those that fall to the shard, in the stage's order."""
        return (item for item in self.stage.items() if self.shard.holds(item, self.root))

    def open(self) -> Worker[Any, Any]:
        """The stage's worker."""
        return self.stage.open()


def journal_path(root: Path, name: str) -> Path:
    """Where a stage's journal lies."""
    return root / STATE_FOLDER / f"{name}.jsonl"


def _folder(root: Path, name: str) -> Path:
    return root / STATE_FOLDER / "shards" / name


def found(root: Path, name: str) -> dict[Shard, Path]:
    """The journals of a stage's shards that are not merged yet."""
    shards = {}
    for path in sorted(_folder(root, name).glob("*/journal.jsonl")):
        if match := _folder_name(path.parent.name):
            shards[Shard(int(match[1]), int(match[2]))] = path
    return shards


def refuse_unmerged(root: Path, name: str) -> None:
    """Raise DatasetError where shards of a stage wait for being merged.

    A run that does not know what they made would take it for somebody else's.
    """
    if waiting := found(root, name):
        told = ", ".join(map(str, waiting))
        raise DatasetError(
            f"the shards {told} of {name} are not merged yet: run the same command with --merge "
            f"first (or delete {_folder(root, name)}, and --force makes all of it again)"
        )


@dataclass
class Merged:
    """What a merge found."""

    stage: str
    count: int = 0
    """Number of shards."""
    total: int = 0
    """Number of items that the stage has."""
    counts: Counter[Status] = field(default_factory=Counter)
    """How the items ended that are in the journals."""
    missing: dict[Shard, list[str]] = field(default_factory=dict)
    """Keys of items that no journal has, by the shard that they fall to."""
    other: dict[Shard, list[str]] = field(default_factory=dict)
    """Keys of items that a shard has done with other settings."""
    folded: bool = False
    """Whether the stage's journal has them now."""

    @property
    def complete(self) -> bool:
        """Whether every item was done by its shard, with these settings."""
        return not self.missing and not self.other

    @property
    def exit_code(self) -> int:
        """0 = complete, 1 = something is missing, or failed."""
        return 0 if self.complete and not self.counts[Status.FAILED] else 1


def merge(stage: Stage, root: Path, *, partly: bool = False) -> Merged:
    """Check that the shards have done every item of the stage, and fold their journals into one.

    What is missing is in the result; then nothing is folded, unless `partly`. Raises DatasetError
    where there are no shards, shards of different divisions, or one that is still running.
    """
    with exclusive(root / STATE_FOLDER), ExitStack() as stack:
        paths = found(root, stage.name)
        counts = sorted({shard.count for shard in paths})
        if not counts:
            raise DatasetError(f"there are no shards of {stage.name} in {root} to merge")
        if len(counts) > 1:
            raise DatasetError(
                f"there are shards of {' and of '.join(map(str, counts))} in "
                f"{_folder(root, stage.name)}: delete the folders of those that do not count"
            )
        journals = {
            shard: stack.enter_context(Journal(path, read_only=True))
            for shard, path in paths.items()
        }
        merged = _compare(stage, root, counts[0], journals)
        if merged.complete or partly:
            with Journal(journal_path(root, stage.name)) as main:
                for journal in journals.values():
                    for entry in journal:
                        main.append(entry)
            for path in paths.values():  # only now: the journal is on the disk
                shutil.rmtree(path.parent)
            merged.folded = True
    return merged


def _compare(stage: Stage, root: Path, count: int, journals: Mapping[Shard, Journal]) -> Merged:
    attempt = Attempt(stage, root)
    merged = Merged(stage.name, count)
    for item in stage.items():
        merged.total += 1
        shard = Shard(shard_of(item, root, count), count)
        journal = journals.get(shard)
        entry = journal.get(item.key) if journal else None
        if entry is None:
            merged.missing.setdefault(shard, []).append(item.key)
            continue
        merged.counts[entry.status] += 1
        if not attempt.suits(item, entry):
            merged.other.setdefault(shard, []).append(item.key)
    return merged
