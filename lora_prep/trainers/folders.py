"""What lies in a trainer's folders, listed once."""

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from lora_prep.dataset import file_names, image_names
from lora_prep.errors import DatasetError, ItemError
from lora_prep.trainers.pixels import Picture, bilinear, laid_down, marks, read, unit, upright
from lora_prep.trainers.view import Layout


@dataclass(frozen=True)
class Folders:
    """The image folder and the mask folder of a layout."""

    layout: Layout

    def names(self, suffixes: Collection[str], *, recursive: bool = False) -> list[str]:
        """Images with these endings (lower case), relative to the image folder, sorted.

        Of a lora-prep data set: all its images, in the image folder itself.
        """
        if self.layout.prepared:
            return sorted(image_names(self.layout.images, recursive=self.layout.recursive))
        found = file_names(self.layout.images, recursive=recursive)
        return sorted(n for n in found if PurePosixPath(n).suffix.lower() in suffixes)

    def image(self, name: str) -> Picture:
        """An image as stored; of a lora-prep data set upright, as `lora-prep export` writes it.

        Raises ItemError.
        """
        picture = read(self.layout.images / name)
        return upright(picture) if self.layout.prepared else picture

    @cached_property
    def masks(self) -> dict[str, list[Path]]:
        """Files in the mask folder itself by stem, each list sorted; empty without the folder."""
        files = defaultdict(list)
        folder = self.layout.masks
        if folder is not None:
            try:
                for name in sorted(file_names(folder)):
                    files[PurePosixPath(name).stem].append(folder / name)
            except DatasetError:
                return {}
        return dict(files)

    def prepared_mask(self, name: str) -> Path | None:
        """Of a lora-prep data set: the mask that `lora-prep export` takes for an image."""
        folder = self.layout.masks
        path = folder and folder / PurePosixPath(name).with_suffix(".png")
        return path if path and path.is_file() else None

    def of_stem(self, name: str) -> list[Path]:
        """Files in the mask folder of an image's stem; of a lora-prep data set its one mask."""
        if self.layout.prepared:
            found = self.prepared_mask(name)
            return [found] if found else []
        return self.masks.get(PurePosixPath(name).stem, [])

    def any_mask(self, name: str) -> Path | None:
        """A file that seems to be an image's mask, whether the trainer finds it or not."""
        found = self.prepared_mask(name)
        if found is None:
            found = next(iter(self.masks.get(PurePosixPath(name).stem, [])), None)
        return found

    @property
    def mask_folder_missing(self) -> bool:
        """A mask folder was named and is not there."""
        return self.layout.masks is not None and not self.layout.masks.is_dir()


def belongs(
    mask: Path | None, image: Picture, fit: Callable[[Picture], Picture], *, turned: int = 1
) -> Float[np.ndarray, "H W"] | None:
    """The mask where it belongs over an image in its bucket; None where none can be read.

    Args:
        mask: a file made for the upright image.
        image: as the trainer reads it.
        fit: takes a picture of the image's size into the bucket.
        turned: the image's EXIF orientation, for a trainer that does not apply it.
    """
    if mask is None:
        return None
    try:
        picture = laid_down(marks(mask), turned)
    except ItemError:
        return None
    if picture.size != image.size:
        picture = bilinear(picture, image.size)
    return unit(fit(picture))
