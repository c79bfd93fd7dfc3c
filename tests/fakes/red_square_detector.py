"""A face detector in SCRFD's ONNX format whose answers can be worked out by hand.

A face is a red square of 64×64 pixels (in the detector's input). Anchors lie every 8 pixels; with
the share of red in the 64×64 window around an anchor, its score is 2·share − 1 and its box that
window. So a square whose centre lies on an anchor is found once, exactly, with a score of 1.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
LANDMARKS = ((-12.0, -10.0), (12.0, -10.0), (0.0, 2.0), (-8.0, 14.0), (8.0, 14.0))
"""Around the centre of the face, in pixels of the detector's input."""


def write_detector(path: Path, size: int | None = None) -> None:
    """Write the detector: input [1, 3, height, width], nine outputs, two anchors a cell.

    With `size`, it takes squares of that size only.
    """
    nodes, constants = [], {}

    def constant(name: str, value: np.ndarray) -> str:
        constants[name] = value
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    # Input is (RGB − 127.5) / 128: pure red gives r − (g + b) / 2 = 1.99, grey 0.
    weights = np.array([1.0, -0.5, -0.5], np.float32).reshape(1, 3, 1, 1)
    redness = node("Conv", ["image", constant("weights", weights)], "redness")
    red = node(
        "Clip", [redness, constant("zero", np.float32(0)), constant("one", np.float32(1))], "red"
    )
    flat = constant("flat", np.array([-1, 1], np.int64))
    for stride in (8, 16, 32):
        half = SIDE // 2 if stride == 8 else 0
        share = node(
            "AveragePool",
            [red],
            f"share{stride}",
            kernel_shape=[SIDE, SIDE] if half else [stride, stride],
            strides=[stride, stride],
            pads=[half, half, half - stride, half - stride] if half else [0, 0, 0, 0],
            count_include_pad=1,
        )
        doubled = node("Add", [share, share], f"doubled{stride}")
        score = node("Sub", [doubled, "one"], f"raw{stride}")
        clipped = node("Clip", [score, "zero", "one"], f"clipped{stride}")
        column = node("Reshape", [clipped, flat], f"column{stride}")
        nothing = node("Mul", [column, constant(f"nil{stride}", np.float32(0))], f"nothing{stride}")
        first = column if half else nothing
        pair = node("Concat", [first, nothing], f"pair{stride}", axis=1)
        node("Reshape", [pair, flat], f"score{stride}")
        zeros = node("Mul", [f"score{stride}", f"nil{stride}"], f"zeros{stride}")
        distances = np.full((1, 4), SIDE / 2 / stride, np.float32)
        node("Add", [zeros, constant(f"distances{stride}", distances)], f"bbox{stride}")
        offsets = np.array(LANDMARKS, np.float32).reshape(1, 10) / stride
        node("Add", [zeros, constant(f"offsets{stride}", offsets)], f"kps{stride}")

    outputs = [
        helper.make_tensor_value_info(f"{kind}{stride}", TensorProto.FLOAT, [f"n{stride}", width])
        for kind, width in (("score", 1), ("bbox", 4), ("kps", 10))
        for stride in (8, 16, 32)
    ]
    _write(path, nodes, constants, [size or "height", size or "width"], outputs)


def write_recogniser(path: Path) -> None:
    """Write a model with a recogniser's input (112×112) and one output: no detector."""
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 3])
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["embedding"]),
    ]
    _write(path, nodes, {}, [112, 112], [output])


def write_pack(folder: Path) -> Path:
    """Write a pack as insightface's are: a detector among other models. Returns `folder`."""
    folder.mkdir(parents=True)
    write_recogniser(folder / "a_recogniser.onnx")
    write_detector(folder / "det_red_square.onnx")
    return folder


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    size: list[int | str],
    outputs: list[onnx.ValueInfoProto],
) -> None:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *size])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
