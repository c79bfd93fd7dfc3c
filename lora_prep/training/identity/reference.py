"""Who it should look like: the embeddings that `lora-prep embed` wrote, or our own path's."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lora_prep.embeddings import Embeddings, read_embeddings
from lora_prep.errors import DatasetError
from lora_prep.training.identity.align import align_faces
from lora_prep.training.identity.onnx_module import Recogniser
from lora_prep.training.subject import subject_rows, unit_mean

ALIGNMENT = "insightface-norm_crop"
"""What `embeddings.safetensors` has to name: the only one that `align_faces` computes."""


def embed_faces(
    recogniser: Recogniser,
    images: Float[Tensor, "B 3 H W"],
    landmarks: Float[Tensor, "N 5 2"],
    index: Int[Tensor, " N"] | None = None,
    *,
    antialias: bool = True,
) -> Float[Tensor, "N D"]:
    """Unit embeddings of faces in images with values from 0 to 255, differentiable.

    The one path for references, the loss and the evaluation; with `antialias=False` it gives what
    `lora-prep embed` gives. See `align_faces`.
    """
    crops = align_faces(images, landmarks, index, antialias=antialias)
    return F.normalize(recogniser(crops), dim=1)


def read_reference(
    path: Path | str, recogniser: Recogniser | None = None, names: Iterable[str] | None = None
) -> Float[Tensor, " D"]:
    """The subject's unit embedding, float32: the mean of each image's face most like the subject.

    `names` are the images to take (default: all). Rows of one image compete by their similarity to
    the reference that `embed` was given, else by the detector's score; faces below the file's
    `min_similarity` are somebody else's and left out. Images are not read: `lora-prep validate`
    says which have changed since.

    Raises DatasetError where the file cannot be used, was made with another model than
    `recogniser` or with another alignment, or has no face of the subject in those images.
    """
    path = Path(path)
    found = read_embeddings(path)
    if recogniser is not None:
        check_model(found, recogniser, path)
    rows = subject_rows(found, None if names is None else set(names))
    if not rows:
        raise DatasetError(
            f"{path} has no face of the subject in the images asked for: run `lora-prep embed`, "
            "with --reference IMG where it took somebody else for the subject"
        )
    return torch.from_numpy(unit_mean(found, list(rows.values())))


def check_model(found: Embeddings, recogniser: Recogniser, path: Path | str) -> None:
    """Raise DatasetError unless these embeddings can be compared with `recogniser`'s."""
    digest, alignment = found.metadata.get("model_sha256"), found.metadata.get("alignment")
    if digest != recogniser.sha256:
        raise DatasetError(
            f"{path} was made with {found.metadata.get('model') or 'another model'} "
            f"(SHA-256 {str(digest)[:12]}…), and the loss uses {recogniser.sha256[:12]}…: "
            "embeddings of different models cannot be compared. Run `lora-prep embed` with "
            "--recogniser arcface and this model"
        )
    if alignment != ALIGNMENT:
        raise DatasetError(
            f"{path} was made with the alignment {alignment!r}, not {ALIGNMENT!r}: "
            "run `lora-prep embed` with --recogniser arcface"
        )
