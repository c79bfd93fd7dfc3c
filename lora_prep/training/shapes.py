"""What the losses accept as input, and how they say that something does not fit."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lora_prep.errors import UsageError

Weights: TypeAlias = Float[Tensor, "..."] | Bool[Tensor, "..."]
"""A mask: 1 = train, 0 = ignore, anything between is a weight."""


ROUNDING = 1e-3
"""How far a weight or a noise level may be outside of 0 to 1."""


class ShapeError(UsageError, ValueError):
    """Tensors that do not fit together. Says which, their shapes, and what would fit."""


def as_float(x: Tensor) -> Tensor:
    """`x` in float32; float64 stays float64, so that gradients can be checked."""
    return x if x.dtype == torch.float64 else x.float()


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Whatever autocast is active there is not, inside."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def shape(x: Tensor) -> str:
    """The shape for a message, such as `4×16×64×64`."""
    return "×".join(str(n) for n in x.shape) or "a scalar"


def same_shape(pred: Tensor, other: Tensor, name: str) -> None:
    """Raise ShapeError unless `other` is shaped as the prediction, with a batch dimension.

    Nothing is broadcast here: (B,1,h,w) against (B,C,h,w) is a mistake, not a wish.
    """
    if pred.ndim < 2:
        raise ShapeError(f"pred is {shape(pred)}: it needs a batch and at least one more dimension")
    if pred.shape != other.shape:
        raise ShapeError(f"pred is {shape(pred)}, but {name} is {shape(other)}: give equal shapes")


def per_sample(x: Tensor, batch: int, name: str) -> None:
    """Raise ShapeError unless `x` has one value a sample, shaped (B,)."""
    if x.shape != (batch,):
        raise ShapeError(f"{name} is {shape(x)}: give one value a sample, shaped {batch}")


def flags(x: Tensor, batch: int, name: str) -> None:
    """Raise ShapeError unless `x` is (B,), UsageError unless it is bool."""
    per_sample(x, batch, name)
    if x.dtype != torch.bool:
        raise UsageError(f"{name} is {x.dtype}: give bool, such as {name}.bool()")


def from_0_to_1(x: Tensor, name: str, hint: str) -> None:
    """Raise UsageError where a value of `x` is not from 0 to 1, or NaN.

    Only of tensors on the CPU, outside of torch.compile: on a device it would have to be waited
    for, and there nothing is said.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.numel():
        return
    low, high = (float(v) for v in x.detach().aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise UsageError(f"{name} goes from {low:g} to {high:g}, not from 0 to 1: {hint}")


def fit_mask(mask: Tensor, pred: Tensor, name: str = "mask") -> Tensor:
    """`mask` in floating point with as many dimensions as `pred`, broadcastable to it.

    Accepted beside anything with the prediction's number of dimensions, each 1 or equal:

    | pred | mask |
    |---|---|
    | (B,C,h,w) | (B,h,w), or (h,w) for all samples |
    | (B,C,T,h,w) video | (B,1,h,w), (B,h,w) or (h,w) for all frames |
    | (B,N,D) packed tokens | (B,N) |

    Not expanded: a (B,1,h,w) mask is never written out over the channels.
    Raises ShapeError; UsageError for integers, since 0..255 or 0..1 is not for us to guess, and
    for values beyond 0 to 1 (`from_0_to_1`: only on the CPU).
    """
    if not mask.is_floating_point() and mask.dtype != torch.bool:
        raise UsageError(
            f"{name} is {mask.dtype}: give weights from 0 to 1 in floating point, or bool "
            "(resize_mask makes them of 8-bit masks)"
        )
    if mask.is_floating_point():
        from_0_to_1(mask, name, "divide an 8-bit mask by 255 (resize_mask does, given uint8)")
    view = mask
    if pred.ndim in (4, 5) and mask.ndim == 2:
        view = mask.reshape(1, *[1] * (pred.ndim - 3), *mask.shape)
    elif pred.ndim in (4, 5) and mask.ndim == 3:
        view = mask.reshape(mask.shape[0], *[1] * (pred.ndim - 3), *mask.shape[1:])
    elif pred.ndim == 5 and mask.ndim == 4 and mask.shape[1] == 1:
        view = mask.unsqueeze(2)
    elif pred.ndim == 3 and mask.ndim == 2:
        view = mask.unsqueeze(-1)
    if view.ndim != pred.ndim or any(
        m not in (1, p) for m, p in zip(view.shape, pred.shape, strict=True)
    ):
        hint = {
            3: "(B,N,1) or (B,N); pack_mask packs an image's mask",
            4: "(B,1,h,w), (B,h,w) or (h,w); resize_mask brings it to latent size",
            5: "(B,1,h,w), or (B,1,T,h,w) by frame; resize_mask brings it to latent size",
        }.get(pred.ndim, "one that broadcasts")
        raise ShapeError(
            f"{name} is {shape(mask)} and does not fit pred, {shape(pred)}: give {hint}"
        )
    return as_float(view)


def spread(mask: Tensor, like: Tensor) -> float:
    """How many elements of one sample of `like` share one element of the (fitted) mask."""
    return math.prod(like.shape[1:]) / math.prod(mask.shape[1:])
