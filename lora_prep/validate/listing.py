"""What lies in the two folders of a data set, by name alone."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_prep.dataset import CAPTION_SUFFIX, Dataset, image_names, is_image
from lora_prep.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Folder:
    """The names in a folder, relative to it, with forward slashes, sorted."""

    images: Sequence[str] = ()
    """Files that are named like images: what `Dataset` and the trainers take."""
    others: Sequence[str] = ()
    """Files that are not."""
    hidden: Sequence[str] = ()
    """Hidden files that are named like images, such as macOS's `._img.jpg`."""
    broken: Sequence[str] = ()
    """Links to nothing that are named like images."""
    unread: Sequence[str] = ()
    """Sub-folders with images that are passed over: all without `recursive`, else linked ones."""


@dataclass(frozen=True)
class Listing:
    """The files of a data set."""

    dataset: Dataset
    images: Folder
    masks: Folder
    has_mask_folder: bool = True

    @classmethod
    def of(cls, dataset: Dataset) -> "Listing":
        """List the folders. Raises DatasetError where one cannot be read."""
        has_masks = dataset.masks.is_dir()
        return cls(
            dataset,
            scan(dataset.images, recursive=dataset.recursive),
            scan(dataset.masks, recursive=dataset.recursive) if has_masks else Folder(),
            has_masks,
        )

    @cached_property
    def image_stems(self) -> Mapping[str, Sequence[str]]:
        """Names of the images, by stem."""
        return _by_stem(self.images.images)

    @cached_property
    def mask_stems(self) -> Mapping[str, Sequence[str]]:
        """Names of the masks, by stem."""
        return _by_stem(self.masks.images)

    @cached_property
    def captions(self) -> Mapping[str, str]:
        """The caption of each image that has one, both by name."""
        texts = {
            stem_of(name): name for name in self.images.others if name.endswith(CAPTION_SUFFIX)
        }
        return {
            name: texts[stem]
            for stem, names in self.image_stems.items()
            if stem in texts
            for name in names
        }

    @cached_property
    def has_faces(self) -> bool:
        """Whether detected faces were ever recorded for this data set."""
        return (self.dataset.state / "faces").is_dir()

    @property
    def pairs(self) -> Iterator[tuple[str, str | None]]:
        """Each image with its mask, or None.

        Of several masks, this is the one that lora-prep uses, `<stem>.png`, or else the first.
        """
        for name in self.images.images:
            found = self.mask_stems.get(stem_of(name), ())
            yield name, min(found, key=lambda mask: not mask.endswith(".png"), default=None)

    def image_key(self, name: str) -> str:
        """An image's path relative to the data set's root."""
        return self._image_prefix + name

    def mask_key(self, name: str) -> str:
        """A mask's path relative to the data set's root."""
        return self._mask_prefix + name

    @cached_property
    def _image_prefix(self) -> str:
        return _prefix(self.dataset, self.dataset.images)

    @cached_property
    def _mask_prefix(self) -> str:
        return _prefix(self.dataset, self.dataset.masks)


def stem_of(name: str) -> str:
    """What an image and its mask have in common: the name without its suffix."""
    return os.path.splitext(name)[0]  # noqa: PTH122 a name, not a path


def scan(folder: Path, *, recursive: bool) -> Folder:
    """List a folder. Raises DatasetError where it cannot be read."""
    found = defaultdict(list)
    pending = [""]
    while pending:
        prefix = pending.pop()
        for entry in _entries(folder / prefix):
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False) and recursive and not _is_hidden(entry):
                pending.append(f"{name}/")
            elif kind := _kind(entry):
                found[kind].append(name)
    return Folder(**{kind: sorted(names) for kind, names in found.items()})


def _kind(entry: "os.DirEntry[str]") -> str | None:
    """The field of `Folder` that an entry belongs to."""
    if _is(entry.is_dir):
        return "unread" if not _is_hidden(entry) and _holds_images(entry) else None
    if not is_image(entry.name):
        return "others" if _is(entry.is_file) and not _is_hidden(entry) else None
    if not _is(entry.is_file):
        return "broken" if entry.is_symlink() and not _is_hidden(entry) else None
    return "hidden" if _is_hidden(entry) else "images"


def _is(asked: Callable[[], bool]) -> bool:
    """What the entry says; links in a circle are neither file nor folder."""
    try:
        return asked()
    except OSError:
        return False


def _is_hidden(entry: "os.DirEntry[str]") -> bool:
    return entry.name.startswith(".")


def _holds_images(entry: "os.DirEntry[str]") -> bool:
    try:
        return next(image_names(Path(entry.path), recursive=True), None) is not None
    except DatasetError:
        return False  # nobody can read it, so no trainer will


def _entries(folder: Path) -> Sequence["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DatasetError(f"cannot read the folder {folder}: {error.strerror}") from error


def _by_stem(names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    stems = defaultdict(list)
    for name in names:
        stems[stem_of(name)].append(name)
    return stems


def _prefix(dataset: Dataset, folder: Path) -> str:
    key = dataset.key(folder)
    return "" if key == "." else f"{key}/"
