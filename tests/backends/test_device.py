from importlib import metadata

import onnxruntime
import pytest
import torch

from lora_prep.backends import device
from lora_prep.errors import BackendError, UsageError


def installed(monkeypatch, **versions):
    def version(distribution):
        if distribution not in versions:
            raise metadata.PackageNotFoundError(distribution)
        return versions[distribution]

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:", "cuda:x", "cuda0", "CUDA", "", "cpu:0", "cuda:-1"]
)
def test_unknown_names_are_refused(name):
    for choose in (device.torch_device, device.onnx_providers):
        with pytest.raises(UsageError, match="use auto, cpu, cuda or cuda:N"):
            choose(name)


def test_torch_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.torch_device("cpu") == "cpu"
    assert device.torch_device("auto") == "cpu"
    with pytest.raises(BackendError, match="no CUDA device for --device cuda:1"):
        device.torch_device("cuda:1")


def test_torch_with_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.torch_device("auto") == "cuda"
    assert device.torch_device("cuda") == "cuda"
    assert device.torch_device("cuda:1") == "cuda:1"
    assert device.torch_device("cpu") == "cpu"
    with pytest.raises(BackendError, match="no device cuda:2: this machine has cuda:0 to cuda:1"):
        device.torch_device("cuda:2")


def test_onnx_with_cuda(monkeypatch):
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["X", device.CUDA_PROVIDER, "CPU"]
    )
    cuda = [(device.CUDA_PROVIDER, {"device_id": 0}), device.CPU_PROVIDER]
    assert device.onnx_providers("auto") == cuda
    assert device.onnx_providers("cuda") == cuda
    assert device.onnx_providers("cuda:3")[0] == (device.CUDA_PROVIDER, {"device_id": 3})
    assert device.onnx_providers("cpu") == [device.CPU_PROVIDER]


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ({"onnxruntime": "1.1"}, "has no CUDA. Install onnxruntime-gpu"),
        ({"onnxruntime": "1.1", "onnxruntime-gpu": "1.2"}, "overwritten the other's files"),
        ({"onnxruntime-gpu": "1.2"}, "offers no CUDA on this machine"),
    ],
)
def test_onnx_without_cuda(monkeypatch, versions, reason):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [device.CPU_PROVIDER])
    installed(monkeypatch, **versions)
    assert device.onnx_providers("auto") == [device.CPU_PROVIDER]
    with pytest.raises(BackendError, match=reason):
        device.onnx_providers("cuda")


def test_a_silent_fall_back_to_the_cpu_is_no_success():
    device.require_cuda("auto", [device.CPU_PROVIDER])
    device.require_cuda("cpu", [device.CPU_PROVIDER])
    device.require_cuda("cuda:1", [device.CUDA_PROVIDER, device.CPU_PROVIDER])
    with pytest.raises(BackendError, match="fell back to CPUExecutionProvider"):
        device.require_cuda("cuda", [device.CPU_PROVIDER])
