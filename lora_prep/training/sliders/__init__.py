"""Concept sliders: their training steps, and the strengths a slider was trained for.

    from lora_prep.training.sliders import SliderModel, SliderRecord, peft_scale, textual_step
    model = SliderModel(predict, peft_scale(unet), Objective.from_scheduler(scheduler))
    textual_step(model, texts, x_t, t)     # gradients of both sides are in the adapter now
    optimizer.step()

The steps (`steps`) import torch, what a file says about itself (`record`) does not.
"""

from typing import TYPE_CHECKING, Any

from lora_prep.training.sliders.record import (
    DOCUMENTED,
    KEYS,
    Documented,
    SliderRecord,
    documented,
    outside,
)

if TYPE_CHECKING:
    from lora_prep.training.sliders.steps import (
        SliderModel,
        SliderStep,
        SliderTexts,
        denoise_levels,
        partly_denoised,
        peft_scale,
        textual_step,
        visual_step,
    )

__all__ = [
    "DOCUMENTED",
    "KEYS",
    "Documented",
    "SliderModel",
    "SliderRecord",
    "SliderStep",
    "SliderTexts",
    "denoise_levels",
    "documented",
    "outside",
    "partly_denoised",
    "peft_scale",
    "textual_step",
    "visual_step",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lora_prep.training.sliders import steps

    return getattr(steps, name)
