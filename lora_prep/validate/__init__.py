"""Does what lies on the disk train what is meant? Finds what trainers would not say.

One module a family: `pairing` (P), `images` (I), `masks` (M), `alignment` (A), `captions` (C),
`embeddings` (E), `trainers` (T); `whole` compares images with one another. A check is a small pure
function with a stable code, over the `Listing` of the folders, a `Pair` of files, the `Faces` of
the embeddings, or the `Whole`. Files are read once, in threads, by `pair.read_pair`; no check of a
pair opens one.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from lora_prep.attempt import Finished
from lora_prep.dataset import Dataset
from lora_prep.executors.local import ahead
from lora_prep.types import Issue, Json, Severity
from lora_prep.validate import (
    alignment,
    captions,
    embeddings,
    images,
    masks,
    pairing,
    trainers,
    whole,
)
from lora_prep.validate.check import Check, Level, chosen
from lora_prep.validate.embeddings import Faces
from lora_prep.validate.listing import Listing
from lora_prep.validate.manifest import FILE_NAME, Manifest, Result, issues, result_of, stamps
from lora_prep.validate.pair import Pair, Reading, read_pair
from lora_prep.validate.whole import Whole

__all__ = ["CHECKS", "Check", "Level", "Report", "Selection", "cache_path", "validate"]

FAMILIES = "PIMACET"

LISTING_CHECKS: tuple[Check[Listing], ...] = (
    *pairing.LISTING_CHECKS,
    *alignment.LISTING_CHECKS,
    *captions.LISTING_CHECKS,
    *trainers.LISTING_CHECKS,
)
PAIR_CHECKS: tuple[Check[Pair], ...] = (
    *pairing.PAIR_CHECKS,
    *images.CHECKS,
    *masks.CHECKS,
    *alignment.PAIR_CHECKS,
    *captions.PAIR_CHECKS,
    *trainers.PAIR_CHECKS,
)
FACES_CHECKS: tuple[Check[Faces], ...] = embeddings.CHECKS
WHOLE_CHECKS: tuple[Check[Whole], ...] = whole.CHECKS

CHECKS: tuple[Check[Any], ...] = tuple(
    sorted(
        (*LISTING_CHECKS, *PAIR_CHECKS, *FACES_CHECKS, *WHOLE_CHECKS),
        key=lambda c: (FAMILIES.index(c.code[0]), c.code),
    )
)
"""All checks, in the order in which they are documented."""

CHUNK = 16
"""Pairs a thread takes at once: the hand-over costs as much as reading a header."""

Given = TypeVar("Given")
Read = tuple[str, Json, Result]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which checks to run."""

    select: tuple[str, ...] = ()
    """Codes or beginnings of codes: those and no others. Empty: those of the levels that are on."""
    ignore: tuple[str, ...] = ()
    deep: bool = False
    drift: bool = False

    @property
    def codes(self) -> frozenset[str]:
        """Raises UsageError for what is the beginning of no code."""
        return chosen(
            CHECKS, select=self.select, ignore=self.ignore, deep=self.deep, drift=self.drift
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. It owns the exit code."""

    images: int
    """Number of images."""
    pairs: int
    """Number of images with a mask."""
    issues: tuple[Issue, ...]
    """By path, then by code."""

    @property
    def errors(self) -> int:
        """Number of issues that are errors."""
        return sum(issue.severity is Severity.ERROR for issue in self.issues)

    @property
    def warnings(self) -> int:
        """Number of issues that are warnings."""
        return len(self.issues) - self.errors

    def exit_code(self, *, strict: bool = False) -> int:
        """1 where there are errors, or with `strict` any issues; else 0."""
        return int(bool(self.issues if strict else self.errors))


def cache_path(dataset: Dataset) -> Path:
    """Where the command keeps what it found, so that the next time is quicker."""
    return dataset.state / FILE_NAME


def validate(
    dataset: Dataset,
    *,
    deep: bool = False,
    drift: bool = False,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    resolution: int = 1024,
    cache: Path | None = None,
    threads: int = 4,
    observe: Callable[[int], object] | None = None,
) -> Report:
    """Check a data set; writes nothing but `cache`.

    By default the names, the header and the end of each image, and all of each mask; `deep` decodes
    the images, too, `drift` compares the masks with the edges in them. `select` and `ignore` are
    codes or beginnings of codes (see `check.chosen`). `resolution` is the trainer's, in pixels.
    `cache` is a file that remembers what was found in files that have not changed since. `observe`
    is called with the number of images that were looked at since the last call. In memory are the
    names, the issues, some hundred bytes a pair, and the files that are being read, one a thread.

    Raises DatasetError where a folder cannot be read, UsageError for a code that does not exist.
    """
    codes = Selection(tuple(select), tuple(ignore), deep, drift).codes
    listing = Listing.of(dataset)
    found: set[Issue] = set(_all(LISTING_CHECKS, codes, listing))
    reading = _reading(codes, resolution, deep=deep)
    manifest = Manifest.open(cache, reading)
    checks = {check.code: check for check in PAIR_CHECKS if check.code in codes}
    everything, pairs = Whole(listing), 0

    def read(chunk: Sequence[tuple[str, str | None]]) -> list[Read]:
        return [_one(listing, manifest, image, mask, reading) for image, mask in chunk]

    def observed(chunks: Iterable[list[Read] | Finished]) -> Iterator[Read]:
        for chunk in chunks:
            assert isinstance(chunk, list)  # only a stage's items are finished before they start
            yield from chunk
            if observe:
                observe(len(chunk))

    with ThreadPoolExecutor(threads) as pool:
        chunks = _chunks(listing.pairs, CHUNK)
        try:
            for result in manifest.save(observed(ahead(pool, read, chunks, 3 * threads))):
                pairs += result.digest.mask is not None
                everything.add(result.digest)
                found.update(issues(result, checks))
        finally:
            pool.shutdown(cancel_futures=True)
    found.update(_all(FACES_CHECKS, codes, Faces(listing)))
    found.update(_all(WHOLE_CHECKS, codes, everything))
    ordered = sorted(found, key=lambda issue: (issue.path, issue.code, issue.message))
    return Report(len(listing.images.images), pairs, tuple(ordered))


def _one(
    listing: Listing, manifest: Manifest, image: str, mask: str | None, reading: Reading
) -> Read:
    """What is known of a pair, or what is found in it."""
    seen = stamps(listing, image, mask) if manifest.path else None
    known = manifest.get(image, seen)
    if known is None:
        known = result_of(read_pair(listing, image, mask, reading), PAIR_CHECKS)
    return image, seen, known


def _reading(codes: Collection[str], resolution: int, *, deep: bool) -> Reading:
    levels = {check.level for check in CHECKS if check.code in codes}
    return Reading(deep or Level.DEEP in levels, Level.DRIFT in levels, resolution)


def _all(checks: Iterable[Check[Given]], codes: Collection[str], subject: Given) -> Iterator[Issue]:
    for check in checks:
        if check.code in codes:
            yield from check(subject)


def _chunks(items: Iterable[Given], size: int) -> Iterator[list[Given]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
