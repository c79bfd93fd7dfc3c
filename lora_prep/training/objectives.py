"""What a diffusion model is trained to predict: noising, targets and estimates.

All four objectives noise linearly, x_t = a·x0 + s·ε, and differ in (a, s) and in the target:

| prediction | a | s | target | x0 from the prediction p |
|---|---|---|---|---|
| `epsilon` (Ho 2020, arXiv 2006.11239) | √ᾱ | √(1−ᾱ) | ε | (x_t − s·p)/a |
| `v_prediction` (Salimans 2022, arXiv 2202.00512) | √ᾱ | √(1−ᾱ) | a·ε − s·x0 | a·x_t − s·p |
| `sample` | √ᾱ | √(1−ᾱ) | x0 | p |
| `flow_matching` (Esser 2024, arXiv 2403.03206) | 1−σ | σ | ε − x0 | x_t − σ·p |

Everything is computed in float32 (float64 stays), whatever comes in, and never waits for the
device. SNR = a²/s².
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.shapes import (
    ShapeError,
    as_float,
    from_0_to_1,
    per_sample,
    same_shape,
    shape,
)

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_matching"]
Density = Literal["uniform", "logit_normal"]

SMALLEST_ALPHA = 1e-4
"""Below it, x0 from predicted noise is a division by nearly nothing; it is kept finite."""


@dataclass(frozen=True, eq=False)
class Objective:
    """What the model predicts, and the noise schedule.

    `t` is, in every method, one value a sample, shaped (B,): for flow matching the noise level σ
    from 0 to 1 in floating point, which is timestep / 1000 where a pipeline counts timesteps; for
    the others the integer index into `alphas_cumprod`. Values out of range are a UsageError (σ) or
    torch's own IndexError on the CPU; on CUDA nothing is said of σ, since that would wait for the
    device, and an index is a device assertion.
    """

    prediction: Prediction
    alphas_cumprod: Float[Tensor, " T"] | None = None
    """ᾱ by timestep, falling. None for flow matching."""
    shift: float = 1.0
    """For flow matching: sampled noise levels are shifted by this (`shift_sigmas`)."""
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)
    """`alphas_cumprod` on each device that it was needed on."""

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise UsageError(
                f"no objective is called {self.prediction!r}: take one of "
                + ", ".join(get_args(Prediction))
            )
        if self.is_flow and self.alphas_cumprod is not None:
            raise UsageError("flow_matching has no alphas_cumprod: its time is sigma itself")
        if not self.is_flow and (self.alphas_cumprod is None or self.alphas_cumprod.ndim != 1):
            raise UsageError(f"{self.prediction} needs alphas_cumprod, one value a timestep")
        if not (math.isfinite(self.shift) and self.shift > 0):
            raise UsageError(f"shift is {self.shift}: it has to be above 0 (1 = no shift)")

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> "Objective":
        """The objective that a diffusers scheduler stands for.

        Flow-matching schedulers are known by their class name or by
        `prediction_type="flow_prediction"`; the others by `alphas_cumprod` and `prediction_type`.
        Raises UsageError for schedulers with neither (EDM, consistency models, ...).
        """
        kind = type(scheduler).__name__
        config = getattr(scheduler, "config", {})
        prediction = config.get("prediction_type", "epsilon")
        if "FlowMatch" in kind or prediction == "flow_prediction":
            # A dynamic shift depends on the image's size: see `flux_shift`.
            dynamic = config.get("use_dynamic_shifting", False)
            shift = 1.0 if dynamic else config.get("shift", config.get("flow_shift", 1.0))
            return cls("flow_matching", shift=float(shift))
        alphas = getattr(scheduler, "alphas_cumprod", None)
        if not isinstance(alphas, Tensor) or prediction not in get_args(Prediction):
            raise UsageError(
                f"{kind} (prediction_type={prediction!r}) is none of the objectives known: give "
                "the training scheduler, such as DDPMScheduler or FlowMatchEulerDiscreteScheduler, "
                "or build Objective(prediction, alphas_cumprod) yourself"
            )
        return cls(prediction, alphas.detach().clone())

    @property
    def is_flow(self) -> bool:
        """Whether time is σ, not an index."""
        return self.prediction == "flow_matching"

    def coefficients(self, t: Tensor) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(a, s) of x_t = a·x0 + s·ε for each sample.

        Raises ShapeError unless `t` is (B,), UsageError where an index stands for a σ or the
        other way round, or a σ on the CPU is not from 0 to 1.
        """
        if t.ndim != 1:
            raise ShapeError(f"t is {shape(t)}: give one value a sample, shaped (B,)")
        if self.is_flow:
            if not t.is_floating_point():
                raise UsageError("flow_matching takes sigmas from 0 to 1, not integer timesteps")
            from_0_to_1(t, "sigma", "give timestep / 1000 where you have timesteps")
            sigma = as_float(t)
            return 1 - sigma, sigma
        if t.is_floating_point() or t.dtype == torch.bool:
            raise UsageError(f"{self.prediction} takes integer timesteps, not {t.dtype}")
        alpha_bar = self._alphas(t.device)[t]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a·x0 + s·ε, shaped as `x0`, (B, ...). float32 or float64."""
        a, s = self._like(x0, t, noise, "noise")
        return a * x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model should give, shaped as `x0`, (B, ...). float32 or float64."""
        a, s = self._like(x0, t, noise, "noise")
        x, e = as_float(x0), as_float(noise)
        return {
            "epsilon": lambda: e.clone(),
            "v_prediction": lambda: a * e - s * x,
            "sample": lambda: x.clone(),
            "flow_matching": lambda: e - x,
        }[self.prediction]()

    def x0(self, noisy: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """The clean sample that a prediction stands for, (B, ...), differentiable.

        For `epsilon` an error of the prediction grows by s/a: 0.34 at t=100 of Stable Diffusion's
        1000, 1.6 at 500, 8.4 at 900. At zero terminal SNR nothing is known of x0: the result is
        finite there and means nothing.
        """
        a, s = self._like(noisy, t, pred, "pred")
        x, p = as_float(noisy), as_float(pred)
        return {
            "epsilon": lambda: (x - s * p) / a.clamp_min(SMALLEST_ALPHA),
            "v_prediction": lambda: a * x - s * p,
            "sample": lambda: p.clone(),
            "flow_matching": lambda: x - s * p,
        }[self.prediction]()

    def noise(self, noisy: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction stands for, (B, ...), differentiable."""
        a, s = self._like(noisy, t, pred, "pred")
        x, p = as_float(noisy), as_float(pred)
        return {
            "epsilon": lambda: p.clone(),
            "v_prediction": lambda: a * p + s * x,
            "sample": lambda: (x - a * p) / s.clamp_min(SMALLEST_ALPHA),
            "flow_matching": lambda: x + a * p,
        }[self.prediction]()

    def snr(self, t: Tensor) -> Float[Tensor, " B"]:
        """Signal-to-noise ratio a²/s²: 0 at zero terminal SNR, inf without noise."""
        a, s = self.coefficients(t)
        return a.square() / s.square()

    def min_snr_weight(self, t: Tensor, gamma: float = 5.0) -> Float[Tensor, " B"]:
        """Weight of each sample's loss by min-SNR-γ (Hang 2023, arXiv 2303.09556).

        min(SNR, γ) for the loss of x0, carried over to what the model predicts by
        L_ε = SNR·L_x0, L_v = (SNR+1)·L_x0 and, for flow matching, L_x0 = σ²·L_v. Finite at every
        t, zero terminal SNR included: the limit of min(SNR, γ)/SNR there is 1. Only `sample` at
        SNR = 0 weighs nothing.
        """
        if not (math.isfinite(gamma) and gamma > 0):
            raise UsageError(f"gamma is {gamma}: min-SNR needs a number above 0 (5 is usual)")
        a, s = self.coefficients(t)
        a2, s2 = a.square(), s.square()
        # min(SNR, γ)·s² = min(a², γ·s²) has no division that could fail.
        clipped = torch.minimum(a2, gamma * s2)
        if self.prediction == "epsilon":
            return torch.where(a2 > 0, clipped / torch.where(a2 > 0, a2, 1), 1)
        if self.prediction == "sample":
            return torch.where(s2 > 0, clipped / torch.where(s2 > 0, s2, 1), gamma)
        # v: s²·(SNR + 1) = a² + s² = 1. Flow: the weight is min(SNR, γ)·σ².
        return clipped

    def sample_t(
        self,
        count: int,
        *,
        density: Density = "uniform",
        mean: float = 0.0,
        std: float = 1.0,
        shift: float | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """`count` random times, (count,): float32 σ for flow matching, else int64 timesteps.

        `density`, `mean` and `std` as in `sample_levels`. A level u in [0, 1) is the timestep
        ⌊u·T⌋. `shift` replaces the objective's own (flow matching only; `flux_shift` computes
        the one that FLUX takes for an image's size).
        """
        u = sample_levels(
            count, density=density, mean=mean, std=std, generator=generator, device=device
        )
        if self.is_flow:
            return shift_sigmas(u, self.shift if shift is None else shift)
        if shift is not None:
            raise UsageError(f"{self.prediction} has no shift: that belongs to flow_matching")
        if self.alphas_cumprod is None:
            raise UsageError(f"{self.prediction} needs alphas_cumprod")
        steps = len(self.alphas_cumprod)
        return (u * steps).long().clamp_max(steps - 1)

    def _alphas(self, device: torch.device) -> Tensor:
        """ᾱ there, in floating point: copied once, and to a device without waiting for it."""
        if self.alphas_cumprod is None:
            raise UsageError(f"{self.prediction} needs alphas_cumprod")
        if device in self._copies:
            return self._copies[device]
        copy = as_float(self.alphas_cumprod.to(device, non_blocking=device.type != "cpu"))
        if not torch.compiler.is_compiling():  # a compiled graph may reuse its tensors' memory
            self._copies[device] = copy
        return copy

    def _like(self, x: Tensor, t: Tensor, other: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """(a, s), shaped to multiply with `x`, after checking the shapes."""
        if x.shape != other.shape:
            same_shape(x, other, name)
        per_sample(t, len(x), "t")
        a, s = self.coefficients(t)
        dims = (-1,) + (1,) * (x.ndim - 1)
        # In bfloat16 arithmetic, tensors of both kinds promote to float32.
        return a.reshape(dims), s.reshape(dims)


def sample_levels(
    count: int,
    *,
    density: Density = "uniform",
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, " count"]:
    """`count` random levels from 0 to 1, float32.

    `uniform`, or `logit_normal`: sigmoid of a normal distribution with `mean` and `std`, which
    favours the middle (Esser 2024, arXiv 2403.03206, section 3.1). Drawn on the generator's
    device: one on the CPU gives the same numbers on every device, at the price of a copy.
    """
    if density not in get_args(Density):
        raise UsageError(
            f"no density is called {density!r}: take one of {', '.join(get_args(Density))}"
        )
    if not std > 0:
        raise UsageError(f"std is {std}: it has to be above 0")
    where = generator.device if generator is not None else device
    if density == "uniform":
        u = torch.rand(count, generator=generator, device=where)
    else:
        u = torch.sigmoid(torch.randn(count, generator=generator, device=where) * std + mean)
    return u if device is None else u.to(device)


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """σ' = k·σ / (1 + (k−1)·σ): more training at high noise for k > 1, shaped as `sigmas`.

    Source: Esser 2024 (arXiv 2403.03206), section 5.3.2; k = 3 for Stable Diffusion 3.
    """
    if not (math.isfinite(shift) and shift > 0):
        raise UsageError(f"shift is {shift}: it has to be above 0 (1 = no shift)")
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def flux_shift(
    tokens: int,
    *,
    base: tuple[int, float] = (256, 0.5),
    top: tuple[int, float] = (4096, 1.15),
) -> float:
    """The shift that FLUX.1 takes for an image of so many packed tokens: exp(μ).

    μ is linear in the number of tokens, through `base` and `top`, each (tokens, μ). The defaults
    are FLUX.1's scheduler configuration (1024×1024 px are 4096 tokens).
    """
    slope = (top[1] - base[1]) / (top[0] - base[0])
    return math.exp(base[1] + slope * (tokens - base[0]))
