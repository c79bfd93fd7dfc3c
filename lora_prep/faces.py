"""Detected faces on disk: one JSON file an image, `.lora-prep/faces/<key of the image>.json`.

A file says which bytes and which detector it came from, so that any command can use it instead of
detecting again, and none has to ask whether it is out of date.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_prep.dataset import Dataset, Sample
from lora_prep.types import Face, Json

NOT_A_RECORD = (KeyError, TypeError, ValueError, OverflowError, RecursionError)
"""What reading a damaged or foreign file raises."""


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
        """What `to_bytes` wrote. Raises one of `NOT_A_RECORD` on any other input."""
        value = json.loads(data)
        return cls(
            str(value["detector"]),
            str(value["sha256"]),
            int(value["width"]),
            int(value["height"]),
            tuple(Face.from_json(face) for face in value["faces"]),
        )


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
        record = FaceRecord.from_bytes(path.read_bytes())
    except (OSError, *NOT_A_RECORD):
        return None
    if record.detector != detector or record.sha256 != hashlib.sha256(image).hexdigest():
        return None
    return record.faces
