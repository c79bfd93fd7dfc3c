"""A differentiable identity loss: ArcFace as a torch module, alignment, cropped decoding.

    from lora_prep.training.identity import (
        IdentityInputs, IdentityTerm, diffusers_decoder, load_recogniser, read_reference)

    recogniser = load_recogniser("buffalo_l/w600k_r50.onnx", device=device)
    reference = read_reference("data/embeddings.safetensors", recogniser)
    term = IdentityTerm(recogniser, diffusers_decoder(tiny_vae), every=4)
    losses = LossSum({"diffusion": (1.0, Diffusion()), "identity": (WarmUp(0.1, 500), term)})
    inputs = IdentityInputs(batch.landmarks, reference, batch.has_face & ~batch.is_prior)

Names are imported when first used: importing this package does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_prep.training.identity.align import align_faces, similarity
    from lora_prep.training.identity.decode import decode_faces, diffusers_decoder
    from lora_prep.training.identity.evaluate import Evaluation, evaluate_identity
    from lora_prep.training.identity.onnx_module import Recogniser, load_recogniser
    from lora_prep.training.identity.reference import embed_faces, read_reference
    from lora_prep.training.identity.term import IdentityInputs, IdentityTerm

_HOME = {
    "align": ("align_faces", "similarity"),
    "decode": ("decode_faces", "diffusers_decoder"),
    "evaluate": ("Evaluation", "evaluate_identity"),
    "onnx_module": ("Recogniser", "load_recogniser"),
    "reference": ("embed_faces", "read_reference"),
    "term": ("IdentityInputs", "IdentityTerm"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Evaluation",
    "IdentityInputs",
    "IdentityTerm",
    "Recogniser",
    "align_faces",
    "decode_faces",
    "diffusers_decoder",
    "embed_faces",
    "evaluate_identity",
    "load_recogniser",
    "read_reference",
    "similarity",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
