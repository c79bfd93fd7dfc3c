"""The terms of a training loss: small frozen objects that hold hyper-parameters only.

Each takes a `LossBatch` and gives a `PerSample`; `LossSum` (total.py) adds them up. Those with
`is_base` hold the diffusion loss itself: a sum has one of them.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training import functional as L
from lora_prep.training.batch import (
    Countable,
    LossBatch,
    PairInputs,
    PerSample,
    SliderInputs,
    Term,
)
from lora_prep.training.shapes import flags, same_shape

__all__ = [
    "Countable",
    "Diffusion",
    "FaceWeighted",
    "InvertedMaskPrior",
    "LossBatch",
    "Masked",
    "OutputPreservation",
    "PairInputs",
    "PairedSlider",
    "PerSample",
    "PriorPreservation",
    "Slider",
    "SliderInputs",
    "Term",
]


@dataclass(frozen=True)
class Diffusion:
    """The base loss: `diffusion_loss` of every instance image.

    Class images count here only while the sum has no `PriorPreservation`.
    """

    min_snr: float | None = None
    """γ of min-SNR weighting (5 is usual); None for none."""

    name: ClassVar[str] = "diffusion"
    is_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_gamma(self.min_snr)

    @property
    def requires(self) -> tuple[str, ...]:
        """With min-SNR the objective and the noise level."""
        return _for_min_snr(self.min_snr)

    def weights(self, batch: LossBatch) -> Tensor:
        """1 for instance images."""
        return _instances(batch)

    def __call__(self, batch: LossBatch) -> PerSample:
        """The loss of each sample."""
        loss = L.diffusion_loss(batch.pred, batch.target)
        return PerSample(_min_snr(loss, batch, self.min_snr), self.weights(batch))


@dataclass(frozen=True)
class Masked:
    """The base loss where the mask is: `masked_loss`. Takes the place of `Diffusion`.

    With `normalize="sample"` an image whose mask is black does not count at all, with "batch" each
    counts by its mask's mean, with "none" all count alike.
    """

    normalize: L.Normalize | None = None
    floor: float | None = None
    like: L.Trainer | None = None
    min_snr: float | None = None

    name: ClassVar[str] = "masked"
    is_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_gamma(self.min_snr)
        one = torch.ones(1, 1)
        L.mask_weights(one, one, normalize=self.normalize, floor=self.floor, like=self.like)

    @property
    def requires(self) -> tuple[str, ...]:
        """The mask."""
        return ("mask", *_for_min_snr(self.min_snr))

    def weights(self, batch: LossBatch) -> Tensor:
        """How much each instance image counts."""
        return self._weighted(batch)[1]

    def __call__(self, batch: LossBatch) -> PerSample:
        """The loss of each sample."""
        weights, counts, how = self._weighted(batch)
        error = L.squared_error(batch.pred, batch.target)
        loss = L.weighted(error, weights, normalize=how != "none")
        return PerSample(_min_snr(loss, batch, self.min_snr), counts)

    def _weighted(self, batch: LossBatch) -> tuple[Tensor, Tensor, L.Normalize]:
        """The weight of each element, that of each sample, and the normalisation."""
        assert batch.mask is not None
        weights, how = L.mask_weights(
            batch.mask, batch.pred, normalize=self.normalize, floor=self.floor, like=self.like
        )
        weights = weights.detach()
        return weights, _instances(batch) * _count(weights, how), how


@dataclass(frozen=True)
class FaceWeighted:
    """The base loss, more at the face: `face_weighted_loss`. Takes the place of `Diffusion`."""

    face_weight: float
    """Added at the face: 1 trains it twice as much as the rest."""
    normalize: bool = False
    min_snr: float | None = None

    name: ClassVar[str] = "face_weighted"
    is_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_gamma(self.min_snr)
        if not (math.isfinite(self.face_weight) and self.face_weight >= 0):
            raise UsageError(f"face_weight is {self.face_weight}: give a number from 0 upwards")

    @property
    def requires(self) -> tuple[str, ...]:
        """The face mask."""
        return ("face_mask", *_for_min_snr(self.min_snr))

    def weights(self, batch: LossBatch) -> Tensor:
        """1 for instance images."""
        return _instances(batch)

    def __call__(self, batch: LossBatch) -> PerSample:
        """The loss of each sample."""
        assert batch.face_mask is not None
        loss = L.face_weighted_loss(
            batch.pred,
            batch.target,
            batch.face_mask,
            weight=self.face_weight,
            normalize=self.normalize,
        )
        return PerSample(_min_snr(loss, batch, self.min_snr), self.weights(batch))


@dataclass(frozen=True)
class InvertedMaskPrior:
    """Outside the mask, stay with the base model: `inverted_mask_prior_loss`.

    With `normalize="sample"` samples without an outside do not count, with "batch" each counts by
    how much lies outside, with "none" all count alike.
    """

    normalize: L.Normalize = "sample"

    name: ClassVar[str] = "inverted_mask_prior"
    requires: ClassVar[tuple[str, ...]] = ("mask", "base_pred")

    def __post_init__(self) -> None:
        one = torch.ones(1, 1)
        L.outside_weights(one, one, self.normalize)

    def weights(self, batch: LossBatch) -> Tensor:
        """How much each sample counts."""
        return _count(self._outside(batch), self.normalize).expand(len(batch.pred))

    def __call__(self, batch: LossBatch) -> PerSample:
        """The loss of each sample."""
        assert batch.base_pred is not None
        same_shape(batch.pred, batch.base_pred, "base_pred")
        error = L.squared_error(batch.pred, batch.base_pred.detach())
        loss = L.weighted(error, self._outside(batch), normalize=self.normalize != "none")
        return PerSample(loss, self.weights(batch))

    def _outside(self, batch: LossBatch) -> Tensor:
        assert batch.mask is not None
        return L.outside_weights(batch.mask, batch.pred, self.normalize).detach()


@dataclass(frozen=True)
class PriorPreservation:
    """The loss of the class images, on their own: its weight in the sum is DreamBooth's λ.

    The base term then leaves class images out, so that the sum is
    mean(L of instances) + λ·mean(L of class images).
    """

    min_snr: float | None = None

    name: ClassVar[str] = "prior_preservation"

    def __post_init__(self) -> None:
        _check_gamma(self.min_snr)

    @property
    def requires(self) -> tuple[str, ...]:
        """Which images are class images."""
        return ("is_prior", *_for_min_snr(self.min_snr))

    def weights(self, batch: LossBatch) -> Tensor:
        """1 for class images."""
        assert batch.is_prior is not None
        flags(batch.is_prior, len(batch.pred), "is_prior")
        return batch.is_prior.float()

    def __call__(self, batch: LossBatch) -> PerSample:
        """The loss of each sample."""
        loss = L.diffusion_loss(batch.pred, batch.target)
        return PerSample(_min_snr(loss, batch, self.min_snr), self.weights(batch))


@dataclass(frozen=True)
class OutputPreservation:
    """Keep what the class prompt gives, without class images: `output_preservation_loss`."""

    name: ClassVar[str] = "output_preservation"
    requires: ClassVar[tuple[str, ...]] = ("preserved_pred", "preserved_base")

    def weights(self, batch: LossBatch) -> Tensor:
        """1 for each sample; the second forward has as many as the first."""
        return _ones(batch.pred)

    def __call__(self, batch: LossBatch) -> PerSample:
        """The loss of each sample."""
        assert batch.preserved_pred is not None
        assert batch.preserved_base is not None
        loss = L.output_preservation_loss(batch.preserved_pred, batch.preserved_base)
        return PerSample(loss, self.weights(batch))


@dataclass(frozen=True)
class Slider:
    """One side of a textual concept slider: `slider_loss`. Takes the place of `Diffusion`."""

    strength: float = 4.0
    renormalize: bool = False

    name: ClassVar[str] = "slider"
    requires: ClassVar[tuple[str, ...]] = ("slider",)
    is_base: ClassVar[bool] = True

    def weights(self, batch: LossBatch) -> Tensor:
        """1 for each sample."""
        return _ones(batch.pred)

    def __call__(self, batch: LossBatch) -> PerSample:
        """The loss of each sample."""
        side = batch.slider
        assert side is not None
        loss = L.slider_loss(
            batch.pred,
            side.neutral,
            side.positive,
            side.negative,
            direction=side.direction,
            strength=self.strength,
            renormalize=self.renormalize,
        )
        return PerSample(loss, self.weights(batch))


@dataclass(frozen=True)
class PairedSlider:
    """Both sides of an image-pair slider: `paired_slider_loss`. Takes the place of `Diffusion`."""

    name: ClassVar[str] = "paired_slider"
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    is_base: ClassVar[bool] = True

    def weights(self, batch: LossBatch) -> Tensor:
        """1 for each sample."""
        return _ones(batch.pred)

    def __call__(self, batch: LossBatch) -> PerSample:
        """The loss of each sample."""
        low = batch.pair
        assert low is not None
        loss = L.paired_slider_loss(batch.pred, low.pred, batch.target, low.target)
        return PerSample(loss, self.weights(batch))


def _count(weights: Tensor, how: L.Normalize) -> Tensor:
    """How much a sample counts: not at all where it has no weight, by its mean, or as any other.

    What "batch" divides by is the sum of these over the whole step (`LossSum`), not one batch's.
    """
    mean = weights.flatten(1).mean(1)
    if how == "batch":
        return mean
    return torch.ones_like(mean) if how == "none" else (mean > 0).to(mean.dtype)


def _ones(x: Tensor) -> Tensor:
    return torch.ones(len(x), device=x.device)


def _instances(batch: LossBatch) -> Tensor:
    """1 for all but class images."""
    if batch.is_prior is None:
        return _ones(batch.pred)
    flags(batch.is_prior, len(batch.pred), "is_prior")
    return 1 - batch.is_prior.float()


def _check_gamma(gamma: float | None) -> None:
    if gamma is not None and not (math.isfinite(gamma) and gamma > 0):
        raise UsageError(f"min_snr={gamma}: γ is a number above 0 (5 is usual), or None")


def _for_min_snr(gamma: float | None) -> tuple[str, ...]:
    return () if gamma is None else ("objective", "t")


def _min_snr(loss: Tensor, batch: LossBatch, gamma: float | None) -> Tensor:
    if gamma is None:
        return loss
    assert batch.objective is not None
    assert batch.t is not None
    return loss * batch.objective.min_snr_weight(batch.t, gamma)
