"""`lora-prep run`."""

import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from lora_prep.cli import Failure, main, options, printable
from lora_prep.cli.config import META, Config, ConfiguredCommand
from lora_prep.cli.options import FOLDER
from lora_prep.errors import LoraPrepError

FLAGS = {
    "dry_run": "--dry-run",
    "as_json": "--json",
    "quiet": "--quiet",
    "verbose": "--verbose",
}
"""Flags that every step gets that knows them."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one step ended."""

    name: str
    exit_code: int
    seconds: float
    document: Any = None
    """What it printed with --json."""


@click.command(
    "run",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep run                                   what lora-prep.toml asks for
  lora-prep run data/faces --preset embedded
  lora-prep run data/faces --photos photos        normalises them into data/faces first
  lora-prep run --step masks --step validate
\b
Exit codes: 0 all well, 1 items failed or issues were found, 2 a step could not run (the chain
stops there), 130 interrupted: the same command goes on.
""",
)
@click.argument("images", type=FOLDER, required=False, metavar="[DATA]")
@click.option(
    "--photos", type=FOLDER, help="Normalise the photographs in this folder into DATA first."
)
@click.option(
    "--step",
    "steps",
    multiple=True,
    metavar="STEP",
    help="Run this step; may be given several times: normalize, captions, embed, masks, augment, "
    "priors, validate, report, export.  [default: masks and validate, and what the configuration "
    "asks for]",
)
@click.option("--masks", type=FOLDER, help="The masks.  [default: masks beside the images]")
@options.recursive_option
@click.option(
    "--preset",
    type=click.Choice(["best", "fast", "embedded"]),
    help="Models for all steps.  [default: each step's own]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@options.reporting_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    images: Path | None,
    photos: Path | None,
    steps: tuple[str, ...],
    masks: Path | None,
    recursive: bool,
    preset: str | None,
    **flags: bool,
) -> None:
    """Run the chain: photographs in, a checked data set out.

    Runs masks and validate; normalize with --photos; and each step that the configuration asks for:
    captions with a template to fill, embed and augment with any setting of theirs, priors with a
    class, export with a trainer. Only what is new or has changed is done again, and what you edited
    is left alone. Each step is the command of that name, with its settings from the configuration:
    what you chose on the command line has to be written there, or is made anew without it.
    """
    from lora_prep import pipeline
    from lora_prep.cli.console import IN_CHAIN, SCHEMA

    ctx.meta[IN_CHAIN] = True
    data = options.required(images)
    config: Config = ctx.meta.get(META, Config())
    names = pipeline.chosen(steps, config.commands, photos=photos is not None)
    ended: list[Ended] = []
    for number, name in enumerate(names, 1):
        if not (flags["as_json"] or flags["quiet"]):
            click.echo(f"[{number}/{len(names)}] {name}", err=True)
        if flags["dry_run"] and (why := _put_off(name, names, data, recursive)):
            if not (flags["as_json"] or flags["quiet"]):
                click.echo(f"{name}: would be: {why}")
            ended.append(Ended(name, 0, 0.0, {"schema": SCHEMA, "dry_run": True, "would_be": why}))
            continue
        place = _place(name, data, photos, masks)
        ended.append(_step(ctx, name, place, config, recursive, preset, flags))
        if ended[-1].exit_code not in (0, 1):
            break
    if flags["as_json"]:
        click.echo(json.dumps(_document(ended, names)))
    elif not flags["quiet"] or any(step.exit_code for step in ended):
        click.echo("\n".join(_summary(ended, names)))
    sys.exit(max((step.exit_code for step in ended), default=0))


def _put_off(name: str, names: Sequence[str], data: Path, recursive: bool) -> str:
    """Why a dry run cannot ask a step what it would do, and what that is; empty where it can."""
    from lora_prep.dataset import image_names

    if name == "report":
        return "one page about all images"  # it has no --dry-run
    if name == "validate" and names[0] != name:
        return "a check of what the steps before it make"
    folder = _image_folder(data)
    there = folder.is_dir() and next(image_names(folder, recursive=recursive), None) is not None
    if there or name == "normalize" or "normalize" not in names:
        return ""
    return f"as many as normalize makes, in {printable(str(folder))}"


def _place(name: str, data: Path, photos: Path | None, masks: Path | None) -> list[str]:
    """The arguments that say where a step works."""
    match name:
        case "normalize":
            return [str(photos), "--out", str(_image_folder(data))]
        case "masks":
            return [str(data), *(["--out", str(masks)] if masks else [])]
        case _:
            return [str(data), *(["--masks", str(masks)] if masks else [])]


def _image_folder(data: Path) -> Path:
    """Where DATA's images lie, or will lie."""
    from lora_prep.dataset import IMAGE_FOLDERS, image_names

    inner = [data / name for name in IMAGE_FOLDERS if (data / name).is_dir()]
    if inner:
        return inner[0]
    taken = data.is_dir() and next(image_names(data), None) is not None
    return data if taken or data.name in IMAGE_FOLDERS else data / IMAGE_FOLDERS[0]


def _step(
    ctx: click.Context,
    name: str,
    place: Sequence[str],
    config: Config,
    recursive: bool,
    preset: str | None,
    flags: dict[str, bool],
) -> Ended:
    """Run a command as the user would, and catch how it ends."""
    step = main.get_command(ctx, name)
    assert step
    known = {option for p in step.params for option in p.opts}
    given = [*(text for text, takes in _pairs(place, known) if takes)]
    given += ["--config", str(config.path)] if config.path and "--config" in known else []
    given += ["--recursive"] if recursive and "--recursive" in known else []
    given += ["--preset", preset] if preset and _has_preset(step, preset) else []
    known -= {"--dry-run"} if name == "validate" else set()  # it goes with --fix alone
    given += [option for flag, option in FLAGS.items() if flags[flag] and option in known]
    printed = io.StringIO()
    started = time.monotonic()
    with contextlib.redirect_stdout(printed) if flags["as_json"] else contextlib.nullcontext():
        code = _exit_code(step, name, given, ctx)
    document = _parsed(printed.getvalue()) if flags["as_json"] else None
    return Ended(name, code, time.monotonic() - started, document)


def _has_preset(step: click.Command, preset: str) -> bool:
    """Whether a step has a preset of models of that name; augment's are of another kind."""
    types = [param.type for param in step.params if param.name == "preset"]
    return any(isinstance(kind, click.Choice) and preset in kind.choices for kind in types)


def _pairs(place: Sequence[str], known: set[str]) -> Iterator[tuple[str, bool]]:
    """Each argument, and whether the step has the option that it belongs to."""
    option = ""
    for text in place:
        if text.startswith("--"):
            option = text
        yield text, not option or option in known


def _exit_code(step: click.Command, name: str, given: list[str], ctx: click.Context) -> int:
    try:
        with step.make_context(name, given, parent=ctx.parent) as inner:
            step.invoke(inner)
    except SystemExit as ended:
        return int(ended.code or 0)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except LoraPrepError as error:
        click.echo(f"Error: {printable(str(error))}", err=True)
        return Failure.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return 0


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text or None


def _summary(ended: Sequence[Ended], names: Sequence[str]) -> Iterator[str]:
    words = {0: "all well", 1: "see above: some items want a look"}
    width = max(map(len, names))
    yield "run:"
    for step in ended:
        said = words.get(step.exit_code, f"stopped (exit code {step.exit_code})")
        yield f"  {step.name:{width}}  {step.seconds:7.1f} s  {said}"
    for name in names[len(ended) :]:
        yield f"  {name:{width}}  {'':9}  not begun"


def _document(ended: Sequence[Ended], names: Sequence[str]) -> dict[str, Any]:
    from lora_prep.cli.console import SCHEMA

    return {
        "schema": SCHEMA,
        "steps": [
            {
                "name": step.name,
                "exit_code": step.exit_code,
                "seconds": round(step.seconds, 3),
                "document": step.document,
            }
            for step in ended
        ],
        "not_begun": [*names[len(ended) :]],
    }
