"""Portraits to train on: drawn once into flat files, then cropped and flipped at random."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

import sample_data
from lora_prep.types import Face, Image
from sample_data.portraits import Portrait, draw_portrait
from tools.tiny_models.sam2.model import SIZE

FIRST_SEED = 10_000_000
"""Portraits with this seed and later ones are for training; tests and samples use smaller seeds."""

SIZES = ((256, 256), (256, 256), (256, 256), (256, 256), (340, 256), (256, 384), (512, 384))
"""Height and width, in turn; all are squeezed into a square afterwards, as SAM2 does."""

MAX_PEOPLE = 3

LEVELS = 4
"""Of a label: 0 = none of person p, 1 = body, 2 = rest of the head, 3 = face; plus 4 p."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Portraits as arrays on disk."""

    images: UInt8[np.ndarray, "n 256 256 3"]
    labels: UInt8[np.ndarray, "n 256 256"]
    faces: Float32[np.ndarray, "n 3 14"]
    """Box and landmarks of each person in pixels of the square; NaN where there is none."""


@dataclass(frozen=True, slots=True)
class Zoom:
    """How to enlarge parts of pictures."""

    share: float
    """Of the pictures that are enlarged."""
    most: float
    """The largest factor."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One person in a square picture."""

    image: Image
    level: UInt8[np.ndarray, "256 256"]
    """3 on the person's face, 2 on the rest of the head, 1 on the rest of the person, else 0."""
    face: Face


def drawn(folder: Path, count: int) -> Drawn:
    """The first `count` training portraits, from `folder` where they have been drawn before.

    Files of an older version of the drawing code are not used.
    """
    folder = folder / f"{_version()}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {
        "images": (np.uint8, (count, SIZE, SIZE, 3)),
        "labels": (np.uint8, (count, SIZE, SIZE)),
        "faces": (np.float32, (count, MAX_PEOPLE, 14)),
    }
    finished = folder / "finished"
    arrays = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", "r" if finished.exists() else "w+", dtype, shape
        )
        for name, (dtype, shape) in shapes.items()
    }
    if not finished.exists():
        for i in range(count):
            portrait = draw_portrait(FIRST_SEED + i, size=SIZES[i % len(SIZES)])
            square = squeeze(portrait)
            for name, value in zip(arrays, square, strict=True):
                arrays[name][i] = value
        finished.touch()
    return Drawn(arrays["images"], arrays["labels"], arrays["faces"])


def squeeze(portrait: Portrait) -> tuple[Image, np.ndarray, np.ndarray]:
    """Image, labels and faces of one portrait as in `Drawn`."""
    height, width = portrait.image.shape[:2]
    labels = np.zeros((height, width), np.uint8)
    faces = np.full((MAX_PEOPLE, 14), np.nan, np.float32)
    for p, person in enumerate(portrait.people):
        for level, mask in enumerate(
            (person.person_mask, person.head_mask, person.face_mask), start=1
        ):
            labels[mask] = LEVELS * p + level
        landmarks = person.face.landmarks or ()
        values = np.array([*person.face.box, *(v for xy in landmarks for v in xy)])
        faces[p] = values * np.tile((SIZE / width, SIZE / height), 7)
    square = (SIZE, SIZE)
    image = cv2.resize(portrait.image, square, interpolation=cv2.INTER_AREA)
    return image, cv2.resize(labels, square, interpolation=cv2.INTER_NEAREST), faces


def sample(portraits: Drawn, index: int, zoom: Zoom, rng: np.random.Generator) -> Sample:
    """One person of portrait `index`, flipped and cropped at random."""
    image = np.asarray(portraits.images[index])
    labels = np.asarray(portraits.labels[index])
    areas = np.bincount(labels[labels % LEVELS == 3] // LEVELS, minlength=MAX_PEOPLE)
    present = np.flatnonzero(areas >= 100)
    person = int(rng.choice(present)) if len(present) else 0
    points = portraits.faces[index, person].reshape(7, 2).astype(np.float64)
    level = labels - LEVELS * person
    level[(labels < LEVELS * person) | (level >= LEVELS)] = 0

    if rng.random() < 0.5:
        image, level = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(level[:, ::-1])
        points[:, 0] = SIZE - points[:, 0]
        # Left and right change places: the box's sides, the eyes, the corners of the mouth.
        points[[0, 1], 0] = points[[1, 0], 0]
        points = points[[0, 1, 3, 2, 4, 6, 5]]
    if rng.random() < zoom.share:
        image, level, points = _zoom(image, level, points, zoom.most, rng)
    (x0, y0), (x1, y1) = points[:2].tolist()
    a, b, c, d, e = ((float(x), float(y)) for x, y in points[2:])
    return Sample(image, level, Face((x0, y0, x1, y1), 1.0, (a, b, c, d, e)))


def _zoom(
    image: Image, level: np.ndarray, points: np.ndarray, most: float, rng: np.random.Generator
) -> tuple[Image, np.ndarray, np.ndarray]:
    """A part of the picture with the whole face in it, enlarged."""
    face = points[1] - points[0]
    most = min(most, 0.7 * SIZE / face.max())
    if most <= 1.05:
        return image, level, points
    scale = math.exp(rng.uniform(0, math.log(most))) * np.exp(rng.uniform(-0.08, 0.08, 2))
    scale = np.maximum(scale, 1)
    side = SIZE / scale
    # The part's corner may lie where the face is inside the part and the part in the picture.
    low = np.maximum(points[1] - side + 0.1 * face, 0)
    high = np.minimum(points[0] - 0.1 * face, SIZE - side)
    middle = np.clip((points[0] + points[1] - side) / 2, 0, SIZE - side)
    corner = np.where(low < high, rng.uniform(np.minimum(low, high), high), middle)
    # Pixel centres lie at halves.
    shift = 0.5 * scale - 0.5 - corner * scale
    move = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
    square = (SIZE, SIZE)
    image = cv2.warpAffine(image, move, square, borderMode=cv2.BORDER_REPLICATE)
    level = cv2.warpAffine(level, move, square, flags=cv2.INTER_NEAREST)
    return image, level, (points - corner) * scale


def _version() -> str:
    """Names the code that draws."""
    digest = hashlib.sha256(repr((FIRST_SEED, SIZES)).encode())
    root = Path(sample_data.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
