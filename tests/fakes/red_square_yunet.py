"""A face detector in YuNet's ONNX format whose answers can be worked out by hand.

As `red_square_detector`: a face is a red square of 64×64 pixels, with the same score, and the same
landmarks around its centre. Anchors lie every 8 pixels.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fakes.red_square_detector import LANDMARKS, SIDE

INPUT = 640
"""The released model is declared for this size, too."""


def write_yunet(path: Path) -> Path:
    """Write the detector: input [1, 3, 640, 640] (BGR, 0 to 255), twelve outputs. Its path."""
    nodes, constants = [], {}

    def constant(name: str, value: np.ndarray) -> str:
        constants[name] = value
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    weights = np.array([-0.5, -0.5, 1.0], np.float32).reshape(1, 3, 1, 1) / 255
    redness = node("Conv", ["input", constant("weights", weights)], "redness")
    red = node(
        "Clip", [redness, constant("zero", np.float32(0)), constant("one", np.float32(1))], "red"
    )
    rows = constant("rows", np.array([1, -1, 1], np.int64))
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
        raw = node("Sub", [doubled, "one"], f"raw{stride}")
        clipped = node("Clip", [raw, "zero", "one"], f"clipped{stride}")
        column = node("Reshape", [clipped, rows], f"column{stride}")
        floor = node("Mul", [column, constant(f"nil{stride}", np.float32(0))], f"floor{stride}")
        node("Identity", [column if half else floor], f"cls_{stride}")
        node("Add", [floor, "one"], f"obj_{stride}")
        box = np.log(np.array([1, 1, SIDE / stride, SIDE / stride])).astype(np.float32)
        node("Add", [floor, constant(f"box{stride}", box.reshape(1, 1, 4))], f"bbox_{stride}")
        points = np.array(LANDMARKS, np.float32).reshape(1, 1, 10) / stride
        node("Add", [floor, constant(f"points{stride}", points)], f"kps_{stride}")

    outputs = [
        helper.make_tensor_value_info(
            f"{kind}_{stride}", TensorProto.FLOAT, [1, (INPUT // stride) ** 2, width]
        )
        for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10))
        for stride in (8, 16, 32)
    ]
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, INPUT, INPUT])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
