"""The identity term: 1 − cos between the face in the predicted x0 and the subject's embedding.

Nothing is detected in the step. Landmarks and references come with the batch, noise levels that
are too high are left out before anything is decoded, and only the latents around the face are
decoded. The weight's warm-up is `LossSum`'s:
`LossSum({..., "identity": (WarmUp(0.1, 500), IdentityTerm(...))})`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.batch import LossBatch, PerSample
from lora_prep.training.functional import identity_loss
from lora_prep.training.identity.align import visible
from lora_prep.training.identity.decode import Decode, decode_faces
from lora_prep.training.identity.onnx_module import Recogniser
from lora_prep.training.identity.reference import embed_faces
from lora_prep.training.objectives import Objective
from lora_prep.training.shapes import ShapeError, flags

Weighting = Literal["none", "linear", "alpha_bar"]

LEAST_VISIBLE = 0.5
"""The part of the aligned crop that the image has to hold: the rest of it would be black."""


@dataclass(frozen=True, eq=False)
class IdentityInputs:
    """What the identity term needs beside the latents: one face for each of the B samples.

    Keep `landmarks`, `valid` and `t` on the CPU, where a data loader makes them: they choose what
    is computed, and on a device the choice would wait for it. Landmarks and `valid` are copied to
    the CPU if they are not there.
    """

    landmarks: Float[Tensor, "B 5 2"]
    """In pixels of the image that was encoded; (0, 0) is the centre of its upper left pixel. Faces
    that lie mostly outside of it have no term, and a warning says so."""
    reference: Float[Tensor, "B D"] | Float[Tensor, " D"]
    """Of each sample, or of all."""
    valid: Bool[Tensor, " B"] | None = None
    """False: no face, no term. Landmarks that are not finite or in one point are never valid."""
    t: Int[Tensor, " B"] | Float[Tensor, " B"] | None = None
    """The batch's timesteps or sigmas on the CPU. Needed only where the batch's are on a device:
    without it every valid sample is computed, and those above the limit are masked afterwards."""

    def __post_init__(self) -> None:
        """Move to the CPU what decides, and find faces that cannot be aligned."""
        landmarks = self.landmarks.detach().float().cpu()
        spread = (landmarks - landmarks.mean(1, keepdim=True)).abs().amax((1, 2))
        valid = torch.isfinite(landmarks).all(2).all(1) & (spread > 1e-3)
        if self.valid is not None:
            flags(self.valid, len(landmarks), "valid")
            valid = valid & self.valid.cpu()
        object.__setattr__(self, "landmarks", landmarks)
        object.__setattr__(self, "valid", valid)


@dataclass(frozen=True, eq=False)
class IdentityTerm:
    """`identity_loss` of the faces in the predicted x0, at low noise.

    Raises UsageError for settings that cannot be; called, for inputs that do not fit.
    """

    recogniser: Recogniser
    decode: Decode
    """Latents to pixels; see `diffusers_decoder`. A tiny decoder is enough, and much cheaper."""
    max_timestep: int = 250
    """Later timesteps have no term: for epsilon, the error of x0 grows by √(1−ᾱ)/√ᾱ (0.34 at 100,
    0.7 at 250, 1.6 at 500 of Stable Diffusion's 1000). Not for flow matching."""
    max_sigma: float = 0.25
    """The same for flow matching."""
    every: int = 1
    """Only at steps divisible by this; above 1 it needs `LossBatch(step=...)`."""
    weighting: Weighting = "none"
    """Multiplies each sample's loss: "linear" by (1 − t/T)², for flow matching (1 − σ)²;
    "alpha_bar" by ᾱ, for flow matching (1 − σ)². Gated samples do not count in the mean."""
    factor: int = 8
    """Pixels to a latent, in each direction."""
    margin: int | None = 2
    """Latents decoded around the face, or up to three more; None decodes the whole image. Less is
    cheaper, more is nearer to what the whole image would give. For TAESD's network, by where the
    face lies: 2 changes the crop by 0.2 to 1 % of its deviation (a grey level is about 2 %), 0 by
    2 to 13 %, 4 by at most 0.1 %. `benchmarks/identity.py` measures one case."""
    antialias: bool = True
    """Average faces larger than twice the recogniser's crop: see `align_faces`."""
    unpack: Callable[[Tensor], Tensor] | None = None
    """For packed tokens: x0 of several samples, (N,tokens,D), to latents (N,C,h,w)."""

    name: ClassVar[str] = "identity"
    requires: ClassVar[tuple[str, ...]] = ("identity", "objective", "t", "noisy")

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise UsageError(
                f"weighting={self.weighting!r}: take one of {', '.join(get_args(Weighting))}"
            )
        if self.every < 1 or self.factor < 1 or (self.margin is not None and self.margin < 0):
            raise UsageError(
                f"every={self.every} and factor={self.factor} have to be 1 or more, "
                f"margin={self.margin} 0 or more or None"
            )
        if self.max_timestep < 0 or not 0 <= self.max_sigma <= 1:
            raise UsageError(
                f"max_timestep={self.max_timestep} has to be 0 or more, "
                f"max_sigma={self.max_sigma} from 0 to 1"
            )

    def weights(self, batch: LossBatch) -> Tensor:
        """1 for samples that have the term now, else 0; without looking at `pred`."""
        rows, keep = self._active(batch)
        row_set = set(rows)
        chosen = torch.tensor([float(i in row_set) for i in range(len(batch.pred))])
        chosen = chosen.to(batch.pred.device, non_blocking=True)
        return chosen if keep is None else chosen * keep

    def __call__(self, batch: LossBatch) -> PerSample:
        """The loss of each sample, 0 where it has none. A step without any decodes nothing."""
        weight = self.weights(batch)
        rows, keep = self._active(batch)
        if not rows:
            return PerSample(torch.zeros_like(weight), weight)
        inputs, objective = _inputs(batch), batch.objective
        assert objective is not None
        assert batch.noisy is not None
        assert batch.t is not None
        noisy, pred, t = _take(batch.noisy, rows), _take(batch.pred, rows), _take(batch.t, rows)
        x0 = objective.x0(noisy, pred, t)
        if keep is not None:  # what does not count must not reach backward(), not even as NaN
            counts = _take(keep, rows).reshape(-1, *[1] * (x0.ndim - 1))
            x0 = torch.where(counts > 0, x0, 0)
        latents = x0 if self.unpack is None else self.unpack(x0)
        if latents.ndim != 4 or len(latents) != len(rows):
            raise ShapeError(
                f"x0 is {tuple(latents.shape)}: the identity term decodes (N,C,h,w). "
                "Give `unpack` for packed tokens or video"
            )
        pixels, landmarks = decode_faces(
            latents, inputs.landmarks[rows], self.decode, factor=self.factor, margin=self.margin
        )
        found = embed_faces(self.recogniser, pixels, landmarks, antialias=self.antialias)
        reference = self._reference(inputs, rows).to(found.device, non_blocking=True)
        loss = identity_loss(found, reference)
        loss = loss * self._weighting(objective, t)
        parts = list(torch.zeros_like(weight, dtype=loss.dtype))
        for i, value in zip(rows, loss, strict=True):
            parts[i] = value
        return PerSample(torch.stack(parts), weight)

    def _active(self, batch: LossBatch) -> tuple[list[int], Tensor | None]:
        """Samples to compute, chosen on the host; and (B,) flags on the device of which count.

        The flags are None where the host knows everything.
        """
        inputs, count = _inputs(batch), len(batch.pred)
        if len(inputs.landmarks) != count:
            raise ShapeError(
                f"{len(inputs.landmarks)} faces for {count} samples: give one for each"
            )
        if self.every > 1 and batch.step is None:
            raise UsageError(
                f"the identity term with every={self.every} needs the step, which is not given: "
                "give LossBatch(step=...), the optimizer step from 0"
            )
        if (batch.step or 0) % self.every:
            return [], None
        assert inputs.valid is not None
        rows, keep = inputs.valid, None
        assert batch.objective is not None
        assert batch.t is not None
        limit = self.max_sigma if batch.objective.is_flow else self.max_timestep
        t = batch.t if inputs.t is None else inputs.t
        if t.device.type == "cpu":
            rows = rows & (t <= limit)
        else:
            keep = t <= limit
        if batch.is_prior is not None:
            flags(batch.is_prior, count, "is_prior")
            instances = ~batch.is_prior
            if instances.device.type == "cpu":
                rows = rows & instances
            else:
                keep = instances if keep is None else keep & instances
        rows = self._in_the_image(rows, inputs, batch)
        return rows.nonzero().flatten().tolist(), None if keep is None else keep.float()

    def _in_the_image(self, rows: Tensor, inputs: IdentityInputs, batch: LossBatch) -> Tensor:
        """`rows` without the faces that a crop of the image has cut off."""
        if not rows.any():
            return rows
        one = batch.pred[:1].detach()
        latents = one if self.unpack is None else self.unpack(one)
        height, width = (self.factor * n for n in latents.shape[-2:])
        outside = rows & (visible(inputs.landmarks, height, width) < LEAST_VISIBLE)
        if outside.any():
            warnings.warn(
                f"{int(outside.sum())} of {int(rows.sum())} faces lie mostly outside of the image "
                f"({width} × {height} pixels by factor={self.factor}): they have no identity term. "
                "Where no crop cut them off, factor or the landmarks are wrong",
                stacklevel=2,
            )
        return rows & ~outside

    def _weighting(self, objective: Objective, t: Tensor) -> Tensor | float:
        if self.weighting == "none":
            return 1.0
        if self.weighting == "linear" and objective.alphas_cumprod is not None:
            return (1 - t.float() / len(objective.alphas_cumprod)).square()
        return objective.coefficients(t)[0].square()

    def _reference(self, inputs: IdentityInputs, rows: list[int]) -> Tensor:
        reference = inputs.reference.detach()
        if reference.shape[-1] == 0 or (
            reference.ndim == 2 and len(reference) != len(inputs.landmarks)
        ):
            raise ShapeError(
                f"reference is {tuple(reference.shape)}: give D numbers for each sample, or one "
                "reference for all; `lora-prep embed` and `read_reference` make it"
            )
        return reference if reference.ndim == 1 else _take(reference, rows)


def _inputs(batch: LossBatch) -> IdentityInputs:
    if not isinstance(batch.identity, IdentityInputs):
        raise UsageError(
            f"batch.identity is {type(batch.identity).__name__}: give IdentityInputs(landmarks, "
            "reference)"
        )
    return batch.identity


def _take(x: Tensor, rows: list[int]) -> Tensor:
    """x[rows], without an index on the device: such an index would wait for it."""
    return x if rows == list(range(len(x))) else torch.stack([x[i] for i in rows])
