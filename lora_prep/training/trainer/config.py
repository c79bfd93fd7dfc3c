"""What a training run is: a TOML file, read into frozen dataclasses.

Unknown tables and keys are errors with the nearest that exists. Paths are relative to the file.
`EXAMPLE` is a file with every table.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from lora_prep.errors import UsageError

Naming = Literal["diffusers", "comfyui", "kohya"]
Optimiser = Literal["adamw", "adamw8bit", "paged-adamw8bit", "lion8bit", "sgd"]
Decay = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class ModelConfig:
    """[model]: what the LoRA is trained on."""

    base: str
    """A folder that `save_pretrained` wrote, or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen model; the LoRA stays in float32. auto: bfloat16 on CUDA."""
    text_tokens: int = 512
    """FLUX: length of the text."""
    guidance: float = 1.0
    """FLUX.1 dev: the guidance that it is trained at."""


@dataclass(frozen=True)
class DataConfig:
    """[data]: a prepared folder."""

    images: Path | None = None
    """Only textual sliders do without."""
    masks: Path | None = None
    priors: Path | None = None
    """Class images. Half of each batch comes from them."""
    caption: str = ""
    """For images without one."""
    prior_caption: str = ""
    recursive: bool = False
    resolution: int = 512
    bucket_step: int = 64
    crop: Literal["center", "random", "face"] = "center"
    flip: bool = False
    missing_mask: Literal["error", "ones"] = "error"
    cache: bool = True
    """Keep latents and texts in `.lora-prep` of the data set."""
    workers: int = 0


@dataclass(frozen=True)
class LoraConfig:
    """[lora]: the adapter."""

    rank: int = 16
    alpha: float | None = None
    """None: the rank, so that the scale is 1."""
    dropout: float = 0.0
    targets: str = "all.attn"
    """Blocks, an expression or a preset of `lora-prep targets`."""


@dataclass(frozen=True)
class TrainConfig:
    """[train]: the optimisation."""

    steps: int = 1000
    batch_size: int = 1
    accumulate: int = 1
    """Batches to an optimiser step (and process)."""
    learning_rate: float = 1e-4
    optimizer: Optimiser = "adamw"
    weight_decay: float = 0.01
    warmup: int = 0
    decay: Decay = "constant"
    clip: float = 1.0
    """Largest norm of the gradient; 0 = never clipped."""
    ema: float = 0.0
    """Decay of the moving average that is saved then; 0 = none. 0.999 is usual."""
    gradient_checkpointing: bool = False
    density: Literal["auto", "uniform", "logit_normal"] = "auto"
    """How noise levels are drawn. auto: logit_normal for FLUX, else uniform."""
    shift: float | None = None
    """FLUX: of the noise levels. None: what the model takes for the image's size."""
    caption_dropout: float = 0.0
    """Share of images that are trained without their caption."""
    seed: int = 0


@dataclass(frozen=True)
class PreserveConfig:
    """[preserve]: the prompt for the term output_preservation."""

    prompt: str
    """The class, such as "a person"."""
    trigger: str = ""
    """Where given, each caption with this word replaced by `prompt` is preserved instead."""


@dataclass(frozen=True)
class IdentityConfig:
    """[identity]: the networks for the term identity."""

    recogniser: Path
    """ArcFace as .onnx."""
    decoder: Path | None = None
    """Folder of a tiny autoencoder of diffusers (TAESD) for this family; None: the model's own."""


@dataclass(frozen=True)
class SliderConfig:
    """[slider]: a concept slider, from prompts or from pairs of images."""

    positive: str = ""
    negative: str = ""
    target: str = ""
    """The prompt that slides; empty: any."""
    pairs: Path | None = None
    """Folder with `positive/` and `negative/` of the same names."""
    trained_range: tuple[float, float] = (-1.0, 1.0)
    """Noted in the LoRA's metadata: the strengths that it was trained at."""
    denoise_steps: int = 20
    """Textual, without images: x_t comes from so many steps of the model itself."""


@dataclass(frozen=True)
class SaveConfig:
    """[save]: what is written."""

    out: Path
    name: str = "lora"
    namings: tuple[Naming, ...] = ("diffusers",)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    every: int = 250
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Checkpoints that are kept."""


@dataclass(frozen=True)
class ValidationConfig:
    """[validation]: images drawn during the training."""

    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    every: int = 250
    steps: int = 20
    guidance: float | None = None
    """None: the pipeline's default."""
    strengths: tuple[float, ...] = (1.0,)
    """Of the LoRA; sliders want several, such as [-1, 0, 1]."""
    seed: int = 0


@dataclass(frozen=True)
class LogConfig:
    """[log]: what is written down of the training."""

    every: int = 10
    """Steps between lines; the plot is drawn at checkpoints."""
    tensorboard: bool = False


@dataclass(frozen=True)
class Config:
    """A training run."""

    model: ModelConfig
    save: SaveConfig
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    losses: Mapping[str, Any] = field(default_factory=lambda: {"diffusion": {}})
    """As `training.from_config` reads it."""
    preserve: PreserveConfig | None = None
    identity: IdentityConfig | None = None
    slider: SliderConfig | None = None
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    written: Mapping[str, str] = field(
        default_factory=dict, repr=False, compare=False, metadata={"table": False}
    )
    """Each path as the file has it, by the path that it was read as."""

    def terms(self) -> dict[str, str]:
        """The kind of each term by its name."""
        return {
            str(name): str(table.get("term", name)) if isinstance(table, Mapping) else str(name)
            for name, table in self.losses.items()
        }

    def fingerprint(self) -> str:
        """Changes with everything that changes what is learned from the next step on.

        How long, how often and where to save, log and validate may change in the middle of a run;
        so may the number of steps, unless the learning rate falls towards the last one.
        """
        parts = self.as_json()
        for free in ("save", "log", "validation"):
            del parts[free]
        if self.train.decay == "constant":
            del parts["train"]["steps"]
        del parts["data"]["workers"], parts["data"]["cache"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values; paths as the file has them, wherever it was called from."""
        tables = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del tables["written"]
        plain = {k: dataclasses.asdict(v) if _is_table(v) else v for k, v in tables.items()}
        text = json.dumps(plain, default=lambda path: self.written.get(str(path), str(path)))
        values: dict[str, Any] = json.loads(text)
        return values


def _is_table(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def read(path: Path) -> Config:
    """The run that a TOML file describes. Raises UsageError that names the table and the key."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    return from_dict(values, str(path), path.parent)


def from_dict(values: Mapping[str, Any], where: str, folder: Path) -> Config:
    """The run that tables describe; relative paths are meant from `folder`."""
    config: Config = _table(Config, values, where, "", folder)
    _check(config, where)
    return dataclasses.replace(config, written=_written(config, values))


def _written(config: Config, values: Mapping[str, Any]) -> dict[str, str]:
    """The paths of a file as they are there, by what they were read as."""
    found = {}
    for table, keys in values.items():
        for key in keys if isinstance(keys, Mapping) else ():
            path = getattr(getattr(config, table), key, None)
            if isinstance(path, Path):
                found[str(path)] = str(keys[key])
    return found


def _table(kind: Any, values: Any, where: str, name: str, folder: Path) -> Any:
    """A dataclass from a table."""
    here = f"{where}: [{name}]" if name else where
    if not isinstance(values, Mapping):
        raise UsageError(f"{here} is {values!r}: write a table, [{name}]")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.metadata.get("table", True)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(fields)}"
            what = f"no key {key!r}" if name else f"no table [{key}]"
            raise UsageError(f"{here}: there is {what}: {hint}")
    for key, one in fields.items():
        needed = one.default is one.default_factory is dataclasses.MISSING
        if needed and key not in values:
            missing = f"{here}: {key} is missing" if name else f"{here}: [{key}] is missing"
            raise UsageError(f"{missing}. `lora-prep train --example` prints a whole file")
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            key: _value(hints[key], value, where, f"{name}.{key}" if name else key, folder)
            for key, value in values.items()
        }
    )


def _value(kind: Any, value: Any, where: str, name: str, folder: Path) -> Any:
    """A value as the field wants it, or a UsageError."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _value(next(k for k in arguments if k is not type(None)), value, where, name, folder)
    if dataclasses.is_dataclass(kind):
        return _table(kind, value, where, name, folder)
    if origin is Literal:
        if value not in arguments:
            near = difflib.get_close_matches(str(value), map(str, arguments), n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise UsageError(
                f"{where}: {name} is {value!r}; it can be {', '.join(map(str, arguments))}{hint}"
            )
        return value
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        if len(arguments) == 2 and arguments[1] is not Ellipsis and len(items) != 2:
            raise UsageError(f"{where}: {name} wants two values, not {value!r}")
        return tuple(_value(arguments[0], item, where, name, folder) for item in items)
    if kind is Path and isinstance(value, str) and value:
        return folder / Path(value).expanduser()
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UsageError(f"{where}: {name} is {value}: give a finite number")
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        return value
    wanted = {Path: "a path", float: "a number", int: "a whole number", bool: "true or false"}
    raise UsageError(f"{where}: {name} is {value!r}: it wants {wanted.get(kind, 'a text')}")


def _check(config: Config, where: str) -> None:
    """Raise UsageError for numbers that make no sense."""
    train, lora, save = config.train, config.lora, config.save
    alpha = 1.0 if lora.alpha is None else lora.alpha
    rules = [
        ("train.steps", train.steps, train.steps >= 1, "1 or more"),
        ("train.batch_size", train.batch_size, train.batch_size >= 1, "1 or more"),
        ("train.accumulate", train.accumulate, train.accumulate >= 1, "1 or more"),
        ("train.learning_rate", train.learning_rate, train.learning_rate > 0, "above 0"),
        ("train.weight_decay", train.weight_decay, train.weight_decay >= 0, "0 or more"),
        ("train.warmup", train.warmup, train.warmup >= 0, "0 or more"),
        ("train.clip", train.clip, train.clip >= 0, "0 (off) or more"),
        ("train.ema", train.ema, 0 <= train.ema < 1, "from 0 to below 1"),
        ("train.shift", train.shift, train.shift is None or train.shift > 0, "above 0"),
        (
            "train.caption_dropout",
            train.caption_dropout,
            0 <= train.caption_dropout < 1,
            "from 0 to below 1",
        ),
        ("lora.rank", lora.rank, lora.rank >= 1, "1 or more"),
        ("lora.alpha", lora.alpha, alpha > 0, "above 0"),
        ("lora.dropout", lora.dropout, 0 <= lora.dropout < 1, "from 0 to below 1"),
        ("save.every", save.every, save.every >= 0, "0 (only at the end) or more"),
        ("save.keep", save.keep, save.keep >= 1, "1 or more"),
        ("save.namings", save.namings, len(save.namings) > 0, "at least one"),
        ("save.name", save.name, save.name == Path(save.name).name != "", "a file's name"),
        ("log.every", config.log.every, config.log.every >= 1, "1 or more"),
        ("validation.every", config.validation.every, config.validation.every >= 1, "1 or more"),
        ("validation.steps", config.validation.steps, config.validation.steps >= 1, "1 or more"),
        ("data.workers", config.data.workers, config.data.workers >= 0, "0 or more"),
        ("model.text_tokens", config.model.text_tokens, config.model.text_tokens >= 1, "1 or more"),
    ]
    for name, value, fine, wanted in rules:
        if not fine:
            raise UsageError(f"{where}: {name} is {value!r}: it has to be {wanted}")
