"""What goes into a loss and what comes out of a term: typed bundles, and the term's contract."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lora_prep.training.objectives import Objective
from lora_prep.training.shapes import Weights


@dataclass(frozen=True)
class PerSample:
    """A term for each sample. Its value is sum(loss · weight) / sum(weight)."""

    loss: Float[Tensor, " B"]
    weight: Float[Tensor, " B"]
    """How much each sample counts, without gradient. 0: this sample has no such term."""


@dataclass(frozen=True)
class SliderInputs:
    """What a textual concept slider needs: base predictions (adapter off) for the same `noisy`."""

    neutral: Float[Tensor, "B ..."]
    positive: Float[Tensor, "B ..."]
    negative: Float[Tensor, "B ..."]
    direction: float = 1.0
    """Sign of the adapter's scale while `pred` was made: +1 or -1."""


@dataclass(frozen=True)
class PairInputs:
    """The low side of an image-pair slider: the adapter's scale was negated for `pred`."""

    pred: Float[Tensor, "B ..."]
    target: Float[Tensor, "B ..."]


@dataclass(frozen=True)
class LossBatch:
    """Everything that a term may look at. Only `pred` and `target` are always there.

    Latents are (B,C,h,w), (B,C,T,h,w) or packed tokens (B,N,D); masks are anything `fit_mask`
    takes for them, 1 = train.
    """

    pred: Float[Tensor, "B ..."]
    """The model's output, with gradient."""
    target: Float[Tensor, "B ..."]
    """What it should have been: `Objective.target`."""
    objective: Objective | None = None
    timesteps: Int[Tensor, " B"] | Float[Tensor, " B"] | None = None
    """Index into the noise schedule (epsilon, v_prediction, sample)."""
    sigmas: Float[Tensor, " B"] | None = None
    """Noise level from 0 to 1 (flow matching): of 1000 timesteps, timestep / 1000."""
    noisy: Float[Tensor, "B ..."] | None = None
    """The model's input x_t."""
    mask: Weights | None = None
    """1 = train, 0 = ignore: divide 8-bit masks by 255. Checked on the CPU only."""
    face_mask: Weights | None = None
    """1 on the face, 0 elsewhere; likewise."""
    is_prior: Bool[Tensor, " B"] | None = None
    """True for class images."""
    base_pred: Float[Tensor, "B ..."] | None = None
    """The same forward with the adapter off."""
    preserved_pred: Float[Tensor, "B ..."] | None = None
    """A second forward with the class prompt, adapter on (output preservation)."""
    preserved_base: Float[Tensor, "B ..."] | None = None
    """The same with the adapter off."""
    step: int | None = None
    """Optimizer step from 0, for weights that change and every-N terms. Equal in all processes."""
    identity: Any = None
    """`identity.IdentityInputs`, made by the caller."""
    slider: SliderInputs | None = None
    pair: PairInputs | None = None

    @property
    def t(self) -> Tensor | None:
        """What the objective calls time: sigmas for flow matching, else timesteps."""
        if self.objective is not None:
            return self.sigmas if self.objective.is_flow else self.timesteps
        return self.timesteps if self.timesteps is not None else self.sigmas


@runtime_checkable
class Term(Protocol):
    """A term of the loss."""

    @property
    def name(self) -> str:
        """What kind of term it is, as in configuration files."""
        ...

    @property
    def requires(self) -> tuple[str, ...]:
        """Fields (or properties) of `LossBatch` that must not be None."""
        ...

    def __call__(self, batch: LossBatch) -> PerSample:
        """The term for each sample."""
        ...


@runtime_checkable
class Countable(Protocol):
    """A term that knows its samples' weights before the model has run.

    Needed for `LossSum.counts`, which makes gradient accumulation exact.
    """

    def weights(self, batch: LossBatch) -> Tensor:
        """`PerSample.weight` of this batch, (B,), without looking at `pred` or `target`."""
        ...
