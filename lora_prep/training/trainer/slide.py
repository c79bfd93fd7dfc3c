"""Slider runs: the steps of `training.sliders`, inside the trainer's."""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_prep.training.batch import LossBatch
from lora_prep.training.sliders import (
    SliderModel,
    SliderRecord,
    SliderTexts,
    denoise_levels,
    partly_denoised,
    peft_scale,
    textual_step,
    visual_step,
)
from lora_prep.training.terms import Slider
from lora_prep.training.total import LossResult
from lora_prep.training.trainer.config import SliderConfig

if TYPE_CHECKING:
    from lora_prep.training.trainer.step import Part, Stepper


def record(config: SliderConfig) -> SliderRecord:
    """What the LoRA's metadata says of its strengths. Raises UsageError for an impossible range."""
    low, high = config.trained_range
    if config.pairs:
        name = config.pairs.resolve().name
        high_end, low_end = (f"{name}/{side}" for side in ("positive", "negative"))
        return SliderRecord(low, high, "visual", high_end, low_end, config.target)
    return SliderRecord(low, high, "textual", config.positive, config.negative, config.target)


def run(stepper: "Stepper", part: "Part", counts: Mapping[str, Tensor]) -> LossResult:
    """Forwards and backwards of both sides; gradients add up over the parts of a step."""
    config, batch = stepper.config.slider, part.batch
    assert config is not None
    name, (_, term) = next(iter(stepper.losses.terms.items()))
    weight, size = stepper.losses.weights_at(batch.step)[name], len(batch.pred)
    share = weight * size / counts[name]
    model = _model(stepper, part.sizes)

    def backward(loss: Tensor) -> None:
        stepper.backward(loss * share)

    if part.pair is None:
        assert isinstance(term, Slider)
        assert batch.noisy is not None
        assert batch.t is not None
        prompts = (config.target, config.positive, config.negative)
        taken = textual_step(
            model,
            SliderTexts(*(stepper.text((prompt,) * size) for prompt in prompts)),
            batch.noisy,
            batch.t,
            record=record(config),
            strength=term.strength,
            renormalize=term.renormalize,
            backward=backward,
        )
    else:
        assert batch.t is not None
        taken = visual_step(
            model, part.text, *part.pair, batch.t, record=record(config), backward=backward
        )
    count = torch.tensor(float(size), device=batch.pred.device)
    return LossResult(
        taken.total * share, {name: taken.total * size}, {name: count}, {name: weight}
    )


def from_noise(stepper: "Stepper", seed: int, generator: torch.Generator, step: int) -> "Part":
    """A part for a textual slider without images: x_t is denoised by the model, slider on."""
    from lora_prep.training.trainer.step import Part

    config, count = stepper.config.slider, stepper.config.train.batch_size
    assert config is not None
    side = stepper.config.data.resolution // 16 * 2
    channels = stepper.family.pipeline.vae.config.latent_channels
    noise = torch.randn(count, channels, side, side, generator=generator).to(stepper.device)
    sizes = torch.tensor([[8.0 * side, 8.0 * side, 0, 0, 8.0 * side, 8.0 * side]] * count)
    sizes = sizes.to(stepper.device)
    shift = stepper.family.shift(side, side)
    levels = denoise_levels(stepper.objective, config.denoise_steps, shift=shift)
    captions = (config.target,) * count
    text = stepper.text(captions)
    until = random.Random(seed).randrange(len(levels))
    noisy, t = partly_denoised(
        _model(stepper, sizes),
        noise,
        text,
        until=until,
        levels=levels,
        scale=config.trained_range[1],
    )
    flow = stepper.objective.is_flow
    batch = LossBatch(
        noisy,
        noisy,
        stepper.objective,
        timesteps=None if flow else t,
        sigmas=t if flow else None,
        noisy=noisy,
        step=step,
    )
    return Part(batch, text, sizes, captions, seed)


def _model(stepper: "Stepper", sizes: Tensor) -> SliderModel:
    def predict(noisy: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        return stepper.predict(noisy, t, text, sizes)

    return SliderModel(predict, peft_scale(stepper.model), stepper.objective)
