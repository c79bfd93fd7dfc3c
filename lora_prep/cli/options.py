"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

FOLDER = click.Path(file_okay=False, path_type=Path)


def images_argument(command: Command) -> Command:
    """IMAGES: the image folder, or the data set's root; from the configuration if left out."""
    return click.argument("images", type=FOLDER, required=False)(command)


def recursive_option(command: Command) -> Command:
    """--recursive."""
    return click.option("--recursive", is_flag=True, help="Read sub-folders, too.")(command)


def running_options(command: Command) -> Command:
    """What every command takes that works through a folder."""
    decorators = [
        click.option("--force", is_flag=True, help="Do everything again, and replace hand edits."),
        click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing."),
        click.option(
            "--threads",
            type=click.IntRange(1),
            default=4,
            show_default=True,
            help="Threads that read and write around the model.",
        ),
        reporting_options,
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def reporting_options(command: Command) -> Command:
    """--json, --quiet, --verbose."""
    decorators = [
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        click.option("-q", "--quiet", is_flag=True, help="No progress; only problems."),
        click.option("-v", "--verbose", is_flag=True, help="A line for each image."),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def detector_options(command: Command) -> Command:
    """Which face detector, and its settings."""
    decorators = [
        click.option(
            "--detector",
            type=click.Choice(["insightface", "cascade"]),
            help="Face detector; cascade needs no model file.  [default: the preset's]",
        ),
        click.option(
            "--face-model",
            metavar="NAME|DIR",
            help="insightface: a pack's name or a folder of ONNX files.  [default: the preset's]",
        ),
        click.option(
            "--det-size",
            type=click.IntRange(32),
            help="insightface: the image is fitted into a square of this many pixels; small faces "
            "in large groups want more.  [default: 640]",
        ),
        click.option(
            "--min-score",
            type=click.FloatRange(0, 1),
            help="insightface: drop faces below this confidence.  [default: 0.5]",
        ),
        device_option,
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def device_option(command: Command) -> Command:
    """--device."""
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
    )(command)


def preset_option(what: str) -> Callable[[Command], Command]:
    """--preset."""
    return click.option(
        "--preset",
        type=click.Choice(["best", "fast", "embedded"]),
        default="best",
        show_default=True,
        help=f"{what} `embedded` needs no model files (draft quality).",
    )


def required(images: Path | None) -> Path:
    """The image folder: given, configured, or `data` here."""
    if images is None:
        raise click.UsageError(
            "give the folder of the images (there is neither a lora-prep.toml nor a data folder "
            "here; `lora-prep init` makes both)"
        )
    return images
