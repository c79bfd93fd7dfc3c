"""ONNX operators in torch, as far as face recognisers use them.

Each takes the node's attributes and its inputs; an input that is left out is None. Integers
(shapes, axes) are CPU tensors, so that reading them never waits for a device.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attributes = dict[str, Any]


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, padding = _padded(a, x, 0.0)
    return F.conv2d(
        x,
        weight,
        bias,
        tuple(a.get("strides", (1, 1))),
        padding,
        tuple(a.get("dilations", (1, 1))),
        a.get("group", 1),
    )


def _padded(a: Attributes, x: Tensor, value: float) -> tuple[Tensor, tuple[int, int]]:
    """(x, padding): equal padding is left to the operator, unequal is done here."""
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ValueError(f"auto_pad={a['auto_pad'].decode()} is not supported")
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    # F.prelu takes one slope a channel; ONNX broadcasts (C,1,1) or (1,C,1,1).
    return F.prelu(x, slope.reshape(-1)) if slope.numel() in (1, x.shape[1]) else _wide(x, slope)


def _wide(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * slope)


def _batch_norm(
    a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if a.get("training_mode", 0):
        raise ValueError("it was exported in training mode")
    epsilon = a.get("epsilon", 1e-5)
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)


def _gemm(a: Attributes, x: Tensor, y: Tensor, c: Tensor | None = None) -> Tensor:
    x = x.T if a.get("transA", 0) else x
    y = y.T if a.get("transB", 0) else y
    out: Tensor = x @ y * a.get("alpha", 1.0)
    return out if c is None else out + c * a.get("beta", 1.0)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1) % (x.ndim + 1)
    return x.reshape(x.shape[:axis].numel(), -1)


def _reshape(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = [n if n else x.shape[i] for i, n in enumerate(shape.tolist())]
    if sizes[0] == 1 and len(sizes) > 1 and len(x) > 1:
        sizes[0] = len(x)  # a file made for one crop at a time
    return x.reshape(sizes)


def _pad(a: Attributes, x: Tensor, pads: Tensor | None = None, value: Any = None) -> Tensor:
    if a.get("mode", b"constant") != b"constant":
        raise ValueError(f"mode={a['mode'].decode()} is not supported")
    sizes = list(a["pads"]) if pads is None else pads.tolist()
    value = a.get("value") if value is None else value
    half = len(sizes) // 2
    pairs = [n for i in reversed(range(half)) for n in (sizes[i], sizes[half + i])]
    out = F.pad(x, pairs)
    if value is None or not any(pairs):
        return out
    filled: Tensor = out + (1 - F.pad(torch.ones_like(x), pairs)) * value
    return filled


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    inside = bool(a.get("count_include_pad", 0))
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        raise ValueError("unequal padding is not supported")
    return F.avg_pool2d(
        x,
        tuple(a["kernel_shape"]),
        tuple(a.get("strides", (1, 1))),
        (top, left),
        bool(a.get("ceil_mode", 0)),
        inside,
    )


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    x, padding = _padded(a, x, float("-inf"))
    strides = tuple(a.get("strides", (1, 1)))
    return F.max_pool2d(
        x, tuple(a["kernel_shape"]), strides, padding, ceil_mode=bool(a.get("ceil_mode", 0))
    )


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    new = a["axes"] if axes is None else axes.tolist()
    for axis in sorted(n % (x.ndim + len(new)) for n in new):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    gone = a.get("axes") if axes is None else axes.tolist()
    return x.squeeze() if gone is None else x.squeeze(tuple(gone))


def _gather(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    places = torch.where(index < 0, index + x.shape[axis], index).reshape(-1)
    rows = x.index_select(axis, places.to(x.device))
    return rows.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end", x.ndim)])


def _transpose(a: Attributes, x: Tensor) -> Tensor:
    return x.permute(*a.get("perm", reversed(range(x.ndim))))


def _dropout(_: Attributes, x: Tensor, *__: Any) -> Tensor:
    return x


def _clip(a: Attributes, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low = a.get("min") if low is None else low
    high = a.get("max") if high is None else high
    return x if low is None and high is None else torch.clamp(x, low, high)


def _l2(a: Attributes, x: Tensor) -> Tensor:
    if a.get("p", 2) != 2:
        raise ValueError(f"p={a['p']} is not supported")
    return F.normalize(x, dim=a.get("axis", -1))


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda _, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "Constant": lambda _: None,  # read when the graph is
    "Conv": _conv,
    "Div": lambda _, x, y: x / y,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "Identity": lambda _, x: x,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "LpNormalization": _l2,
    "MatMul": lambda _, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda _, x, y: x * y,
    "PRelu": _prelu,
    "Pad": _pad,
    "Relu": lambda _, x: F.relu(x),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Squeeze": _squeeze,
    "Sub": lambda _, x, y: x - y,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By ONNX's name."""
