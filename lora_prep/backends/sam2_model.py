"""SAM2's checkpoint and configuration: which files, are they safe, and loading them."""

import contextlib
import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lora_prep.backends import SegmenterSpec, weights
from lora_prep.errors import BackendError

HUB = {
    f"facebook/{family}-hiera-{size}": (
        f"configs/{family}/{family}_hiera_{letters}.yaml",
        f"{family}_hiera_{size.replace('-', '_')}.pt",
    )
    for family in ("sam2", "sam2.1")
    for size, letters in (("tiny", "t"), ("small", "s"), ("base-plus", "b+"), ("large", "l"))
}
"""Hub id: (the configuration that sam2 ships for it, checkpoint). `sam2.build_sam` has the same
table, but to read it is to import torch."""


@dataclass(frozen=True, slots=True)
class Files:
    """What a model is loaded from."""

    checkpoint: Path
    config: Path


def find(spec: SegmenterSpec) -> Files:
    """The files for a hub id, a checkpoint file, or a directory with a checkpoint.

    A hub model that is not in the local cache is downloaded. The configuration is the one in the
    spec, else the directory's, else the one that sam2 ships for a released checkpoint's file name.
    Raises BackendError where one of the two is not to be had.
    """
    if spec.model in HUB:
        config, filename = HUB[spec.model]
        advice = (
            f"On a machine with a network run `hf download {spec.model} {filename}` and bring the "
            "file here, then give it with --sam2-model FILE; or use the segmenter that needs no "
            "download with --preset embedded"
        )
        config_file = _config(spec.config or config)
        return Files(weights.hub_file(spec.model, filename, advice), config_file)
    checkpoint = Path(spec.model).expanduser()
    beside: list[Path] = []
    if checkpoint.is_dir():
        beside = sorted(checkpoint.glob("*.yaml"))
        checkpoint = _only_one(sorted(checkpoint.glob("*.pt")), f"{checkpoint}/*.pt")
    elif not checkpoint.is_file():
        raise BackendError(
            f"--sam2-model: no file {spec.model}, and it is none of SAM2's hub ids: "
            f"{', '.join(HUB)}"
        )
    if spec.config:
        return Files(checkpoint, _config(spec.config))
    if beside:
        return Files(checkpoint, _only_one(beside, f"{checkpoint.parent}/*.yaml"))
    released = {filename: config for config, filename in HUB.values()}
    if checkpoint.name in released:
        return Files(checkpoint, _config(released[checkpoint.name]))
    raise BackendError(
        f"which configuration goes with {checkpoint}? Its name is none of the released "
        f"checkpoints' ({', '.join(released)}). Give it with --sam2-config: a YAML file, or the "
        "name of one that sam2 ships, such as sam2.1_hiera_t.yaml"
    )


def load_model(files: Files, torch_device: str) -> Any:
    """The model, sam2's `SAM2Base`, on the device.

    Without torchvision, which only `SAM2ImagePredictor` needs: it takes two thirds of the time
    until the first mask of a small model.
    Raises BackendError where the files are damaged, do not fit together, or the configuration
    would run foreign code.
    """
    _refuse_foreign_code(files.config)
    # Nothing but results may go to stdout; sam2's use of torch.jit is no news to the user.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            from sam2.build_sam import build_sam2

            # Hydra takes a path with two slashes in front for one outside sam2's package.
            config = "/" + files.config.resolve().as_posix()
            return build_sam2(config, str(files.checkpoint), device=torch_device)
        except Exception as error:
            reason = " ".join(str(error).split())[:400] or type(error).__name__
            raise BackendError(
                f"cannot load {files.checkpoint} with the configuration {files.config}: {reason}. "
                "Either the file is damaged or no checkpoint of SAM2, or it belongs to another "
                "configuration: give that with --sam2-config"
            ) from error


def load(files: Files, torch_device: str) -> Any:
    """A `SAM2ImagePredictor` with the model on the device, for images of the model's own size.

    What others ask SAM2 by; benchmarks and tests hold lora-prep's own steps against it. Raises
    BackendError as `load_model` does.
    """
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    model = load_model(files, torch_device)
    predictor = SAM2ImagePredictor(model)
    # The predictor's own values fit models for 1024 pixels only.
    predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]
    return predictor


def _only_one(found: list[Path], pattern: str) -> Path:
    if len(found) == 1:
        return found[0]
    raise BackendError(
        f"{len(found)} files match {pattern}, and it should be one: give the checkpoint itself "
        "with --sam2-model, and its configuration with --sam2-config"
    )


def _config(name: str) -> Path:
    """A YAML file, given by its path, or by its name among those that sam2 ships."""
    given = Path(name).expanduser()
    if given.is_file():
        return given
    package = importlib.util.find_spec("sam2")
    if package is None or not package.submodule_search_locations:
        raise BackendError("the package sam2 is not installed: run make install")
    root = Path(package.submodule_search_locations[0])
    shipped = sorted(root.glob("configs/*/*_hiera_?*.yaml"))
    for path in shipped:
        if name in (path.relative_to(root).as_posix(), path.name, path.stem):
            return path
    raise BackendError(
        f"--sam2-config: no file {name}, and sam2 ships no such configuration; it has "
        f"{', '.join(path.name for path in shipped)}"
    )


def _refuse_foreign_code(config: Path) -> None:
    """Raise BackendError unless the YAML builds modules of sam2 and torch only.

    Hydra calls whatever a `_target_` names, and a dotted name reaches any function of any module
    that another module imports, so a configuration from elsewhere could run anything. Refused as
    well is what makes Hydra read other files or puts a `_target_` together while it loads.
    """
    try:
        content = yaml.safe_load(config.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BackendError(f"{config} is no readable YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise BackendError(f"{config} is no configuration of SAM2: it has no `model`")
    for key, value in _entries(content):
        text = "" if isinstance(value, dict | list) else str(value)
        if key in ("defaults", "hydra") or "${" in f"{key} {text}":
            raise BackendError(
                f"{config} is refused: `{key}: {text or '...'}` could load other code. Write the "
                "values out, without `defaults`, `hydra` and `${...}`"
            )
        if key == "_target_" and not _is_module(value):
            raise BackendError(
                f"{config} is refused: loading it would run `{value}`, which is no module of "
                "sam2.modeling or torch.nn"
            )


def _entries(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every key and value of nested mappings and lists; the elements of a list have the key ''."""
    for key, value in node.items() if isinstance(node, dict) else (("", v) for v in node):
        yield key, value
        if isinstance(value, dict | list):
            yield from _entries(value)


def _is_module(target: Any) -> bool:
    """Whether a dotted name is that of a torch module's class in sam2.modeling or torch.nn."""
    import torch

    match = re.fullmatch(r"((?:sam2\.modeling|torch\.nn)(?:\.\w+)*)\.(\w+)", str(target))
    if match is None:
        return False
    try:
        found = getattr(importlib.import_module(match[1]), match[2], None)
    except ImportError:
        return False
    return (
        isinstance(found, type)
        and issubclass(found, torch.nn.Module)
        and found.__module__.startswith(("sam2.modeling.", "torch.nn."))
    )
