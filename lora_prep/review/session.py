"""The data set as the page sees it: numbered images, their masks, and what is decided of them."""

import hashlib
import json
import os
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Literal, TypeAlias, assert_never

import cv2
import numpy as np
from jaxtyping import UInt8

from lora_prep import decisions, imageio, masks
from lora_prep.dataset import Dataset, Sample
from lora_prep.decisions import Decision, Verdict
from lora_prep.errors import DatasetError, ItemError
from lora_prep.faces import FaceRecord, faces_path
from lora_prep.masks import Margin
from lora_prep.review.thumbnail import glimpse, thumbnail
from lora_prep.types import Image, Issue, Json, Mask, Severity
from lora_prep.validate.fix import MANIFEST, TRASH

Operation: TypeAlias = Literal["erode", "feather", "fill", "invert", "clear", "all", "restore"]

DISPLAY = 2048
"""Longer side in pixels of a picture that is only looked at."""


@dataclass(frozen=True, slots=True)
class Version:
    """A mask as it lies on the disk."""

    mask: Mask
    """As large as the image; all 0 where there is no file."""
    name: str
    """SHA-256 of the file, or "none": who saves says which version was changed."""
    warning: str = ""
    """What went wrong after the mask was saved."""


class Session:
    """One sitting over a data set. Images have numbers; no other name gets at a file.

    Safe to call in threads. Every method that takes a number raises ItemError: "not-found" for one
    that stands for nothing, or for a file that lies outside the data set.
    """

    def __init__(self, dataset: Dataset, issues: Iterable[Issue] = ()) -> None:
        """`issues` are shown with the images, and those with the worst come first."""
        self.dataset = dataset
        self._samples = list(dataset)
        self._issues = _by_name(dataset, issues)
        self._roots = [
            Path(os.path.realpath(p)) for p in (dataset.root, dataset.images, dataset.masks)
        ]
        self._lock = Lock()
        self._trash: Path | None = None
        self._backups: dict[str, Path] = {}
        self._saved: set[str] = set()
        self._pictures: OrderedDict[tuple[int, ...], Image] = OrderedDict()

    def __len__(self) -> int:
        return len(self._samples)

    def images(self) -> list[dict[str, Json]]:
        """What the page lists, the worst first."""
        decided = decisions.read(self.dataset)
        return [self._row(n, decided.get(self._samples[n].name)) for n in self._order]

    def seen(self, number: int) -> tuple[int, ...]:
        """Names an image's bytes by what the file system says of them."""
        try:
            found = self._reachable(self._sample(number).image).stat()
        except OSError as error:
            raise ItemError(f"cannot be read: {error.strerror}", code="unreadable") from error
        return number, found.st_ino, found.st_size, found.st_mtime_ns

    def image(self, number: int) -> Image:
        """The picture, upright. Raises ItemError where it cannot be read."""
        seen = self.seen(number)
        with self._lock:
            known = self._pictures.get(seen)
        if known is not None:
            return known
        image = imageio.decode_image(_bytes(self._sample(number).image))
        with self._lock:
            self._pictures[seen] = image
            while len(self._pictures) > 2:
                self._pictures.popitem(last=False)
        return image

    def shown(self, number: int, *, full: bool) -> bytes:
        """The picture as a JPEG file; if not `full`, at most `DISPLAY` pixels long."""
        image = self.image(number)
        height, width = image.shape[:2]
        scale = DISPLAY / max(height, width)
        if scale < 1 and not full:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        return imageio.encode_image(image, "jpeg", quality=90)

    def thumbnail(self, number: int) -> bytes:
        """The picture as a small JPEG file, dimmed where the mask ignores it, if there is one."""
        sample = self._sample(number)
        image = glimpse(_bytes(self._reachable(sample.image)))
        mask = None
        with suppress(ItemError):  # the page says what is wrong with it
            if (data := self._mask_file(sample)) is not None:
                mask = _decoded(data, *self._size(sample))
        return thumbnail(image, mask)

    def mask(self, number: int) -> Version:
        """The mask. Raises ItemError for a damaged one and for one of another size."""
        sample = self._sample(number)
        height, width = self._size(sample)
        data = self._mask_file(sample)
        if data is None:
            return Version(np.zeros((height, width), np.uint8), "none")
        return Version(_decoded(data, height, width), _name(data))

    def version(self, number: int) -> str:
        """Name of the version on the disk, whether the mask can be read or not."""
        data = self._mask_file(self._sample(number))
        return "none" if data is None else _name(data)

    def size(self, number: int) -> tuple[int, int]:
        """Height and width of the image, and so of its mask."""
        return self._size(self._sample(number))

    def save(
        self, number: int, patch: UInt8[np.ndarray, "_ _"], x: int, y: int, version: str
    ) -> Version:
        """Put a rectangle of pixels into the mask, all others left as they are.

        The mask that somebody else made goes to the trash before it is replaced. Raises ItemError:
        "changed" where `version` is not the one on the disk, "wrong-size" where the rectangle does
        not lie in the image, "shared-stem" where the mask is another image's, too; DatasetError
        where it cannot be written, or the decisions cannot be read: then nothing was changed. Once
        the mask is replaced nothing is raised: that the edit could not be noted is a warning.
        """
        sample = self._sample(number)
        if others := self.dataset.sharers(sample):
            raise ItemError(
                f"{', '.join(others)} would share the mask {sample.mask.name}: rename one of them",
                code="shared-stem",
            )
        height, width = self._size(sample)
        rows, columns = patch.shape
        if not (0 <= x <= x + columns <= width and 0 <= y <= y + rows <= height):
            raise ItemError(
                f"{columns}×{rows} pixels at {x}, {y} do not lie in an image of {width}×{height}",
                code="wrong-size",
            )
        with self._lock:
            data = self._mask_file(sample)
            if version != ("none" if data is None else _name(data)):
                raise ItemError(
                    "the mask was changed by somebody else since it was shown here", code="changed"
                )
            if data is None or patch.shape == (height, width):
                mask = np.zeros((height, width), np.uint8)
            else:
                mask = _decoded(data, height, width)
            mask[y : y + rows, x : x + columns] = patch
            decisions.check(self.dataset)
            if data is not None and _name(data) not in self._saved:
                self._back_up(sample, data)
            new = imageio.encode_mask(mask)
            imageio.make_folder(sample.mask.parent)
            imageio.replace(sample.mask, new)
            self._saved.add(_name(new))
            return Version(mask, _name(new), self._noted(sample))

    def _noted(self, sample: Sample) -> str:
        """Note that a mask was edited; returns why that failed."""
        try:
            decisions.note_edit(self.dataset, sample)
        except (DatasetError, OSError) as error:
            return f"the mask is saved, but not that it was edited here: {error}"
        return ""

    def changed(self, number: int, operation: Operation, margin: Margin) -> Mask:
        """What an operation makes of the mask on the disk; writes nothing.

        Raises ItemError ("eroded-away") where nothing would be left.
        """
        mask = self.mask(number).mask
        match operation:
            case "erode":
                return _moved(mask, margin)
            case "feather":
                inside = mask >= 128
                return masks.feather(inside, margin.distance(inside))
            case "fill":
                whole = masks.clean(mask >= 128, max_hole=1.0, max_speck=0.0)
                return np.where(whole & (mask < 128), np.uint8(255), mask)
            case "invert":
                return 255 - mask
            case "clear" | "all":
                return np.full_like(mask, 0 if operation == "clear" else 255)
            case "restore":
                backup = self._backups.get(self._sample(number).name)
                return _decoded(_backup(backup), *mask.shape) if backup else mask
            case _:
                assert_never(operation)

    def decide(self, number: int, verdict: Verdict | None) -> dict[str, Json]:
        """Write a verdict down, or take it back; returns the image's row for the list."""
        sample = self._sample(number)
        self._reachable(sample.image)
        if verdict is Verdict.ACCEPTED and self._mask_file(sample) is None:
            raise ItemError("there is no mask to accept: paint one first", code="no-mask")
        return self._row(number, decisions.decide(self.dataset, sample, verdict))

    @cached_property
    def _order(self) -> list[int]:
        return sorted(range(len(self)), key=lambda n: (self._badness(self._samples[n]), n))

    def _sample(self, number: int) -> Sample:
        if not 0 <= number < len(self):
            raise ItemError(f"there is no image {number}", code="not-found")
        return self._samples[number]

    def _size(self, sample: Sample) -> tuple[int, int]:
        header = imageio.read_header(_bytes(self._reachable(sample.image)))
        return header.height, header.width

    def _reachable(self, path: Path) -> Path:
        """The path, if what it leads to lies in the data set."""
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in self._roots):
            raise ItemError(f"{path.name} is a link out of the data set", code="not-found")
        return path

    def _mask_file(self, sample: Sample) -> bytes | None:
        path = self._reachable(sample.mask)
        return (_bytes(path) or None) if path.exists() else None

    def _back_up(self, sample: Sample, data: bytes) -> None:
        """Keep a mask that was not saved here, below the trash, where `--undo` finds it."""
        if self._trash is None:
            self._trash = _new_folder(self.dataset.state / TRASH)
        key = self.dataset.key(sample.mask)
        copy = self._trash / key
        if sample.name in self._backups:
            copy = copy.with_name(f"{copy.stem}.{_name(data)[:8]}{copy.suffix}")
        line = json.dumps({"code": "review", "from": key, "to": self.dataset.key(copy)})
        imageio.make_folder(copy.parent)
        imageio.replace(copy, data)
        try:
            with (self._trash / MANIFEST).open("a", encoding="utf-8") as manifest:
                manifest.write(line + "\n")
        except OSError as error:
            raise DatasetError(f"{self._trash}: cannot be written ({error.strerror})") from error
        self._backups.setdefault(sample.name, copy)

    def _row(self, number: int, decision: Decision | None) -> dict[str, Json]:
        sample = self._samples[number]
        return {
            "id": number,
            "name": sample.name,
            "verdict": decision and decision.verdict,
            "edited": bool(decision and decision.edited),
            "issues": [
                {"code": i.code, "severity": i.severity, "message": i.message}
                for i in self._issues[sample.name]
            ],
        }

    def _badness(self, sample: Sample) -> tuple[float, ...]:
        """Sorts the worst first: errors, then warnings, then how unsure the detector was."""
        found = self._issues[sample.name]
        errors = sum(issue.severity is Severity.ERROR for issue in found)
        return -errors, -(len(found) - errors), _best_score(self.dataset, sample)


def _by_name(dataset: Dataset, issues: Iterable[Issue]) -> dict[str, list[Issue]]:
    """The issues of each image, be they of the image, its mask or its caption."""
    names = {}
    for sample in dataset:
        for path in (sample.caption, sample.mask, sample.image):
            names[dataset.key(path)] = sample.name
    found: dict[str, list[Issue]] = defaultdict(list)
    for issue in issues:
        if issue.path in names:
            found[names[issue.path]].append(issue)
    return found


def _best_score(dataset: Dataset, sample: Sample) -> float:
    """The detector's confidence in the surest face; 0 for none found, 1 where it did not look."""
    try:
        record = FaceRecord.from_bytes(faces_path(dataset, sample).read_bytes())
    except (OSError, KeyError, TypeError, ValueError):
        return 1.0
    return max((face.score for face in record.faces), default=0.0)


def _moved(mask: Mask, margin: Margin) -> Mask:
    """The mask with its edge moved inwards, or outwards; weights inside stay as they are."""
    inside = mask > 0
    radius = margin.radius(inside)
    moved = masks.erode(inside, radius)
    if inside.any() and not moved.any():
        raise ItemError(f"{margin} would leave nothing of the mask: give less", code="eroded-away")
    if radius < 0:
        return np.where(moved & ~inside, np.uint8(255), mask)
    return np.where(moved, mask, np.uint8(0))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ItemError(f"cannot be read: {error.strerror}", code="unreadable") from error


def _backup(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ItemError(
            f"the mask as it was cannot be read: {path} ({error.strerror})", code="unreadable"
        ) from error


def _decoded(data: bytes, height: int, width: int) -> Mask:
    mask = imageio.decode_mask(data)
    if mask.shape != (height, width):
        raise ItemError(
            f"the mask has {mask.shape[1]}×{mask.shape[0]} pixels, the image {width}×{height}",
            code="wrong-size",
        )
    return mask


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _new_folder(trash: Path) -> Path:
    imageio.make_folder(trash)
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S-review")
    for number in range(1000):
        folder = trash / (f"{stamp}-{number}" if number else stamp)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise DatasetError(f"{folder}: cannot be made ({error.strerror})") from error
        return folder
    raise DatasetError(f"{trash} has no room for another folder")
