"""The steps of a slider's training, for any loop.

A step is given how to call the model and how to set the adapter's strength; it runs both sides of
the slider and leaves their gradients in the adapter. It calls `backward` once a side, before the
strength is changed for the other: with gradient checkpointing the forward is run again during
`backward`, with the strength as it is then (flipping it too early gave a gradient 66 % off).

Sources: Concept Sliders (Gandikota 2023, arXiv 2311.12092) for both kinds; two-sided textual
training and `renormalize` as in ai-toolkit's concept slider.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.functional import diffusion_loss, slider_loss
from lora_prep.training.objectives import Objective, shift_sigmas
from lora_prep.training.shapes import ShapeError, per_sample, same_shape, shape
from lora_prep.training.sliders.record import SliderRecord

Predict = Callable[[Tensor, Tensor, Any], Tensor]
"""(x_t, t, text) → the model's output, shaped as x_t. t is (B,), as `Objective` has it: timesteps,
or σ from 0 to 1. `text` is whatever your model is told; the steps only hand it through."""

SetScale = Callable[[float], None]
"""Set the adapter's strength: 1 as it would be used, 0 off, -1 the other way."""

Backward = Callable[[Tensor], object]
"""`torch.Tensor.backward`, or `accelerator.backward`."""


@dataclass(frozen=True)
class SliderModel:
    """A model with an adapter, as a slider's step sees it."""

    predict: Predict
    set_scale: SetScale
    objective: Objective

    @contextmanager
    def at(self, scale: float) -> Iterator[None]:
        """The adapter at this strength; at 1 again afterwards."""
        self.set_scale(scale)
        try:
            yield
        finally:
            self.set_scale(1.0)

    def base(self, noisy: Tensor, t: Tensor, text: Any) -> Tensor:
        """The prediction with the adapter off, without gradient."""
        with self.at(0.0), torch.no_grad():
            return self.predict(noisy, t, text)


@dataclass(frozen=True)
class SliderTexts:
    """What a textual slider is made of, each as `predict` takes it for the whole batch."""

    target: Any
    """Whose pictures slide; the empty prompt for any."""
    positive: Any
    """What there is more of at the high end."""
    negative: Any
    """What there is more of at the low end; the empty prompt (unconditional) in the paper."""


@dataclass(frozen=True)
class SliderStep:
    """How a step went. The gradients are in the adapter's weights."""

    high: Float[Tensor, " B"]
    """Loss of each sample at the high end, detached."""
    low: Float[Tensor, " B"]
    """The same at the low end; zeros where the range has no side below 0."""
    total: Float[Tensor, ""]
    """What was differentiated, detached."""


def textual_step(
    model: SliderModel,
    texts: SliderTexts,
    noisy: Float[Tensor, "B ..."],
    t: Tensor,
    *,
    record: SliderRecord | None = None,
    strength: float = 4.0,
    renormalize: bool = False,
    backward: Backward = torch.Tensor.backward,
) -> SliderStep:
    """One step of a slider from prompts: forwards, losses, and a backward for each side.

    With the adapter off, neutral, positive and negative are predicted for x_t. At the range's
    `high` the adapter should give neutral + strength·(positive − negative) for the target's
    prompt; at `low` the same times low/high, on the other side. The loss is the mean of the two
    sides' means over the batch.

    noisy, t: x_t (B, ...) and its times (B,), from `partly_denoised` as in the paper, or noised
        images as in ai-toolkit.
    record: the range to train for, from -1 to 1 where left out; see `check_range`.
    strength: η of the paper (4, with an adapter of alpha 1 and rank 4); ai-toolkit takes 3.

    Raises UsageError for a range or a strength that cannot be trained, ShapeError for predictions
    of another shape than x_t.
    """
    low, high = check_range(record)
    if not (math.isfinite(strength) and strength > 0):
        raise UsageError(f"strength={strength}: it is a number above 0, such as 4")
    per_sample(t, len(noisy), "t")
    ends = (texts.target, texts.positive, texts.negative)
    neutral, positive, negative = (model.base(noisy, t, text) for text in ends)
    same_shape(neutral, noisy, "noisy")

    share = 1.0 if low == 0 else 0.5
    losses: list[Tensor] = []
    for scale in (high, low):
        if scale == 0:
            losses.append(torch.zeros_like(losses[0]))
            continue
        with model.at(scale):
            loss = slider_loss(
                model.predict(noisy, t, texts.target),
                neutral,
                positive,
                negative,
                direction=math.copysign(1.0, scale),
                strength=strength * abs(scale) / high,
                renormalize=renormalize,
            )
            backward(loss.mean() * share)
        losses.append(loss.detach())
    return SliderStep(losses[0], losses[1], (losses[0].mean() + losses[1].mean()) * share)


def visual_step(
    model: SliderModel,
    text: Any,
    latents_high: Float[Tensor, "B ..."],
    latents_low: Float[Tensor, "..."],
    noise: Float[Tensor, "..."],
    t: Tensor,
    *,
    record: SliderRecord | None = None,
    backward: Backward = torch.Tensor.backward,
) -> SliderStep:
    """One step of a slider from image pairs: a forward, a loss and a backward for each side.

    The picture with more of the attribute is learned with the adapter at the range's `high`, its
    counterpart at `low`, both with the same noise and time. The loss is the sum of both, as
    `paired_slider_loss`.

    latents_high, latents_low: x0 of the pairs, scaled as the model wants them, (B, ...).
    noise: (B, ...); t: (B,), timesteps or σ.
    record: the range to train for, from -1 to 1 where left out.

    Raises UsageError for a range that cannot be trained, ShapeError where the sides differ.
    """
    low, high = check_range(record)
    if low == 0:
        raise UsageError(
            "a slider from pairs has two sides: its range begins below 0, such as -1 to 1"
        )
    same_shape(latents_high, latents_low, "latents_low")
    same_shape(latents_high, noise, "noise")
    per_sample(t, len(noise), "t")
    losses = []
    for scale, x0 in ((high, latents_high), (low, latents_low)):
        noisy = model.objective.add_noise(x0, noise, t).to(x0.dtype)
        with model.at(scale):
            pred = model.predict(noisy, t, text)
            loss = diffusion_loss(pred, model.objective.target(x0, noise, t))
            backward(loss.mean())
        losses.append(loss.detach())
    return SliderStep(losses[0], losses[1], losses[0].mean() + losses[1].mean())


def partly_denoised(
    model: SliderModel,
    noise: Float[Tensor, "B ..."],
    text: Any,
    *,
    until: int,
    levels: Tensor,
    scale: float = 1.0,
    guidance: float = 1.0,
    unconditional: Any = None,
) -> tuple[Float[Tensor, "B ..."], Tensor]:
    """x_t that the model itself made of noise, with the slider on, and its t (B,). No gradient.

    `levels`: times from nearly all noise to nearly none, of `denoise_levels`. `until`: how many
    steps are taken, from 0 (the noise as it is) to len(levels) − 1; the paper draws it anew for
    every step of the training. The steps are deterministic: DDIM, and Euler's for flow matching.
    `guidance` above 1 (3 in the official code) needs the `unconditional` text.

    Raises UsageError for steps that are not there, and for guidance without a text.
    """
    if not 0 <= until < len(levels):
        raise UsageError(f"until={until}: there are {len(levels)} levels, so give 0 to the last")
    if guidance != 1 and unconditional is None:
        raise UsageError(f"guidance={guidance:g} needs the unconditional text, too")
    if noise.ndim < 2:
        raise ShapeError(f"noise is {shape(noise)}: give one latent a sample, (B, ...)")
    times = levels.to(noise.device)[:, None].expand(-1, len(noise))
    x, objective = noise, model.objective
    with model.at(scale), torch.no_grad():
        for now, then in pairwise(times[: until + 1]):
            pred = model.predict(x, now, text)
            if guidance != 1:
                free = model.predict(x, now, unconditional)
                pred = free + guidance * (pred - free)
            x0, eps = objective.x0(x, pred, now), objective.noise(x, pred, now)
            x = objective.add_noise(x0, eps, then).to(noise.dtype)
    return x, times[until].contiguous()


def denoise_levels(objective: Objective, steps: int, *, shift: float | None = None) -> Tensor:
    """Times of `steps` denoising steps, (steps,), falling: σ from 1, or timesteps from the last.

    `shift`: of the noise levels of flow matching; the objective's own where left out.
    """
    if steps < 1:
        raise UsageError(f"steps={steps}: at least one")
    if objective.is_flow:
        sigmas = torch.linspace(1, 0, steps + 1)[:-1]
        return shift_sigmas(sigmas, objective.shift if shift is None else shift)
    if shift is not None:
        raise UsageError(f"{objective.prediction} has no shift: that belongs to flow_matching")
    assert objective.alphas_cumprod is not None
    last = len(objective.alphas_cumprod) - 1
    if steps > last:
        raise UsageError(f"steps={steps}: the noise schedule has no more than {last}")
    return torch.linspace(last, 0, steps + 1)[:-1].round().long()


def peft_scale(model: Any, adapter: str = "default") -> SetScale:
    """How to set the strength of a PEFT adapter: on top of its own alpha/rank.

    Raises UsageError where the model has no adapter of this name.
    """
    from peft.tuners.lora import LoraLayer

    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and adapter in m.scaling]
    if not layers:
        raise UsageError(
            f"the model has no LoRA named {adapter!r}: call model.add_adapter(LoraConfig(...), "
            f"adapter_name={adapter!r}) first"
        )

    def set_scale(scale: float) -> None:
        for layer in layers:
            layer.set_scale(adapter, scale)

    return set_scale


def check_range(record: SliderRecord | None) -> tuple[float, float]:
    """(low, high) to train at; -1 and 1 where nothing is given.

    Raises UsageError unless low ≤ 0 < high: at 0 a LoRA does nothing, so a range that has no 0
    in it, such as 2 to 4, can be used at, but is trained as 0 to 4.
    """
    if record is None:
        return -1.0, 1.0
    if not record.low <= 0 < record.high:
        meant = f"0 to {record.high:g}" if record.low > 0 else f"{record.low:g} to {-record.low:g}"
        raise UsageError(
            f"a slider is trained from a strength of 0 or below to one above 0, not "
            f"{record.low:g} to {record.high:g}: train it for {meant}"
        )
    return record.low, record.high
