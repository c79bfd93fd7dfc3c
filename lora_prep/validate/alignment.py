"""Family A: is each file still of the file that it was made from, and in its place?

What was made from which bytes is in the journals of the stages. A file whose size and dates are
those of the journal is not read again.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_prep.dataset import image_names
from lora_prep.errors import DatasetError
from lora_prep.journal import Entry, Journal, Stamp
from lora_prep.types import Status
from lora_prep.validate.check import Check, Findings, Level, error, warning
from lora_prep.validate.drift import Placement
from lora_prep.validate.listing import Listing, stem_of
from lora_prep.validate.pair import Pair

TURNED = 1.0
MOVED = 1.2
"""How much better a mask has to fit elsewhere."""

LOST = 2.0
"""A mask whose own place is so much better than the mean of the others is not called moved."""

NOTICED = 0.03
"""Shorter shifts, as part of the mask's size, are left alone."""

MOST = 3
"""Of five landmarks."""

AUGMENTED = "augmented"


@error(
    "A001",
    "Mask of an older image",
    reason="the image was changed after its mask was made: what is trained is no longer what the "
    "mask covers, and no trainer can see that.",
    fix="make it anew with `lora-prep masks`, which leaves masks alone that are up to date; or "
    "--fix. Where none can be made any more, take the image out, or draw its mask",
)
def stale_mask(listing: Listing) -> Findings:
    """By the journal. Masks that were drawn or edited since are yours, and not judged."""
    with _journal(listing, _masks_journal(listing)) as entries:
        for entry in entries:
            maker = _maker(entry)
            stale = _changed(listing, maker.inputs)
            since = f"; since then, none could be made: {entry.message}" if _is_left(entry) else ""
            for output in _masks_there(listing, maker) if stale and _is_done(maker) else ():
                yield output, f"{' and '.join(stale)} was changed after it was made{since}"


@error(
    "A010",
    "Mask that is left from before",
    reason="`lora-prep masks` was run with other settings since, and by those the image gets no "
    "mask: the one that lies there is still trained on.",
    fix="take the image out, or draw its mask; or make it anew with the options that made it",
)
def left_mask(listing: Listing) -> Findings:
    """By the journal, of images that are as they were: those that are not have A001."""
    with _journal(listing, _masks_journal(listing)) as entries:
        for entry in entries:
            maker = _maker(entry)
            if _is_left(entry) and not (_is_same(maker, entry) or _changed(listing, maker.inputs)):
                ended = "left the image out" if entry.status is Status.SKIPPED else "failed"
                for output in _masks_there(listing, maker):
                    yield output, f"the last run {ended}: {entry.message}"


@error(
    "A002",
    "Augmented pair that is out of date",
    reason="the image, mask or caption that it was made from was changed since.",
    fix="make it anew with `lora-prep augment`",
)
def stale_augmentation(listing: Listing) -> Findings:
    """By the journals of `lora-prep augment`: one issue for each source."""
    for entry in _augmentations(listing):
        stale = _changed(listing, entry.inputs)
        there = _there(listing, entry)
        if stale and there and _is_done(entry):
            yield there[0], f"{' and '.join(stale)} was changed after it was made"


@error(
    "A003",
    "Augmented pair without its parent",
    reason="the image or mask that it was made from is gone: what was taken out of the data set "
    "is still trained on.",
    fix="move it away, or put its parent back; --fix moves it to the trash if its image is gone",
)
def without_parent(listing: Listing) -> Findings:
    """By the journals of `lora-prep augment`: one issue for each file."""
    root = listing.dataset.root
    for entry in _augmentations(listing):
        gone = [name for name in entry.inputs if not os.path.lexists(root / name)]
        parents = [name for name in gone if not name.endswith(".txt")]
        for output in _there(listing, entry) if parents else ():
            yield output, f"{' and '.join(parents)} is gone"


def abandoned(listing: Listing) -> frozenset[str]:
    """The files of augmented pairs that nobody misses: relative to the root.

    Their image is gone and lies under no other name in the image folder, and all that is left of
    the pair is as it was written.
    """
    root, found = listing.dataset.root, set[str]()
    sizes = defaultdict(list)
    for name in listing.images.images:
        path = listing.dataset.images / name
        with suppress(OSError):
            sizes[path.stat().st_size].append(path)
    for entry in _augmentations(listing):
        image, stamp = next(iter(entry.inputs.items()), ("", None))
        if stamp is None or os.path.lexists(root / image):
            continue
        left = [output for output in entry.outputs if os.path.lexists(root / output)]
        renamed = any(_is(path, stamp) for path in sizes[stamp.size])
        if left == _there(listing, entry) and not renamed:
            found.update(left)
    return frozenset(found)


@warning(
    "A004",
    "Augmented pair of unknown origin",
    reason="no journal knows what it was made from: nothing tells when it is out of date.",
    fix="make it with `lora-prep augment`, or leave it if you know what it is",
)
def unknown_origin(listing: Listing) -> Findings:
    """An image in augmented/images that `lora-prep augment` has not written."""
    folder = listing.dataset.root / AUGMENTED / "images"
    if not folder.is_dir() or folder == listing.dataset.images:
        return
    known = {output for entry in _augmentations(listing) for output in entry.outputs}
    for name in sorted(image_names(folder, recursive=True)):
        key = f"{AUGMENTED}/images/{name}"
        if key not in known:
            yield key, "the journal does not know it"


@error(
    "A005",
    "Augmented image without its mask",
    reason="as P001: trainers stop, or train on the whole image.",
    fix="make it anew with `lora-prep augment`",
)
def augmented_alone(listing: Listing) -> Findings:
    """In augmented/images, where there is a folder augmented/masks."""
    images = listing.dataset.root / AUGMENTED / "images"
    masks = images.with_name("masks")
    if not (images.is_dir() and masks.is_dir()) or images == listing.dataset.images:
        return
    stems = {stem_of(name) for name in image_names(masks, recursive=True)}
    for name in sorted(image_names(images, recursive=True)):
        if stem_of(name) not in stems:
            yield f"{AUGMENTED}/images/{name}", f"there is no mask {stem_of(name)}.png"


@warning(
    "A006",
    "Mask that seems to be turned",
    reason="it was mirrored or rotated and the image was not, or the other way round: the "
    "background is trained on.",
    fix="look at it (`lora-prep masks --overlay`); make it anew, or turn it back",
    level=Level.DRIFT,
)
def turned(pair: Pair) -> Findings:
    """Turned, its border would follow the picture's edges better, or hold more of the face."""
    fit = pair.placement
    if pair.mask and fit and is_turned(fit):
        gain = f"fits {fit.turned / max(fit.own, 1e-6):.1f} times as well"
        yield pair.mask.path, f"{fit.turn}, it {gain}"


@warning(
    "A007",
    "Mask that seems to be moved",
    reason="it lies beside what it should cover: its edge is trained on the background.",
    fix="look at it (`lora-prep masks --overlay`); make it anew, or move it back",
    level=Level.DRIFT,
)
def moved(pair: Pair) -> Findings:
    """Moved by up to a quarter of its size, its border would follow the picture's edges better."""
    fit = pair.placement
    if pair.mask and fit and is_moved(fit) and not is_turned(fit):
        yield pair.mask.path, f"moved by {_way(*fit.shift)} of its size it fits better"


def _way(right: float, down: float) -> str:
    """A shift in words: `4 % to the right and 25 % up`."""
    parts = ((right, "to the right", "to the left"), (down, "down", "up"))
    moves = [(round(100 * abs(s)), plus if s > 0 else minus) for s, plus, minus in parts]
    return " and ".join(f"{percent} % {way}" for percent, way in moves if percent)


@warning(
    "A008",
    "Mask that holds no face",
    reason="faces were detected in the image and the mask covers none of them: it may be that of "
    "another image.",
    fix="look at it (`lora-prep masks --overlay`); make it anew, unless it is not of a face",
    level=Level.DRIFT,
)
def misses_the_face(pair: Pair) -> Findings:
    """Of no detected face three of the five landmarks lie inside the mask."""
    if pair.mask and (fit := pair.placement) and fit.faces and fit.landmarks < MOST:
        most = f"{fit.landmarks} of the 5 landmarks"
        yield pair.mask.path, f"of {fit.faces} faces it holds at most {most}"


def is_turned(fit: Placement) -> bool:
    """Whether a mask's fit says that it was mirrored or rotated."""
    if not fit.turn or fit.turned <= TURNED * fit.own:
        return False
    if fit.faces and fit.landmarks_turned < fit.landmarks:
        return False
    return fit.turned >= fit.shifted or (bool(fit.faces) and fit.landmarks < MOST)


def is_moved(fit: Placement) -> bool:
    """Whether a mask's fit says that it was moved, or is that of another image."""
    far = max(abs(fit.shift[0]), abs(fit.shift[1])) >= NOTICED
    return far and fit.shifted > MOVED * fit.own and fit.own < LOST * fit.elsewhere


@contextmanager
def _journal(listing: Listing, name: str) -> Iterator[Iterator[Entry]]:
    """The entries of a stage's journal; none where it was never run."""
    path = listing.dataset.state / f"{name}.jsonl"
    if not path.is_file():
        yield iter(())
        return
    try:
        journal = Journal(path, read_only=True)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    with journal:
        yield iter(journal)


def _augmentations(listing: Listing) -> Iterator[Entry]:
    """What made the pairs, by all journals of `lora-prep augment`: each `--out` has its own."""
    for path in sorted(listing.dataset.state.glob("augment*.jsonl")):
        with _journal(listing, path.stem) as entries:
            yield from map(_maker, entries)


def _masks_journal(listing: Listing) -> str:
    folder = listing.dataset.masks.name
    return "masks" if folder == "masks" else f"masks-{folder}"


def _is_done(entry: Entry) -> bool:
    return entry.status is Status.DONE


def _maker(entry: Entry) -> Entry:
    """The attempt that wrote an item's files: this one, unless it wrote none."""
    return entry.maker or entry


def _is_left(entry: Entry) -> bool:
    """Whether the files of an item, if there are any, are those of an earlier attempt."""
    return entry.status in (Status.FAILED, Status.SKIPPED)


def _is_same(maker: Entry, entry: Entry) -> bool:
    """Whether an attempt had the settings of the one before, as far as it says.

    It does not where an input could not be read, or was another.
    """
    if maker is entry:  # a journal of before `Entry.maker`
        return False
    known = [s.sha256 for s in entry.inputs.values()] == [s.sha256 for s in maker.inputs.values()]
    facts = [(one.info or {}).get("no_face") for one in (maker, entry)]
    return not known or (maker.fingerprint == entry.fingerprint and facts[0] == facts[1])


def _masks_there(listing: Listing, entry: Entry) -> Iterator[str]:
    """The masks of the data set that an attempt has written, where they are as it wrote them."""
    names, folder = listing.mask_stems, listing.mask_key("")
    for output in _there(listing, entry):
        if stem_of(output.removeprefix(folder)) in names:
            yield output


def _there(listing: Listing, entry: Entry) -> list[str]:
    """The outputs that exist, as they were written."""
    root = listing.dataset.root
    return [o for o, stamp in entry.outputs.items() if _is(root / o, stamp)]


def _changed(listing: Listing, inputs: Mapping[str, Stamp]) -> list[str]:
    """The inputs that exist and are not what they were."""
    root = listing.dataset.root
    return [n for n, stamp in inputs.items() if (root / n).is_file() and not _is(root / n, stamp)]


def _is(path: Path, stamp: Stamp) -> bool:
    try:
        return stamp.matches(path)
    except OSError:
        return False


LISTING_CHECKS: tuple[Check[Listing], ...] = (
    stale_mask,
    left_mask,
    stale_augmentation,
    without_parent,
    unknown_origin,
    augmented_alone,
)
PAIR_CHECKS: tuple[Check[Pair], ...] = (turned, moved, misses_the_face)
