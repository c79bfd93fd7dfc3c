from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from benchmarks.identity import export, iresnet
from lora_prep.errors import BackendError
from lora_prep.training.identity import load_recogniser
from lora_prep.training.identity.onnx_module import TOLERANCE, input_normalisation, parity

TINY = Path("tests/assets/tiny_faces/rec_tiny.onnx")


@pytest.fixture(scope="module")
def r18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An IResNet-18, a quarter as wide, with random weights and statistics."""
    torch.manual_seed(0)
    net = iresnet(18, width=16)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return export(net, tmp_path_factory.mktemp("r18") / "r18.onnx")


def crops(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(4)) * 255


def test_equals_onnxruntime(r18: Path) -> None:
    for path in (TINY, r18):
        assert parity(load_recogniser(path, check=False), path) < 5e-6


def test_equals_what_insightface_computes_from_the_same_crop() -> None:
    from insightface.model_zoo import model_zoo

    model = model_zoo.get_model(str(TINY), providers=["CPUExecutionProvider"])
    crop = crops(1).byte()
    wanted = model.get_feat(crop[0].permute(1, 2, 0).flip(-1).numpy())[0]
    found = load_recogniser(TINY)(crop.float())[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_network_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_prep.training.identity import operators

    monkeypatch.setitem(operators.OPERATORS, "PRelu", lambda _, x, __: x.relu())
    with pytest.raises(BackendError, match="differ from ONNX Runtime"):
        load_recogniser(TINY)
    assert TOLERANCE < 1e-3


def test_gradients_reach_the_pixels_and_nothing_else() -> None:
    net = load_recogniser(TINY, check=False).double().train()
    pixels = crops(1).double().requires_grad_()
    out = net(pixels).sum()
    out.backward()
    assert list(net.parameters()) == []
    assert net.state_dict() == {}
    assert not any(buffer.requires_grad for buffer in net.buffers())
    slope = pixels.grad
    assert slope is not None
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1)).double()
    eps = 1e-6
    with torch.no_grad():
        step = (net(pixels + eps * direction).sum() - net(pixels - eps * direction).sum()) / eps / 2
    assert float(step) == pytest.approx(float((slope * direction).sum()), rel=1e-5)


def test_checkpointing_changes_no_gradient(r18: Path) -> None:
    found = []
    for checkpoints in (0, 1, 3, 1000):
        net = load_recogniser(r18, check=False, checkpoints=checkpoints)
        pixels = crops(1).requires_grad_()
        net(pixels).square().sum().backward()
        assert pixels.grad is not None
        found.append(pixels.grad)
    assert found[0].abs().max() > 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_autocast_around_it_changes_nothing_and_bfloat16_is_near() -> None:
    net = load_recogniser(TINY, check=False)
    alone = net(crops())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = net(crops())
    assert torch.equal(alone, within)
    short = load_recogniser(TINY, check=False, dtype=torch.bfloat16)(crops())
    assert short.dtype == torch.float32
    assert float(torch.cosine_similarity(short, alone).min()) > 0.995


def test_training_mode_does_not_touch_the_statistics() -> None:
    net = load_recogniser(TINY, check=False)
    first = net(crops())
    assert torch.equal(net.train()(crops()), first)


def model_of(*nodes: onnx.NodeProto, constants: dict[str, np.ndarray], batch: int | str) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def test_other_operators_and_a_declared_batch_of_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "weight": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 1]),
        "fill": np.array(0.5, np.float32),
        "shape": np.array([1, -1]),
        "matrix": rng.normal(size=(8, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Pad", ["x", "pads", "fill"], ["p"]),
        helper.make_node("Conv", ["p", "weight"], ["c"], pads=[1, 0, 0, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("AveragePool", ["r"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["a"], ["g"]),
        helper.make_node("Dropout", ["g"], ["d"]),
        helper.make_node("Identity", ["d"], ["i"]),
        helper.make_node("Reshape", ["i", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "matrix"], ["y"]),
    ]
    path = tmp_path / "other.onnx"
    path.write_bytes(model_of(*nodes, constants=constants, batch=1))
    net = load_recogniser(path)
    assert net.one_at_a_time
    both = net(crops(2))
    torch.testing.assert_close(both, torch.cat([net(c[None]) for c in crops(2)]))


def test_an_unsupported_operator_is_named_with_its_node(tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    node = helper.make_node("Erf", ["x"], ["y"], name="strange_one")
    path.write_bytes(model_of(node, constants={}, batch="n"))
    with pytest.raises(BackendError, match=r"odd\.onnx.*'strange_one' is a Erf"):
        load_recogniser(path)


def test_files_that_are_no_recognisers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot read the recogniser"):
        load_recogniser(tmp_path / "absent.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(TINY.read_bytes()[:5000])
    with pytest.raises(BackendError, match="damaged"):
        load_recogniser(broken)
    with pytest.raises(BackendError, match="recognition file"):
        load_recogniser(TINY.with_name("det_tiny.onnx"))


def test_normalisation_is_guessed_as_insightface_does() -> None:
    assert input_normalisation(["Conv_0", "PRelu_1"]) == (127.5, 127.5)
    assert input_normalisation(["_minusscalar0", "_mulscalar0", "conv0"]) == (0.0, 1.0)
    assert input_normalisation(["Sub_0", "Conv_1"]) == (127.5, 127.5)
    assert input_normalisation([*["Conv"] * 8, "Sub_1", "Mul_2"]) == (127.5, 127.5)
