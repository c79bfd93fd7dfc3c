"""An ArcFace recogniser from insightface's ONNX file as a torch module, with gradients.

The graph is interpreted node by node: recognisers are plain chains of a dozen operators, so this
is as exact and as fast as a converted network, and independent of how the exporter named things.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from jaxtyping import Float
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_prep.errors import BackendError
from lora_prep.training.identity.operators import OPERATORS
from lora_prep.training.shapes import no_autocast

TOLERANCE = 1e-4
"""Largest difference to ONNX Runtime, as a part of the embedding's largest number. Measured in
float32: 1e-6 for an IResNet-50."""

SIDE = 112


@dataclass(frozen=True)
class Step:
    """One node: what to call, on which values, and which values nobody needs afterwards."""

    name: str
    operator: str
    run: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    done_with: tuple[str, ...]


class Recogniser(nn.Module):
    """A frozen face recogniser: aligned crops in, embeddings out, gradients to the pixels.

    It always computes in the type of its own weights, whatever autocast is active around it:
    float32 as loaded on a CPU, bfloat16 on CUDA (see `load_recogniser`). Embeddings come out in
    float32 (float64 after `.double()`). Batch norm uses its stored statistics in training too, and
    nothing of it is among `parameters()` or in `state_dict()`.
    """

    def __init__(self, model: onnx.ModelProto, *, sha256: str = "", checkpoints: int = 0) -> None:
        """Read the graph. `checkpoints`: as in `load_recogniser`.

        Raises BackendError for an operator that is not supported, naming the node, and for a model
        that is no recogniser.
        """
        super().__init__()
        self.sha256 = sha256
        self.checkpoints = checkpoints
        graph = model.graph
        self._buffer_of: dict[str, str] = {}
        self._host: dict[str, Tensor] = {}
        for tensor in graph.initializer:
            self._keep(tensor.name, numpy_helper.to_array(tensor))
        given = [v for v in graph.input if v.name not in self._buffer_of | self._host]
        if len(given) != 1 or len(graph.output) != 1:
            raise BackendError(
                f"the model has {len(given)} inputs and {len(graph.output)} outputs: a face "
                "recogniser has one of each. Take the recognition file of the pack, such as "
                "w600k_r50.onnx"
            )
        self._input, self._output = given[0].name, graph.output[0].name
        dims = given[0].type.tensor_type.shape.dim
        sides = [d.dim_value for d in dims][2:]
        if (
            len(dims) != 4
            or dims[1].dim_value not in (0, 3)
            or any(s not in (0, 112) for s in sides)
        ):
            shape = "×".join(str(d.dim_value or d.dim_param or "?") for d in dims)
            raise BackendError(
                f"the model takes {shape}: a face recogniser takes N×3×{SIDE}×{SIDE}. Take the "
                "recognition file of the pack, such as w600k_r50.onnx"
            )
        self.one_at_a_time = dims[0].dim_value == 1
        """Whether the file declares a batch of 1; this module takes more all the same."""
        self.mean, self.std = input_normalisation([node.name for node in graph.node])
        self._steps = self._plan(graph)
        self._segments = self._split(max(1, checkpoints))

    def forward(self, crops: Float[Tensor, "N 3 112 112"]) -> Float[Tensor, "N D"]:
        """Embeddings, not normalised, of aligned RGB crops with values from 0 to 255."""
        dtype = self._weights_at()[0]
        layout = torch.channels_last if self.on_cuda else torch.contiguous_format
        with no_autocast(crops.device):
            x = (crops.to(torch.promote_types(crops.dtype, torch.float32)) - self.mean) / self.std
            values = (x.to(dtype).contiguous(memory_format=layout),)
            for k in range(len(self._segments)):
                if self.checkpoints and values[0].requires_grad:
                    values = checkpoint(self._run, k, *values, use_reentrant=False)
                else:
                    values = self._run(k, *values)
            return values[0].flatten(1).to(torch.promote_types(dtype, torch.float32))

    @property
    def on_cuda(self) -> bool:
        """Whether it computes on CUDA (in channels_last)."""
        return self._weights_at()[1].type == "cuda"

    def extra_repr(self) -> str:
        """Size and normalisation, for `print`."""
        return f"{len(self._steps)} nodes, (x - {self.mean}) / {self.std}"

    # ------------------------------------------------------------------------- the interpreter
    def _run(self, k: int, *live: Any) -> tuple[Any, ...]:
        steps, names, results = self._segments[k]
        values: dict[str, Any] = dict(zip(names, live, strict=True))
        for step in steps:
            arguments = [self._value(values, name) for name in step.inputs]
            try:
                out = step.run(step.attributes, *arguments)
            except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                raise BackendError(
                    f"the recogniser's node {step.name!r} ({step.operator}) failed: {error}"
                ) from error
            values[step.outputs[0]] = out
            for name in step.done_with:
                values.pop(name, None)
        return tuple(self._value(values, name) for name in results)

    def _value(self, values: dict[str, Any], name: str) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        if name in self._buffer_of:
            return getattr(self, self._buffer_of[name])
        return self._host[name]

    def _weights_at(self) -> tuple[torch.dtype, torch.device]:
        for buffer in self.buffers():
            return buffer.dtype, buffer.device
        raise BackendError("the recogniser has no weights")

    # ------------------------------------------------------------------------- reading the graph
    def _keep(self, name: str, array: np.ndarray) -> None:
        """Weights move with the module; integers (shapes, axes) stay on the host."""
        value = torch.from_numpy(np.array(array))
        if value.is_floating_point():
            self._buffer_of[name] = f"w{len(self._buffer_of)}"
            self.register_buffer(self._buffer_of[name], value.float(), persistent=False)
        else:
            self._host[name] = value

    def _plan(self, graph: onnx.GraphProto) -> tuple[Step, ...]:
        nodes = []
        for position, node in enumerate(graph.node):
            name = node.name or f"number {position}, which gives {node.output[0]}"
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                self._keep(node.output[0], _constant(name, attributes))
                continue
            if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
                raise BackendError(
                    f"the recogniser's node {name!r} is a {node.op_type}, which is not supported: "
                    "export the network with " + ", ".join(sorted(OPERATORS)) + " only"
                )
            nodes.append((name, node, attributes))
        last = {n: i for i, (_, node, _) in enumerate(nodes) for n in node.input}
        last[self._output] = len(nodes)
        return tuple(
            Step(
                name,
                node.op_type,
                OPERATORS[node.op_type],
                tuple(node.input),
                tuple(node.output),
                attributes,
                tuple(n for n in dict.fromkeys(node.input) if n and last[n] == i),
            )
            for i, (name, node, attributes) in enumerate(nodes)
        )

    def _split(self, count: int) -> list[tuple[tuple[Step, ...], tuple[str, ...], tuple[str, ...]]]:
        """Steps in `count` pieces, each with the values that it takes and leaves."""
        size = -(-len(self._steps) // count) or 1
        pieces = [self._steps[i : i + size] for i in range(0, len(self._steps), size)]
        segments: list[tuple[tuple[Step, ...], tuple[str, ...], tuple[str, ...]]] = []
        live: tuple[str, ...] = (self._input,)
        for k, piece in enumerate(pieces):
            later = {n for p in pieces[k + 1 :] for s in p for n in s.inputs} | {self._output}
            made = [*live, *(n for s in piece for n in s.outputs)]
            leave = tuple(n for n in dict.fromkeys(made) if n in later)
            segments.append((piece, live, leave))
            live = leave
        return segments


def load_recogniser(
    path: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    checkpoints: int = 0,
    check: bool = True,
) -> Recogniser:
    """The recogniser in an ONNX file of an insightface pack, such as w600k_r50.onnx.

    Args:
        path: the .onnx file.
        device: where to compute.
        dtype: of the weights and the computation; None is bfloat16 on CUDA and float32 elsewhere.
        checkpoints: 0 keeps activations for the backward pass (41 MB a face for an IResNet-50);
            n keeps only those between n pieces, and computes the rest twice.
        check: compare with ONNX Runtime on two crops, in float32 on the CPU, and refuse a
            difference above `TOLERANCE`.

    Raises BackendError where the file is missing, damaged, no recogniser, has an unsupported
    operator (named with its node), or gives something else than ONNX Runtime.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except OSError as error:
        raise BackendError(f"cannot read the recogniser {path}: {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError and onnx's own have no common base
        raise BackendError(f"{path} is no ONNX file, or a damaged one: {error}") from error
    try:
        net = Recogniser(model, sha256=hashlib.sha256(data).hexdigest(), checkpoints=checkpoints)
        if check:
            difference = parity(net, path)
            if not difference <= TOLERANCE:
                raise BackendError(
                    f"its embeddings differ from ONNX Runtime's by {difference:.2g} of their "
                    f"largest number, more than {TOLERANCE:g}: please report it with the file"
                )
    except BackendError as error:
        raise BackendError(f"{path}: {error}") from error
    if dtype is None:
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    net = net.to(device=device, dtype=dtype).eval()
    return net.to(memory_format=torch.channels_last) if net.on_cuda else net


def parity(net: Recogniser, path: Path | str) -> float:
    """Largest difference between `net` and ONNX Runtime on two seeded crops.

    As a part of the largest number in ONNX Runtime's embeddings. Raises BackendError where ONNX
    Runtime is not installed or cannot load the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            "comparing with ONNX Runtime needs it: pip install onnxruntime, or give check=False"
        ) from error
    crops = np.random.default_rng(0).uniform(0, 255, (2, 3, SIDE, SIDE)).astype(np.float32)
    blob = (crops - np.float32(net.mean)) / np.float32(net.std)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        rows = [session.run(None, {name: blob[i : i + 1]})[0].reshape(1, -1) for i in range(2)]
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise BackendError(f"ONNX Runtime cannot run it: {error}") from error
    wanted = np.concatenate(rows)
    with torch.no_grad():
        found = net(torch.from_numpy(crops).to(net._weights_at()[1])).float().cpu().numpy()
    if found.shape != wanted.shape:
        raise BackendError(f"it gives {found.shape}, and ONNX Runtime {wanted.shape}")
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def input_normalisation(names: Sequence[str]) -> tuple[float, float]:
    """(mean, std) of a recogniser's input, guessed as insightface does, from the nodes' names.

    A subtraction and a multiplication among the first eight nodes mean that the network normalises
    by itself.
    """
    first = names[:8]
    subtracts = any(name.startswith(("Sub", "_minus")) for name in first)
    multiplies = any(name.startswith(("Mul", "_mul")) for name in first)
    return (0.0, 1.0) if subtracts and multiplies else (127.5, 127.5)


def _constant(name: str, attributes: dict[str, Any]) -> np.ndarray:
    if "value" in attributes:
        return np.asarray(numpy_helper.to_array(attributes["value"]))
    for key in ("value_int", "value_ints", "value_float", "value_floats"):
        if key in attributes:
            return np.array(attributes[key], np.int64 if "int" in key else np.float32)
    raise BackendError(f"the recogniser's constant {name!r} is of a kind that is not supported")
