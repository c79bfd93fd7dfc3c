"""Mend what can be mended without a decision: names, and what does not belong there.

Nothing is deleted and no file is written over: what is taken out lies in `.lora-prep/trash/<time>`
under the path that it had, with a `manifest.jsonl` that says from where and why, so that it can be
put back (`undo`). Every step is a rename within the data set, said before it is done.
"""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from lora_prep import imageio
from lora_prep.dataset import CAPTION_SUFFIX, Dataset
from lora_prep.errors import DatasetError
from lora_prep.imageio import formats
from lora_prep.types import Issue
from lora_prep.validate.alignment import abandoned
from lora_prep.validate.images import SUFFIXES
from lora_prep.validate.listing import Listing, stem_of
from lora_prep.validate.trash import MANIFEST, TRASH, fold, is_same_file, rename, undo

__all__ = ["FIXABLE", "MANIFEST", "TRASH", "Move", "apply", "moves", "undo"]

TRASHED = frozenset({"P002", "P008", "P011", "P012", "A003", "E001", "I011", "P004"})
RENAMED = frozenset({"P005", "P009", "I006", "M008"})
FIXABLE = TRASHED | RENAMED
"""Codes that can be mended here, in some cases at least."""


@dataclass(frozen=True, slots=True)
class Move:
    """One file to rename. Paths are relative to the data set's root, with forward slashes."""

    code: str
    source: str
    target: str
    """Empty: to the trash."""


def moves(dataset: Dataset, issues: Iterable[Issue]) -> list[Move]:
    """What would mend the issues, in order; a file is moved once. Touches nothing.

    Only what leaves no doubt: a mask is renamed where one image alone can be meant, a name that
    differs in case or Unicode form only where the result is nobody's. Masks without an image stay
    while any image is without a mask: it may have been renamed. What lies in another folder than
    the data set's is left alone.
    """
    plan = _Plan(dataset, Listing.of(dataset))
    for issue in issues:
        if issue.code in FIXABLE and not issue.path.startswith("../"):
            plan.mend(issue)
    return plan.moves


class _Plan:
    def __init__(self, dataset: Dataset, listing: Listing) -> None:
        self.dataset, self.listing = dataset, listing
        self.moves: list[Move] = []
        self._moved: set[str] = set()
        self._taken: set[str] = set()

    def mend(self, issue: Issue) -> None:
        match issue.code:
            case "P009":
                self._rename_mask(issue)
            case "P005":
                self._normalise(issue)
            case "I006" | "M008":
                self._true_suffix(issue)
            case "P004":
                self._keep_png(issue)
            case "I011":
                self._trash_with_companions(issue)
            case "P002" if self._misses_a_mask:
                pass  # an image may have been renamed: the mask may be its
            case "A003" if issue.path not in self._abandoned:
                pass
            case _:
                self._move(issue.code, issue.path, "")

    @cached_property
    def _misses_a_mask(self) -> bool:
        """Whether there is an image without a mask of at least nearly its name."""
        masks = {fold(stem) for stem in self.listing.mask_stems}
        return any(fold(stem) not in masks for stem in self.listing.image_stems)

    @cached_property
    def _abandoned(self) -> frozenset[str]:
        return abandoned(self.listing)

    def _move(self, code: str, source: str, target: str) -> None:
        if source in self._moved or not os.path.lexists(self.dataset.root / source):
            return
        if target and self._is_taken(source, target):
            return
        self._moved.add(source)
        self._taken.add(target)
        self.moves.append(Move(code, source, target))

    def _is_taken(self, source: str, target: str) -> bool:
        root = self.dataset.root
        if target in self._taken:
            return True
        return os.path.lexists(root / target) and not is_same_file(root / source, root / target)

    def _rename_mask(self, issue: Issue) -> None:
        """Give the one mask that is nearly named like an image the image's stem."""
        listing = self.listing
        name = issue.path.removeprefix(listing.image_key(""))
        stem = stem_of(name)
        near = [s for s in listing.mask_stems if s != stem and fold(s) == fold(stem)]
        images = [s for s in listing.image_stems if fold(s) == fold(stem)]
        if len(near) == 1 and len(images) == 1 and len(listing.mask_stems[near[0]]) == 1:
            mask = listing.mask_stems[near[0]][0]
            target = stem + PurePosixPath(mask).suffix
            self._move(issue.code, listing.mask_key(mask), listing.mask_key(target))

    def _normalise(self, issue: Issue) -> None:
        """Of names that a file system may take for one, all but the first get a number."""
        listing = self.listing
        for stems, key in (
            (listing.image_stems, listing.image_key),
            (listing.mask_stems, listing.mask_key),
        ):
            stem = stem_of(issue.path.removeprefix(key("")))
            group = sorted(s for s in stems if fold(s) == fold(stem)) if stem in stems else []
            if key != listing.image_key:
                continue  # masks and captions move with their images
            for number, other in enumerate(group[1:], 2):
                self._rename_all(issue.code, other, f"{other}-{number}")

    def _rename_all(self, code: str, stem: str, new: str) -> None:
        """Rename an image and what is named after it, all or nothing."""
        listing = self.listing
        while any(fold(new) == fold(s) for s in (*listing.image_stems, *listing.mask_stems)):
            new += "x"
        for name in listing.image_stems[stem]:
            self._move(code, listing.image_key(name), listing.image_key(_with_stem(name, new)))
            if caption := listing.captions.get(name):
                target = listing.image_key(f"{new}{CAPTION_SUFFIX}")
                self._move(code, listing.image_key(caption), target)
        for name in listing.mask_stems.get(stem, ()):
            self._move(code, listing.mask_key(name), listing.mask_key(_with_stem(name, new)))

    def _true_suffix(self, issue: Issue) -> None:
        """Give a file the ending of what it holds; a mask only where that makes it a .png."""
        kind = imageio_format(self.dataset.root / issue.path)
        if kind is None or (issue.code == "M008" and kind != "PNG"):
            return
        name = PurePosixPath(issue.path)
        suffix = SUFFIXES[kind][0]
        if name.suffix != suffix:
            self._move(issue.code, issue.path, str(name.with_suffix(suffix)))

    def _keep_png(self, issue: Issue) -> None:
        stem = stem_of(issue.path.removeprefix(self.listing.mask_key("")))
        names = self.listing.mask_stems.get(stem, ())
        kept = [n for n in names if n.endswith(".png")]
        for name in names if len(kept) == 1 else ():
            if name != kept[0]:
                self._move(issue.code, self.listing.mask_key(name), "")

    def _trash_with_companions(self, issue: Issue) -> None:
        """A twin of an image, with its mask and caption if they are its alone."""
        listing = self.listing
        name = issue.path.removeprefix(listing.image_key(""))
        self._move(issue.code, issue.path, "")
        if len(listing.image_stems.get(stem_of(name), ())) == 1:
            for mask in listing.mask_stems.get(stem_of(name), ()):
                self._move(issue.code, listing.mask_key(mask), "")
            if caption := listing.captions.get(name):
                self._move(issue.code, listing.image_key(caption), "")


def apply(dataset: Dataset, planned: Sequence[Move]) -> Path | None:
    """Do it. Returns the trash folder, if anything went there.

    The manifest's line is written before each file moves, so that whatever kills the process, it
    says of every file where it came from. Raises DatasetError where a file cannot be moved.
    """
    if not planned:
        return None
    folder = _new_folder(dataset.state / TRASH)
    trashed = False
    with (folder / MANIFEST).open("a", encoding="utf-8") as manifest:
        for move in planned:
            source = dataset.root / move.source
            target = dataset.root / move.target if move.target else folder / move.source
            trashed |= not move.target
            relative = Path(os.path.relpath(target, dataset.root)).as_posix()
            line = {"code": move.code, "from": move.source, "to": relative}
            manifest.write(json.dumps(line) + "\n")
            manifest.flush()
            imageio.make_folder(target.parent)
            rename(source, target)
    return folder if trashed else None


def imageio_format(path: Path) -> str | None:
    """Which format a file is in, by its first bytes."""
    try:
        with path.open("rb") as file:
            return formats.detect(file.read(512))
    except OSError:
        return None


def _with_stem(name: str, stem: str) -> str:
    return stem + PurePosixPath(name).suffix


def _new_folder(trash: Path) -> Path:
    name = time.strftime("%Y-%m-%dT%H-%M-%S")
    for number in range(1000):
        folder = trash / (f"{name}-{number}" if number else name)
        imageio.make_folder(trash)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise DatasetError(f"{folder}: cannot be made ({error.strerror})") from error
        return folder
    raise DatasetError(f"{trash} has no room for another folder")
