"""Which device a model runs on: torch's name for it, and ONNX Runtime's execution providers."""

import re
from importlib import metadata
from typing import Any, TypeAlias

from lora_prep.errors import BackendError, UsageError

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"

Provider: TypeAlias = str | tuple[str, dict[str, Any]]


def torch_device(name: str) -> str:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes CUDA where there is one.

    Raises UsageError for another name, and BackendError where that device is not there.
    """
    index = _cuda_index(name)
    if name == "cpu":
        return "cpu"
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
        raise BackendError(
            f"no CUDA device for --device {name}: torch {torch.__version__} is built for {build} "
            "and finds no usable GPU. Check the driver with nvidia-smi, or use --device cpu"
        )
    count = torch.cuda.device_count()
    if index >= count:
        raise BackendError(f"no device {name}: this machine has cuda:0 to cuda:{count - 1}")
    return name


def onnx_providers(name: str) -> list[Provider]:
    """ONNX Runtime's providers for `auto`, `cpu`, `cuda` or `cuda:N`, the preferred one first.

    That CUDA is listed only says that this build of ONNX Runtime has it; whether it starts shows
    when a session is made: see `require_cuda`.
    Raises UsageError for another name, and BackendError where CUDA is asked for and not built in.
    """
    index = _cuda_index(name)
    if name == "cpu":
        return [CPU_PROVIDER]
    import onnxruntime

    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        return [(CUDA_PROVIDER, {"device_id": index}), CPU_PROVIDER]
    if name == "auto":
        return [CPU_PROVIDER]
    raise BackendError(f"--device {name}: {_why_onnx_lacks_cuda()}")


def require_cuda(name: str, active: list[str]) -> None:
    """Raise BackendError if CUDA was asked for by name and a session's providers do not start so.

    ONNX Runtime itself falls back to the CPU in that case and only prints why.
    """
    if name.startswith("cuda") and active[:1] != [CUDA_PROVIDER]:
        raise BackendError(
            f"--device {name}: ONNX Runtime has CUDA but could not start it and fell back to "
            f"{', '.join(active)}; it printed the reason above. Usually CUDA's or cuDNN's "
            "libraries are missing or of another version. Or use --device cpu"
        )


def _cuda_index(name: str) -> int:
    """N of `cuda:N`, and 0 for the other names. Raises UsageError if it is none of them."""
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise UsageError(f"no device is called {name!r}: use auto, cpu, cuda or cuda:N")
    return int(match[1] or 0)


def _why_onnx_lacks_cuda() -> str:
    plain, gpu = _version("onnxruntime"), _version("onnxruntime-gpu")
    if plain and gpu:
        return (
            f"onnxruntime {plain} and onnxruntime-gpu {gpu} are both installed, and the one has "
            "overwritten the other's files. Uninstall both, then install onnxruntime-gpu only: "
            "make install GPU=1"
        )
    if gpu:
        return f"onnxruntime-gpu {gpu} is installed, but offers no CUDA on this machine"
    return (
        "the installed ONNX Runtime has no CUDA. Install onnxruntime-gpu in place of onnxruntime: "
        "make install GPU=1. Or use --device cpu"
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
