"""Find the faces of each image."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lora_prep import backends, imageio
from lora_prep.backends import DetectorSpec, FaceDetector
from lora_prep.dataset import Dataset
from lora_prep.errors import ItemError
from lora_prep.faces import FaceRecord, faces_path, read_faces
from lora_prep.stage import Item, Saved
from lora_prep.types import Face, Image, Json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectFaces:
    """Images to face records (`.lora-prep/faces/<key>.json`)."""

    dataset: Dataset
    detector: DetectorSpec = field(default_factory=DetectorSpec)
    batch_size: int = 8
    name: str = "detect"

    def settings(self) -> dict[str, Json]:
        """The detector, down to its weights."""
        return {"stage": "detect/1", "detector": self.identity}

    @cached_property
    def identity(self) -> str:
        """The detector's identity."""
        return backends.detector_identity(self.detector)

    def __len__(self) -> int:
        return len(self.dataset)

    def items(self) -> Iterator[Item]:
        """One item an image."""
        for sample in self.dataset:
            yield Item(
                self.dataset.key(sample.image),
                (sample.image,),
                (faces_path(self.dataset, sample),),
            )

    def open(self) -> "Detecting":
        """Load the detector."""
        detector = backends.detector(self.detector)
        log.info("faces: %s", detector.describe())
        return Detecting(detector, self.identity)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image that waits for the detector."""

    image: Image
    sha256: str
    known: Sequence[Face] | None
    """Faces that `masks` recorded."""


@dataclass(frozen=True, slots=True)
class Detecting:
    """Faces being detected."""

    detector: FaceDetector
    identity: str

    def load(self, item: Item, inputs: Sequence[bytes]) -> Decoded:
        """Decode the image."""
        (data,), (record,) = inputs, item.outputs
        known = read_faces(record, data, self.identity)
        return Decoded(imageio.decode_image(data), hashlib.sha256(data).hexdigest(), known)

    def compute(self, batch: Sequence[Decoded]) -> list[FaceRecord | ItemError]:
        """Detect the faces of each image."""
        results: list[FaceRecord | ItemError] = []
        for decoded in batch:
            height, width = decoded.image.shape[:2]
            try:
                known = decoded.known
                faces = tuple(self.detector.detect(decoded.image) if known is None else known)
            except ItemError as error:
                results.append(error)
                continue
            results.append(FaceRecord(self.identity, decoded.sha256, width, height, faces))
        return results

    def save(self, item: Item, record: FaceRecord) -> Saved:
        """The face record's file."""
        (path,) = item.outputs
        info = {"faces": [face.to_json() for face in record.faces]}
        return Saved(
            {path: record.to_bytes()}, info={"size": [record.width, record.height], **info}
        )
