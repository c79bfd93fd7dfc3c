"""Whether a mask lies where the picture's edges are, or was turned, moved, or mistaken for another.

The border of a mask of a face runs along edges of the picture: that of hair and skin, cheek and
background. So the mean step of colour across it is larger where the mask belongs than where it
would lie turned or moved. It is compared with nothing but the mask's own other placements, and so
depends neither on the light nor on the camera. Landmarks, where a face was detected, have to lie
inside.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from lora_prep.types import Face, Image, Mask

FACE_SIDE = 128
"""Pictures are scaled down until the mask's root of area is that long."""

POINTS = 320
"""Of the border."""

EROSION = 0.02
"""What `lora-prep masks` takes off by default, as part of the root of the area. It is put back
where the mask fits better so."""

STEP = 0.035
REACH = 7
"""Shifts that are tried: so many steps to each side, each this part of the mask's size."""

CAP = 12.0
"""A step of colour, in Lab per pixel, beyond which an edge counts no more: one strong edge must not
outweigh the whole border."""

SAME = 0.85
"""Turned masks that overlap so much (intersection over union) are the same: nothing is claimed."""

Points = Float[np.ndarray, "points 2"]
Field = Float[np.ndarray, "height width 6"]


@dataclass(frozen=True, slots=True)
class Placement:
    """How well a mask fits its picture, compared with other places for it."""

    own: float
    """Mean step of colour across its border, in Lab per pixel."""
    turn: str
    """The turn that would fit best, such as `mirrored`; empty where none can be told apart."""
    turned: float
    """Its fit."""
    shift: tuple[float, float]
    """Where it would fit best: to the right and down, as part of its size."""
    shifted: float
    """Its fit there."""
    elsewhere: float
    """The mean fit of all shifts that were tried."""
    landmarks: int = 0
    """Of a detected face, how many lie within the mask where most do; 0 without a face."""
    landmarks_turned: int = 0
    """As many of them would lie within it if it were turned."""
    faces: int = 0
    """Number of faces with landmarks."""


def placement(image: Image, mask: Mask, faces: Sequence[Face] = ()) -> Placement | None:
    """How a mask fits its picture, both of one size.

    None where that cannot be said: the mask is black or white, or its border is nearly all outside
    the picture.
    """
    height, width = mask.shape
    white = mask >= 128
    area = int(np.count_nonzero(white))
    if not area or area == mask.size:
        return None
    scale = min(1.0, FACE_SIDE / math.sqrt(area), 1024 / max(height, width))
    size = (max(round(width * scale), 16), max(round(height * scale), 16))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    shape = cv2.resize(white.view(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) >= 128
    face = math.sqrt(max(int(np.count_nonzero(shape)), 1))
    field = _steps(small)
    borders = [_border(_grown(shape, part * face)) for part in (0.0, EROSION)]
    fitting = [(_fit(field, *b, np.zeros((1, 2)))[0], *b) for b in borders if b is not None]
    if not fitting:
        return None
    own, points, normals = max(fitting, key=lambda fit: float(fit[0]))
    turns = list(_turns(shape))
    fits = [
        _fit(field, *_turned(points, normals, size, turn), np.zeros((1, 2)))[0] for turn in turns
    ]
    best = int(np.argmax(fits)) if fits else -1
    offsets = np.array(
        [(x, y) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)], np.float64
    )
    map_ = _fit(field, points, normals, offsets * STEP * face)
    peak = int(np.argmax(map_))
    inside, inside_turned, known = _landmarks(white, faces, turns)
    return Placement(
        own=float(own),
        turn=TURNS[turns[best]] if fits else "",
        turned=float(fits[best]) if fits else 0.0,
        shift=(float(offsets[peak, 0] * STEP), float(offsets[peak, 1] * STEP)),
        shifted=float(map_[peak]),
        elsewhere=float(map_.mean()),
        landmarks=inside,
        landmarks_turned=inside_turned,
        faces=known,
    )


TURNS = {
    "x": "mirrored left to right",
    "y": "mirrored top to bottom",
    "xy": "upside down",
    "cw": "turned by 90° to the right",
    "ccw": "turned by 90° to the left",
}
"""What could have been done to a mask; the last two only where the picture is a square."""


def apply_turn(mask: np.ndarray, turn: str) -> np.ndarray:
    """A mask turned by one of TURNS, as a view."""
    match turn:
        case "x":
            return mask[:, ::-1]
        case "y":
            return mask[::-1]
        case "xy":
            return mask[::-1, ::-1]
        case "cw":
            return np.rot90(mask, 3)
        case _:
            return np.rot90(mask, 1)


def _turns(shape: np.ndarray) -> Iterator[str]:
    """The turns that give a mask of the same size that can be told from this one."""
    for turn in TURNS:
        other = apply_turn(shape, turn)
        if other.shape == shape.shape:
            both = np.count_nonzero(other & shape)
            if both < SAME * np.count_nonzero(other | shape):
                yield turn


def _turned(
    points: Points, normals: Points, size: tuple[int, int], turn: str
) -> tuple[Points, Points]:
    """The border as it would lie with the turn undone... that is, as `apply_turn` moves it."""
    (width, height), (x, y), (u, v) = size, points.T, normals.T
    match turn:
        case "x":
            moved = (width - 1 - x, y, -u, v)
        case "y":
            moved = (x, height - 1 - y, u, -v)
        case "xy":
            moved = (width - 1 - x, height - 1 - y, -u, -v)
        case "cw":
            moved = (height - 1 - y, x, -v, u)
        case _:
            moved = (y, width - 1 - x, v, -u)
    return np.stack(moved[:2], 1), np.stack(moved[2:], 1)


def _grown(shape: np.ndarray, radius: float) -> np.ndarray:
    side = 2 * round(radius) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    grown: np.ndarray = cv2.dilate(shape.view(np.uint8), kernel)
    return grown


def _border(shape: np.ndarray) -> tuple[Points, Points] | None:
    """Points along the outer border and the direction out of the mask there."""
    height, width = shape.shape
    contours, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = np.concatenate([c[:, 0] for c in contours])
    x, y = points.T
    points = points[(x > 1) & (y > 1) & (x < width - 2) & (y < height - 2)]
    if len(points) < 24:
        return None
    points = points[np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int)]
    soft = cv2.GaussianBlur(shape.astype(np.float32), (0, 0), 2.0)
    x, y = points.T
    out = -np.stack(
        [cv2.Sobel(soft, cv2.CV_32F, 1, 0)[y, x], cv2.Sobel(soft, cv2.CV_32F, 0, 1)[y, x]], 1
    )
    length = np.linalg.norm(out, axis=1, keepdims=True)
    return points.astype(np.float64), (out / np.maximum(length, 1e-6)).astype(np.float64)


def _steps(image: Image) -> Field:
    """Change of L, a and b to the right and down, per pixel."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    lab = cv2.GaussianBlur(lab, (0, 0), 1.0)
    across = cv2.Scharr(lab, cv2.CV_32F, 1, 0, scale=1 / 32)
    down = cv2.Scharr(lab, cv2.CV_32F, 0, 1, scale=1 / 32)
    return np.concatenate([across, down], axis=2).astype(np.float64)


def _fit(field: Field, points: Points, normals: Points, offsets: np.ndarray) -> np.ndarray:
    """Mean step of colour across the border, for each offset in pixels."""
    height, width = field.shape[:2]
    places = np.rint(points[None] + offsets[:, None]).astype(np.int64)
    inside = ((places >= 0) & (places < (width, height))).all(axis=2)
    flat = np.clip(places[..., 1], 0, height - 1) * width + np.clip(places[..., 0], 0, width - 1)
    steps = field.reshape(-1, 6)[flat]
    across = steps[..., :3] * normals[:, :1] + steps[..., 3:] * normals[:, 1:]
    size = np.minimum(np.sqrt((across**2).sum(axis=2)), CAP)
    fit: np.ndarray = (size * inside).sum(axis=1) / np.maximum(inside.sum(axis=1), len(points) // 2)
    return fit


def _landmarks(
    white: np.ndarray, faces: Sequence[Face], turns: Sequence[str]
) -> tuple[int, int, int]:
    """Landmarks inside the mask, of the face that has most there: as it is, and turned."""
    marks = [np.array(face.landmarks) for face in faces if face.landmarks]
    if not marks:
        return 0, 0, 0

    def most(mask: np.ndarray) -> int:
        return max(_inside(mask, points) for points in marks)

    return (
        most(white),
        max((most(apply_turn(white, turn)) for turn in turns), default=0),
        len(marks),
    )


def _inside(mask: np.ndarray, points: np.ndarray) -> int:
    height, width = mask.shape
    x, y = np.floor(points).astype(int).T
    known = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    return int(mask[y[known], x[known]].sum())
