"""What a trainer needs beside the data: losses, block targets, sliders, a reference trainer.

The losses in three lines, from any training loop:

    from lora_prep.training import LossBatch, LossSum, Masked, Objective
    objective, losses = Objective.from_scheduler(scheduler), LossSum({"masked": (1.0, Masked())})
    losses(LossBatch(pred, objective.target(x0, noise, t), mask=mask)).total.backward()

Names are imported when first used: `import lora_prep.training` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_prep.training.batch import (
        Countable,
        LossBatch,
        PairInputs,
        PerSample,
        SliderInputs,
        Term,
    )
    from lora_prep.training.config import from_config
    from lora_prep.training.functional import (
        diffusion_loss,
        face_weighted_loss,
        identity_loss,
        inverted_mask_prior_loss,
        masked_loss,
        output_preservation_loss,
        paired_slider_loss,
        prior_preservation_loss,
        slider_loss,
        slider_targets,
    )
    from lora_prep.training.identity.term import IdentityInputs, IdentityTerm
    from lora_prep.training.objectives import (
        Objective,
        flux_shift,
        sample_levels,
        shift_sigmas,
    )
    from lora_prep.training.packing import (
        pack,
        pack_mask,
        patchify,
        to_tokens,
        unpack,
        unpatchify,
    )
    from lora_prep.training.resize import resize_mask
    from lora_prep.training.schedules import Constant, Schedule, Steps, WarmUp
    from lora_prep.training.shapes import ShapeError
    from lora_prep.training.terms import (
        Diffusion,
        FaceWeighted,
        InvertedMaskPrior,
        Masked,
        OutputPreservation,
        PairedSlider,
        PriorPreservation,
        Slider,
    )
    from lora_prep.training.total import LossResult, LossSum, combine, sum_over_processes

_HOME = {
    "batch": ("Countable", "LossBatch", "PairInputs", "PerSample", "SliderInputs", "Term"),
    "config": ("from_config",),
    "functional": (
        "diffusion_loss",
        "face_weighted_loss",
        "identity_loss",
        "inverted_mask_prior_loss",
        "masked_loss",
        "output_preservation_loss",
        "paired_slider_loss",
        "prior_preservation_loss",
        "slider_loss",
        "slider_targets",
    ),
    "identity.term": ("IdentityInputs", "IdentityTerm"),
    "objectives": ("Objective", "flux_shift", "sample_levels", "shift_sigmas"),
    "packing": ("pack", "pack_mask", "patchify", "to_tokens", "unpack", "unpatchify"),
    "resize": ("resize_mask",),
    "schedules": ("Constant", "Schedule", "Steps", "WarmUp"),
    "shapes": ("ShapeError",),
    "terms": (
        "Diffusion",
        "FaceWeighted",
        "InvertedMaskPrior",
        "Masked",
        "OutputPreservation",
        "PairedSlider",
        "PriorPreservation",
        "Slider",
    ),
    "total": ("LossResult", "LossSum", "combine", "sum_over_processes"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Constant",
    "Countable",
    "Diffusion",
    "FaceWeighted",
    "IdentityInputs",
    "IdentityTerm",
    "InvertedMaskPrior",
    "LossBatch",
    "LossResult",
    "LossSum",
    "Masked",
    "Objective",
    "OutputPreservation",
    "PairInputs",
    "PairedSlider",
    "PerSample",
    "PriorPreservation",
    "Schedule",
    "ShapeError",
    "Slider",
    "SliderInputs",
    "Steps",
    "Term",
    "WarmUp",
    "combine",
    "diffusion_loss",
    "face_weighted_loss",
    "flux_shift",
    "from_config",
    "identity_loss",
    "inverted_mask_prior_loss",
    "masked_loss",
    "output_preservation_loss",
    "pack",
    "pack_mask",
    "paired_slider_loss",
    "patchify",
    "prior_preservation_loss",
    "resize_mask",
    "sample_levels",
    "shift_sigmas",
    "slider_loss",
    "slider_targets",
    "sum_over_processes",
    "to_tokens",
    "unpack",
    "unpatchify",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
