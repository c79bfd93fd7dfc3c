"""Turn every face into a vector that tells people apart.

Each image has a record of its own (`.lora-prep/identities/<key>.safetensors`), which is what the
runner makes; `gather` puts the records of all images together, and `compare` says how much each
face is like the reference.
"""

import hashlib
import json
import logging
import os
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from lora_prep import __version__, backends, identity, imageio
from lora_prep.backends import (
    Crop,
    DetectorSpec,
    FaceDetector,
    FaceRecogniser,
    RecogniserCard,
    RecogniserSpec,
)
from lora_prep.dataset import Dataset, Sample
from lora_prep.embeddings import (
    Embeddings,
    from_bytes,
    joined,
    read_embeddings,
    with_metadata,
)
from lora_prep.errors import DatasetError, ItemError, UsageError
from lora_prep.faces import FaceRecord, faces_path, read_faces
from lora_prep.journal import exclusive
from lora_prep.stage import Item, Saved
from lora_prep.stages.masks import keep_faces
from lora_prep.types import Face, Image, Json

log = logging.getLogger(__name__)

GATHERED = 1000
"""Records that are put together at a time."""


@dataclass(frozen=True)
class EmbedFaces:
    """Images to records of their faces: vector, box, landmarks, score."""

    dataset: Dataset
    detector: DetectorSpec = field(default_factory=DetectorSpec)
    recogniser: RecogniserSpec = field(default_factory=RecogniserSpec)
    references: tuple[Path, ...] = ()
    """Pictures of the person meant, in the data set or elsewhere; none: the most typical face."""
    min_similarity: float | None = None
    """Cosine to the reference below which a face is somebody else's; None: the model's."""
    batch_size: int = 8
    name: str = "embed"

    def __post_init__(self) -> None:
        if self.detector.name == "cascade":
            raise UsageError(
                "the cascade finds no landmarks, and without them no face can be aligned for a "
                "recogniser: use --detector yunet (MIT) or insightface, and no --preset embedded"
            )

    def settings(self) -> dict[str, Json]:
        """The detector and the recogniser, down to their weights."""
        return {
            "stage": "embed/1",
            "detector": self.detector_identity,
            "recogniser": backends.recogniser_identity(self.recogniser),
        }

    @cached_property
    def detector_identity(self) -> str:
        """The detector's identity."""
        return backends.detector_identity(self.detector)

    @cached_property
    def card(self) -> RecogniserCard:
        """What is known of the recogniser."""
        return backends.recogniser_card(self.recogniser)

    @cached_property
    def strangers(self) -> tuple[Path, ...]:
        """References that are not in the data set."""
        names = {sample.name for sample in self.dataset}
        return tuple(path for path in self.references if self._name(path) not in names)

    def __len__(self) -> int:
        return len(self.dataset) + len(self.strangers)

    def items(self) -> Iterator[Item]:
        """One item for each reference that is not in the data set, then one an image."""
        for path in self.strangers:
            yield Item(self.dataset.key(path), (path,), (self.reference_record(path),))
        for sample in self.dataset:
            outputs = (record_path(self.dataset, sample),)
            yield Item(self.dataset.key(sample.image), (sample.image,), outputs)

    def open(self) -> "Embedding":
        """Load the detector and the recogniser."""
        detector = backends.detector(self.detector)
        log.info("faces: %s", detector.describe())
        recogniser = backends.recogniser(self.recogniser)
        log.info("identity: %s", recogniser.describe())
        return Embedding(self, detector, recogniser)

    def reference_record(self, path: Path) -> Path:
        """Where a reference's faces are kept."""
        name = self._name(path)
        if path in self.strangers or name is None:
            digest = hashlib.sha256(os.fsencode(self.dataset.key(path))).hexdigest()
            return self.dataset.state / "identities" / "_references" / f"{digest}.safetensors"
        return record_path(self.dataset, self.dataset.sample(name))

    def sample_of(self, item: Item) -> Sample | None:
        """The sample of an item; None for a reference that is not in the data set."""
        (path,) = item.inputs
        name = self._name(path)
        return None if name is None or path in self.strangers else self.dataset.sample(name)

    def _name(self, path: Path) -> str | None:
        """A path's name relative to the image folder; None where it is elsewhere."""
        if not path.is_relative_to(self.dataset.images):
            return None
        return path.relative_to(self.dataset.images).as_posix()


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image that waits for the models."""

    image: Image
    sha256: str
    name: str
    known: Sequence[Face] | None
    """Faces that were recorded before."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image's faces and their vectors."""

    decoded: Decoded
    faces: Sequence[Face]
    vectors: Sequence[np.ndarray]
    """One a face, of any length."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Faces being turned into vectors."""

    stage: EmbedFaces
    detector: FaceDetector
    recogniser: FaceRecogniser

    def load(self, item: Item, inputs: Sequence[bytes]) -> Decoded:
        """Decode the image."""
        (data,) = inputs
        sample = self.stage.sample_of(item)
        known = None
        if sample:
            path = faces_path(self.stage.dataset, sample)
            known = read_faces(path, data, self.stage.detector_identity)
        name = sample.name if sample else item.inputs[0].name
        return Decoded(imageio.decode_image(data), hashlib.sha256(data).hexdigest(), name, known)

    def compute(self, batch: Sequence[Decoded]) -> list[Embedded | ItemError]:
        """Detect where it was not done before, then recognise the faces of all images together."""
        found = [self._faces(decoded) for decoded in batch]
        crops = [crop for one in found if not isinstance(one, ItemError) for crop in one[1]]
        vectors = iter(self.recogniser.vectors(crops) if crops else ())
        return [
            one
            if isinstance(one, ItemError)
            else Embedded(decoded, one[0], [next(vectors) for _ in one[0]])
            for decoded, one in zip(batch, found, strict=True)
        ]

    def save(self, item: Item, embedded: Embedded) -> Saved:
        """The image's record; its faces are kept for later commands, too."""
        decoded, (path,) = embedded.decoded, item.outputs
        sample = self.stage.sample_of(item)
        if sample and decoded.known is None:
            height, width = decoded.image.shape[:2]
            record = FaceRecord(
                self.stage.detector_identity, decoded.sha256, width, height, tuple(embedded.faces)
            )
            keep_faces(faces_path(self.stage.dataset, sample), record)
        rows = _rows(embedded, self._metadata())
        warnings = () if len(rows) else (f"no face was found by {self.stage.detector.name}",)
        info = {"faces": len(rows), "norms": [round(float(norm), 3) for norm in rows.norms]}
        return Saved({path: rows.to_bytes()}, info, warnings)

    def _faces(self, decoded: Decoded) -> tuple[Sequence[Face], list[Crop]] | ItemError:
        """An image's faces and their crops."""
        try:
            known = decoded.known
            faces = self.detector.detect(decoded.image) if known is None else known
            if any(face.landmarks is None for face in faces):
                raise ItemError(
                    f"{self.stage.detector.name} gives no landmarks, and without them a face "
                    "cannot be aligned: use another --face-model",
                    code="no-landmarks",
                )
            return faces, [self.recogniser.crop(decoded.image, face) for face in faces]
        except ItemError as error:
            return error

    def _metadata(self) -> dict[str, str]:
        return {
            "detector": self.stage.detector_identity,
            "recogniser": self.stage.card.identity,
        }


def _rows(embedded: Embedded, metadata: dict[str, str]) -> Embeddings:
    """The record of one image. Raises ItemError where the model gives no direction."""
    decoded, faces = embedded.decoded, embedded.faces
    n = len(faces)
    raw = np.array(embedded.vectors, np.float32).reshape(n, -1 if n else 0)
    norms = np.linalg.norm(raw, axis=1).astype(np.float32)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise ItemError("the recogniser gives no usable numbers for a face", code="no-embedding")
    with_faces = n > 0
    return Embeddings(
        names=(decoded.name,) * n,
        faces=np.arange(n, dtype=np.int32),
        boxes=np.array([face.box for face in faces], np.float32).reshape(n, 4),
        landmarks=np.array([face.landmarks for face in faces], np.float32).reshape(n, 5, 2),
        scores=np.array([face.score for face in faces], np.float32),
        vectors=raw / norms[:, None],
        norms=norms,
        sha256=(decoded.sha256,) * n,
        metadata=metadata,
        hashes=np.full(n, identity.difference_hash(decoded.image), np.uint64),
        faceless=() if with_faces else (decoded.name,),
        faceless_sha256=() if with_faces else (decoded.sha256,),
    )


# ---------------------------------------------------------------------------- all images together
def record_path(dataset: Dataset, sample: Sample) -> Path:
    """Where the faces of one image are kept with their vectors."""
    faces = faces_path(dataset, sample).relative_to(dataset.state / "faces")
    return (dataset.state / "identities" / faces).with_suffix(".safetensors")


def gather(stage: EmbedFaces, failed: Container[str] = ()) -> Embeddings:
    """The records of all images that have one by this detector and this recogniser.

    `failed` are keys of images whose record no longer holds. Records of images that are gone are
    deleted: they are biometric data that nobody needs.
    """
    dataset, parts, pending = stage.dataset, [], []
    for sample in dataset:
        record = None
        if dataset.key(sample.image) not in failed:
            record = read_record(stage, record_path(dataset, sample))
        if record is not None:
            pending.append(record)
        if len(pending) == GATHERED:
            parts.append(joined(pending, {}))
            pending = []
    _forget(dataset)
    nothing = _rows(Embedded(Decoded(np.zeros((1, 1, 3), np.uint8), "0" * 64, "", ()), (), ()), {})
    nothing = replace(nothing, faceless=(), faceless_sha256=())
    return joined([*parts, *pending, nothing], _about(stage))


def read_record(stage: EmbedFaces, path: Path) -> Embeddings | None:
    """The record of one image, if there is one by this detector and this recogniser."""
    try:
        record = from_bytes(path.read_bytes())
    except (OSError, ValueError):
        return None
    same = record.metadata.get("detector") == stage.detector_identity
    return record if same and record.metadata.get("recogniser") == stage.card.identity else None


def compare(stage: EmbedFaces, embeddings: Embeddings) -> Embeddings:
    """The faces with their similarity to the reference, and in the metadata what that is.

    Raises DatasetError where there is no face in a reference. Without a reference and without a
    face there is nothing to compare.
    """
    if stage.references:
        chosen = [(path, *_reference(stage, path)) for path in stage.references]
        references = np.stack([vector for _, _, vector in chosen])
        about = [{"image": stage.dataset.key(path), "face": face} for path, face, _ in chosen]
    elif len(embeddings):
        firsts, limit = identity.starts(embeddings.names), float(_about(stage)["min_similarity"])
        row = identity.medoid(embeddings.vectors, firsts, embeddings.hashes, limit)
        references = embeddings.vectors[row : row + 1]
        image = stage.dataset.key(stage.dataset.sample(embeddings.names[row]).image)
        about = [{"image": image, "face": int(embeddings.faces[row])}]
    else:
        return embeddings
    compared = replace(
        embeddings, similarities=identity.similarities(embeddings.vectors, references)
    )
    return with_metadata(
        compared,
        reference=json.dumps(about),
        reference_kind="given" if stage.references else "medoid",
        reference_sha256=hashlib.sha256(references.tobytes()).hexdigest(),
    )


def finish(
    stage: EmbedFaces, failed: Container[str] = (), *, interrupted: bool = False
) -> Embeddings | None:
    """Put all records together, compare them with the reference, and write the file.

    A file that would say the same is left as it is, date and all. After an interrupted run, so is
    one by other models, or if the reference or every image has no record yet: then, None. Raises
    DatasetError.
    """
    path = stage.dataset.embeddings
    with exclusive(stage.dataset.state):
        known = all(read_record(stage, stage.reference_record(p)) for p in stage.references)
        if interrupted and not (known and _is_by(stage, path)):
            return None
        gathered = gather(stage, failed)
        if interrupted and not (len(gathered) or gathered.faceless):
            return None
        embeddings = compare(stage, gathered)
        with suppress(DatasetError):
            old = read_embeddings(path)
            same = with_metadata(embeddings, date=old.metadata.get("date", ""))
            if same.to_bytes() == old.to_bytes():
                return same
        imageio.replace(path, embeddings.to_bytes())
    return embeddings


def _is_by(stage: EmbedFaces, path: Path) -> bool:
    """Whether the file is by this detector and recogniser, or not there yet."""
    with suppress(DatasetError):
        old, new = read_embeddings(path).metadata, _about(stage)
        return all(old.get(k) == new[k] for k in ("detector", "model_sha256", "alignment"))
    return not os.path.lexists(path)


def _reference(stage: EmbedFaces, path: Path) -> tuple[int, np.ndarray]:
    """Index and vector of the face in a reference: the largest, by area times confidence."""
    record = read_record(stage, stage.reference_record(path))
    if record is None or not len(record):
        raise DatasetError(
            f"--reference {path}: there is no face in it that {stage.detector.name} finds. Give a "
            "sharp picture with the person's face from the front"
        )
    faces = [record.face(row) for row in range(len(record))]
    row = int(np.argmax([face.area * face.score for face in faces]))
    return int(record.faces[row]), record.vectors[row]


def _about(stage: EmbedFaces) -> dict[str, str]:
    card = stage.card
    threshold = card.min_similarity if stage.min_similarity is None else stage.min_similarity
    return {
        "images": stage.dataset.images.name,
        "model": card.model,
        "model_sha256": card.sha256,
        "alignment": card.alignment,
        "license": card.license,
        "min_similarity": str(threshold),
        "detector": stage.detector_identity,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "lora_prep": __version__,
    }


def _forget(dataset: Dataset) -> None:
    """Delete the records of images that are gone from the image folder."""
    wanted = {record_path(dataset, sample) for sample in dataset}
    folder = record_path(dataset, dataset.sample("any")).parent
    found = folder.rglob("*.safetensors") if dataset.recursive else folder.glob("*.safetensors")
    for path in found:
        if path not in wanted:
            with suppress(OSError):
                path.unlink()
