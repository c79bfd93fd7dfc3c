"""Which faces of `embeddings.safetensors` are the subject's."""

import math
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lora_prep.dataset import Dataset
from lora_prep.embeddings import Embeddings, read_embeddings
from lora_prep.errors import DatasetError
from lora_prep.types import Face


@dataclass(frozen=True, eq=False)
class Subject:
    """The subject's face in each image, and what they have in common."""

    faces: dict[str, Face] = field(default_factory=dict)
    """By the image's name."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Of those images, as they were when they were embedded."""
    reference: Float[np.ndarray, " d"] = field(default_factory=lambda: np.zeros(0, np.float32))
    """The unit mean of those faces' embeddings; zeros without a face, empty without embeddings."""

    @classmethod
    def of(cls, dataset: Dataset) -> "Subject":
        """What `lora-prep embed` wrote of these images; nothing where it did not run.

        Raises DatasetError where the file is damaged, or of another image folder.
        """
        path = dataset.embeddings
        if not path.exists():
            return cls()
        found = read_embeddings(path)
        _check_folder(found, path, dataset.images.name)
        rows = subject_rows(found, {sample.name for sample in dataset})
        return cls(
            {name: found.face(row) for name, row in rows.items()},
            {name: found.sha256[row] for name, row in rows.items()},
            unit_mean(found, list(rows.values())),
        )

    def check(self, name: str, path: Path, sha256: str) -> None:
        """Raise DatasetError where the image is another than the one that was embedded."""
        if self.sha256.get(name, sha256) != sha256:
            raise DatasetError(
                f"{path} has changed since its face was embedded: run lora-prep embed again"
            )


def subject_rows(found: Embeddings, names: Container[str] | None = None) -> dict[str, int]:
    """The row of each image's face that is most like the subject, of the images `names` or of all.

    By the similarity to the reference that `embed` was given, and else by the detector's score.
    Faces that `embed` takes for somebody else's (similarities below the file's `min_similarity`)
    are left out, and images without any other face with them.
    """
    likeness = found.scores if found.similarities is None else found.similarities
    least = -math.inf if found.similarities is None else _least(found)
    best: dict[str, int] = {}
    for row, name in enumerate(found.names):
        wanted = (names is None or name in names) and not likeness[row] < least
        if wanted and (name not in best or likeness[row] > likeness[best[name]]):
            best[name] = row
    return best


def unit_mean(found: Embeddings, rows: list[int]) -> Float[np.ndarray, " d"]:
    """The direction of the mean of some rows' embeddings, float32; zeros without rows."""
    if not rows:
        return np.zeros(found.vectors.shape[1], np.float32)
    mean = found.vectors[rows].mean(0)
    unit: np.ndarray = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    return unit


def _least(found: Embeddings) -> float:
    try:
        return float(found.metadata.get("min_similarity", ""))
    except ValueError:
        return -math.inf


def _check_folder(found: Embeddings, path: Path, images: str) -> None:
    folder = found.metadata.get("images", images)
    if folder != images:
        raise DatasetError(
            f"{path} has the faces of the folder {folder}, not of {images}: move it away and run "
            "lora-prep embed with this folder"
        )
