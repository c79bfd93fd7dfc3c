"""Does what lies on the disk train what is meant? Finds what trainers would not say.

One module a family: `pairing` (P), `images` (I), `masks` (M). A check is a small pure function with
a stable code: either over the `Listing` of the two folders, or over a `Pair`, the facts of an image
and its mask. Files are read once, in threads, by `pair.read_pair`; no check opens one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from lora_prep.dataset import Dataset
from lora_prep.types import Issue, Severity
from lora_prep.validate import images, masks, pairing
from lora_prep.validate.check import Check
from lora_prep.validate.listing import Listing
from lora_prep.validate.pair import Pair, read_pair

__all__ = ["CHECKS", "Check", "Report", "validate"]

LISTING_CHECKS: tuple[Check[Listing], ...] = pairing.LISTING_CHECKS
PAIR_CHECKS: tuple[Check[Pair], ...] = (*pairing.PAIR_CHECKS, *images.CHECKS, *masks.CHECKS)

CHECKS: tuple[Check[Any], ...] = tuple(
    sorted((*LISTING_CHECKS, *PAIR_CHECKS), key=lambda c: ("PIM".index(c.code[0]), c.code))
)
"""All checks, in the order in which they are documented."""

CHUNK = 8
"""Pairs a thread takes at once: the hand-over costs as much as reading a header."""

Given = TypeVar("Given")
Made = TypeVar("Made")


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


def validate(
    dataset: Dataset,
    *,
    deep: bool = False,
    threads: int = 4,
    observe: Callable[[int], object] | None = None,
) -> Report:
    """Check a data set; writes nothing.

    By default the names, the header and the end of each image, and all of each mask; `deep` decodes
    the images, too. `observe` is called with the number of images that were read since the last
    call. In memory are the names, the issues, and the facts of 24 × `threads` pairs; of the files
    themselves, and of decoded pictures, one a thread.

    Raises DatasetError where a folder cannot be read.
    """
    listing = Listing.of(dataset)
    issues = {issue for check in LISTING_CHECKS for issue in check(listing)}
    pairs = 0

    def read(chunk: Sequence[tuple[str, str | None]]) -> list[Pair]:
        return [read_pair(listing, image, mask, deep=deep) for image, mask in chunk]

    for chunk in _in_threads(read, _chunks(listing.pairs, CHUNK), threads):
        for pair in chunk:
            pairs += pair.mask is not None
            issues.update(issue for check in PAIR_CHECKS for issue in check(pair))
        if observe:
            observe(len(chunk))
    ordered = sorted(issues, key=lambda issue: (issue.path, issue.code, issue.message))
    return Report(len(listing.images.images), pairs, tuple(ordered))


def _chunks(items: Iterable[Given], size: int) -> Iterator[list[Given]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _in_threads(
    step: Callable[[Given], Made], items: Iterable[Given], threads: int
) -> Iterator[Made]:
    """Map in threads, in order, at most `3 * threads` items ahead."""
    pending: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(step, item))
            if len(pending) >= 3 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
