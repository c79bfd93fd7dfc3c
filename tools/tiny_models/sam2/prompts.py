"""Prompts to train with: those that lora-prep gives SAM2, and vaguer ones."""

from dataclasses import dataclass

import numpy as np

from lora_prep.masks import region_box
from lora_prep.types import Face, Region
from tools.tiny_models.sam2.model import SIZE
from tools.tiny_models.sam2.portraits import Sample

REGIONS = (Region.FACE, Region.HEAD, Region.PERSON)
"""The order of regions in all arrays."""

FACE, HEAD, PERSON = range(3)

CERTAIN = np.eye(3)

ANY_FROM_FACE = np.array([0.6, 0.25, 0.15])
"""How likely a point on a face means the face, the head or the person."""

ANY_FROM_HEAD = np.array([0.0, 0.6, 0.4])


@dataclass(frozen=True, slots=True)
class Prompt:
    """Points on a picture, and what they mean."""

    points: np.ndarray
    """(p, 2), in pixels of the square."""
    labels: np.ndarray
    """(p,): 1 = inside, -1 = no point, 2 and 3 = a box's corners."""
    wanted: int
    """The region that the single mask should show."""
    meant: np.ndarray
    """(3,): probability of each region, for the three alternatives."""


def as_a_detector(face: Face, rng: np.random.Generator) -> Face:
    """The face as a detector would find it: box and landmarks slightly off, in most cases."""
    if rng.random() < 0.3:
        return face
    size = np.array([face.width, face.height])
    box = np.array(face.box) + np.clip(rng.normal(0, 0.04, 4), -0.1, 0.1) * np.tile(size, 2)
    x0, y0, x1, y1 = box.tolist()
    moved = np.array(face.landmarks) + rng.normal(0, 0.02, (5, 2)) * face.width
    a, b, c, d, e = ((float(x), float(y)) for x, y in moved)
    return Face((x0, y0, x1, y1), 1.0, (a, b, c, d, e))


def box_and_landmarks(face: Face, region: int) -> Prompt:
    """What lora-prep asks for a face or a head."""
    points = np.concatenate([_corners(face, region), np.array(face.landmarks)])
    return _prompt(points, True, region, CERTAIN[region])


def box_and_nose(face: Face, region: int) -> Prompt:
    """What lora-prep asks for a person."""
    points = np.concatenate([_corners(face, region), np.array(face.landmarks)[2:3]])
    return _prompt(points, True, region, CERTAIN[region])


def box(face: Face, region: int) -> Prompt:
    """The region's box alone."""
    return _prompt(_corners(face, region), True, region, CERTAIN[region])


def landmarks(face: Face) -> Prompt:
    """Five points on the face, which could mean more than the face."""
    return _prompt(np.array(face.landmarks), False, FACE, ANY_FROM_FACE)


def point(sample: Sample, face: Face, rng: np.random.Generator) -> Prompt:
    """The middle of the face, or anywhere on the person."""
    if rng.random() < 0.5:
        return _prompt(np.array([face.centre]), False, FACE, ANY_FROM_FACE)
    levels = [n for n in (1, 2, 3) if (sample.level == n).any()]
    level = int(rng.choice(levels))
    rows, columns = np.nonzero(sample.level == level)
    k = int(rng.integers(len(rows)))
    meant = {3: ANY_FROM_FACE, 2: ANY_FROM_HEAD, 1: CERTAIN[PERSON]}[level]
    return _prompt(np.array([(columns[k] + 0.5, rows[k] + 0.5)]), False, 3 - level, meant)


def _corners(face: Face, region: int) -> np.ndarray:
    corners = region_box(face, REGIONS[region], SIZE, SIZE)
    return np.array(corners, dtype=np.float64).reshape(2, 2)


def _prompt(points: np.ndarray, has_box: bool, wanted: int, meant: np.ndarray) -> Prompt:
    visible = ((points >= 0) & (points <= SIZE)).all(axis=1)
    labels = np.where(visible, 1, -1)
    if has_box:
        labels[:2] = 2, 3
    return Prompt(points, labels, wanted, meant)
