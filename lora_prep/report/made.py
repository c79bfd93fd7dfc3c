"""What lora-prep made beside the masks: augmented pairs, by their journal, and class images."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lora_prep import imageio
from lora_prep.dataset import Dataset, image_names, is_image
from lora_prep.errors import DatasetError, ItemError
from lora_prep.journal import Entry, Journal
from lora_prep.report.measure import read_mask
from lora_prep.report.thumbnails import Picture, picture
from lora_prep.types import Json, Status

PARENTS = 24
"""Images whose variants are shown."""

VARIANTS = 6
"""Of each of them."""

PRIORS = 60
"""Class images that are shown."""

SMALLER = 0.6
"""Their pictures' size, as part of the gallery's."""


@dataclass(frozen=True, slots=True)
class Variant:
    """An augmented image."""

    path: str
    """Relative to the data set's root."""
    about: str
    """What was done to it, in words."""
    picture: Picture | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Parent:
    """An image and its variants."""

    name: str
    """Relative to the image folder."""
    variants: Sequence[Variant]
    count: int
    """Variants there are, those that are not shown included."""


@dataclass(frozen=True, slots=True)
class Augmented:
    """Augmented pairs of a data set."""

    parents: Sequence[Parent] = ()
    """Those shown."""
    images: int = 0
    """Number of images that have variants."""
    variants: int = 0
    """Number of variants."""


@dataclass(frozen=True, slots=True)
class Priors:
    """Class images of a data set."""

    shown: Sequence[Variant] = ()
    count: int = 0


def augmented(dataset: Dataset, pool: ThreadPoolExecutor, size: int) -> Augmented:
    """The augmented pairs that exist, by the journals of `lora-prep augment`."""
    found: dict[str, list[Entry]] = defaultdict(list)
    prefix = dataset.key(dataset.images) + "/"
    for entry in _entries(dataset, "augment*.jsonl"):
        parent = (entry.info or {}).get("parent")
        if not isinstance(parent, str) or not parent.startswith(prefix) or not entry.outputs:
            continue
        if _is_ours(dataset, entry):
            found[parent.removeprefix(prefix)].append(entry)
    names = sorted(found)
    some = spread(names, PARENTS)
    shown = [(name, entry) for name in some for entry in found[name][:VARIANTS]]
    made = iter(pool.map(lambda pair: _variant(dataset, pair[1], round(SMALLER * size)), shown))
    parents = [
        Parent(name, [next(made) for _ in found[name][:VARIANTS]], len(found[name]))
        for name in some
    ]
    return Augmented(parents, len(names), sum(map(len, found.values())))


def priors(dataset: Dataset, pool: ThreadPoolExecutor, size: int) -> Priors:
    """The class images in `priors` beside the images, with the prompts of those drawn here."""
    folder = dataset.root / "priors"
    if not folder.is_dir():
        return Priors()
    try:
        names = sorted(image_names(folder))
    except DatasetError:
        return Priors()
    prompts = {
        Path(path).name: str((entry.info or {}).get("prompt", ""))
        for entry in _entries(dataset, "priors.jsonl")
        for path in entry.outputs
    }

    def shown(name: str) -> Variant:
        path = f"{dataset.key(folder)}/{name}"
        return _pictured(dataset.root, path, prompts.get(name, ""), None, round(SMALLER * size))

    return Priors(list(pool.map(shown, spread(names, PRIORS))), len(names))


def spread(items: Sequence[str], count: int) -> list[str]:
    """At most `count` of the items, evenly spaced, the first one among them."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _entries(dataset: Dataset, pattern: str) -> Iterator[Entry]:
    """What the journals say of items that were made."""
    for path in sorted(dataset.state.glob(pattern)):
        with Journal(path, read_only=True) as journal:
            yield from (entry for entry in journal if entry.status in (Status.DONE, Status.KEPT))


def _is_ours(dataset: Dataset, entry: Entry) -> bool:
    """Whether an item's files exist and lie in the data set: a journal could name any file."""
    root = dataset.root.resolve()
    paths = [(dataset.root / path).resolve() for path in entry.outputs]
    return paths[0].is_file() and all(path.is_relative_to(root) for path in paths)


def _variant(dataset: Dataset, entry: Entry, size: int) -> Variant:
    paths = list(entry.outputs)
    mask = next((path for path in paths[1:] if is_image(path)), None)
    return _pictured(dataset.root, paths[0], _words(entry.info or {}), mask, size)


def _pictured(root: Path, path: str, about: str, mask: str | None, size: int) -> Variant:
    try:
        image = imageio.decode_image((root / path).read_bytes())
    except OSError as error:
        return Variant(path, about, problem=error.strerror or str(error))
    except ItemError as error:
        return Variant(path, about, problem=str(error))
    weights, problem = (None, "") if mask is None else read_mask(root / mask)
    return Variant(path, about, picture(image, weights, size), problem)


def _words(info: dict[str, Json]) -> str:
    """Turn, scale and what is left of the mask, from what `lora-prep augment` wrote down."""
    return ", ".join(_parts(info))


def _parts(info: dict[str, Json]) -> Iterable[str]:
    if info.get("mirrored"):
        yield "mirrored"
    try:
        (a, b, _), (c, d, _) = ((float(v) for v in row) for row in info["matrix"])
        turn, zoom = math.degrees(math.atan2(c, a)), math.sqrt(abs(a * d - b * c))
        if info.get("mirrored"):
            turn = math.degrees(math.atan2(-c, -a))
        if abs(turn) >= 0.5:
            yield f"turned {turn:+.0f}°"
        if abs(zoom - 1) >= 0.01:
            yield f"× {zoom:.2f}"
    except (KeyError, TypeError, ValueError):
        pass
    if isinstance(kept := info.get("kept"), (int, float)):
        yield f"{kept:.0%} of the mask kept"
