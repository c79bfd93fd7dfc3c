"""What works on this machine, what does not, and what to do about it.

Nothing is imported here but the standard library: `probe.py` imports packages in processes of its
own, so that one that is broken, crashes or hangs is a finding like any other.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_prep import __version__

PROBE_SECONDS = 120.0
"""An import that takes longer is taken for one that hangs."""

GIB = 1 << 30
MODEL_BYTES = 3 * GIB
DATA_BYTES = GIB
"""Free space below which a warning is given."""

PACKAGES = {
    "numpy": "numpy",
    "pillow": "pillow",
    "opencv": "opencv-python",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "torchvision": "torchvision",
    "sam2": "sam2",
    "insightface": "insightface",
}
"""Probes of packages, and the distribution behind each."""

PROBES = (*PACKAGES, "onnx_session", "models", "embedded")

NEEDED_BY_MODELS = (*PACKAGES, "onnx_session")
"""Probes that have to succeed for insightface and SAM2 to run."""

CUDA = "CUDAExecutionProvider"
ONNX_GPU_ALONE = (
    "uv pip uninstall onnxruntime && uv pip install --reinstall onnxruntime-gpu "
    "(in a new environment: make install GPU=1)"
)


class Level(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    WARNING = "warning"
    """Works, but slower or with less than it could."""
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    topic: str
    level: Level
    message: str
    fix: str = ""
    """What to do about it: a command where there is one."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe told: facts, or the error that it ended with."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def examine(presets: Mapping[str, tuple[str, str]], data: Path | None) -> Iterator[Finding]:
    """All findings, in the order in which they are told.

    `presets` has the names of insightface's pack and SAM2's checkpoint of the presets with models,
    `data` is the folder where the masks are going to lie, if there is a data set.
    """
    probes = probe(PROBES)
    yield from guarded("machine", _machine)
    yield from guarded("gpu", lambda: _gpu(probes))
    yield from guarded("packages", lambda: _packages(probes))
    yield from guarded("models", lambda: _models(probes["models"]))
    yield from guarded("disk", lambda: _disks(probes["models"], data))
    yield from guarded("presets", lambda: _presets(presets, probes))


def guarded(topic: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of `look`; an exception is one more: this is run where things are broken."""
    try:
        yield from look()
    except Exception as error:
        yield Finding(topic, Level.PROBLEM, f"cannot be looked at: {type(error).__name__}: {error}")


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------------------- probes
def probe(names: Sequence[str]) -> dict[str, Probed]:
    """Run probes in order in a process; where one takes it down, go on with those after it."""
    results: dict[str, Probed] = {}
    while left := [name for name in names if name not in results]:
        lines, ending = _run_probes(left)
        for line in lines:
            answer = json.loads(line)
            results[answer["name"]] = Probed(answer.get("facts", {}), answer.get("error", ""))
        unanswered = next((name for name in left if name not in results), None)
        if unanswered:
            results[unanswered] = Probed(error=ending)
    return results


def _run_probes(names: Sequence[str]) -> tuple[list[str], str]:
    """Lines of the probes that answered, and what became of the one that did not."""
    code = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        "from lora_prep.probe import main; main(sys.argv[2:])"
    )
    command = [sys.executable, "-c", code, json.dumps(sys.path), *names]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=PROBE_SECONDS,
            env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_ALBUMENTATIONS_UPDATE": "1"},
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return _whole_lines(output), f"it did not answer within {PROBE_SECONDS:g} seconds"
    except OSError as error:
        return [], f"{sys.executable} cannot be started: {error.strerror}"
    last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    ending = f"it ended Python with code {done.returncode}{last and f': {last}'}"
    return _whole_lines(done.stdout), ending


def _whole_lines(output: bytes) -> list[str]:
    *lines, _torn = output.decode(errors="replace").split("\n")
    return lines


# ---------------------------------------------------------------------------- this machine
def _machine() -> Iterator[Finding]:
    yield Finding("python", Level.OK, f"{platform.python_version()}, {sys.executable}")
    yield Finding("lora-prep", Level.OK, f"{__version__}, {Path(__file__).parent}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cpu", Level.OK, f"{platform.machine()}, {cores} cores{_memory()}")


def _memory() -> str:
    try:
        return f", {_gib(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))} of memory"
    except (AttributeError, ValueError, OSError):  # Windows
        return ""


def _gpu(probes: Mapping[str, Probed]) -> Iterator[Finding]:
    torch, onnx = probes["torch"], probes["onnx_session"]
    if torch.error:
        return
    devices = torch.facts["devices"]
    for index, found in enumerate(devices):
        bf16 = "bfloat16" if found["bf16"] else "no bfloat16: SAM2 is slower"
        memory = _gib(found["memory"])
        yield Finding("gpu", Level.OK, f"cuda:{index} is {found['name']}, {memory}, {bf16}")
    if not devices and not _nvidia_driver():
        yield Finding("gpu", Level.OK, "none: all models run on the CPU")
    elif not devices:
        why = "; ".join(torch.facts["said"]) or f"it is built for CUDA {torch.facts['cuda']}"
        yield Finding(
            "gpu",
            Level.WARNING,
            f"there is an NVIDIA driver, but torch cannot use a GPU: {why}",
            "compare the CUDA version that nvidia-smi shows with torch's; install the torch and "
            "torchvision pair that is built for it",
        )
    elif not onnx.error and onnx.facts["active"][0] != CUDA:
        has_cuda = CUDA in probes["onnxruntime"].facts["providers"]
        yield Finding(
            "gpu",
            Level.WARNING,
            "insightface detects on the CPU: ONNX Runtime "
            + ("has CUDA, but cannot start it" if has_cuda else "is built without CUDA"),
            "install the cuDNN and CUDA libraries that this onnxruntime-gpu asks for"
            if has_cuda
            else ONNX_GPU_ALONE,
        )


def _nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


# ---------------------------------------------------------------------------- packages
def _packages(probes: Mapping[str, Probed]) -> Iterator[Finding]:
    for name, distribution in PACKAGES.items():
        probed = probes[name]
        if name == "onnxruntime" and installed("onnxruntime-gpu"):
            distribution = "onnxruntime-gpu"
        if probed.error:
            message, fix = _broken(name, distribution, probed.error)
            yield Finding(name, Level.PROBLEM, message, fix)
        else:
            version = probed.facts.get("version") or installed(distribution) or "unknown version"
            yield Finding(name, Level.OK, f"{version}{_details(name, probed.facts)}")
    for distribution in ("scikit-image", "albumentations"):
        version = installed(distribution)
        if version:
            yield Finding(distribution, Level.OK, version)
        else:
            fix = f"uv pip install {distribution}"
            yield Finding(distribution, Level.PROBLEM, "is not installed", fix)
    heif = installed("pillow-heif") or "not installed; only HEIC images need it"
    yield Finding("pillow-heif", Level.OK, heif)
    yield from _clashes(probes)


def _details(name: str, facts: Mapping[str, Any]) -> str:
    match name:
        case "torch" | "torchvision":
            return f", built for CUDA {facts['cuda']}" if facts["cuda"] else ", built for the CPU"
        case "pillow":
            return f", with {', '.join(said for said, has in facts['features'].items() if has)}"
        case "onnxruntime":
            return f", has {', '.join(facts['providers'])}"
        case _:
            return ""


def _broken(name: str, distribution: str, error: str) -> tuple[str, str]:
    """What to say of a package that cannot be imported, and what to do."""
    if error.startswith(f"ModuleNotFoundError: No module named '{name}'"):
        return "is not installed", f"uv pip install {distribution}"
    message = f"cannot be imported: {error}"
    if "torchvision::nms" in error or "different CUDA" in error:
        return (
            f"{message}. torch {installed('torch')} and torchvision {installed('torchvision')} "
            "were not built for each other",
            "install both in one go, from the same index: "
            "uv pip install --reinstall torch torchvision",
        )
    if "libGL.so" in error:
        return message, "apt-get install libgl1, or the same library by your system's means"
    return message, f"uv pip install --reinstall {distribution}"


def _clashes(probes: Mapping[str, Probed]) -> Iterator[Finding]:
    """Distributions that overwrite each other's files, or were built for different things."""
    plain, gpu = installed("onnxruntime"), installed("onnxruntime-gpu")
    if plain and gpu:
        yield Finding(
            "onnxruntime",
            Level.PROBLEM,
            f"onnxruntime {plain} and onnxruntime-gpu {gpu} are both installed, and the one that "
            "came last has overwritten files of the other",
            ONNX_GPU_ALONE,
        )
    if not probes["onnxruntime"].error and (error := probes["onnx_session"].error):
        fix = f"uv pip install --reinstall {'onnxruntime-gpu' if gpu else 'onnxruntime'}"
        yield Finding("onnxruntime", Level.PROBLEM, f"cannot start a model: {error}", fix)
    full, headless = installed("opencv-python"), installed("opencv-python-headless")
    if full and headless and full != headless:
        yield Finding(
            "opencv",
            Level.WARNING,
            f"opencv-python {full} and opencv-python-headless {headless} share their files and "
            "should be of one version",
            f"uv pip install --reinstall opencv-python=={full} opencv-python-headless=={full}",
        )
    torch, vision = (probes[name].facts.get("cuda") for name in ("torch", "torchvision"))
    if not probes["torch"].error and not probes["torchvision"].error and torch != vision:
        yield Finding(
            "torchvision",
            Level.WARNING,
            f"torch is built for CUDA {torch}, torchvision for CUDA {vision}",
            "install both in one go, from the same index: "
            "uv pip install --reinstall torch torchvision",
        )
    pillow = probes["pillow"].facts.get("features", {})
    if lacking := [said for said, has in pillow.items() if not has]:
        yield Finding(
            "pillow",
            Level.WARNING,
            f"is built without {', '.join(lacking)}: such images cannot be read",
            "uv pip install --reinstall pillow (its wheels have them all)",
        )


# ---------------------------------------------------------------------------- models and disks
def _models(models: Probed) -> Iterator[Finding]:
    if models.error:
        yield Finding("models", Level.WARNING, f"cannot be looked for: {models.error}")
        return
    yield Finding("models", Level.OK, ", ".join(models.facts["here"]) or "none are here yet")
    for place in models.facts["damaged"]:
        yield Finding(
            "models",
            Level.PROBLEM,
            f"there is no .onnx file in {place}: a download broke off there",
            f"delete {place}; it is downloaded again when it is needed",
        )


def _disks(models: Probed, data: Path | None) -> Iterator[Finding]:
    places = {
        "insightface's models": (models.facts.get("packs_folder"), MODEL_BYTES),
        "the hub's cache": (models.facts.get("hub_folder"), MODEL_BYTES),
        "data": (data, DATA_BYTES),
    }
    for topic, (place, wanted) in places.items():
        if place is not None:
            yield _disk(topic, Path(place).absolute(), wanted)


def _disk(topic: str, place: Path, wanted: int) -> Finding:
    """Free space where `place` is, or will be; and whether files can be written there."""
    there = next(p for p in (place, *place.parents) if p.exists())
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding("disk", Level.WARNING, f"{topic}: {there}: {error.strerror}")
    if not there.is_dir() or not os.access(there, os.W_OK):
        fix = f"check who owns it: ls -ld {there}"
        return Finding("disk", Level.PROBLEM, f"{topic}: no files can be put in {there}", fix)
    level = Level.OK if free >= wanted else Level.WARNING
    fix = "" if free >= wanted else f"make room: {_gib(wanted)} should do"
    return Finding("disk", level, f"{topic}: {_gib(free)} free in {there}", fix)


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


# ---------------------------------------------------------------------------- presets
def _presets(
    presets: Mapping[str, tuple[str, str]], probes: Mapping[str, Probed]
) -> Iterator[Finding]:
    models = probes["models"].facts
    broken = [name for name in NEEDED_BY_MODELS if probes[name].error]
    for preset, names in presets.items():
        topic = f"preset {preset}"
        absent = [name for name in names if name not in models.get("here", ())]
        if broken:
            message = f"cannot run: {', '.join(broken)} cannot be used"
            yield Finding(topic, Level.PROBLEM, message, "mend the packages named above")
        elif absent:
            offline = ", and HF_HUB_OFFLINE is set" if models.get("offline") else ""
            yield Finding(
                topic,
                Level.WARNING,
                f"its models are not here yet: {', '.join(absent)}{offline}",
                f"lora-prep models pull {' '.join(absent)} (needs a network); or use "
                "--preset embedded",
            )
        elif not models["license"]:
            yield Finding(
                topic,
                Level.WARNING,
                f"the licence of {names[0]} (non-commercial research only) is not accepted yet",
                f"lora-prep models pull {names[0]} asks for it; or use --preset embedded",
            )
        else:
            yield Finding(topic, Level.OK, "can run")
    if error := probes["embedded"].error:
        yield Finding("preset embedded", Level.PROBLEM, f"cannot run: {error}", "make install")
    else:
        yield Finding("preset embedded", Level.OK, "can run (draft quality)")
