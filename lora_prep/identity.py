"""Who is who, from embeddings: arrays in, arrays out.

A similarity is the cosine of two unit vectors: about 0 for two people, and the nearer to 1 the more
two pictures show the same one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from lora_prep.types import Image

Vectors: TypeAlias = Float[np.ndarray, "n d"]

MANY = 2048
"""The medoid of more faces is looked for among this many, evenly spaced, over as many images."""

SPREAD = 3.5
"""An image is unlike the others this many robust standard deviations below their median."""

LEAST_SPREAD = 0.02
"""Smaller standard deviations are taken for this: cosines of copies differ by hardly anything."""

SAME_VIEW = 0.9
"""Near-duplicates show a face this similar ..."""

SAME_PICTURE = 6
"""... in pictures whose difference hashes differ in at most so many of 64 bits. The embedding alone
is not enough (it is made to be blind to pose, light and clothes), nor is the hash alone (different
people before the same backdrop)."""

_BLOCK = 1024


def similarities(vectors: Vectors, references: Float[np.ndarray, "r d"]) -> Float[np.ndarray, " n"]:
    """Each face's cosine to the reference that it is most like, float32."""
    best = np.full(len(vectors), -1, np.float32)
    for reference in references:
        np.maximum(best, np.clip(vectors @ reference, -1, 1), out=best)
    return best


def starts(images: Sequence[str]) -> Int[np.ndarray, " k"]:
    """The first row of each image; an image's rows follow each other."""
    return np.array([i for i, name in enumerate(images) if i == 0 or images[i - 1] != name], int)


def medoid(
    vectors: Vectors,
    firsts: Int[np.ndarray, " k"],
    hashes: UInt64[np.ndarray, " n"] | None = None,
    min_similarity: float = 0.0,
) -> int:
    """The row of the most typical face: the one whose like is in the most other images.

    `firsts` are the images' first rows. How well a face is like an image is its cosine to the face
    of it that is most like, and 0 where that is below `min_similarity`: so somebody who stands
    beside the subject now and then is not the answer, nor a face that is a little like everybody.
    Near-duplicates of a face do not count for it; those of another face count once, where their
    `hashes` are known. The first of equal rows. Of more than 2048 faces and images, every so
    many-th is taken.
    Raises ValueError where there is no row.
    """
    if not len(vectors):
        raise ValueError("there is no face")
    step = -(-len(vectors) // MANY)
    candidates = np.arange(0, len(vectors), step)
    image = np.searchsorted(firsts, np.arange(len(vectors)), side="right") - 1
    chosen = np.arange(0, len(firsts), -(-len(firsts) // MANY))
    rows = np.flatnonzero(np.isin(image, chosen))
    group = np.arange(len(firsts))
    for a, b, _ in [] if hashes is None else near_duplicates(vectors, hashes, rows):
        group[group == group[image[b]]] = group[image[a]]
    total, plain, count = (np.zeros(len(candidates)) for _ in range(3))
    of_rows = group[image[rows]]
    order = np.argsort(of_rows, kind="stable")
    for members in np.split(rows[order], np.flatnonzero(np.diff(of_rows[order])) + 1):
        best = (vectors[candidates] @ vectors[members].T).max(1)
        own = group[image[candidates]] == group[image[members[0]]]
        counts = ~own & (best < SAME_VIEW)
        total += np.where(counts & (best >= min_similarity), best, 0)
        plain += np.where(counts, best, 0)
        count += counts
    mean, rest = (
        np.where(count > 0, sums / np.maximum(count, 1), SAME_VIEW).round(6)
        for sums in (total, plain)
    )
    return int(candidates[np.lexsort((candidates, -rest, -mean))[0]])


def best_rows(
    similarity: Float[np.ndarray, " n"], firsts: Int[np.ndarray, " k"]
) -> Int[np.ndarray, " k"]:
    """Of each image, the row of the face with the highest similarity; the first of equal ones."""
    bounds = np.append(firsts, len(similarity))
    return np.array([b + int(similarity[b:e].argmax()) for b, e in pairwise(bounds)], int)


@dataclass(frozen=True, slots=True)
class Outliers:
    """Images that may not show the person meant."""

    others: Bool[np.ndarray, " k"]
    """Similarity below the model's threshold: not the same person?"""
    unlike: Bool[np.ndarray, " k"]
    """Above it, and still far below the others: an odd picture?"""
    median: float
    bound: float
    """Below it an image is unlike the others: median − 3.5 × 1.4826 × median absolute deviation,
    of the images that are no outliers by the threshold."""


def outliers(best: Float[np.ndarray, " k"], min_similarity: float) -> Outliers:
    """Which images stand out, by the similarity of each image's best face.

    The rule with the median is Iglewicz and Hoaglin's (1993): 3.5 robust standard deviations.
    """
    others = best < min_similarity
    inside = best[~others]
    if not len(inside):
        return Outliers(others, np.zeros(len(best), bool), float("nan"), min_similarity)
    median = float(np.median(inside))
    deviation = max(1.4826 * float(np.median(abs(inside - median))), LEAST_SPREAD)
    bound = max(median - SPREAD * deviation, min_similarity)
    return Outliers(others, ~others & (best < bound), median, bound)


def difference_hash(image: Image) -> int:
    """64 bits that say where the picture grows brighter from left to right, in 8 rows of 8.

    They stay when it is scaled, compressed or made brighter. Source: N. Krawetz, 2013 ("dHash").
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_duplicates(
    vectors: Vectors, hashes: UInt64[np.ndarray, " n"], rows: Int[np.ndarray, " k"]
) -> list[tuple[int, int, float]]:
    """Pairs of images that are nearly the same picture of the same face: row, row, cosine.

    `rows` has one row for each image to compare. Of a group of images that are linked by such
    pairs, one pair less than it has images is given, which still links them all: a thousand copies
    have half a million pairs. All pairs within 6 bits are looked at: of seven parts of the hash, at
    least one is then equal, so only images that share one are compared.
    """
    group = np.arange(len(rows))
    found = []
    for a, b, cosines in _alike(vectors[rows], hashes[rows]):
        for i in np.flatnonzero((cosines >= SAME_VIEW).any(1)):
            ours = np.flatnonzero((cosines[i] >= SAME_VIEW) & (group[b] != group[a[i]]))
            for j in ours:
                one, other = sorted((int(group[a[i]]), int(group[b[j]])))
                if one != other:
                    group[group == other] = one
                    found.append((int(rows[a[i]]), int(rows[b[j]]), float(cosines[i, j])))
    return sorted((min(a, b), max(a, b), cosine) for a, b, cosine in found)


def _alike(
    vectors: Vectors, hashes: UInt64[np.ndarray, " n"]
) -> Iterator[tuple[Int[np.ndarray, " p"], Int[np.ndarray, " q"], Float[np.ndarray, "p q"]]]:
    """Cosines of images by images, in blocks; -1 where the hashes differ in more than 6 bits.

    A pair is in one block at most, and in one order.
    """
    parts = SAME_PICTURE + 1
    edges = [64 * i // parts for i in range(parts + 1)]
    masks = [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]
    for number, mask in enumerate(masks):
        order = np.argsort(hashes & mask, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(hashes[order] & mask)) + 1, len(order))
        begin = 0
        for end in ends:
            same, begin = order[begin:end], end
            blocks = [same[start : start + _BLOCK] for start in range(0, len(same), _BLOCK)]
            for i, a in enumerate(blocks):
                for b in blocks[i:]:
                    differing = hashes[a, None] ^ hashes[None, b]
                    near = np.bitwise_count(differing) <= SAME_PICTURE
                    near &= a[:, None] < b
                    for earlier in masks[:number]:  # found by that part
                        near &= (differing & earlier) != 0
                    p, q = near.any(1), near.any(0)
                    if p.any():
                        a_, b_ = a[p], b[q]
                        cosines = vectors[a_] @ vectors[b_].T
                        yield a_, b_, np.where(near[np.ix_(p, q)], cosines, np.float32(-1))
