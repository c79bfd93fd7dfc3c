"""`lora-prep status`."""

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand
from lora_prep.cli.options import FOLDER

if TYPE_CHECKING:
    from lora_prep.dataset import Dataset
    from lora_prep.status import Standing, State, Step
    from lora_prep.types import Json


@click.command(
    "status",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep status                   the data set of lora-prep.toml, or data here
  lora-prep status data/faces -v     names every image that is not done
  lora-prep status --exit-code       for scripts: 1 where something is left to do
""",
)
@click.argument("images", type=FOLDER, required=False, metavar="[DATA]")
@click.option("--masks", type=FOLDER, help="The masks.  [default: masks beside the images]")
@options.recursive_option
@click.option("--exit-code", is_flag=True, help="Exit with 1 where something is left to do.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("-v", "--verbose", is_flag=True, help="Name everything that is not done.")
def command(
    images: Path | None,
    masks: Path | None,
    recursive: bool,
    exit_code: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Show what is done, stale and missing.

    Compares the journals with the files: no model is loaded, and nothing is written. That settings
    have changed since is seen by the commands themselves (--dry-run), not here.
    """
    from lora_prep.cli.console import SCHEMA
    from lora_prep.dataset import Dataset
    from lora_prep.status import OPEN, steps

    dataset = Dataset.at(options.required(images), masks=masks, recursive=recursive)
    found = list(steps(dataset))
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **_as_json(dataset, found)}))
    else:
        click.echo("\n".join(_as_text(dataset, found, verbose)))
    if exit_code and any(step.counts[state] for step in found for state in OPEN):
        sys.exit(1)


def _as_text(dataset: "Dataset", found: Sequence["Step"], verbose: bool) -> Iterator[str]:
    from lora_prep.cli.console import name, short
    from lora_prep.status import State

    yield f"{short(dataset.images)}: {len(dataset)} images, {len(dataset.captions)} captions"
    total: Counter[State] = Counter()
    for step in found:
        total.update(step.counts)
    columns = [state for state in State if total[state] or state is State.DONE]
    width = max(len(step.name) for step in found)
    yield f"{'':{width}}" + "".join(f"  {state:>8}" for state in columns)
    for step in found:
        cells = (f"{step.counts[state] or '':>8}" for state in columns)
        yield f"{step.name:{width}}" + "".join(f"  {cell}" for cell in cells)
    if verbose:
        for step in found:
            for item in step.items:
                if item.state is not State.DONE:
                    said = f": {name(item.message)}" if item.message else ""
                    yield f"{step.name}  {item.state:8}  {name(item.key)}{said}"
    yield from _advice(dataset, found, total, verbose)


def _advice(
    dataset: "Dataset", found: Sequence["Step"], total: Counter["State"], verbose: bool
) -> Iterator[str]:
    from lora_prep.status import State

    again = [
        step
        for step in found
        if step.counts[State.STALE] or step.counts[State.MISSING] > len(_taken_out(step))
    ]
    if again:
        yield f"next: lora-prep {_command(again[0], dataset)}"
    if taken := sum(len(_taken_out(step)) for step in found):
        yield f"taken out: {taken}; normalize would make the copy of a photograph again"
    if total[State.FAILED]:
        yield "failed: run the step again to read the reasons" + ("" if verbose else ", or give -v")
    if total[State.ORPHANED]:
        yield "orphaned = its image is gone: lora-prep validate says what is left of it"
    if total[State.BY_HAND]:
        yield "by hand = made or edited by somebody else; lora-prep leaves it alone"


def _taken_out(step: "Step") -> list[str]:
    """Photographs whose copy somebody has deleted, most likely on purpose."""
    gone = step.items if step.name.startswith("normalize") else ()
    return [item.key for item in gone if _is_taken_out(item)]


def _is_taken_out(item: "Standing") -> bool:
    from lora_prep.status import State

    return item.state is State.MISSING and bool(item.message)


def _command(step: "Step", dataset: "Dataset") -> str:
    """What to call for a step; normalize wants to know where from and where to.

    Photographs of several folders take as many calls: this is the first one's.
    """
    from lora_prep.cli.console import short
    from lora_prep.status import State

    name, _, out = step.name.partition("-")
    if name != "normalize":
        return name
    due = (State.STALE, State.MISSING)
    folder = next(i.folder for i in step.items if i.state in due and not _is_taken_out(i))
    within = {str(PurePosixPath(i.key).parent) for i in step.items if i.folder == folder}
    photos = shlex.quote(short(Path(os.path.normpath(dataset.root / folder))))
    target = shlex.quote(short(dataset.root / out))
    recursive = " --recursive" * (within != {folder})
    return f"normalize {photos} --out {target}{recursive}"


def _as_json(dataset: "Dataset", found: Sequence["Step"]) -> dict[str, "Json"]:
    from lora_prep.status import State

    return {
        "images": len(dataset),
        "captions": len(dataset.captions),
        "steps": [
            {
                "name": step.name,
                "counts": {state: step.counts[state] for state in State},
                "items": [
                    {"key": item.key, "state": item.state, "message": item.message}
                    for item in step.items
                    if item.state is not State.DONE
                ],
            }
            for step in found
        ],
    }
