"""Make a training mask for each image: detect, segment, clean, erode, feather."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lora_prep import backends, imageio, masks
from lora_prep.backends import DetectorSpec, FaceDetector, Segmenter, SegmenterSpec
from lora_prep.dataset import EMBEDDINGS, Dataset
from lora_prep.errors import DatasetError, ItemError, UsageError
from lora_prep.faces import FaceRecord, faces_path, read_faces
from lora_prep.masks import Margin
from lora_prep.stage import Item, Saved
from lora_prep.stages.subject import Likeness, Subject, most_alike
from lora_prep.types import Face, Image, Json, Mask, Region

log = logging.getLogger(__name__)

FacePolicy = Literal["largest", "all", "center", "reference"]
NoFacePolicy = Literal["fail", "skip", "white", "black"]


@dataclass(frozen=True)
class MakeMasks:
    """Images to masks: 8-bit grey PNG, as large as the image, 255 = train, 0 = ignore."""

    dataset: Dataset
    detector: DetectorSpec = field(default_factory=DetectorSpec)
    segmenter: SegmenterSpec = field(default_factory=SegmenterSpec)
    region: Region = Region.FACE
    faces: FacePolicy = "largest"
    min_face: int = 32
    """Faces whose shorter side is below this many pixels are passed over."""
    min_similarity: float | None = None
    """For `faces="reference"`: least cosine to the reference; None: what `embed` wrote down."""
    no_face: NoFacePolicy = "fail"
    erode: Margin = field(default_factory=lambda: Margin.parse("2%"))
    feather: Margin = field(default_factory=lambda: Margin.parse("0"))
    batch_size: int = 1
    cache_embeddings: bool = False
    """Keep sam2's image features below `.lora-prep/embeddings`, for later commands."""

    def __post_init__(self) -> None:
        if self.feather.amount < 0:
            raise UsageError(f"--feather {self.feather} is negative: it only goes inwards")

    @property
    def name(self) -> str:
        """`masks`, or `masks-<folder>` where they are written to another folder."""
        folder = self.dataset.masks.name
        return "masks" if folder == "masks" else f"masks-{folder}"

    def settings(self) -> dict[str, Json]:
        """All that changes a mask; `no_face` changes those of images without a face only."""
        subject = self.subject
        return {
            "stage": "masks/2",
            **({"subject": subject.identity} if subject else {"detector": self.detector_identity}),
            "segmenter": backends.segmenter_identity(self.segmenter),
            "region": self.region,
            "faces": self.faces,
            "min_face": self.min_face,
            "erode": str(self.erode),
            "feather": str(self.feather),
        }

    @cached_property
    def detector_identity(self) -> str:
        """The detector's identity."""
        return backends.detector_identity(self.detector)

    @cached_property
    def subject(self) -> Subject | None:
        """The person meant, for `faces="reference"`. Raises DatasetError where it is not known."""
        if self.faces != "reference":
            return None
        name = self.dataset.images.name
        return Subject.read(self.dataset.embeddings, name, self.min_similarity)

    def __len__(self) -> int:
        return len(self.dataset)

    def items(self) -> Iterator[Item]:
        """One item an image; images that would share a mask are told so."""
        for sample in self.dataset:
            others = self.dataset.sharers(sample)
            problem = others and ItemError(
                f"{sample.name} and {', '.join(others)} would share the mask {sample.mask.name}: "
                "rename or remove all but one of them",
                code="shared-stem",
            )
            yield Item(
                self.dataset.key(sample.image),
                (sample.image,),
                (sample.mask,),
                problem or None,
                conditional={"no_face": self.no_face},
            )

    def open(self) -> "Masking":
        """Load the detector and the segmenter."""
        detector = None
        if self.subject:
            log.info("faces: those most like the reference, from %s", EMBEDDINGS)
        else:
            detector = backends.detector(self.detector)
            log.info("faces: %s", detector.describe())
        embeddings = self.dataset.state / "embeddings" if self.cache_embeddings else None
        segmenter = backends.segmenter(self.segmenter, embeddings)
        log.info("masks: %s", segmenter.describe())
        return Masking(self, detector, segmenter)

    def face_record(self, item: Item) -> Path:
        """Where an item's faces are kept."""
        name = item.inputs[0].relative_to(self.dataset.images).as_posix()
        return faces_path(self.dataset, self.dataset.sample(name))


@dataclass(slots=True)
class Prepared:
    """An image that waits for the models."""

    image: Image | None
    """For the detector; let go once nobody has to look at it any more."""
    height: int
    """Of the image, in pixels."""
    width: int
    sha256: str
    known: Sequence[Face] | None
    """Faces that were recorded before."""
    likeness: Likeness | None
    """How much each of them is like the person meant, for `faces="reference"`."""
    for_segmenter: Any
    detected: Sequence[Face] | ItemError | None = None
    """What the detector said: a batch too large for the segmenter comes again in parts."""


@dataclass(frozen=True, slots=True)
class Segmented:
    """An image with its faces, and what the model says about those wanted."""

    prepared: Prepared
    faces: Sequence[Face]
    wanted: Sequence[Face]
    answer: Any
    """For `Segmenter.finish`."""


@dataclass(frozen=True, slots=True)
class Masking:
    """Masks being made."""

    stage: MakeMasks
    detector: FaceDetector | None
    """None where the faces are known beforehand."""
    segmenter: Segmenter

    def load(self, item: Item, inputs: Sequence[bytes]) -> Prepared:
        """Decode the image and prepare it for the segmenter."""
        (data,) = inputs
        image = imageio.decode_image(data)
        sha256 = hashlib.sha256(data).hexdigest()
        likeness = None
        if self.stage.subject:
            name = item.inputs[0].relative_to(self.stage.dataset.images).as_posix()
            likeness = self.stage.subject.likeness(name, sha256)
            known: Sequence[Face] | None = likeness.faces
        else:
            known = read_faces(self.stage.face_record(item), data, self.stage.detector_identity)
        height, width = image.shape[:2]
        return Prepared(
            image if known is None else None,
            height,
            width,
            sha256,
            known,
            likeness,
            self.segmenter.prepare(image),
        )

    def compute(self, batch: Sequence[Prepared]) -> list[Segmented | ItemError]:
        """Detect where it was not done before, choose the faces, segment them all at once."""
        found = [self._detect(prepared) for prepared in batch]
        wanted = [
            [] if isinstance(f, ItemError) else self._choose(f, p)
            for p, f in zip(batch, found, strict=True)
        ]
        answers = self.segmenter.segment(
            [p.for_segmenter for p in batch], wanted, self.stage.region
        )
        return [
            f if isinstance(f, ItemError) else Segmented(p, f, w, a)
            for p, f, w, a in zip(batch, found, wanted, answers, strict=True)
        ]

    def save(self, item: Item, result: Segmented) -> Saved:
        """Finish the mask; keep the faces for later commands."""
        stage, prepared = self.stage, result.prepared
        self._remember(item, result)
        if not result.wanted and stage.no_face in ("fail", "skip"):
            message = self._no_face(result)
            policy: dict[str, Json] = {"no_face": stage.no_face}
            if stage.no_face == "skip":
                return Saved(skipped=message, info=policy)
            code = "nobody-alike" if result.faces and prepared.likeness else "no-face"
            raise ItemError(message, code=code, info=policy)
        mask, warnings = self._finish(result)
        info = {
            "faces": len(result.faces),
            "masked": len(result.wanted),
            "coverage": round(masks.coverage(mask), 4),
            "erode": str(stage.erode),
            **({} if result.wanted else {"no_face": stage.no_face}),
        }
        return Saved({item.outputs[0]: imageio.encode_mask(mask)}, info, warnings)

    def _detect(self, prepared: Prepared) -> Sequence[Face] | ItemError:
        if prepared.known is not None or self.detector is None:
            return prepared.known or ()
        if prepared.image is not None:
            try:
                prepared.detected = self.detector.detect(prepared.image)
            except ItemError as error:
                prepared.detected = error
            prepared.image = None
        return prepared.detected or ()

    def _choose(self, faces: Sequence[Face], prepared: Prepared) -> list[Face]:
        """The faces to mask."""
        subject, likeness = self.stage.subject, prepared.likeness
        if subject is None or likeness is None:
            return choose_faces(faces, prepared.height, prepared.width, self.stage)
        return most_alike(likeness, self.stage.min_face, subject.threshold)

    def _remember(self, item: Item, result: Segmented) -> None:
        """Write the face record, where the faces were detected here."""
        if result.prepared.known is None:
            record = FaceRecord(
                self.stage.detector_identity,
                result.prepared.sha256,
                result.prepared.width,
                result.prepared.height,
                tuple(result.faces),
            )
            keep_faces(self.stage.face_record(item), record)

    def _finish(self, result: Segmented) -> tuple[Mask, tuple[str, ...]]:
        """One mask of all faces wanted."""
        stage, shape = self.stage, (result.prepared.height, result.prepared.width)
        if not result.wanted:
            return np.full(shape, 255 if stage.no_face == "white" else 0, np.uint8), ()
        whole = np.zeros(shape, np.bool_)
        found = lost = 0
        # One face after the other: a group in a large picture is more than fits into memory.
        for mask in self.segmenter.finish(result.prepared.for_segmenter, result.answer):
            part = masks.clean(mask)
            eroded = masks.erode(part, stage.erode.radius(part))
            found += bool(part.any())
            lost += not eroded.any()
            whole |= eroded
        warnings = []
        if not whole.any():
            if not found:
                raise ItemError("the segmenter found nothing at the face", code="empty-mask")
            raise ItemError(
                f"--erode {stage.erode} would leave nothing of the mask: give less",
                code="eroded-away",
            )
        if lost:
            warnings.append(
                f"--erode {stage.erode} leaves nothing of {lost} of {len(result.wanted)} faces"
            )
        weights = masks.feather(whole, stage.feather.distance(whole))
        if weights.max() < 255:
            warnings.append(f"--feather {stage.feather} leaves no pixel its full weight")
        return weights, tuple(warnings)

    def _no_face(self, result: Segmented) -> str:
        stage, faces = self.stage, result.faces
        if faces and not self._large_enough(result):
            largest = max(min(face.width, face.height) for face in faces)
            return (
                f"no face is large enough: the largest is {largest:.0f} px, --min-face is "
                f"{stage.min_face}"
            )
        if stage.subject and result.prepared.likeness and faces:
            best = max(result.prepared.likeness.similarities)
            return (
                f"nobody in it is like the reference: of {len(faces)} faces the most similar has "
                f"{best:.2f}, --min-similarity is {stage.subject.threshold:.2f}; take the image "
                "out, or say what to do with it (--no-face skip, white or black)"
            )
        finder = "lora-prep embed" if stage.subject else stage.detector.name
        return (
            f"no face was found by {finder}: take the image out, or say what to "
            "do with it (--no-face skip, white or black)"
        )

    def _large_enough(self, result: Segmented) -> bool:
        return any(min(f.width, f.height) >= self.stage.min_face for f in result.faces)


def keep_faces(path: Path, record: FaceRecord) -> None:
    """Write a face record for later commands, which only save time by it: failures are passed over.

    It names its image and its detector, so it can never be wrong.
    """
    with suppress(DatasetError):
        imageio.make_folder(path.parent)
        _sweep(path.parent)
        imageio.replace(path, record.to_bytes())


@cache
def _sweep(folder: Path) -> None:
    """Once a folder and process, delete what killed runs left."""
    imageio.sweep(folder)


def choose_faces(faces: Sequence[Face], height: int, width: int, stage: MakeMasks) -> list[Face]:
    """The faces to mask in an image of this size, by the stage's policy.

    `largest` weighs the area with the detector's confidence, since a false find can be large;
    `center` takes the face whose centre is nearest to the image's.
    """
    enough = [face for face in faces if min(face.width, face.height) >= stage.min_face]
    if not enough or stage.faces == "all":
        return enough
    if stage.faces == "largest":
        return [max(enough, key=lambda face: face.area * face.score)]
    return [min(enough, key=lambda f: np.hypot(f.centre[0] - width / 2, f.centre[1] - height / 2))]
