"""Take away what lora-prep made, and nothing else: the journals know every file by its hash."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from lora_prep.dataset import EMBEDDINGS, IMAGE_FOLDERS, STATE_FOLDER, Dataset, image_names
from lora_prep.embeddings import Embeddings, read_embeddings
from lora_prep.errors import DatasetError
from lora_prep.journal import Journal, Stamp, hash_file

CACHES = ("embeddings", "faces", "identities")
"""Folders below `.lora-prep` that only save time."""


class Verdict(StrEnum):
    """What becomes of a file."""

    REMOVE = "remove"
    EDITED = "edited"
    """Its content is not what lora-prep wrote: it stays."""
    OUTSIDE = "outside"
    """It lies outside the data set: it stays, since a journal must not reach that far."""
    OTHER = "other"
    """`embeddings.safetensors` of somebody else, or of another image folder: it stays."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that lora-prep made, by a journal or by what the file says, and that still exists."""

    path: Path
    step: str
    verdict: Verdict
    stamp: Stamp
    """What lora-prep wrote."""


def dataset_at(path: Path, *, masks: Path | None = None, recursive: bool = False) -> Dataset:
    """The data set at `path`, which need not have an image any more.

    Without images, `path` is its root, or a folder that a journal beside it names.
    Raises DatasetError where there is neither.
    """
    place = Path(os.path.abspath(path))  # noqa: PTH100 keeps links
    has_images = place.is_dir() and next(image_names(place, recursive=False), None) is not None
    is_root = (place / STATE_FOLDER).is_dir() and not has_images
    if is_root and not any((place / name).is_dir() for name in IMAGE_FOLDERS):
        return _without_images(place / _image_folder(place), masks, recursive)
    try:
        return Dataset.at(path, masks=masks, recursive=recursive)
    except DatasetError:
        dataset = _without_images(place, masks, recursive)
        if has_images or not _is_known(dataset):
            raise
        return dataset


def made_by(
    dataset: Dataset, names: Sequence[str], *, all_masks: bool = False
) -> Iterator[Candidate]:
    """The files that the named steps made.

    `masks` stands for the masks in the data set's mask folder and their previews; with `all_masks`,
    for those that were made in other folders, too.
    """
    root = Path(os.path.realpath(dataset.root))
    of_masks = "" if dataset.masks.name == "masks" else dataset.masks.name
    for path in sorted(dataset.state.glob("*.jsonl")):
        step, _, folder = path.stem.partition("-")
        step = "masks" if step == "overlays" else step
        if step not in names or (step == "masks" and folder != of_masks and not all_masks):
            continue
        with Journal(path, read_only=True) as journal:
            for entry in journal:
                for relative, stamp in entry.outputs.items():
                    file = dataset.root / relative
                    if os.path.lexists(file):
                        yield Candidate(file, path.stem, _verdict(file, stamp, root), stamp)
    if "embed" in names and os.path.lexists(dataset.embeddings):
        yield _embeddings(dataset, root)


def caches(dataset: Dataset) -> Iterator[Path]:
    """Files below `.lora-prep` that only save time: faces, embeddings, parts of dead runs."""
    for name in CACHES:
        folder = dataset.state / name
        if folder.is_dir() and not folder.is_symlink():
            yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


def remove_made(candidate: Candidate, root: Path) -> Candidate:
    """Delete a file if it is, at this moment, still what lora-prep wrote.

    Returns the candidate with what became of it: somebody may have edited the file since it was
    looked at. To be called with the data set's lock.
    """
    verdict = candidate.verdict
    if verdict is Verdict.REMOVE:
        verdict = _verdict(candidate.path, candidate.stamp, Path(os.path.realpath(root)))
    if verdict is Verdict.REMOVE:
        remove(candidate.path, root)
    return replace(candidate, verdict=verdict)


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


def _embeddings(dataset: Dataset, root: Path) -> Candidate:
    """`embeddings.safetensors`, which no journal has: it says itself what it was made from."""
    path, rows, stamp = dataset.embeddings, None, Stamp("", 0, None)
    with suppress(OSError, DatasetError):
        if path.is_file():
            stamp = Stamp(hash_file(path), path.stat().st_size, None)
            rows = read_embeddings(path)
    verdict = _verdict(path, stamp, root)
    if verdict is not Verdict.OUTSIDE and _images_of(rows) != dataset.images.name:
        verdict = Verdict.OTHER
    return Candidate(path, "embed", verdict, stamp)


def _images_of(rows: Embeddings | None) -> str:
    """The image folder's name; none where the file is not of lora-prep."""
    return "" if rows is None else rows.metadata.get("images", "")


def _without_images(images: Path, masks: Path | None, recursive: bool) -> Dataset:
    folder = images.parent / "masks" if masks is None else Path(os.path.abspath(masks))  # noqa: PTH100
    return Dataset(images, folder, folder.parent, recursive)


def _image_folder(root: Path) -> str:
    """The name that the image folder of this data set had."""
    named = ""
    with suppress(DatasetError):
        named = _images_of(read_embeddings(root / EMBEDDINGS))
    return named if named and named == Path(named).name else IMAGE_FOLDERS[0]


def _is_known(dataset: Dataset) -> bool:
    """Whether a journal has an item of the data set's image folder."""
    folder = f"{dataset.key(dataset.images)}/"
    for path in dataset.state.glob("*.jsonl"):
        with Journal(path, read_only=True) as journal:
            for entry in journal:
                if any(key.startswith(folder) for key in (*entry.inputs, *entry.outputs)):
                    return True
    return False
