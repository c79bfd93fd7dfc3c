"""The trash below `.lora-prep`: what `fix.apply` or `lora-prep review` moved there, put back.

A manifest comes with the data set, and so perhaps from somebody else: it moves nothing into the
data set or out of it.
"""

import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from lora_prep import imageio
from lora_prep.dataset import STATE_FOLDER, Dataset
from lora_prep.errors import DatasetError
from lora_prep.journal import NOT_AN_ENTRY

TRASH = "trash"
MANIFEST = "manifest.jsonl"


def undo(dataset: Dataset, folder: Path) -> Iterator[str]:
    """Put back what a run moved, the last first; yields each path that is there again.

    `folder` lies in the data set's trash. A file whose old place is taken stays where it is. Raises
    DatasetError where there is no manifest, or one that lora-prep did not write: then nothing is
    moved. A line that its writer's death cut off was not yet acted on, and is passed over.
    """
    if not is_in_trash(folder, dataset.root):
        raise DatasetError(
            f"{folder} is no folder in {dataset.state / TRASH}: nothing was moved there from this "
            "data set; give the data set that it belongs to"
        )
    moved = _moved(folder / MANIFEST)
    for pair in moved:
        _check(dataset, folder, *pair)
    for before, now in reversed(moved):
        source, target = _check(dataset, folder, before, now)  # links may have come back meanwhile
        if os.path.lexists(source) and (
            not os.path.lexists(target) or is_same_file(source, target)
        ):
            imageio.make_folder(target.parent)
            rename(source, target)
            yield before


def trash_owner(folder: Path, places: Sequence[Path]) -> Path | None:
    """The first of some folders in whose trash this one lies: the root of its data set."""
    return next((place for place in places if is_in_trash(folder, place)), None)


def is_in_trash(folder: Path, root: Path) -> bool:
    """Whether a folder lies in the trash of the data set at `root`, and is no link."""
    trash = os.path.realpath(root / STATE_FOLDER / TRASH)
    return not folder.is_symlink() and os.path.dirname(os.path.realpath(folder)) == trash  # noqa: PTH120


def _moved(manifest: Path) -> list[tuple[str, str]]:
    """Old and new path of each file, in order."""
    try:
        lines = manifest.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DatasetError(
            f"{manifest.parent} has no {MANIFEST} that can be read: nothing was moved there"
        ) from error
    pairs = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            pairs.append((_path(entry["from"]), _path(entry["to"])))
        except NOT_AN_ENTRY as error:
            if number == len(lines) and not line.endswith(b"\n"):
                continue
            raise DatasetError(
                f"{manifest}, line {number}, is not lora-prep's: nothing was moved. Remove the "
                "line if you know what it is, or move the files by hand"
            ) from error
    return pairs


def _path(value: object) -> str:
    """A path as the manifest has it. Raises TypeError or ValueError for anything else."""
    if not isinstance(value, str):
        raise TypeError
    if not value or b"\0" in os.fsencode(value):
        raise ValueError
    return value


def _check(dataset: Dataset, folder: Path, before: str, now: str) -> tuple[Path, Path]:
    """Where a file is and where it was. Raises DatasetError unless both lie in the data set.

    Links to the image folder and to the mask folder are the user's, and count as inside.
    """
    roots = [os.path.realpath(p) for p in (dataset.root, dataset.images, dataset.masks, folder)]
    for path in (before, now):
        parent = Path(os.path.realpath((dataset.root / path).parent))
        inside = any(parent.is_relative_to(root) for root in roots)
        if not inside or ".." in PurePath(path).parts or PurePath(path).is_absolute():
            raise DatasetError(
                f"{folder / MANIFEST}: {path} leads out of the data set: lora-prep did not write "
                "that. Nothing more was moved; look into the manifest, and move files by hand"
            )
    return dataset.root / now, dataset.root / before


def fold(stem: str) -> str:
    """A name as a file system sees it that ignores case and Unicode form."""
    return stem.lower() if stem.isascii() else unicodedata.normalize("NFD", stem.casefold())


def is_same_file(a: Path, b: Path) -> bool:
    """Whether two names are one file: on a file system that ignores case."""
    try:
        return a.samefile(b) and a.name != b.name and fold(a.name) == fold(b.name)
    except OSError:
        return False


def rename(source: Path, target: Path) -> None:
    """Rename a file, over none. Raises DatasetError where that is not possible."""
    try:
        if os.path.lexists(target) and not is_same_file(source, target):
            raise FileExistsError(17, "a file is in the way")
        source.rename(target)
    except OSError as error:
        raise DatasetError(
            f"{source} cannot be moved to {target}: {error.strerror}. Nothing is lost; see to it, "
            "then run the same command again"
        ) from error
