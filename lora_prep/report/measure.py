"""What the pixels of one image say: size, face, sharpness, coverage, and its small picture."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lora_prep import imageio, masks
from lora_prep.dataset import Dataset, Sample
from lora_prep.errors import ItemError
from lora_prep.faces import FaceRecord, faces_path
from lora_prep.masks import Margin
from lora_prep.report.thumbnails import Picture, picture, uneroded
from lora_prep.types import BoolMask, Face, Image, Mask

FACE_SIDE = 256
"""Faces are scaled down to this many pixels before their sharpness is measured."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was read and measured."""

    problem: str = ""
    """Why the image cannot be shown."""
    mask_problem: str = ""
    width: int | None = None
    """Of the upright image, in pixels."""
    height: int | None = None
    mask_size: tuple[int, int] | None = None
    coverage: float | None = None
    """Mean weight of the mask, 0 to 1."""
    before: float | None = None
    """About the share of the image inside the mask's edge before the erosion, where that is known.
    """
    kept: float | None = None
    """About the share of that area which the erosion left."""
    parts: int | None = None
    """Connected parts of the mask."""
    faces: int | None = None
    """Number of faces that were found in it; None where nobody looked."""
    face_size: float | None = None
    """Shorter side of the subject's face, in pixels."""
    sharpness: float | None = None
    """Variance of the Laplacian (see `sharpness`)."""
    sharp_at: str = ""
    """Where it was measured: face, mask or image."""
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an image's faces beforehand, by `lora-prep embed`."""

    sha256: str
    """Of the image file then."""
    faces: Sequence[Face]
    subject: int | None
    """Which of them is most like the reference; None without one."""


def measure(
    dataset: Dataset,
    sample: Sample,
    known: Known | None,
    *,
    size: int | None,
    erosion: Margin | None,
) -> Measured:
    """Read an image and its mask. Damage is told, not raised.

    Args:
        known: its faces, if they were embedded; of another content of the file they do not count.
        size: longer side of the small picture, in pixels; None for no picture.
        erosion: what was taken off the mask's edge, if that is known.
    """
    try:
        data = sample.image.read_bytes()
        image = imageio.decode_image(data)
    except OSError as error:
        return Measured(problem=error.strerror or str(error))
    except ItemError as error:
        return Measured(problem=str(error))
    height, width = image.shape[:2]
    mask, mask_problem = read_mask(sample.mask)
    found = Measured(mask_problem=mask_problem, width=width, height=height)
    if mask is not None:
        found = replace(found, **_of_mask(mask, erosion))
    fitting = mask if mask is not None and mask.shape == (height, width) else None
    faces, subject = _faces(dataset, sample, data, known, fitting)
    if faces is not None:
        found = replace(found, faces=len(faces))
    if subject:
        found = replace(found, face_size=round(min(subject.width, subject.height), 1))
    value, where = _sharpness(image, subject, fitting)
    found = replace(found, sharpness=value, sharp_at=where)
    if size is None:
        return found
    return replace(found, picture=picture(image, mask, size, before=erosion))


def read_mask(path: Path) -> tuple[Mask | None, str]:
    """The mask, or what is wrong with it; neither where there is none."""
    try:
        return imageio.decode_mask(path.read_bytes()), ""
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, error.strerror or str(error)
    except ItemError as error:
        return None, str(error)


def sharpness(image: Image, box: tuple[float, float, float, float]) -> float | None:
    """Variance of the Laplacian of the grey picture in a box; the higher, the sharper.

    What is larger than 256 pixels is scaled down to that first, so that values of close-ups and of
    small faces can be compared. None where the box is outside the image. Source: Pech-Pacheco et
    al., "Diatom autofocusing in brightfield microscopy" (2000).
    """
    height, width = image.shape[:2]
    x0, y0 = (max(0, int(v)) for v in box[:2])
    x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    if x1 <= x0 or y1 <= y0:
        return None
    grey = cv2.cvtColor(image[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY)
    scale = FACE_SIDE / max(grey.shape)
    if scale < 1:
        size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return round(float(cv2.Laplacian(grey, cv2.CV_64F).var()), 2)


def _of_mask(mask: Mask, erosion: Margin | None) -> dict[str, Any]:
    inside: BoolMask = mask > 0
    before, kept = (None, None) if erosion is None else _before(inside, erosion)
    return {
        "mask_size": (mask.shape[1], mask.shape[0]),
        "coverage": round(masks.coverage(mask), 4),
        "parts": masks.components(inside),
        "before": before,
        "kept": kept,
    }


def _before(inside: BoolMask, erosion: Margin) -> tuple[float | None, float | None]:
    """Coverage before the erosion and the share kept, at a size where it takes a millisecond."""
    scale = min(1.0, 512 / max(inside.shape))
    small = inside
    if scale < 1:
        shape = max(1, round(inside.shape[1] * scale)), max(1, round(inside.shape[0] * scale))
        white = inside.astype(np.uint8) * 255
        small = cv2.resize(white, shape, interpolation=cv2.INTER_AREA) >= 128
    grown = uneroded(small, erosion, scale)
    if grown is None:
        return None, None
    before = masks.coverage(grown)
    return round(before, 4), round(masks.coverage(small) / before, 4)


def _faces(
    dataset: Dataset, sample: Sample, data: bytes, known: Known | None, mask: Mask | None
) -> tuple[Sequence[Face] | None, Face | None]:
    """The faces of this very file and the subject's; (None, None) where nobody has looked."""
    sha256 = hashlib.sha256(data).hexdigest()
    if known and known.sha256 == sha256:
        faces = known.faces
        if known.subject is not None:
            return faces, faces[known.subject]
    else:
        try:
            record = FaceRecord.from_bytes(faces_path(dataset, sample).read_bytes())
        except (OSError, KeyError, TypeError, ValueError):
            return None, None
        if record.sha256 != sha256:
            return None, None
        faces = record.faces
    return faces, max(faces, key=lambda face: _prominence(face, mask), default=None)


def _prominence(face: Face, mask: Mask | None) -> tuple[float, float]:
    """The face with the most of the mask in its box; where that does not tell, the largest one."""
    inside = 0.0
    if mask is not None:
        x0, y0, x1, y1 = (max(0, round(v)) for v in face.box)
        inside = float(np.count_nonzero(mask[y0:y1, x0:x1]))
    return inside, face.area * face.score


def _sharpness(image: Image, face: Face | None, mask: Mask | None) -> tuple[float | None, str]:
    """At the face; without one at the mask; else of the whole image."""
    if face and (value := sharpness(image, face.box)) is not None:
        return value, "face"
    box = None if mask is None else masks.bounding_box(mask > 0)
    if box:
        x0, y0, x1, y1 = box
        return sharpness(image, (x0, y0, x1, y1)), "mask"
    height, width = image.shape[:2]
    return sharpness(image, (0, 0, width, height)), "image"
