"""`lora-prep pairs`."""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from lora_prep.cli import options
from lora_prep.cli.options import FOLDER

OPERATIONS = (
    "blur",
    "sharpen",
    "desaturate",
    "noise",
    "jpeg",
    "pixelate",
    "brighten",
    "darken",
    "flatten",
)

CHECKING = ("positive", "negative", "strict")
"""Parameters that go without --make."""

BOTH = ("folder", "make", "recursive", "threads", "as_json", "quiet", "verbose")
"""Parameters that go with and without it; all others go with it."""


@click.command(
    "pairs",
    epilog="""\b
Examples:
  lora-prep pairs data/texture                              checks positive/ and negative/
  lora-prep pairs data/eyes --positive big --negative small
  lora-prep pairs --make data/faces --out data/texture --operation blur
  lora-prep pairs --make data/faces --out data/colour --operation desaturate --strength 1
\b
Exit codes: 0 no errors (there may be warnings), 1 errors, or warnings with --strict, 2 wrong usage.
""",
)
@click.argument("folder", metavar="DIR", type=FOLDER, required=False)
@click.option("--positive", default="positive", show_default=True, help="Folder of the high end.")
@click.option("--negative", default="negative", show_default=True, help="Folder of the low end.")
@click.option("--strict", is_flag=True, help="Warnings count as errors for the exit code.")
@click.option("--make", type=FOLDER, metavar="IMAGES", help="Make pairs from this image folder.")
@click.option("--out", type=FOLDER, help="--make: gets the folders positive and negative.")
@click.option(
    "--operation",
    type=click.Choice(OPERATIONS),
    default="blur",
    show_default=True,
    help="--make: what is done to one of the two sides.",
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="--make: how much of it, up to 1.",
)
@click.option(
    "--result",
    type=click.Choice(["positive", "negative"]),
    help="--make: the side that the changed pictures go to.  [default: the one that makes a "
    "positive weight mean more detail, colour or light]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="--make: of the noise.")
@options.recursive_option
@options.running_options
def command(
    folder: Path | None,
    positive: str,
    negative: str,
    strict: bool,
    make: Path | None,
    out: Path | None,
    operation: str,
    strength: float,
    result: Any,
    seed: int,
    recursive: bool,
    running: options.Running,
) -> None:
    """Check the image pairs of a slider, or make them.

    A visual slider is trained on pairs that differ in one attribute alone: DIR/positive/a.png with
    more of it, DIR/negative/a.png with less. Reported are orphans, sizes that differ, pictures
    that are equal or used twice, unreadable files, and captions that differ.

    With --make one side are the images as they are, the other one the same after an operation.
    Both are written as PNG under one name; captions are copied to both. Pairs that are up to date
    are not made again.
    """
    if (folder is None) == (make is None):
        raise click.UsageError("give a folder of pairs to check, or --make IMAGES --out DIR")
    context = click.get_current_context()
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if folder is not None:
        if wrong := given - {*BOTH, *CHECKING}:
            raise click.UsageError(f"{_options(wrong)}: that goes with --make")
        _check(folder, positive, negative, recursive, strict, running)
    if wrong := given & {*CHECKING}:
        raise click.UsageError(f"{_options(wrong)}: that goes without --make, which checks nothing")
    if out is None:
        raise click.UsageError("--make needs --out, the folder of the pairs")

    from lora_prep.cli.console import End, run_stage, short
    from lora_prep.dataset import Dataset
    from lora_prep.pairs import NEGATIVE, POSITIVE, hints
    from lora_prep.stages.pairs import OPERATIONS as KNOWN
    from lora_prep.stages.pairs import MakePairs

    assert make is not None
    dataset = Dataset.at(make, recursive=recursive)
    target = Path(os.path.abspath(out))  # noqa: PTH100 keeps links
    stage = MakePairs(dataset, target, operation, strength, result, seed)
    told = [
        f"{short(target / stage.made)}: after {operation} ({KNOWN[operation].does}); the other "
        "side: as it was",
        *hints(out, (POSITIVE, NEGATIVE)),
    ]
    run_stage(
        stage,
        target.parent,
        target,
        running,
        finish=lambda _: End(
            {"result": stage.made, "hints": told[1:]},
            [] if running.quiet else told,
        ),
    )


def _options(names: set[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))


def _check(
    folder: Path,
    positive: str,
    negative: str,
    recursive: bool,
    strict: bool,
    running: options.Running,
) -> NoReturn:
    from tqdm import tqdm

    from lora_prep import pairs
    from lora_prep.cli.console import SCHEMA, SHOWN, name
    from lora_prep.types import Severity

    found = pairs.Pairs.at(folder, positive=positive, negative=negative, recursive=recursive)
    hidden = running.quiet or running.as_json or not sys.stderr.isatty()
    total = sum(1 for _ in found.images())
    with tqdm(total=total, desc="pairs", unit="img", disable=hidden) as bar:
        findings = pairs.check(found, threads=running.threads, seen=lambda _: bar.update())
    counts = Counter(f.severity for f in findings)
    hints = pairs.hints(folder, found.sides)
    if running.as_json:
        document = {
            "schema": SCHEMA,
            "folder": str(folder),
            "pairs": len(found),
            "errors": counts[Severity.ERROR],
            "warnings": counts[Severity.WARNING],
            "findings": [
                {"fault": f.fault, "severity": f.severity, "path": f.path, "message": f.message}
                for f in findings
            ],
            "hints": hints,
        }
        click.echo(json.dumps(document))
    else:
        shown = findings if running.verbose else findings[:SHOWN]
        for one in shown:
            click.echo(f"{one.severity:8} {one.fault:11} {name(one.path)}: {name(one.message)}")
        if len(shown) < len(findings):
            click.echo(f"... and {len(findings) - len(shown)} more (--verbose or --json lists all)")
        if not running.quiet or findings:
            errors, warnings = counts[Severity.ERROR], counts[Severity.WARNING]
            click.echo(f"{len(found)} pairs, {errors} errors, {warnings} warnings")
        if not running.quiet and not counts[Severity.ERROR]:
            for line in hints:
                click.echo(name(line))
    sys.exit(1 if counts[Severity.ERROR] or (strict and findings) else 0)
