"""What augmentation draws, without the library that draws it: presets, seeds, faces as points.

A pipeline is plain data: a list of tables as in the configuration file, each with the name of an
albumentations transform under `transform` and its arguments beside it.
"""

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from jaxtyping import Float64

from lora_prep.errors import UsageError
from lora_prep.types import Face, Json, Mask

Pipeline: TypeAlias = Sequence[Mapping[str, Json]]
Points: TypeAlias = Float64[np.ndarray, "_ 2"]
"""x and y in pixels of the upright image, measured from its corner: as the boxes of faces are."""

CENTRE = 0.5
"""Landmarks count from the centre of the first pixel, which lies here in `Points`."""

PresetName: TypeAlias = Literal["light", "standard", "strong", "flip-only"]

MIRROR: Mapping[str, Json] = {"transform": "HorizontalFlip", "p": 0.5}

_RIM = 32
"""Points on the ellipse in a face's box. The extreme ones are among them; between two of them the
ellipse bulges by 0.5 % of the radius."""


def _geometry(scale: float, degrees: float, shift: float, shear: float = 0.0) -> Mapping[str, Json]:
    """One warp for scale, rotation, shift and shear; its border continues the image."""
    return {
        "transform": "Affine",
        "scale": [1 - scale, 1 + scale],
        "rotate": [-degrees, degrees],
        "translate_percent": [-shift, shift],
        "shear": [-shear, shear],
        "keep_ratio": True,
        "border_mode": "reflect_101",
        "p": 1.0,
    }


def _light(amount: float) -> Sequence[Mapping[str, Json]]:
    """Brightness, contrast and gamma. Hue stays: the colour of skin and eyes is identity."""
    limits, gamma = [-amount, amount], [round(100 / (1 + amount)), round(100 * (1 + amount))]
    return [
        {
            "transform": "RandomBrightnessContrast",
            "brightness_limit": limits,
            "contrast_limit": limits,
            "p": 0.8,
        },
        {"transform": "RandomGamma", "gamma_limit": gamma, "p": 0.5},
    ]


PRESETS: Mapping[PresetName, Pipeline] = {
    "light": [_geometry(0.05, 3, 0.02), *_light(0.08)],
    "standard": [_geometry(0.1, 8, 0.04), *_light(0.14)],
    "strong": [
        _geometry(0.2, 15, 0.07, shear=4),
        *_light(0.22),
        {
            "transform": "HueSaturationValue",
            "hue_shift_limit": 0,
            "sat_shift_limit": [-25, 25],
            "val_shift_limit": 0,
            "p": 0.5,
        },
        {"transform": "GaussianBlur", "blur_limit": 0, "sigma_limit": [0.3, 0.9], "p": 0.2},
    ],
    "flip-only": [{"transform": "HorizontalFlip", "p": 1.0}],
}
"""Scale, degrees, shift and the rest grow from left to right; `flip-only` mirrors, and no more."""


def read_pipeline(path: Path) -> Pipeline:
    """The pipeline in a TOML file (`[[pipeline]]` tables) or a JSON file (a list of objects).

    Raises UsageError where the file cannot be read or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"cannot read the pipeline {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of both formats, and of bytes that are no text
        raise UsageError(f"the pipeline {path} is neither TOML nor JSON: {error}") from error
    if isinstance(value, dict) and list(value) == ["pipeline"]:
        value = value["pipeline"]
    return as_pipeline(value, str(path))


def as_pipeline(value: Json, where: str) -> Pipeline:
    """A pipeline from values of a configuration file. Raises UsageError, naming `where`."""
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise UsageError(
            f'{where}: a pipeline is a list of tables, each with its transform = "Name"'
        )
    if not value:
        raise UsageError(f"{where}: the pipeline is empty")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: a pipeline holds texts and finite numbers: {error}") from error
    return value


def draw_seed(seed: int, name: str, variant: int, attempt: int) -> int:
    """The seed of one draw, 0 to 2³² - 1: it depends on nothing but the arguments."""
    text = f"{seed}\0{name}\0{variant}\0{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4])


def is_binary(mask: Mask) -> bool:
    """Whether every weight is 0 or 255."""
    return weight(mask) == 255 * cv2.countNonZero(mask)


def weight(mask: Mask) -> float:
    """Sum of the weights."""
    return float(cv2.sumElems(mask)[0])


def frame_points(box: tuple[float, float, float, float]) -> Points:
    """Corners of a box, clockwise from the top left: what tells scale and mirroring."""
    x0, y0, x1, y1 = box
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def signed_area(corners: Points) -> float:
    """Area in square pixels of a polygon; negative where a transform has mirrored it."""
    x, y = corners[:, 0], corners[:, 1]
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


def affine(before: Points, after: Points) -> list[list[float]] | None:
    """The 2×3 matrix that takes the points to where they went, or None where no matrix does."""
    if not np.isfinite(after).all():
        return None
    given = np.column_stack([before, np.ones(len(before))])
    solution = np.linalg.lstsq(given, after, rcond=None)[0]
    if np.abs(given @ solution - after).max() > 0.05:
        return None
    return [[round(float(v), 6) for v in row] for row in solution.T]


def face_points(faces: Sequence[Face]) -> Points:
    """All that moves with the faces: the rim of the ellipse in each box, then its landmarks.

    All are measured from the image's corner, though landmarks are not (see `types.Face`).
    """
    angles = np.arange(_RIM) * (2 * math.pi / _RIM)
    rim = np.column_stack([np.cos(angles), np.sin(angles)])
    rows = [np.empty((0, 2))]
    for face in faces:
        rows.append(np.array(face.centre) + rim * (face.width / 2, face.height / 2))
        rows.append(landmark_points(face))
    return np.concatenate(rows)


def landmark_points(face: Face) -> Points:
    """The landmarks, measured from the image's corner; none where the face has none."""
    return np.array(face.landmarks or [], float).reshape(-1, 2) + CENTRE


def move_faces(
    faces: Sequence[Face], moved: Points, size: tuple[int, int], *, mirrored: bool
) -> list[Face]:
    """The faces after a transform; those whose centre has left the image are gone.

    Args:
        faces: before it.
        moved: where `face_points(faces)` went.
        size: width and height of the image after it.
        mirrored: whether left is right now. Landmarks then change places, since they are named by
            the side of the image that they lie on.
    """
    found, start = [], 0
    for face in faces:
        end = start + _RIM + len(face.landmarks or ())
        rim, points = moved[start : start + _RIM], moved[start + _RIM : end]
        start = end
        rim = rim[np.isfinite(rim).all(axis=1)]
        if len(rim) < _RIM // 2:
            continue
        x0, y0, x1, y1 = (float(v) for v in (*rim.min(axis=0), *rim.max(axis=0)))
        if not (0 <= (x0 + x1) / 2 <= size[0] and 0 <= (y0 + y1) / 2 <= size[1]):
            continue
        landmarks: Any = None
        if len(points) and np.isfinite(points).all():
            a, b, c, d, e = ((float(x), float(y)) for x, y in points - CENTRE)
            landmarks = (b, a, c, e, d) if mirrored else (a, b, c, d, e)
        found.append(Face((x0, y0, x1, y1), face.score, landmarks))
    return found


def landmarks_inside(points: Points, size: tuple[int, int]) -> bool:
    """Whether all of the points lie in an image of this width and height."""
    return bool(np.isfinite(points).all() and ((points >= 0) & (points <= size)).all())
