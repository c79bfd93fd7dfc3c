"""The models that stages hold, behind three protocols: one file a model.

A spec says which model and with what settings; it is plain data, so it can be hashed, compared and
sent to another process. `detector(spec)`, `segmenter(spec)` and `recogniser(spec)` load the model;
`detector_identity(spec)`, `segmenter_identity(spec)` and `recogniser_card(spec)` name it down to
its weights without loading it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, assert_never, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from lora_prep.types import BoolMask, Face, Image, Region

DetectorName: TypeAlias = Literal["insightface", "yunet", "cascade"]
SegmenterName: TypeAlias = Literal["sam2", "grabcut"]
RecogniserName: TypeAlias = Literal["arcface", "sface"]
DtypeName: TypeAlias = Literal["auto", "float32", "bfloat16"]

Crop: TypeAlias = UInt8[np.ndarray, "side side 3"]
"""An aligned face: sRGB, 8 bit."""


@dataclass(frozen=True, slots=True)
class DetectorSpec:
    """Which face detector, and its settings."""

    name: DetectorName = "insightface"
    model: str = ""
    """insightface: the name of a pack, or a directory that holds its ONNX files; yunet: an ONNX
    file. Empty: buffalo_l, and the YuNet that OpenCV publishes."""
    det_size: int = 640
    """insightface, yunet: side in pixels of the square that the image is fitted into; for
    insightface a multiple of 32."""
    min_score: float = 0.5
    """insightface, yunet: faces below this confidence are dropped."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`; yunet and cascade always run on the CPU."""


@dataclass(frozen=True, slots=True)
class SegmenterSpec:
    """Which segmenter, and its settings."""

    name: SegmenterName = "sam2"
    model: str = "facebook/sam2-hiera-large"
    """sam2: a hub id, or a checkpoint file."""
    config: str = ""
    """sam2: the YAML configuration that goes with a checkpoint file."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: DtypeName = "auto"
    """sam2: precision; `auto` is bfloat16 where the hardware has instructions for it."""
    compile: bool = False
    """sam2: torch.compile the image encoder, which takes minutes at the first image."""


@dataclass(frozen=True, slots=True)
class RecogniserSpec:
    """Which face recogniser, and its settings."""

    name: RecogniserName = "arcface"
    model: str = ""
    """arcface: the name of a pack, a directory that holds its ONNX files, or one ONNX file; sface:
    an ONNX file. Empty: buffalo_l, and the SFace that OpenCV publishes."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`; sface always runs on the CPU."""


@dataclass(frozen=True, slots=True)
class RecogniserCard:
    """What is known of a recogniser without loading it."""

    model: str
    """Kind, pack and file: `arcface buffalo_l/w600k_r50.onnx`."""
    sha256: str
    """Of the ONNX file."""
    alignment: str
    """How the faces are cropped for it."""
    license: str
    """Of the weights."""
    min_similarity: float
    """Cosine above which two pictures usually show the same person."""

    @property
    def identity(self) -> str:
        """Equal identities mean equal embeddings for equal pixels and landmarks."""
        return f"{self.model} sha256={self.sha256} alignment={self.alignment}"


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces."""

    def describe(self) -> str:
        """What runs where, for the user: model, device or ONNX providers."""
        ...

    def detect(self, image: Image) -> list[Face]:
        """All faces, best score first, an empty list where there are none."""
        ...


@runtime_checkable
class Segmenter(Protocol):
    """Makes one mask a face, in three steps: what is no model's work hides behind the model."""

    def describe(self) -> str:
        """What runs where, for the user: model, device, dtype."""
        ...

    def prepare(self, image: Image) -> Any:
        """What `segment` needs of an image. Called in threads, ahead of the model."""
        ...

    def segment(
        self, prepared: Sequence[Any], faces: Sequence[Sequence[Face]], region: Region
    ) -> Sequence[Any]:
        """Run the model: for each image, what `finish` makes one mask for each of its faces of.

        `faces[i]` are the faces wanted in image i; it may be empty. Never called by two threads at
        once. Raises OutOfMemory where the batch was too large for the device.
        """
        ...

    def finish(self, prepared: Any, answer: Any) -> Iterator[BoolMask]:
        """One mask for each face of an image, as large as the image, one after the other.

        Called in threads, behind the model. Raises DatasetError where a cache cannot be written.
        """
        ...


@runtime_checkable
class FaceRecogniser(Protocol):
    """Turns faces into vectors whose cosine is high for one person's and low for two people's."""

    def describe(self) -> str:
        """What runs where, for the user: model, device or ONNX providers."""
        ...

    def crop(self, image: Image, face: Face) -> Crop:
        """The face turned, scaled and moved to where the model wants it. It has landmarks.

        Raises ItemError where the landmarks allow no such crop.
        """
        ...

    def vectors(self, crops: Sequence[Crop]) -> Float[np.ndarray, "_ _"]:
        """A row for each crop, float32, of any length. Never called by two threads at once.

        A crop's row does not depend on the others. Raises BackendError where the model fails.
        """
        ...


Spec = TypeVar("Spec", DetectorSpec, SegmenterSpec, RecogniserSpec)


def detector(spec: DetectorSpec) -> FaceDetector:
    """Load a face detector. Raises BackendError where its model is not to be had."""
    match spec.name:
        case "insightface":
            from lora_prep.backends.insightface import InsightFaceDetector

            return InsightFaceDetector(spec)
        case "yunet":
            from lora_prep.backends.yunet import YuNetDetector

            return YuNetDetector(spec)
        case "cascade":
            from lora_prep.backends.cascade import CascadeDetector

            return CascadeDetector()
        case _:
            assert_never(spec.name)


def segmenter(spec: SegmenterSpec, embeddings: Path | None = None) -> Segmenter:
    """Load a segmenter. Raises BackendError where its model is not to be had.

    `embeddings` is the folder to keep sam2's image features in, so that they are computed once.
    """
    match spec.name:
        case "sam2":
            from lora_prep.backends.sam2 import Sam2Segmenter

            return Sam2Segmenter(spec, embeddings)
        case "grabcut":
            from lora_prep.backends.grabcut import GrabCutSegmenter

            return GrabCutSegmenter()
        case _:
            assert_never(spec.name)


def detector_identity(spec: DetectorSpec) -> str:
    """Name of the detector, its weights' hash, and the settings that change its results.

    Equal identities mean equal faces for equal pixels. Loads no model; where one has to be
    downloaded first, this downloads it, but in a dry run only says so (`weights.no_downloads`).
    Raises BackendError where it is not to be had.
    """
    return _unless_missing(spec, _detector_identity)


def _detector_identity(spec: DetectorSpec) -> str:
    match spec.name:
        case "insightface":
            from lora_prep.backends import insightface

            return insightface.identity(spec)
        case "yunet":
            from lora_prep.backends import yunet

            return yunet.identity(spec)
        case "cascade":
            from lora_prep.backends import cascade

            return cascade.IDENTITY
        case _:
            assert_never(spec.name)


def segmenter_identity(spec: SegmenterSpec) -> str:
    """Like `detector_identity`, for a segmenter."""
    return _unless_missing(spec, _segmenter_identity)


def _segmenter_identity(spec: SegmenterSpec) -> str:
    match spec.name:
        case "sam2":
            from lora_prep.backends import sam2

            return sam2.identity(spec)
        case "grabcut":
            from lora_prep.backends import grabcut

            return grabcut.IDENTITY
        case _:
            assert_never(spec.name)


def recogniser(spec: RecogniserSpec) -> FaceRecogniser:
    """Load a face recogniser. Raises BackendError where its model is not to be had."""
    match spec.name:
        case "arcface":
            from lora_prep.backends.arcface import ArcFaceRecogniser

            return ArcFaceRecogniser(spec)
        case "sface":
            from lora_prep.backends.sface import SFaceRecogniser

            return SFaceRecogniser(spec)
        case _:
            assert_never(spec.name)


def recogniser_card(spec: RecogniserSpec) -> RecogniserCard:
    """What is known of a recogniser: name, weights, alignment, licence, threshold.

    Loads no model; where one has to be downloaded first, this downloads it. Raises BackendError
    where it is not to be had, in a dry run NotHere.
    """
    match spec.name:
        case "arcface":
            from lora_prep.backends import arcface

            return arcface.card(spec)
        case "sface":
            from lora_prep.backends import sface

            return sface.card(spec)
        case _:
            assert_never(spec.name)


def recogniser_identity(spec: RecogniserSpec) -> str:
    """Like `detector_identity`, for a recogniser."""
    return _unless_missing(spec, lambda one: recogniser_card(one).identity)


def _unless_missing(spec: Spec, identity: Callable[[Spec], str]) -> str:
    """A model's identity, or in a dry run, which downloads nothing, that it is not here."""
    from lora_prep.backends.weights import NotHere

    try:
        return identity(spec)
    except NotHere:
        return f"{spec.name} {spec.model} is not here"


def default_batch_size(spec: SegmenterSpec) -> int:
    """8 images for SAM2 on CUDA, else 1: on a CPU a batch is no quicker than its images."""
    if spec.name != "sam2" or spec.device == "cpu":
        return 1
    from lora_prep.backends.device import torch_device

    return 8 if torch_device(spec.device).startswith("cuda") else 1
