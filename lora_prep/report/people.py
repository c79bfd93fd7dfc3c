"""Who is in the images, from `embeddings.safetensors`: similarities and near-duplicates."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from lora_prep import identity
from lora_prep.dataset import Dataset
from lora_prep.embeddings import Embeddings, read_embeddings
from lora_prep.errors import DatasetError
from lora_prep.report.measure import Known


@dataclass(frozen=True, slots=True)
class Twins:
    """Images that show nearly the same picture of the same face."""

    images: Sequence[str]
    """Relative to the image folder."""
    similarity: float
    """Least cosine of the pairs that were found."""


@dataclass(frozen=True, slots=True)
class People:
    """What the embeddings say."""

    problem: str = ""
    """Why there is nothing to say."""
    model: str = ""
    reference: str = ""
    """Which face the others are compared with."""
    threshold: float | None = None
    """Least cosine for a face to be the subject's."""
    unlike_below: float | None = None
    """Images of the subject below this are unlike the others."""
    known: Mapping[str, Known] = field(default_factory=dict)
    """By image, those without a face included."""
    similarities: Mapping[str, float] = field(default_factory=dict)
    """Of each image, the highest cosine to the reference."""
    twins: Sequence[Twins] = ()


def read_people(dataset: Dataset) -> People:
    """Read the embeddings of a data set; what is wrong with them is told, not raised."""
    path = dataset.embeddings
    if not path.is_file():
        return People(problem="who is in the images is not known yet: run `lora-prep embed`")
    try:
        rows = read_embeddings(path)
    except DatasetError as error:
        return People(problem=str(error))
    folder = rows.metadata.get("images", dataset.images.name)
    if folder != dataset.images.name:
        return People(
            problem=f"{path.name} has the faces of the folder {folder}: run `lora-prep embed` "
            "with this one"
        )
    return people_of(rows)


def people_of(rows: Embeddings) -> People:
    """Who is in the images of these embeddings."""
    about = rows.metadata
    if not len(rows):
        return People(
            problem="no face was found in any image",
            model=about.get("model", ""),
            known=_faceless(rows),
        )
    starts = identity.starts(rows.names)
    cosines = rows.similarities
    best = starts if cosines is None else identity.best_rows(cosines, starts)
    threshold = _number(about.get("min_similarity", ""))
    unlike = None
    if cosines is not None and threshold is not None:
        unlike = round(identity.outliers(cosines[best], threshold).bound, 4)
    return People(
        problem=""
        if cosines is not None
        else "no reference to compare the faces with: run `lora-prep embed` again",
        model=about.get("model", ""),
        reference=_reference(about),
        threshold=threshold,
        unlike_below=unlike,
        known={**_faceless(rows), **_known(rows, starts, None if cosines is None else best)},
        similarities={}
        if cosines is None
        else {rows.names[row]: round(float(cosines[row]), 4) for row in best},
        twins=_twins(rows, best),
    )


def _known(rows: Embeddings, starts: np.ndarray, best: np.ndarray | None) -> dict[str, Known]:
    bounds = pairwise([*starts.tolist(), len(rows)])
    return {
        rows.names[begin]: Known(
            rows.sha256[begin],
            [rows.face(row) for row in range(begin, end)],
            None if best is None else int(best[i]) - begin,
        )
        for i, (begin, end) in enumerate(bounds)
    }


def _faceless(rows: Embeddings) -> dict[str, Known]:
    looked = zip(rows.faceless, rows.faceless_sha256, strict=True)
    return {name: Known(sha256, (), None) for name, sha256 in looked}


def _twins(rows: Embeddings, best: np.ndarray) -> list[Twins]:
    """Groups of images, each linked to another of its group, the largest groups first."""
    if rows.hashes is None:
        return []
    pairs = identity.near_duplicates(rows.vectors, rows.hashes, best)
    first: dict[str, str] = {}

    def root(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name] = first[first[name]]
        return name

    for a, b, _ in pairs:
        one, other = sorted((root(rows.names[a]), root(rows.names[b])))
        first[other] = one
    least: dict[str, float] = defaultdict(lambda: 1.0)
    for a, _, cosine in pairs:
        group = root(rows.names[a])
        least[group] = min(least[group], cosine)
    members: dict[str, list[str]] = defaultdict(list)
    for name in sorted(first):
        members[root(name)].append(name)
    found = [Twins(names, round(least[group], 4)) for group, names in members.items()]
    return sorted(found, key=lambda twins: (-len(twins.images), twins.images))


def _reference(about: Mapping[str, str]) -> str:
    try:
        faces = [str(face["image"]) for face in json.loads(about.get("reference", "[]"))]
    except (ValueError, TypeError, KeyError):
        return ""
    kind = " (the most typical face)" if about.get("reference_kind") == "medoid" else ""
    return ", ".join(faces) + kind if faces else ""


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
