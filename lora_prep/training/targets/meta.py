"""From what the user has to a `Model`: a family's name, a folder, a config, a checkpoint, a LoRA.

Models are built on torch's meta device, which allocates no weights: 32 billion parameters take
a fraction of a second and a few megabytes. Of a checkpoint only the header is read. What the known
names' models look like was written down when they were built so (`inventory`): for them not even
diffusers is needed.
"""

import json
import struct
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from lora_prep.errors import UsageError
from lora_prep.training.targets import inventory, names
from lora_prep.training.targets.families import FAMILIES, Model, describe_modules
from lora_prep.training.targets.names import Role

MAX_HEADER = 100_000_000
"""Bytes; safetensors itself refuses longer headers."""

FAMILY = "lora_prep.family"
"""Where `split` and `merge` note the family in a LoRA's metadata: a part alone may not tell it."""

_PARTS = ("transformer", "unet")


def shipped() -> tuple[str, ...]:
    """The names of the models whose public config comes with lora-prep."""
    folder = resources.files(__package__) / "configs"
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir()))


def public_config(name: str) -> dict[str, Any]:
    """The public config of one of the `shipped` models, as diffusers writes it."""
    text = (resources.files(__package__) / "configs" / f"{name}.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def resolve(model: Any) -> Model:
    """The blocks and layers of a model.

    `model`: a name of `shipped()`, as a text; a torch module; a diffusers folder, of a pipeline or
    of its transformer; a `config.json`; a `.safetensors` checkpoint or LoRA, or the index of a
    sharded checkpoint; or a dict with such a config. A Path is never taken for a name.
    Raises UsageError where it is none of these, or has no blocks of a kind that is known.
    """
    if isinstance(model, Mapping):
        return from_config(model, str(model.get("_class_name", "config")))
    if hasattr(model, "named_modules"):
        return from_module(model, type(model).__name__)
    title = str(model)
    if title in shipped() and not isinstance(model, Path):
        return inventory.load(title)
    path = Path(model)
    if path.is_dir():
        return from_config(_read_json(_config_of(path)), title)
    if not path.is_file():
        raise UsageError(
            f"{title} is neither a file nor a folder here, nor a known model: known are "
            f"{', '.join(shipped())}"
        )
    if path.name.endswith(".safetensors.index.json"):
        weights = _read_json(path).get("weight_map")
        if not isinstance(weights, dict):
            raise UsageError(f"{title} has no weight_map: it is no index of a sharded checkpoint")
        return from_keys({str(key): None for key in weights}, title)
    if path.suffix == ".json":
        return from_config(_read_json(path), title)
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise UsageError(
            f"{title} is a pickle, which can run code when it is opened: convert it to .safetensors"
        )
    shapes, metadata = read_header(path)
    return from_keys(shapes, title, metadata)


def is_model(folder: Path) -> bool:
    """Whether a folder has the config of a diffusers model, of a pipeline or of its transformer."""
    return any(file.is_file() for file in _configs(folder))


def _configs(folder: Path) -> list[Path]:
    return [place / "config.json" for place in (*(folder / part for part in _PARTS), folder)]


def _config_of(folder: Path) -> Path:
    """The config of the part of a diffusers folder that LoRAs are trained on."""
    for file in _configs(folder):
        if file.is_file():
            return file
    raise UsageError(
        f"{folder} is no diffusers model: there is a config.json neither in it nor in a folder "
        "transformer or unet in it"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no JSON object")
    return value


def build(config: Mapping[str, Any], title: str) -> Any:
    """The module of a diffusers config, on the meta device.

    Raises UsageError where diffusers is missing, does not know the class or refuses the config.
    """
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise UsageError(
            "models are built with diffusers: pip install 'lora-prep[train]'"
        ) from error
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise UsageError(f"{title}: its config names no _class_name, so it is no diffusers model")
    kind = getattr(diffusers, name, None) if name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise UsageError(
            f"{title}: diffusers {diffusers.__version__} has no model {name!r}; give the folder of "
            "the transformer or the U-Net, or update diffusers"
        )
    try:
        with torch.device("meta"):
            return kind.from_config(dict(config))  # type: ignore[attr-defined]
    except Exception as error:
        raise UsageError(f"{title}: diffusers cannot build {name} from it: {error}") from error


def from_config(config: Mapping[str, Any], title: str) -> Model:
    """The model of a diffusers config."""
    return from_module(build(config, title), title)


def from_module(module: Any, title: str) -> Model:
    """The model of a torch module, in diffusers' or the author's names."""
    import torch

    linear: dict[str, tuple[int, int] | None] = {}
    others = []
    for full, child in module.named_modules():
        name = names.parse(f"{full}.weight").module
        if isinstance(child, torch.nn.Linear):
            linear[name] = (child.in_features, child.out_features)
        else:
            others.append(name)
    parameters = sum(p.numel() for p in module.parameters())
    return describe_modules(title, linear, [*others, *linear], parameters=parameters)


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...] | None], dict[str, str]]:
    """The shapes and the metadata of a safetensors file; the weights are not read.

    Raises UsageError where it is none.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER:
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        shapes = {str(k): tuple(int(n) for n in v["shape"]) for k, v in header.items()}
    except (
        OSError,
        ValueError,
        struct.error,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UsageError(f"{path} is no safetensors file: {error}") from error
    return dict(shapes), metadata


def sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file that was just written in the order of its keys.

    The library keeps it in a hash map, whose order differs from one call to the next. The header
    keeps its length, and the tensors their places. Raises OSError.
    """
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        if "__metadata__" not in header:
            return
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def from_keys(
    shapes: Mapping[str, tuple[int, ...] | None],
    title: str,
    metadata: Mapping[str, str] | None = None,
) -> Model:
    """The model of a checkpoint, or of a LoRA, from the names and shapes of its tensors.

    The family that a LoRA's metadata note (`FAMILY`) goes before what its names tell.
    """
    keys = {key: names.parse(key) for key in shapes}
    if any(key.role in (Role.DOWN, Role.UP) for key in keys.values()):
        model, noted = _from_lora(shapes, keys, title), (metadata or {}).get(FAMILY)
        return model.of_family(noted) if noted in FAMILIES else model
    linear: dict[str, tuple[int, int] | None] = {}
    for key, parsed in keys.items():
        shape = shapes[key]
        if parsed.role is not Role.WEIGHT or "norm" in parsed.module.rpartition(".")[2]:
            continue
        if shape is None:
            linear[parsed.module] = None
        elif len(shape) == 2:
            linear[parsed.module] = (shape[1], shape[0])
    parameters = None
    if None not in shapes.values():
        parameters = sum(_product(shape) for shape in shapes.values() if shape is not None)
    modules = [key.module for key in keys.values()]
    return describe_modules(title, linear, modules, parameters=parameters)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _from_lora(
    shapes: Mapping[str, tuple[int, ...] | None], keys: Mapping[str, names.Key], title: str
) -> Model:
    inputs: dict[str, int] = {}
    outputs: dict[str, int] = {}
    modules: list[str] = []
    for key, parsed in keys.items():
        shape = shapes[key]
        if parsed.role not in (Role.DOWN, Role.UP):
            continue
        modules.append(parsed.module)
        if shape and len(shape) >= 2:
            if parsed.role is Role.DOWN:
                inputs[parsed.module] = shape[1]
            else:
                outputs[parsed.module] = shape[0]
    linear = {
        name: (inputs[name], outputs[name]) if name in inputs and name in outputs else None
        for name in dict.fromkeys(modules)
    }
    return describe_modules(title, linear, modules, lora=True)
