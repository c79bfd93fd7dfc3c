"""Where things lie: the only module that knows the directory layout.

    data/
      faces/        the images, with their .txt captions; never modified
      masks/        img001.png for faces/img001.jpg
      embeddings.safetensors
      .lora-prep/   journals and detected faces

The root is the folder that holds the masks. Keys and recorded paths are relative to it, so a data
set can be moved or copied as a whole and stays fresh.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from lora_prep.errors import DatasetError

_COMMON = [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"]
_RARE = [".gif", ".avif", ".heic", ".heif", ".jp2"]
IMAGE_SUFFIXES = frozenset(_COMMON + _RARE)
"""File endings that are taken for images, in lower case."""

IMAGE_FOLDERS = ("faces", "images")
"""Where the images of a data set are looked for when its root is given."""

CAPTION_SUFFIX = ".txt"
EMBEDDINGS = "embeddings.safetensors"
STATE_FOLDER = ".lora-prep"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and the places of what belongs to it (which need not exist)."""

    name: str
    """File name relative to the image folder, with forward slashes: `a/img001.jpg`."""
    image: Path
    mask: Path
    caption: Path

    @property
    def stem(self) -> str:
        """`a/img001`: what an image, its mask and its caption have in common."""
        return str(PurePosixPath(self.name).with_suffix(""))


@dataclass(frozen=True)
class Dataset:
    """A folder of images and the parallel folder of masks."""

    images: Path
    masks: Path
    root: Path
    recursive: bool = False

    @classmethod
    def at(cls, path: Path, *, masks: Path | None = None, recursive: bool = False) -> "Dataset":
        """The data set at `path`: its image folder, or its root with a `faces` or `images` folder.

        `masks` defaults to the folder `masks` beside the image folder.
        Raises DatasetError where there is no such folder or it holds no image, and where the mask
        folder is the image folder or lies in it (trainers that search folders recursively would
        train on the masks).
        """
        images = _image_folder(Path(os.path.abspath(path)), recursive)  # noqa: PTH100 keeps links
        masks = images.parent / "masks" if masks is None else Path(os.path.abspath(masks))  # noqa: PTH100
        real = Path(os.path.realpath(images))
        target = Path(os.path.realpath(masks))
        if real in (target, *target.parents):
            raise DatasetError(
                f"the masks would lie in the image folder ({masks}): trainers that read folders "
                "recursively would train on them. Choose a folder beside it"
            )
        return cls(images, masks, root=masks.parent, recursive=recursive)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Sample]:
        """Samples in the order of their names."""
        return map(self.sample, self._names)

    def sample(self, name: str) -> Sample:
        """The sample of the image `name`, relative to the image folder."""
        stem = PurePosixPath(name).with_suffix("")
        image = self.images / name
        return Sample(name, image, self.masks / f"{stem}.png", image.with_suffix(CAPTION_SUFFIX))

    def key(self, path: Path) -> str:
        """`path` relative to the root, with forward slashes; may start with `..`."""
        return Path(os.path.relpath(path, self.root)).as_posix()

    @property
    def embeddings(self) -> Path:
        """Where `lora-prep embed` writes who is in the images: beside them."""
        return self.images.parent / EMBEDDINGS

    @property
    def state(self) -> Path:
        """Where lora-prep keeps its journals."""
        return self.root / STATE_FOLDER

    @property
    def captions(self) -> list[Path]:
        """The captions that exist, sorted."""
        return sorted(s.caption for s in self if s.caption.is_file())

    @cached_property
    def shared_stems(self) -> dict[str, list[str]]:
        """Names of images that would share one mask, by stem (compared as Unicode NFC)."""
        names = defaultdict(list)
        for name in self._names:
            names[_nfc_stem(name)].append(name)
        return {stem: group for stem, group in names.items() if len(group) > 1}

    def sharers(self, sample: Sample) -> list[str]:
        """Names of the other images that would share this sample's mask."""
        group = self.shared_stems.get(_nfc_stem(sample.name), [])
        return [name for name in group if name != sample.name]

    @cached_property
    def _names(self) -> list[str]:
        return sorted(image_names(self.images, recursive=self.recursive))


def image_names(folder: Path, *, recursive: bool = False) -> Iterator[str]:
    """Names of the images in a folder, relative to it, in no order.

    Hidden files (and so AppleDouble's `._x.jpg`) and other kinds of file are passed over. Links to
    files are followed, links to folders are not.
    """
    for name in file_names(folder, recursive=recursive):
        if is_image(name):
            yield name


def file_names(folder: Path, *, recursive: bool = False) -> Iterator[str]:
    """Names of all files in a folder that are not hidden, relative to it, in no order."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            entries = os.scandir(folder / prefix)
        except OSError as error:
            raise DatasetError(
                f"cannot read the folder {folder / prefix}: {error.strerror}"
            ) from error
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if recursive:
                        pending.append(f"{prefix}{entry.name}/")
                elif _is_file(entry):
                    yield prefix + entry.name


def is_image(name: str) -> bool:
    """Whether a file name ends like an image's."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a loop, or into a folder that may not be searched
        return False


def _nfc_stem(name: str) -> str:
    return unicodedata.normalize("NFC", str(PurePosixPath(name).with_suffix("")))


def _image_folder(path: Path, recursive: bool) -> Path:
    if not path.exists():
        raise DatasetError(f"there is no folder {path}")
    if not path.is_dir():
        raise DatasetError(f"{path} is a file; give the folder that holds the images")
    if next(image_names(path, recursive=recursive and not _subfolder(path)), None) is not None:
        return path
    if (inner := _subfolder(path)) is not None:
        return inner
    nested = next(image_names(path, recursive=True), None)
    hint = f"; there are some in sub-folders ({nested}): give --recursive" if nested else ""
    raise DatasetError(f"there is no image in {path}{hint}")


def _subfolder(path: Path) -> Path | None:
    return next((path / name for name in IMAGE_FOLDERS if (path / name).is_dir()), None)
