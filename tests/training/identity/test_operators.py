"""Each operator that a recogniser may have, against ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_prep.errors import BackendError
from lora_prep.training.identity import load_recogniser
from lora_prep.training.identity.onnx_module import parity
from lora_prep.training.identity.operators import OPERATORS

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def node(kind: str, inputs: str = "x", output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        kind, inputs.split(), [output], name=f"the_{kind}_{output}", **attributes
    )


SMALL = node("AveragePool", "x", "s", kernel_shape=[28, 28], strides=[28, 28])
"""(N, 3, 112, 112) to (N, 3, 4, 4)."""
FLAT = node("Flatten", "s", "f")
"""(N, 48)."""

Case = tuple[int, list[onnx.NodeProto], dict[str, np.ndarray]]
CASES: dict[str, Case] = {
    "Clip, both": (13, [SMALL, node("Clip", "s low high")],
                   {"low": number(-0.1), "high": number(0.2)}),
    "Clip, low only": (13, [SMALL, node("Clip", "s low")], {"low": number(0.0)}),
    "Clip, high only": (13, [SMALL, helper.make_node("Clip", ["s", "", "high"], ["y"])],
                        {"high": number(0.0)}),
    "Clip, as attributes": (10, [SMALL, node("Clip", "s", min=-0.1, max=0.2)], {}),
    "Concat of channels": (13, [SMALL, node("Relu", "s", "r"), node("Concat", "s r", axis=1)], {}),
    "Concat, last axis": (13, [SMALL, node("Relu", "s", "r"), node("Concat", "s r", axis=-1)], {}),
    "Gather of channels": (13, [SMALL, node("Gather", "s where", axis=1)], {"where": ints(2, 0)}),
    "Gather from the end": (13, [SMALL, node("Gather", "s where", axis=-1)],
                            {"where": ints(-1, 1)}),
    "Gather one": (13, [SMALL, node("Gather", "s where", axis=2)],
                   {"where": np.array(3, np.int64)}),
    "a view, as torch exports it": (
        13,
        [
            SMALL,
            node("Shape", "s", "shape"),
            node("Gather", "shape first", "n", axis=0),
            node("Unsqueeze", "n zero", "n1"),
            node("Concat", "n1 rest", "sizes", axis=0),
            node("Reshape", "s sizes"),
        ],
        {"first": np.array(0, np.int64), "zero": ints(0), "rest": ints(-1)},
    ),
    "Shape in part": (
        15,
        [
            SMALL,
            node("Shape", "s", "shape", start=0, end=1),
            node("Concat", "shape rest", "sizes", axis=0),
            node("Reshape", "s sizes"),
        ],
        {"rest": ints(6, -1)},
    ),
    "Reshape keeps with 0": (13, [SMALL, node("Reshape", "s sizes")], {"sizes": ints(0, 0, -1)}),
    "Transpose": (13, [SMALL, node("Transpose", "s", perm=[0, 2, 3, 1])], {}),
    "Squeeze": (13, [node("GlobalAveragePool", "x", "g"), node("Squeeze", "g axes")],
                {"axes": ints(2, 3)}),
    "Squeeze, as attribute": (11, [node("GlobalAveragePool", "x", "g"),
                                   node("Squeeze", "g", axes=[-1, -2])], {}),
    "Unsqueeze": (13, [SMALL, FLAT, node("Unsqueeze", "f axes")], {"axes": ints(-1, 1)}),
    "Unsqueeze, as attribute": (11, [SMALL, FLAT, node("Unsqueeze", "f", axes=[2])], {}),
    "Gemm, transposed and scaled": (
        13,
        [SMALL, FLAT, node("Gemm", "f w c", transB=1, alpha=0.5, beta=2.0)],
        {"w": floats(5, 48), "c": floats(5)},
    ),
    "Gemm without bias": (13, [SMALL, FLAT, node("Gemm", "f w")], {"w": floats(48, 5)}),
    "LpNormalization": (13, [SMALL, FLAT, node("LpNormalization", "f", axis=1, p=2)], {}),
    "arithmetic": (
        13,
        [
            SMALL,
            node("Sub", "s c", "a"),
            node("Div", "a d", "b"),
            node("Mul", "b c", "m"),
            node("Add", "m d", "n"),
            node("Sigmoid", "n"),
        ],
        {"c": floats(1, 3, 1, 1), "d": np.abs(floats(1, 3, 1, 1)) + 1},
    ),
    "LeakyRelu": (13, [SMALL, node("LeakyRelu", "s", alpha=0.3)], {}),
    "PRelu, a slope a pixel": (13, [SMALL, node("PRelu", "s w")], {"w": floats(3, 4, 4)}),
    "PRelu, one slope": (13, [SMALL, node("PRelu", "s w")], {"w": floats(1)}),
    "MaxPool, unequal padding": (
        13,
        [SMALL, node("MaxPool", "s", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])],
        {},
    ),
    "MaxPool, ceil": (13, [SMALL, node("MaxPool", "s", kernel_shape=[3, 3], strides=[2, 2],
                                       ceil_mode=1)], {}),
    "AveragePool, padding counted": (
        13,
        [SMALL, node("AveragePool", "s", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)],
        {},
    ),
    "Pad, as attributes": (
        10,
        [SMALL, node("Pad", "s", mode="constant", pads=[0, 0, 1, 0, 0, 0, 0, 2], value=0.7)],
        {},
    ),
    "Conv, grouped and dilated": (
        13,
        [SMALL, node("Conv", "s w b", group=3, dilations=[2, 2], pads=[2] * 4)],
        {"w": floats(6, 1, 3, 3), "b": floats(6)},
    ),
    "BatchNormalization": (
        13,
        [SMALL, node("BatchNormalization", "s scale bias mean var", epsilon=1e-3)],
        {"scale": floats(3), "bias": floats(3), "mean": floats(3), "var": np.abs(floats(3)) + 0.1},
    ),
    "Constants": (
        13,
        [
            node("Constant", "", "c", value_float=0.25),
            node("Constant", "", "d", value_floats=[1.0, 2.0, 3.0, 4.0]),
            node("Constant", "", "w", value=numpy_helper.from_array(floats(1, 3, 1, 1))),
            SMALL,
            node("Mul", "s c", "m"),
            node("Add", "m d", "n"),
            node("Add", "n w"),
        ],
        {},
    ),
    "Identity, Dropout, MatMul": (
        13,
        [SMALL, FLAT, node("Identity", "f", "i"), node("Dropout", "i", "d"),
         node("MatMul", "d w")],
        {"w": floats(48, 7)},
    ),
}  # fmt: skip


def written(path: Path, case: Case) -> Path:
    opset, nodes, constants = case
    # A parameter that does nothing: a recogniser without weights is none.
    nodes = [node("Mul", "input one", "x"), *(n for n in nodes if n.op_type == "Constant"),
             *(n for n in nodes if n.op_type != "Constant")]  # fmt: skip
    for each in nodes:
        if each.op_type == "Constant":
            del each.input[:]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in {**constants, "one": number(1.0)}.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_operator_gives_what_onnxruntime_gives(case: Case, tmp_path: Path) -> None:
    path = written(tmp_path / "case.onnx", case)
    assert parity(load_recogniser(path, check=False), path) < 1e-5


def test_no_operator_is_without_a_case() -> None:
    tried = {n.op_type for _, nodes, _ in CASES.values() for n in nodes}
    assert set(OPERATORS) == tried


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (node("MaxPool", "s", kernel_shape=[2, 2], auto_pad="SAME_UPPER"), "auto_pad=SAME_UPPER"),
        (node("Pad", "s", mode="reflect", pads=[0, 0, 1, 1, 0, 0, 1, 1]), "mode=reflect"),
        (node("LpNormalization", "s", p=1), "p=1"),
        (
            node("AveragePool", "s", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
            "unequal padding",
        ),
    ],
)
def test_what_an_operator_cannot_do_is_said_with_its_node(
    wrong: onnx.NodeProto, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "wrong.onnx", (10, [SMALL, wrong], {}))
    with pytest.raises(BackendError, match=rf"the_{wrong.op_type}.*{message}"):
        load_recogniser(path)
