"""`lora-prep.toml`: defaults for the commands, kept beside the data.

    [dataset]              where things lie, relative to this file
    images = "data/faces"
    masks = "data/masks"

    [masks]                a table for each command, a key for each long option
    region = "head"
    min-face = 48

The nearest file counts, from the image folder (or, without one, from here) upwards. What is given
on the command line wins. Folders in it are relative to the file, wherever the command is run.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from lora_prep.errors import DatasetError, UsageError

FILE_NAME = "lora-prep.toml"
META = "lora_prep.config"
"""Where a command's context keeps the configuration that it found."""

DATASET_KEYS = ("images", "masks", "recursive")

COMMAND_LINE_ONLY = (
    "images",
    "config",
    "help",
    "force",
    "dry_run",
    "list_checks",
    "list_decisions",
    "yes",
    "exit_code",
    "fix",
    "undo",
    "accept_license",
    "shard",
    "merge",
)
"""Options that a file must not set: the data's place is `[dataset]`, the others are decisions."""

WITHOUT_TABLE = (
    "init",
    "status",
    "clean",
    "targets",
    "lora",
    "models",
    "doctor",
    "train",
    "slider",
    "pairs",
)
"""Commands that no file configures."""


class FileOrTables(click.Path):
    """A file or, in the configuration, what would be in it: a list of tables."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Lists as they are."""
        return value if isinstance(value, list) else super().convert(value, param, ctx)


class FileOrWord(click.Path):
    """A file, or a word that stands for something else; a file of that name is `./word`."""

    def __init__(self, word: str) -> None:
        super().__init__(dir_okay=False, path_type=Path)
        self.word = word


KINDS: Sequence[tuple[type[Any], tuple[type, ...], str]] = (
    (FileOrTables, (str, list), "a file's name or a list of tables"),
    (click.types.BoolParamType, (bool,), "true or false"),
    (click.types.IntParamType, (int,), "a whole number"),
    (click.types.FloatParamType, (int, float), "a number"),
    (click.types.StringParamType, (str, int, float), "a text"),
    (click.ParamType, (str,), "a text"),
)
"""Click's types, the TOML types that fit them, and how to say so."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a configuration file says; empty where there is none."""

    path: Path | None = None
    images: Path | None = None
    masks: Path | None = None
    recursive: bool = False
    commands: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values by command and option, as written."""


class ConfiguredCommand(click.Command):
    """A command whose defaults come from the configuration file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--config"],
                type=click.Path(dir_okay=False, path_type=Path),
                help=f"Configuration.  [default: the nearest {FILE_NAME}]",
                expose_value=False,
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Look at the arguments once for the file to read, then parse them with its defaults."""
        if not ctx.resilient_parsing:
            given, _, _ = self.make_parser(ctx).parse_args(list(args))
            wants_help = (option := self.get_help_option(ctx)) and given.get(option.name) is True
            try:
                if not wants_help:
                    self._apply(ctx, given)
            except (UsageError, DatasetError) as error:
                failure = click.UsageError(str(error), ctx)
                raise failure from error
        return super().parse_args(ctx, args)

    def _apply(self, ctx: click.Context, given: Mapping[str, Any]) -> None:
        images = Path(given["images"]) if isinstance(given.get("images"), str) else None
        explicit = Path(given["config"]) if isinstance(given.get("config"), str) else None
        config = read_config(explicit) if explicit else find_config(images or Path())
        ctx.meta[META] = config
        defaults = option_defaults(config, self)
        if any(p.name == "images" for p in self.params):
            if images is None:
                found = config.images or Path("data")
                if config.images or found.is_dir():
                    defaults["images"] = str(found)
            if images is None or _same_data(images, config.images):
                if config.masks:
                    defaults[_masks_option(self)] = str(config.masks)
                defaults.setdefault("recursive", config.recursive)
        ctx.default_map = {**defaults, **(ctx.default_map or {})}


def find_config(start: Path) -> Config:
    """The nearest configuration from a folder upwards, or an empty one."""
    folder = Path(os.path.abspath(start))  # noqa: PTH100 keeps links
    for place in (folder, *folder.parents):
        if os.path.isfile(place / FILE_NAME):  # noqa: PTH113 False where it may not be looked for
            return read_config(place / FILE_NAME)
    return Config()


def read_config(path: Path) -> Config:
    """Read a configuration file. Raises UsageError where anything in it is not understood."""
    from lora_prep.cli import COMMANDS

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or far too long a number
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    known = ("dataset", *(name for name in COMMANDS if name not in WITHOUT_TABLE))
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"{path}: there is no table [{name}]{_suggestion(name, known)}")
        if not isinstance(value, dict):
            raise UsageError(f"{path}: {name} is a table: write [{name}]")
    dataset = values.pop("dataset", {})
    for key, value in dataset.items():
        if key not in DATASET_KEYS:
            raise UsageError(
                f"{path}: [dataset] has no key {key!r}{_suggestion(key, DATASET_KEYS)}"
            )
        wanted = bool if key == "recursive" else str
        if not isinstance(value, wanted):
            raise UsageError(f"{path}: [dataset] {key} wants a {wanted.__name__}, not {value!r}")
    places = {k: path.parent / dataset[k] for k in ("images", "masks") if k in dataset}
    return Config(path, recursive=dataset.get("recursive", False), commands=values, **places)


def option_defaults(config: Config, command: click.Command) -> dict[str, Any]:
    """The configuration's values for one command, by parameter name.

    Raises UsageError for a key that is no option of the command and for a value that does not fit.
    """
    options = configurable(command)
    defaults: dict[str, Any] = {}
    for key, value in config.commands.get(command.name or "", {}).items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            hint = _suggestion(key, [*options])
            if key == _masks_option(command):
                hint = "; say where the masks lie with `masks` in [dataset]"
            raise UsageError(f"{config.path}: [{command.name}] has no key {key!r}{hint}")
        try:
            fitting = _fitting(option, value)
        except (ValueError, click.BadParameter) as error:
            raise UsageError(f"{config.path}: [{command.name}] {key}: {error}") from error
        if isinstance(option.type, click.Path) and config.path:
            fitting = _from(config.path.parent, fitting, getattr(option.type, "word", None))
        assert option.name
        defaults[option.name] = fitting
    return defaults


def _from(folder: Path, value: Any, word: str | None) -> Any:
    """A path of the file, or each in a list of them, as seen from its folder."""
    if isinstance(value, list):
        return [_from(folder, one, word) for one in value]
    return str(folder / value) if isinstance(value, str) and value != word else value


def configurable(command: click.Command) -> dict[str, click.Option]:
    """The options of a command that a file may set, by their keys."""
    return {
        opt.removeprefix("--"): p
        for p in command.params
        if isinstance(p, click.Option)
        and p.name not in (*COMMAND_LINE_ONLY, _masks_option(command))
        for opt in p.opts
        if opt.startswith("--")
    }


def _masks_option(command: click.Command) -> str:
    """The parameter that says where the masks of IMAGES lie; empty where there is no IMAGES."""
    if not any(p.name == "images" for p in command.params):
        return ""
    return "out" if command.name == "masks" else "masks"


def _fitting(option: click.Option, value: Any) -> Any:
    """The value, if it fits the option. Raises ValueError or BadParameter where it does not."""
    kinds, wanted = next((k, w) for t, k, w in KINDS if isinstance(option.type, t))
    values = value if option.multiple else [value]
    if not isinstance(values, list):
        raise ValueError(f"it wants a list, each {wanted}, not {value!r}")
    for one in values:
        if type(one) not in kinds:  # a bool is no number here
            raise ValueError(f"it wants {wanted}, not {one!r}")
        option.type.convert(one, option, None)
    return value


def _same_data(images: Path, configured: Path | None) -> bool:
    given = os.path.realpath(images)
    return configured is not None and given in (
        os.path.realpath(configured),
        os.path.realpath(configured.parent),
    )


def _suggestion(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.replace("_", "-"), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
