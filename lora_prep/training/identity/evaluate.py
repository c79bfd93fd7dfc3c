"""How much generated images look like the subject: with a detector, for evaluation only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.identity.onnx_module import Recogniser
from lora_prep.training.identity.reference import embed_faces
from lora_prep.types import Face, Image


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_identity` found."""

    similarities: tuple[float | None, ...]
    """Each image's largest face's cosine to the reference; None where there is no face."""

    @property
    def found(self) -> int:
        """Images with a face."""
        return sum(s is not None for s in self.similarities)

    @property
    def mean(self) -> float:
        """Mean over the images with a face; NaN where there is none."""
        known = [s for s in self.similarities if s is not None]
        return float(np.mean(known)) if known else float("nan")


def evaluate_identity(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    reference: Float[Tensor, " D"],
    *,
    detect: Callable[[Image], Sequence[Face]],
    recogniser: Recogniser,
    antialias: bool = True,
) -> Evaluation:
    """Each image's similarity to `reference`, an embedding by this same `recogniser`.

    Take another recogniser than the one in the loss: a model that was trained against a recogniser
    learns to please it, partly by what nobody would call likeness. There is no gradient.

    Raises UsageError where the reference has another length than the recogniser's embeddings.
    """
    similarities: list[float | None] = []
    for image in images:
        faces = [face for face in detect(image) if face.landmarks is not None]
        if not faces:
            similarities.append(None)
            continue
        largest = max(faces, key=lambda face: face.area)
        weights = next(recogniser.buffers())
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(weights.device)
        landmarks = torch.tensor([largest.landmarks])
        with torch.no_grad():
            vector = embed_faces(recogniser, pixels.float(), landmarks, antialias=antialias)[0]
        if vector.shape != reference.shape:
            raise UsageError(
                f"the reference has {len(reference)} numbers and the recogniser gives "
                f"{len(vector)}: make it with the same recogniser"
            )
        similarities.append(float(vector @ reference.to(vector)))
    return Evaluation(tuple(similarities))
