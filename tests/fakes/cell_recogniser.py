"""A face recogniser whose answers can be worked out by hand, in SFace's and ArcFace's ONNX format.

It takes the mean red, green and blue of each of 4×4 cells of 28×28 pixels, channel by channel.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CELL = 28
NUMBERS = 48


def write_recogniser(path: Path, *, batch: int | str = 1, really: int | None = None) -> Path:
    """Write the model: input [batch, 3, 112, 112], one output [batch, 48]. Returns its path.

    With `really`, it takes that many pictures only, whatever `batch` promises.
    """
    rows = -1 if really is None else really
    shape = numpy_helper.from_array(np.array([rows, NUMBERS], np.int64), "shape")
    cell = [CELL, CELL]
    nodes = [
        helper.make_node("AveragePool", ["data"], ["cells"], kernel_shape=cell, strides=cell),
        helper.make_node("Reshape", ["cells", "shape"], ["fc1"]),
    ]
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [batch, 3, 112, 112])],
        [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [batch, NUMBERS])],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def answer(crop: np.ndarray) -> np.ndarray:
    """What the model gives for a crop of 112×112 pixels, of pixel values that are not scaled."""
    cells = crop.astype(np.float64).reshape(4, CELL, 4, CELL, 3).mean((1, 3))
    return np.moveaxis(cells, 2, 0).ravel()
