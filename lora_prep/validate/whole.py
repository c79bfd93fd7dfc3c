"""Checks that compare the images with one another: what no image alone can tell."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median

from lora_prep.journal import hash_file
from lora_prep.validate.alignment import is_moved, is_turned
from lora_prep.validate.check import Check, Findings, Level, warning
from lora_prep.validate.drift import Placement
from lora_prep.validate.likeness import alike
from lora_prep.validate.listing import Listing, stem_of
from lora_prep.validate.pair import Pair

FEW = 12
"""Pairs below which nothing is called unusual."""

UNUSUAL = 8.0
"""Times the median coverage, or its part."""

ALARM = 0.05
"""Part of the masks that drift above which it is no chance: two in a hundred are false alarms."""


@dataclass(frozen=True, slots=True)
class Digest:
    """What is kept of a pair for the comparison with others: some 100 bytes."""

    image: str
    hash: int | None
    mask: str | None
    coverage: float | None
    """Weight of the mask, as part of its area."""
    drifts: bool | None
    """None where that was not looked for."""

    @classmethod
    def of(cls, pair: Pair) -> "Digest":
        """Of a pair that was read."""
        mask = pair.mask
        area = sum(mask.counts) if mask else 0
        return cls(
            pair.image.path,
            pair.image.hash,
            mask.path if mask else None,
            mask.weight / area if mask and area else None,
            _drifts(pair.placement),
        )


def _drifts(fit: Placement | None) -> bool | None:
    return None if fit is None else is_turned(fit) or is_moved(fit)


@dataclass(frozen=True)
class Whole:
    """A data set that was read."""

    listing: Listing
    hashes: list[tuple[str, int]] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    coverages: list[float] = field(default_factory=list)
    drift: list[int] = field(default_factory=lambda: [0, 0])
    """Number of masks that drift, and of those that were looked at."""

    def add(self, digest: Digest) -> None:
        """Take note of a pair."""
        if digest.hash is not None:
            self.hashes.append((digest.image, digest.hash))
        if digest.mask is not None and digest.coverage is not None:
            self.masks.append(digest.mask)
            self.coverages.append(digest.coverage)
        if digest.drifts is not None:
            self.drift[0] += digest.drifts
            self.drift[1] += 1

    @cached_property
    def same_bytes(self) -> Sequence[tuple[str, str]]:
        """Each image that is byte for byte another one, and that one.

        Of several the first with a mask and a caption is the one that the others repeat.
        """
        listing = self.listing
        sizes: dict[int, list[str]] = defaultdict(list)
        for name in listing.images.images:
            try:
                size = os.stat(listing.dataset.images / name).st_size  # noqa: PTH116 a third of the time
            except OSError:
                continue
            if size:
                sizes[size].append(name)
        return [pair for names in sizes.values() if len(names) > 1 for pair in self._twins(names)]

    def _twins(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Of files of one size: their heads are compared before all of them is read."""
        seen: dict[bytes, list[str]] = defaultdict(list)
        for name in names:
            seen[self._head(name)].append(name)
        for group in seen.values():
            first: dict[str, str] = {}
            for name in sorted(group, key=self._lacks) if len(group) > 1 else ():
                digest = hash_file(self.listing.dataset.images / name)
                if digest in first:
                    yield name, first[digest]
                first.setdefault(digest, name)

    def _lacks(self, name: str) -> tuple[bool, bool, str]:
        """Sorts images that have a mask and a caption before those that have none."""
        listing = self.listing
        return stem_of(name) not in listing.mask_stems, name not in listing.captions, name

    def _head(self, name: str) -> bytes:
        path = self.listing.dataset.images / name
        try:
            with path.open("rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size // 2 - 2048, 0))
                return hashlib.sha256(file.read(4096)).digest()
        except OSError:
            return name.encode("utf-8", "surrogateescape")


@warning(
    "I011",
    "Image that is there twice",
    reason="it counts twice as much as the others: the training turns to it.",
    fix="take one of them out; --fix moves the second to the trash, with its mask and caption",
)
def twin(whole: Whole) -> Findings:
    """Byte for byte."""
    for name, first in whole.same_bytes:
        message = f"the same file as {whole.listing.image_key(first)}"
        yield whole.listing.image_key(name), message


@warning(
    "I012",
    "Image that is almost there twice",
    reason="it counts twice as much as the others, and where its mask or caption differs they "
    "contradict each other.",
    fix="look at both, and take one of them out",
    level=Level.DEEP,
)
def near_twin(whole: Whole) -> Findings:
    """By a hash of how it looks: scaled, saved anew, or one of a burst. Twins are I011."""
    twins = {whole.listing.image_key(name) for name, _ in whole.same_bytes}
    for first, second, bits in alike(whole.hashes):
        if second not in twins:
            yield second, f"looks like {first} ({bits} of 64 bits differ)"


@warning(
    "M013",
    "Mask of an unusual size",
    reason="it covers far more or far less of its image than the others do: often the wrong face, "
    "or a mask that leaked into the background.",
    fix="look at it (`lora-prep masks --overlay`)",
    level=Level.DEEP,
)
def unusual_coverage(whole: Whole) -> Findings:
    """Eight times the median, or an eighth; in data sets of twelve pairs or more."""
    usual = [c for c in whole.coverages if c > 0]
    if len(usual) < FEW:
        return
    middle = median(usual)
    for path, coverage in zip(whole.masks, whole.coverages, strict=True):
        if coverage > 0 and not middle / UNUSUAL <= coverage <= middle * UNUSUAL:
            yield path, f"covers {coverage:.1%} of the image; the median is {middle:.1%}"


@warning(
    "A009",
    "Masks that drift as a whole",
    reason="more masks fit better elsewhere than chance explains: a step that wrote images or "
    "masks turned or cropped one and not the other.",
    fix="look at some; make all masks anew with `lora-prep masks --force`",
    level=Level.DRIFT,
)
def drift_alarm(whole: Whole) -> Findings:
    """More than a twentieth of them, and at least three."""
    drifting, seen = whole.drift
    if drifting >= 3 and drifting > ALARM * seen:
        dataset = whole.listing.dataset
        yield dataset.key(dataset.masks), f"{drifting} of {seen} masks seem to be turned or moved"


CHECKS: tuple[Check[Whole], ...] = (twin, near_twin, unusual_coverage, drift_alarm)
