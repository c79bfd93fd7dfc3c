"""Take away what lora-prep made, and nothing else: the journals know every file by its hash."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lora_prep.dataset import Dataset
from lora_prep.journal import Journal, Stamp

CACHES = ("embeddings", "faces", "identities")
"""Folders below `.lora-prep` that only save time."""


class Verdict(StrEnum):
    """What becomes of a file."""

    REMOVE = "remove"
    EDITED = "edited"
    """Its content is not what lora-prep wrote: it stays."""
    OUTSIDE = "outside"
    """It lies outside the data set: it stays, since a journal must not reach that far."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that a journal says lora-prep made, and that still exists."""

    path: Path
    step: str
    verdict: Verdict


def made_by(dataset: Dataset, names: Sequence[str]) -> Iterator[Candidate]:
    """The files that the named steps made: `masks` stands for `masks-<folder>`, too."""
    root = Path(os.path.realpath(dataset.root))
    for path in sorted(dataset.state.glob("*.jsonl")):
        if path.stem.partition("-")[0] not in names:
            continue
        with Journal(path, read_only=True) as journal:
            for entry in journal:
                for relative, stamp in entry.outputs.items():
                    file = dataset.root / relative
                    if os.path.lexists(file):
                        yield Candidate(file, path.stem, _verdict(file, stamp, root))


def caches(dataset: Dataset) -> Iterator[Path]:
    """Files below `.lora-prep` that only save time: faces, embeddings, parts of dead runs."""
    for name in CACHES:
        folder = dataset.state / name
        if folder.is_dir() and not folder.is_symlink():
            yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


def remove(path: Path, root: Path) -> None:
    """Delete a file, and then the folders that it leaves empty, up to the root."""
    path.unlink(missing_ok=True)
    with suppress(OSError):  # a folder that is not empty
        for folder in path.parents:
            if folder == root or not folder.is_relative_to(root):
                return
            folder.rmdir()


def _verdict(path: Path, stamp: Stamp, root: Path) -> Verdict:
    if not Path(os.path.realpath(path.parent)).is_relative_to(root) or path.is_symlink():
        return Verdict.OUTSIDE
    try:
        return Verdict.REMOVE if stamp.matches(path) else Verdict.EDITED
    except OSError:
        return Verdict.EDITED
