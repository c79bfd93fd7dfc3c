"""The person meant: who is in each image, and which face is most like the reference."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lora_prep import identity
from lora_prep.dataset import Dataset
from lora_prep.embeddings import Embeddings, read_embeddings, read_metadata
from lora_prep.errors import DatasetError, ItemError
from lora_prep.types import Face, Json


def check_target(dataset: Dataset) -> None:
    """Raise DatasetError where `embeddings.safetensors` is there and not of this image folder."""
    path = dataset.embeddings
    if not os.path.lexists(path):
        return
    try:
        images = read_embeddings(path).metadata.get("images", dataset.images.name)
    except DatasetError as error:
        raise DatasetError(f"{error}; or replace it with --force") from error
    if images != dataset.images.name:
        raise DatasetError(
            f"{path} has the faces of the folder {images}: move it away, or replace it with --force"
        )


def given_before(dataset: Dataset) -> tuple[Path, ...]:
    """The references that were given when `embeddings.safetensors` was made.

    None where it took the most typical face, or there is no such file of this image folder.
    """
    try:
        about = read_metadata(dataset.embeddings)
        if about["reference_kind"] != "given" or about["images"] != dataset.images.name:
            return ()
        keys = [one["image"] for one in json.loads(about["reference"])]
        return tuple(Path(os.path.abspath(dataset.root / key)) for key in dict.fromkeys(keys))  # noqa: PTH100 keeps links
    except (OSError, ValueError, KeyError, TypeError):
        return ()


@dataclass(frozen=True, slots=True)
class Likeness:
    """The faces of an image, and how much each is like the reference."""

    faces: Sequence[Face]
    similarities: Sequence[float]


@dataclass(frozen=True)
class Subject:
    """Faces of a data set compared with a reference."""

    embeddings: Embeddings
    threshold: float
    """Least cosine for a face to be the person's."""

    @classmethod
    def read(cls, path: Path, images: str, threshold: float | None) -> "Subject":
        """What `lora-prep embed` wrote about the image folder of that name.

        `threshold` defaults to the recogniser's. Raises DatasetError where the file is missing or
        damaged, of another folder, or without a reference.
        """
        if not path.is_file():
            raise DatasetError(
                f"--faces reference needs {path}, which says who is in each image: make it with "
                "`lora-prep embed` (with --reference IMG, or it takes the most typical face)"
            )
        embeddings = read_embeddings(path)
        folder = embeddings.metadata.get("images", images)
        if folder != images:
            raise DatasetError(
                f"{path} has the faces of the folder {folder}, not of {images}: run `lora-prep "
                "embed` with this folder"
            )
        if embeddings.similarities is None:
            raise DatasetError(
                f"{path} has no face to compare with: run `lora-prep embed` with --reference IMG"
            )
        if threshold is None:
            try:
                threshold = float(embeddings.metadata.get("min_similarity", ""))
            except ValueError as error:
                raise DatasetError(
                    f"{path} does not say from which similarity on a face is the person's: give "
                    "--min-similarity"
                ) from error
        return cls(embeddings, threshold)

    @property
    def identity(self) -> str:
        """Equal identities mean the same choice for equal image files."""
        about = self.embeddings.metadata
        names = ("detector", "model", "model_sha256", "alignment", "reference_sha256")
        values = [about.get(name, "") for name in names]
        return json.dumps([*values, self.threshold])

    def likeness(self, name: str, sha256: str) -> Likeness:
        """The faces of an image, by its name relative to the image folder and its content's hash.

        Raises ItemError where it was not embedded, or has changed since.
        """
        rows = self._rows.get(name)
        faceless = self._faceless.get(name)
        if rows is None and faceless is None:
            raise ItemError(
                "it is not in embeddings.safetensors: run `lora-prep embed` again",
                code="not-embedded",
            )
        known = faceless if rows is None else self.embeddings.sha256[rows.start]
        if known != sha256:
            raise ItemError(
                "it has changed since `lora-prep embed`: run that again", code="stale-embedding"
            )
        similarities = self.embeddings.similarities
        if rows is None or similarities is None:
            return Likeness((), ())
        return Likeness(
            [self.embeddings.face(row) for row in rows], [float(similarities[r]) for r in rows]
        )

    @cached_property
    def _rows(self) -> dict[str, range]:
        """The rows of each image. They follow each other."""
        rows: dict[str, range] = {}
        for row, name in enumerate(self.embeddings.names):
            start = rows[name].start if name in rows else row
            rows[name] = range(start, row + 1)
        return rows

    @cached_property
    def _faceless(self) -> dict[str, str]:
        return dict(zip(self.embeddings.faceless, self.embeddings.faceless_sha256, strict=True))


def most_alike(likeness: Likeness, min_face: int, threshold: float) -> list[Face]:
    """The face that is most like the reference, of those that are large enough, if it is enough."""
    enough = [
        (similarity, face)
        for similarity, face in zip(likeness.similarities, likeness.faces, strict=True)
        if min(face.width, face.height) >= min_face
    ]
    if not enough:
        return []
    similarity, face = enough[int(np.argmax([similarity for similarity, _ in enough]))]
    return [face] if similarity >= threshold else []


@dataclass(frozen=True, slots=True)
class Best:
    """The face of an image that is most like the reference."""

    image: str
    """Relative to the data set's root."""
    face: int
    similarity: float


FEW = 1 / 3
"""Of the images with a face: where fewer show the reference, it is hardly the person meant."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What embeddings say about the images of a data set."""

    best: Sequence[Best]
    """One an image that has a face."""
    others: Sequence[Best]
    """Below `min_similarity`: not the same person?"""
    unlike: Sequence[Best]
    """Above it, but below `bound`: unlike the others."""
    near_duplicates: Sequence[tuple[str, str, float]]
    """Nearly the same picture of the same face, with the cosine."""
    min_similarity: float
    median: float | None
    """Of the similarities of the images that show the person; None where none does."""
    bound: float

    @property
    def shown(self) -> int:
        """How many images show the person."""
        return len(self.best) - len(self.others)

    @property
    def is_doubtful(self) -> bool:
        """Whether too few images show the reference for it to be the person meant."""
        return self.shown < FEW * len(self.best)

    def to_json(self) -> dict[str, Json]:
        """All of it as JSON values."""

        def listed(faces: Sequence[Best]) -> list[Json]:
            return [
                {"image": b.image, "face": b.face, "similarity": round(b.similarity, 4)}
                for b in faces
            ]

        return {
            "min_similarity": self.min_similarity,
            "doubtful": self.is_doubtful,
            "median_similarity": self.median and round(self.median, 4),
            "unlike_below": round(self.bound, 4),
            "similarities": listed(self.best),
            "not_the_same_person": listed(self.others),
            "unlike_the_others": listed(self.unlike),
            "near_duplicates": [
                {"images": [a, b], "similarity": round(cosine, 4)}
                for a, b, cosine in self.near_duplicates
            ],
        }


def survey(embeddings: Embeddings) -> Survey | None:
    """Outliers and near-duplicates; None without a face or without a reference."""
    similarity = embeddings.similarities
    if similarity is None or not len(embeddings):
        return None
    rows = identity.best_rows(similarity, identity.starts(embeddings.names))
    folder = embeddings.metadata["images"]
    names = [f"{folder}/{name}" for name in embeddings.names]
    best = [Best(names[row], int(embeddings.faces[row]), float(similarity[row])) for row in rows]
    threshold = float(embeddings.metadata["min_similarity"])
    found = identity.outliers(similarity[rows], threshold)
    hashes = embeddings.hashes
    pairs = [] if hashes is None else identity.near_duplicates(embeddings.vectors, hashes, rows)
    return Survey(
        best,
        [b for b, other in zip(best, found.others, strict=True) if other],
        [b for b, unlike in zip(best, found.unlike, strict=True) if unlike],
        [(names[a], names[b], cosine) for a, b, cosine in pairs],
        threshold,
        None if np.isnan(found.median) else found.median,
        found.bound,
    )
