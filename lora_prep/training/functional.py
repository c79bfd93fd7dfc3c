"""The losses as pure functions: tensors in, one value a sample out.

They all share this:

- `pred` and `target` are latents (B,C,h,w), video latents (B,C,T,h,w) or packed tokens (B,N,D), of
  equal shape. The result is (B,): take its mean, weigh it, or hand it to `LossSum`.
- Arithmetic is in float32 whatever comes in (float64 stays float64).
- Nothing is changed in place, nothing waits for the device (no `.item()`, no branch on a value),
  and each is one graph for `torch.compile(fullgraph=True)`.
- Masks are 1 = train, 0 = ignore, in any shape that `shapes.fit_mask` takes; they are broadcast,
  never written out, and have gradient only if you ask for it.
- A sample whose mask is all 0 has loss 0 and gradient 0, never NaN. `terms.Masked` also leaves it
  out of the mean.
- ShapeError (a UsageError and a ValueError) says which tensors do not fit.

Below, e = (pred − target)², C·h·w elements a sample.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.shapes import (
    ShapeError,
    Weights,
    as_float,
    fit_mask,
    flags,
    same_shape,
    shape,
    spread,
)

Normalize = Literal["sample", "batch", "none"]
Trainer = Literal["kohya", "diffusion-pipe", "ai-toolkit", "onetrainer", "simpletuner"]

_LIKE: dict[str, tuple[Normalize, float]] = {
    "kohya": ("none", 0.0),
    "diffusion-pipe": ("none", 0.0),
    "simpletuner": ("none", 0.0),
    "ai-toolkit": ("batch", 0.0),
    "onetrainer": ("none", 0.1),
}
"""Each trainer's normalisation and default weight outside the mask."""


def diffusion_loss(
    pred: Float[Tensor, "B ..."], target: Float[Tensor, "..."]
) -> Float[Tensor, " B"]:
    """Mean squared error of each sample: mean(e). (B, ...) → (B,).

    Source: Ho 2020 (arXiv 2006.11239), equation 14, for whichever objective made the target.
    """
    same_shape(pred, target, "target")
    return _mean(squared_error(pred, target))


def masked_loss(
    pred: Float[Tensor, "B ..."],
    target: Float[Tensor, "..."],
    mask: Weights,
    *,
    normalize: Normalize | None = None,
    floor: float | None = None,
    like: Trainer | None = None,
) -> Float[Tensor, " B"]:
    """Squared error where the mask is, (B, ...) → (B,). m = max(mask, floor):

    - `normalize="sample"` (default): Σ(e·m)/Σm of each sample. A small face weighs as much as a
      large one, and scaling a mask changes nothing (while the floor is 0).
    - `normalize="batch"`: mean(e·m) of each sample over mean(m) of the batch. Its mean over the
      samples is Σ(e·m)/Σm over the batch.
    - `normalize="none"`: mean(e·m) of each sample. A small face weighs little.

    `floor` (default 0): the weight outside, from 0 to 1.

    `like` takes both from a trainer, so that its `.mean()` is that trainer's loss; what you give
    beside it still counts:

    | like | mean over the batch | read in |
    |---|---|---|
    | `kohya` | mean_b(mean(e·m)), times your weight of each sample | sd-scripts |
    | `diffusion-pipe`, `simpletuner` | mean(e·m) | |
    | `ai-toolkit` | mean(e·m/mean(m)), m = floor + (1−floor)·mask (`mask_min_value`) | |
    | `onetrainer` | mean(e·clamp(mask, 0.1, 1)); with `normalize="sample"` its normalised loss | |

    Unlike ai-toolkit's, a batch of black masks gives 0, not NaN.
    """
    same_shape(pred, target, "target")
    weights, how = mask_weights(mask, pred, normalize=normalize, floor=floor, like=like)
    return _normalized(squared_error(pred, target), weights, how)


def face_weighted_loss(
    pred: Float[Tensor, "B ..."],
    target: Float[Tensor, "..."],
    face_mask: Weights,
    *,
    weight: float,
    normalize: bool = False,
) -> Float[Tensor, " B"]:
    """Squared error everywhere, more at the face: mean(e·(1 + weight·mask)). (B, ...) → (B,).

    It holds the base loss already: use it instead of `diffusion_loss`, never beside it. With
    `normalize` it is divided by mean(1 + weight·mask), so that large faces and large weights do
    not raise the learning rate.
    """
    _not_negative("weight", weight)
    same_shape(pred, target, "target")
    weights = 1 + weight * fit_mask(face_mask, pred, "face_mask")
    return weighted(squared_error(pred, target), weights, normalize=normalize)


def inverted_mask_prior_loss(
    pred: Float[Tensor, "B ..."],
    base_pred: Float[Tensor, "..."],
    mask: Weights,
    *,
    normalize: Normalize = "sample",
) -> Float[Tensor, " B"]:
    """Outside the mask, stay with the base model: Σ(d·(1−m))/Σ(1−m), d = (pred − base_pred)².

    (B, ...) → (B,). `base_pred` is the same forward with the adapter off; no gradient goes there.
    A masked loss only learns nothing outside, it does not protect it: this does. The mask is
    clamped to [0, 1]; an all-white one gives 0.

    `normalize` as in `masked_loss`, with 1 − m for m: "batch" is ai-toolkit's
    `inverted_mask_prior`, "none" is OneTrainer's prior outside the mask where you give
    `mask.clamp_min(unmasked_weight)`; both then take the mean.
    """
    same_shape(pred, base_pred, "base_pred")
    outside = outside_weights(mask, pred, normalize)
    return _normalized(squared_error(pred, base_pred.detach()), outside, normalize)


def prior_preservation_loss(
    pred: Float[Tensor, "B ..."],
    target: Float[Tensor, "..."],
    is_prior: Bool[Tensor, "..."],
    *,
    weight: float,
) -> Float[Tensor, " B"]:
    """Instance and class images in one batch, (B, ...) → (B,).

    The mean of the result is mean(L of instances) + weight·mean(L of class images), L = mean(e),
    as in DreamBooth (Ruiz 2023, arXiv 2208.12242) and diffusers, however many there are of each.
    A side without samples adds nothing. In `LossSum` use `terms.PriorPreservation`, which keeps
    the two counts apart across micro-batches.
    """
    _not_negative("weight", weight)
    same_shape(pred, target, "target")
    flags(is_prior, len(pred), "is_prior")
    loss = _mean(squared_error(pred, target))
    prior = is_prior.to(loss.dtype)
    share = _divide(1 - prior, (1 - prior).mean()) + weight * _divide(prior, prior.mean())
    return loss * share


def output_preservation_loss(
    pred: Float[Tensor, "B ..."], base_pred: Float[Tensor, "..."]
) -> Float[Tensor, " B"]:
    """Keep what the class prompt gives: mean((pred − base_pred)²). (B, ...) → (B,).

    `pred` is a second forward of the same noisy latents with the class prompt ("a person"),
    `base_pred` the same with the adapter off; no gradient goes there. Preserves the class without
    class images. Source: ai-toolkit's differential output preservation.
    """
    same_shape(pred, base_pred, "base_pred")
    return _mean(squared_error(pred, base_pred.detach()))


def identity_loss(
    embedding: Float[Tensor, "B D"], reference: Float[Tensor, "..."]
) -> Float[Tensor, " B"]:
    """1 − cos(embedding, reference), from 0 (same direction) to 2. (B,D) → (B,).

    `reference` is (B,D), or (D,) or (1,D) for one person; neither needs unit length. The gradient
    stays finite at a zero embedding. Source: ArcFace's similarity (Deng 2019, arXiv 1801.07698).
    """
    one_for_all = reference.shape in (embedding.shape[1:], (1, *embedding.shape[1:]))
    if embedding.ndim != 2 or not (one_for_all or reference.shape == embedding.shape):
        raise ShapeError(
            f"embedding is {shape(embedding)} and reference {shape(reference)}: "
            "give B×D and B×D, or one reference of D for all"
        )
    e, r = as_float(embedding), as_float(reference)
    return 1 - F.cosine_similarity(e, r.reshape(-1, r.shape[-1]), dim=1)


def slider_targets(
    neutral: Float[Tensor, "B ..."],
    positive: Float[Tensor, "..."],
    negative: Float[Tensor, "..."],
    *,
    strength: float = 4.0,
    renormalize: bool = False,
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
    """What a textual slider should predict at scale +1 and at −1, both (B, ...), no gradient.

    neutral ± strength·(positive − negative): predictions of the base model (adapter off) for the
    same noisy latents, under the target's prompt and under the attribute's two ends. `negative` is
    the unconditional prediction in Concept Sliders (Gandikota 2023, arXiv 2311.12092: strength 4,
    adapter alpha 1). To keep other attributes, give the means over their prompts.

    `renormalize`: each target gets the mean and standard deviation of `neutral`, sample by sample,
    as ai-toolkit's concept slider does (its strength is 3).
    """
    same_shape(neutral, positive, "positive")
    same_shape(neutral, negative, "negative")
    base = as_float(neutral.detach())
    towards = strength * (as_float(positive.detach()) - as_float(negative.detach()))
    plus, minus = base + towards, base - towards
    if renormalize:
        return _with_statistics_of(base, plus), _with_statistics_of(base, minus)
    return plus, minus


def slider_loss(
    pred: Float[Tensor, "B ..."],
    neutral: Float[Tensor, "..."],
    positive: Float[Tensor, "..."],
    negative: Float[Tensor, "..."],
    *,
    direction: float = 1.0,
    strength: float = 4.0,
    renormalize: bool = False,
) -> Float[Tensor, " B"]:
    """One side of a textual slider: MSE to `slider_targets`. (B, ...) → (B,).

    `pred` was made with the adapter at scale `direction`, +1 or −1. Train both sides, but run
    `backward()` of one before changing the scale for the other: with gradient checkpointing the
    forward is run again, with the scale as it is then (measured: a gradient 66 % off).
    """
    if direction not in (1, -1):
        raise UsageError(f"direction={direction}: the adapter's scale is +1 or -1")
    same_shape(pred, neutral, "neutral")
    plus, minus = slider_targets(
        neutral, positive, negative, strength=strength, renormalize=renormalize
    )
    return _mean(squared_error(pred, plus if direction > 0 else minus))


def paired_slider_loss(
    pred_high: Float[Tensor, "B ..."],
    pred_low: Float[Tensor, "..."],
    target_high: Float[Tensor, "..."],
    target_low: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, " B"]:
    """A slider from image pairs: MSE(pred_high, target_high) + MSE(pred_low, target_low).

    (B, ...) → (B,). `pred_high` is for the noised image with more of the attribute, adapter at
    +s; `pred_low` for the one with less, at −s; the same noise and timestep for both. Predicting
    noise, both targets are that noise, and `target_low` may be left out; with v-prediction and
    flow matching they differ. With gradient checkpointing compute the two sides as two
    `diffusion_loss`, each with its own `backward()` (see `slider_loss`).
    Source: visual sliders, Gandikota 2023 (arXiv 2311.12092).
    """
    same_shape(pred_high, pred_low, "pred_low")
    same_shape(pred_high, target_high, "target_high")
    low = target_high if target_low is None else target_low
    same_shape(pred_high, low, "target_low")
    return _mean(squared_error(pred_high, target_high)) + _mean(squared_error(pred_low, low))


def mask_weights(
    mask: Weights,
    pred: Float[Tensor, "B ..."],
    *,
    normalize: Normalize | None = None,
    floor: float | None = None,
    like: Trainer | None = None,
) -> tuple[Float[Tensor, "..."], Normalize]:
    """The weights that `masked_loss` multiplies the error with, and how it normalises.

    Raises UsageError for options that do not exist, ShapeError for a mask that does not fit.
    """
    if like is not None and like not in get_args(Trainer):
        raise UsageError(f"like={like!r} is no trainer known: {', '.join(get_args(Trainer))}")
    as_like, floor_like = _LIKE[like] if like else ("sample", 0.0)
    how: Normalize = as_like if normalize is None else normalize
    least = floor_like if floor is None else floor
    _known(how)
    if not 0 <= least <= 1:
        raise UsageError(f"floor={least}: the weight outside the mask is from 0 to 1")
    weights = fit_mask(mask, pred)
    if least == 0:
        return weights, how
    linear = like == "ai-toolkit"
    return least + (1 - least) * weights if linear else weights.clamp_min(least), how


def outside_weights(
    mask: Weights, pred: Float[Tensor, "B ..."], normalize: Normalize
) -> Float[Tensor, "..."]:
    """1 − mask, from 0 to 1. Raises UsageError, and ShapeError for a mask that does not fit."""
    _known(normalize)
    return 1 - fit_mask(mask, pred).clamp(0, 1)


def weighted(
    x: Float[Tensor, "B ..."], weights: Float[Tensor, "..."], *, normalize: bool
) -> Float[Tensor, " B"]:
    """Of each sample Σ(x·w)/Σw, and 0 where all weights are 0; else mean(x·w). (B, ...) → (B,).

    `weights` broadcasts to `x`. Where one weight holds for several elements (all channels), those
    are added up first: the product is then small, and `x` is read once.
    """
    shared = tuple(i for i in range(1, x.ndim) if weights.shape[i] == 1 and x.shape[i] > 1)
    summed = x.sum(shared, keepdim=True) if shared else x
    total = (summed * weights).flatten(1).sum(1)
    if normalize:
        return _divide(total, weights.flatten(1).sum(1) * spread(weights, x))
    return total / math.prod(x.shape[1:])


def squared_error(
    pred: Float[Tensor, "B ..."], target: Float[Tensor, "..."]
) -> Float[Tensor, "B ..."]:
    """e = (pred − target)² of each element, in float32 or float64."""
    # Keeps only its inputs for backward, where a difference and its square keep one more tensor.
    return F.mse_loss(as_float(pred), as_float(target), reduction="none")


def _normalized(error: Tensor, weights: Tensor, how: Normalize) -> Tensor:
    """Each sample's weighted error, divided by its own weights, the batch's, or nothing."""
    loss = weighted(error, weights, normalize=how == "sample")
    return _divide(loss, weights.mean()) if how == "batch" else loss


def _known(how: Normalize) -> None:
    if how not in get_args(Normalize):
        raise UsageError(f"normalize={how!r}: take one of {', '.join(get_args(Normalize))}")


def _mean(x: Tensor) -> Tensor:
    """Mean of each sample."""
    return x.flatten(1).mean(1)


def _divide(x: Tensor, by: Tensor) -> Tensor:
    """x/by, and 0 where `by` is 0, in the gradient too."""
    some = by != 0
    return torch.where(some, x, 0) / torch.where(some, by, 1)


def _with_statistics_of(base: Tensor, x: Tensor) -> Tensor:
    """`x` with the mean and standard deviation of `base`, sample by sample."""
    dims = tuple(range(1, x.ndim))
    std, mean = torch.std_mean(x, dims, keepdim=True)
    base_std, base_mean = torch.std_mean(base, dims, keepdim=True)
    return (x - mean) / (std + 1e-8) * base_std + base_mean


def _not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{name}={value}: a weight is a number from 0 upwards")
