"""Pairs of images for a slider: what is wrong with a folder of them, and how they are made.

    pairs/
      positive/   img001.png    more of the attribute
      negative/   img001.png    less of it: the same picture otherwise, and as large

Images belong together by their name without suffix. Trainers pair by sorted order or by name and
say nothing of what does not fit; a slider then learns the difference between two strangers.
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

from lora_prep import imageio
from lora_prep.dataset import CAPTION_SUFFIX, image_names
from lora_prep.errors import DatasetError, ItemError
from lora_prep.types import Severity

POSITIVE = "positive"
NEGATIVE = "negative"

FEW = 4
"""The paper's visual sliders were made of four to six pairs."""


class Fault(StrEnum):
    """What can be wrong."""

    ORPHAN = "orphan"
    SHARED_STEM = "shared-stem"
    UNREADABLE = "unreadable"
    SIZE = "size"
    EQUAL = "equal"
    DUPLICATE = "duplicate"
    OTHER_NAME = "other-name"
    CAPTION = "caption"
    FEW = "few"


WARNINGS = (Fault.OTHER_NAME, Fault.CAPTION, Fault.FEW)
"""Faults that some trainers live with."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault."""

    fault: Fault
    path: str
    """Relative to the folder of the pairs, with forward slashes."""
    message: str
    """What is wrong, and what to do about it."""

    @property
    def severity(self) -> Severity:
        """Whether some trainer learns something wrong by it."""
        return Severity.WARNING if self.fault in WARNINGS else Severity.ERROR


@dataclass(frozen=True)
class Pairs:
    """A folder of pairs."""

    root: Path
    positive: str = POSITIVE
    negative: str = NEGATIVE
    recursive: bool = False
    names: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    """For each side, the image names (relative to the side's folder) by stem."""

    @classmethod
    def at(
        cls,
        root: Path,
        *,
        positive: str = POSITIVE,
        negative: str = NEGATIVE,
        recursive: bool = False,
    ) -> "Pairs":
        """The pairs in a folder. Raises DatasetError where a side is missing or has no image."""
        if not root.is_dir():
            raise DatasetError(f"there is no folder {root}")
        if positive == negative:
            raise DatasetError(f"both sides would be {positive}: they are two folders")
        names: dict[str, dict[str, list[str]]] = {}
        for side in (positive, negative):
            if not (root / side).is_dir():
                there = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
                found = f"; there are {', '.join(there[:6])}" if there else ""
                raise DatasetError(
                    f"{root} has no folder {side}{found}: name the two sides with --positive and "
                    "--negative, or make pairs with --make"
                )
            groups = defaultdict(list)
            for name in sorted(image_names(root / side, recursive=recursive)):
                groups[_stem(name)].append(name)
            if not groups:
                raise DatasetError(f"there is no image in {root / side}")
            names[side] = dict(groups)
        return cls(root, positive, negative, recursive, names)

    def __len__(self) -> int:
        return len(self.stems)

    @property
    def sides(self) -> tuple[str, str]:
        """The two folders' names, positive first."""
        return self.positive, self.negative

    @property
    def stems(self) -> list[str]:
        """Names without suffix that both sides have, sorted."""
        return sorted(set(self.names[self.positive]) & set(self.names[self.negative]))

    def images(self) -> Iterator[str]:
        """All images, relative to the root."""
        for side in self.sides:
            for group in self.names[side].values():
                yield from (f"{side}/{name}" for name in group)


@dataclass(frozen=True, slots=True)
class _Looked:
    """What is in an image's file."""

    size: tuple[int, int] | None = None
    data: str = ""
    pixels: str = ""
    problem: str = ""


def check(
    pairs: Pairs, *, threads: int = 4, seen: Callable[[str], object] | None = None
) -> list[Finding]:
    """Everything that is wrong with the pairs, in the order of `Fault`, then of the names.

    Every image is decoded whole. `seen` is called in the order of the files, after each.
    """
    paths = list(pairs.images())
    looked: dict[str, _Looked] = {}
    with ThreadPoolExecutor(threads) as pool:
        for path, one in zip(paths, pool.map(lambda p: _look(pairs.root / p), paths), strict=True):
            looked[path] = one
            if seen is not None:
                seen(path)
    found = [
        *_orphans(pairs),
        *_shared(pairs),
        *(Finding(Fault.UNREADABLE, p, x.problem) for p, x in looked.items() if x.problem),
        *_compared(pairs, looked),
        *_duplicates(looked),
        *_names_and_captions(pairs),
    ]
    if len(pairs) < FEW:
        found.append(
            Finding(
                Fault.FEW,
                ".",
                f"{len(pairs)} pairs: a slider from few pairs learns these pictures; Concept "
                "Sliders took four to six, of different subjects",
            )
        )
    order = list(Fault)
    return sorted(found, key=lambda f: (order.index(f.fault), f.path))


def _look(path: Path) -> _Looked:
    try:
        data = path.read_bytes()
        image = imageio.decode_image(data)
    except ItemError as error:
        return _Looked(problem=str(error))
    except OSError as error:
        return _Looked(problem=f"it cannot be read: {error.strerror or error}")
    height, width = image.shape[:2]
    pixels = hashlib.sha256(f"{width}x{height}:".encode() + image.tobytes()).hexdigest()
    return _Looked((width, height), hashlib.sha256(data).hexdigest(), pixels)


def _orphans(pairs: Pairs) -> Iterator[Finding]:
    for side, other in (pairs.sides, pairs.sides[::-1]):
        for stem in sorted(set(pairs.names[side]) - set(pairs.names[other])):
            for name in pairs.names[side][stem]:
                yield Finding(
                    Fault.ORPHAN,
                    f"{side}/{name}",
                    f"{other} has no {stem}: add it, or take this one out (some trainers pair by "
                    "sorted order, and then every later pair is wrong)",
                )


def _shared(pairs: Pairs) -> Iterator[Finding]:
    for side in pairs.sides:
        for group in pairs.names[side].values():
            if len(group) > 1:
                yield Finding(
                    Fault.SHARED_STEM,
                    f"{side}/{group[0]}",
                    f"{' and '.join(group)} differ by their suffix alone: which one is meant is a "
                    "matter of chance. Keep one",
                )


def _compared(pairs: Pairs, looked: Mapping[str, _Looked]) -> Iterator[Finding]:
    for stem in pairs.stems:
        paths = [f"{side}/{pairs.names[side][stem][0]}" for side in pairs.sides]
        high, low = (looked[path] for path in paths)
        if high.size is None or low.size is None:
            continue
        if high.size != low.size:
            sizes = " and ".join(f"{one.size[0]}×{one.size[1]}" for one in (high, low) if one.size)
            yield Finding(
                Fault.SIZE,
                paths[0],
                f"the two sides are {sizes} pixels: the pictures have to lie on each other; make "
                "both of one original, or crop them alike",
            )
        elif high.pixels == low.pixels:
            what = "the same file" if high.data == low.data else "the same picture"
            yield Finding(
                Fault.EQUAL,
                paths[0],
                f"it is {what} as {paths[1]}: there is nothing to learn from it. Replace one",
            )


def _duplicates(looked: Mapping[str, _Looked]) -> Iterator[Finding]:
    """The same picture in two pairs, on whichever side."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path, one in looked.items():
        if one.pixels:
            groups[one.pixels].append(path)
    for paths in groups.values():
        first, others = paths[0], paths[1:]
        for path in others:
            if _stem(path.partition("/")[2]) == _stem(first.partition("/")[2]):
                continue  # within a pair: `equal`
            what = "file" if looked[path].data == looked[first].data else "picture"
            yield Finding(
                Fault.DUPLICATE,
                path,
                f"it is the same {what} as {first}: one picture in two pairs counts twice, and on "
                "opposite sides the pairs cancel out. Keep one",
            )


def _names_and_captions(pairs: Pairs) -> Iterator[Finding]:
    for stem in pairs.stems:
        high, low = (pairs.names[side][stem][0] for side in pairs.sides)
        if high != low:
            yield Finding(
                Fault.OTHER_NAME,
                f"{pairs.positive}/{high}",
                f"its counterpart is {pairs.negative}/{low}: the official slider scripts look for "
                "the same file name, suffix included",
            )
        texts = [
            _caption(pairs, pairs.positive, high),
            _caption(pairs, pairs.negative, low),
        ]
        if texts[0] != texts[1]:
            yield Finding(
                Fault.CAPTION,
                f"{pairs.positive}/{PurePosixPath(high).with_suffix(CAPTION_SUFFIX)}",
                "the two sides' captions differ: what they say apart is not learned by the "
                "slider. Write the same for both, without the attribute",
            )


def _caption(pairs: Pairs, side: str, name: str) -> str | None:
    path = (pairs.root / side / name).with_suffix(CAPTION_SUFFIX)
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", str(PurePosixPath(name).with_suffix("")))


def hints(root: Path, sides: Iterable[str]) -> list[str]:
    """How trainers are told of the pairs."""
    high, low = sides
    return [
        f'lora-prep train   [slider] pairs = "{root}", with [losses.paired_slider]',
        f"ai-toolkit        pos_folder: {root / high}, neg_folder: {root / low}",
        f"Concept Sliders   --folder_main {root} --folders {high},{low} --scales 1,-1",
        f"SimpleTuner       two data sets, slider_strength 1 for {high} and -1 for {low}",
    ]
