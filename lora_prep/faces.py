"""Detected faces on disk: one JSON file an image, `.lora-prep/faces/<key of the image>.json`.

A file says which bytes and which detector it came from, so that any command can use it instead of
detecting again, and none has to ask whether it is out of date.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_prep.dataset import Dataset, Sample
from lora_prep.types import Face, Json


@dataclass(frozen=True, slots=True)
class FaceRecord:
    """The faces of one image."""

    detector: str
    """Identity of the detector (see `backends.detector_identity`)."""
    sha256: str
    """Of the image file."""
    width: int
    height: int
    """Size of the upright image in pixels."""
    faces: tuple[Face, ...]

    def to_bytes(self) -> bytes:
        """The file's content: one line of JSON."""
        value = {
            "detector": self.detector,
            "sha256": self.sha256,
            "width": self.width,
            "height": self.height,
            "faces": [_exact(face) for face in self.faces],
        }
        return json.dumps(value).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> "FaceRecord":
        """What `to_bytes` wrote. Raises KeyError, TypeError or ValueError on any other input."""
        try:
            value = json.loads(data, parse_constant=_refuse, parse_float=_finite)
            return cls(
                str(value["detector"]),
                str(value["sha256"]),
                int(value["width"]),
                int(value["height"]),
                tuple(Face.from_json(face) for face in value["faces"]),
            )
        except (OverflowError, RecursionError) as error:
            raise ValueError(str(error)) from error


def _finite(text: str) -> float:
    """A number as `json` reads it, but for those that are too large for a float."""
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no coordinate")


def _exact(face: Face) -> Json:
    """A face as JSON, unrounded: a recogniser's answer hangs on hundredths of a pixel."""
    return {"box": face.box, "score": face.score, "landmarks": face.landmarks}


def faces_path(dataset: Dataset, sample: Sample) -> Path:
    """Where the faces of a sample are kept: image folders beside each other do not share them."""
    key = dataset.key(sample.image).replace("../", "_up/")
    folder, _, name = key.rpartition("/")
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return dataset.state / "faces" / folder / f"{name}.json"


def read_faces(path: Path, image: bytes, detector: str) -> Sequence[Face] | None:
    """The recorded faces, if there are any of this very image file by this very detector."""
    try:
        record = _of_image(path.read_bytes(), image)
    except OSError:
        return None
    return record.faces if record and record.detector == detector else None


def recorded_faces(data: bytes, image: bytes) -> Sequence[Face]:
    """The faces in a record's `data` if it is of this very image file, whoever detected them."""
    record = _of_image(data, image)
    return record.faces if record else ()


def _of_image(data: bytes, image: bytes) -> FaceRecord | None:
    try:
        record = FaceRecord.from_bytes(data)
    except (KeyError, TypeError, ValueError):
        return None
    return record if record.sha256 == hashlib.sha256(image).hexdigest() else None
