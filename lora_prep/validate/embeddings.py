"""Family E: are the embeddings those of these images, and of one person?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lora_prep.embeddings import Embeddings, read_embeddings, read_metadata
from lora_prep.errors import DatasetError
from lora_prep.faces import faces_path
from lora_prep.journal import hash_file
from lora_prep.validate.check import Check, Findings, Level, error, warning
from lora_prep.validate.listing import Listing

DIMENSIONS = {"arcface buffalo": 512, "arcface antelope": 512, "sface": 128}
"""Numbers of a vector, by the beginning of the model's name. Models of the user's own have any."""

STRANGER = {"arcface": 0.28, "sface": 0.363}
"""Below this cosine to the subject, a face is somebody else's, where the embeddings do not say what
they were told apart by: the defaults of `lora-prep embed`."""


@dataclass(frozen=True)
class Faces:
    """The embeddings of a data set, with what is wrong with the file."""

    listing: Listing

    @property
    def key(self) -> str:
        """The file's path relative to the root."""
        return self.listing.dataset.key(self.path)

    @property
    def path(self) -> Path:
        """The file."""
        return self.listing.dataset.embeddings

    @cached_property
    def read(self) -> Embeddings | str | None:
        """The embeddings; what is wrong with them; or None where there are none."""
        if not self.path.is_file():
            return None
        try:
            return read_embeddings(self.path)
        except DatasetError as error:
            return str(error).removeprefix(f"{self.path}: ")

    @property
    def rows(self) -> Embeddings | None:
        """The embeddings, where they can be read."""
        return None if isinstance(self.read, str) else self.read

    @property
    def model(self) -> str:
        """Which kind of model made them."""
        name = self.rows.metadata.get("model", "").lower() if self.rows else ""
        return "sface" if "sface" in name else "arcface"

    @property
    def limit(self) -> float:
        """Below this cosine a face is somebody else's."""
        told = self.rows.metadata.get("min_similarity", "") if self.rows else ""
        try:
            return float(told)
        except ValueError:
            return STRANGER[self.model]

    @cached_property
    def sources(self) -> Mapping[str, str]:
        """SHA-256 of each image that was looked at, as it was then."""
        if self.rows is None:
            return {}
        names = (*self.rows.names, *self.rows.faceless)
        return dict(zip(names, (*self.rows.sha256, *self.rows.faceless_sha256), strict=True))

    def similar(self) -> Iterator[tuple[str, int, float]]:
        """Image, face and cosine to the subject, for the face of each image that is most like it.

        The subject is the reference that was given to `lora-prep embed`, or else the face that is
        most like all others: the medoid of the largest faces.
        """
        rows = self.rows
        if rows is None or not len(rows):
            return
        cosines = rows.similarities if rows.similarities is not None else _to_medoid(rows)
        best: dict[str, int] = {}
        for row, name in enumerate(rows.names):
            if name not in best or cosines[row] > cosines[best[name]]:
                best[name] = row
        for name, row in best.items():
            yield name, int(rows.faces[row]), float(cosines[row])


def _to_medoid(rows: Embeddings) -> np.ndarray:
    mean = rows.vectors.mean(axis=0)
    medoid = rows.vectors[int(np.argmax(rows.vectors @ mean))]
    cosines: np.ndarray = rows.vectors @ medoid
    return cosines


@error(
    "E001",
    "Embeddings that cannot be used",
    reason="the file is damaged, cut off, or holds numbers that cannot be (not finite, vectors "
    "that are not of length 1): an identity loss would be NaN.",
    fix="make it anew with `lora-prep embed`; --fix moves it to the trash",
)
def unusable(faces: Faces) -> Findings:
    """All of it is read: shapes, finite numbers, norms."""
    if isinstance(faces.read, str):
        yield faces.key, faces.read


@error(
    "E002",
    "Embeddings of the wrong dimension",
    reason="they cannot be compared with those of the model that they say they are of.",
    fix="make them anew with `lora-prep embed`",
)
def dimension(faces: Faces) -> Findings:
    """512 numbers for insightface's packs, 128 for sface."""
    rows = faces.rows
    if rows is None or not len(rows):
        return
    name, found = rows.metadata.get("model", "").lower(), rows.vectors.shape[1]
    for model, expected in DIMENSIONS.items():
        if name.startswith(model) and found != expected:
            yield faces.key, f"{found} numbers a face; {name} gives {expected}"


@warning(
    "E003",
    "Image without embeddings",
    reason="the file knows other images, not this one: it was added later, and is left out of "
    "everything that is said of identity.",
    fix="run `lora-prep embed` again: it does only what is missing",
)
def missing(faces: Faces) -> Findings:
    """Silent where there are no embeddings at all."""
    if faces.rows is not None:
        for name in faces.listing.images.images:
            if name not in faces.sources:
                yield faces.listing.image_key(name), "the embeddings do not know it"


@error(
    "E004",
    "Embedding of an older image",
    reason="the image was changed after its faces were embedded: boxes, landmarks and identity are "
    "those of another picture.",
    fix="run `lora-prep embed` again: it does only what has changed",
)
def stale(faces: Faces) -> Findings:
    """By the SHA-256 of the image, where the image is newer than the embeddings."""
    listing = faces.listing
    if faces.rows is None:
        return
    for name, sha256 in faces.sources.items():
        path = listing.dataset.images / name
        if path.is_file() and _is_newer(path, faces.path) and hash_file(path) != sha256:
            yield listing.image_key(name), "changed after it was embedded"


@warning(
    "E005",
    "Embedding without an image",
    reason="the image is gone, or was renamed: its face still counts for the identity.",
    fix="run `lora-prep embed` again",
)
def orphan(faces: Faces) -> Findings:
    """One issue for the file."""
    images = set(faces.listing.images.images)
    gone = sorted(name for name in faces.sources if name not in images)
    if gone:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        yield faces.key, f"there is no image {gone[0]}{more}"


@warning(
    "E006",
    "Face that is not the subject",
    reason="no face of the image is like that of the person: the likeness gets mixed.",
    fix="take the image out, or mask the right face with `lora-prep masks --faces reference`",
)
def stranger(faces: Faces) -> Findings:
    """By the face that is most like the reference, or like the others where there is none."""
    limit, known = faces.limit, set(faces.listing.images.images)
    for name, face, cosine in faces.similar():
        if cosine < limit and name in known:
            message = f"face {face + 1}, the most like it, has a cosine of {cosine:.2f}"
            yield faces.listing.image_key(name), message


@warning(
    "E007",
    "No embeddings",
    reason="nothing is known of whose faces these are.",
    fix="make them with `lora-prep embed`",
    level=Level.OFF,
)
def none_at_all(faces: Faces) -> Findings:
    """One issue for the data set."""
    if faces.read is None:
        yield faces.key, "there is no such file"


@error(
    "E008",
    "Embeddings of another model",
    reason="the faces were last looked at by another detector or recogniser, and that run did not "
    "end: what was recorded since and the vectors in the file cannot be compared.",
    fix="run `lora-prep embed` again, with the model that is meant",
)
def other_model(faces: Faces) -> Findings:
    """By the records of the images that the file has, whatever their dates."""
    if faces.rows is None:
        return
    about = faces.rows.metadata
    made_by = f"{about.get('model')} sha256={about.get('model_sha256')} "
    for path in _records(faces):
        try:
            record = read_metadata(path)
        except (OSError, ValueError):
            continue
        recogniser, detector = record.get("recogniser", ""), record.get("detector")
        if recogniser and not recogniser.startswith(made_by):
            later = recogniser.split(" sha256=")[0]
            yield faces.key, f"it is by {about.get('model')}; {later} came later"
            return
        if detector and detector != about.get("detector"):
            yield faces.key, "the faces in it were found by another detector than the last run's"
            return


def _records(faces: Faces) -> Iterator[Path]:
    """Where the record of each image is that is there and that the file has."""
    dataset = faces.listing.dataset
    for name in faces.listing.images.images if faces.sources else ():
        if name not in faces.sources:
            continue
        path = faces_path(dataset, dataset.sample(name)).relative_to(dataset.state / "faces")
        yield (dataset.state / "identities" / path).with_suffix(".safetensors")


def _is_newer(path: Path, than: Path) -> bool:
    """Or as new: a copy may keep the dates or not, but never makes an older one of a newer one."""
    seen, other = path.stat(), than.stat()
    return max(seen.st_mtime_ns, seen.st_ctime_ns) >= other.st_mtime_ns


CHECKS: tuple[Check[Faces], ...] = (
    unusable,
    dimension,
    missing,
    stale,
    orphan,
    stranger,
    none_at_all,
    other_model,
)
