"""`lora-prep validate`."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand
from lora_prep.cli.options import FOLDER

if TYPE_CHECKING:
    from lora_prep.dataset import Dataset
    from lora_prep.types import Issue, Json
    from lora_prep.validate import Report

PATH_WIDTH = 48
"""A longer path pushes its own line to the right, not all lines."""

EXPLAINED = ("code", "title", "severity", "reason", "fix")
"""What `--list --json` says of a check."""


@click.command(
    "validate",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep validate                  the data set of lora-prep.toml, or data here
  lora-prep validate data/faces --deep
  lora-prep validate --list           every check, why it matters and what to do
\b
Exit codes: 0 no errors (there may be warnings), 1 errors, or warnings with --strict, 2 wrong usage.
""",
)
@click.argument("images", type=FOLDER, required=False, metavar="[DATA]")
@click.option("--masks", type=FOLDER, help="The masks.  [default: masks beside the images]")
@options.recursive_option
@click.option(
    "--deep", is_flag=True, help="Decode every image, too: finds more damage, takes longer."
)
@click.option("--strict", is_flag=True, help="Warnings count as errors for the exit code.")
@click.option("--list", "list_checks", is_flag=True, help="Explain all checks, and check nothing.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Threads that read files.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; only problems.")
@click.option("-v", "--verbose", is_flag=True, help="List all issues, however many.")
def command(
    images: Path | None,
    masks: Path | None,
    recursive: bool,
    deep: bool,
    strict: bool,
    list_checks: bool,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Check that the images and masks of DATA train what is meant.

    DATA is the image folder, or the folder that holds it. Finds images without masks, masks that do
    not fit, damaged files, and what trainers read differently from one another or pass over without
    a word. By default, each image's header and end are read, and all of each mask. Writes nothing.
    """
    from lora_prep.cli.console import SCHEMA
    from lora_prep.dataset import Dataset

    if list_checks:
        if as_json:
            click.echo(json.dumps({"schema": SCHEMA, "checks": list(_checks_as_json())}))
        else:
            click.echo("\n".join(_checks_as_text()))
        return
    dataset = Dataset.at(options.required(images), masks=masks, recursive=recursive)
    try:
        report = _validate(dataset, deep, threads, hidden=quiet or as_json)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **_as_json(report)}))
    elif report.issues or not quiet:
        click.echo("\n".join(_as_text(report, dataset, verbose)))
    sys.exit(report.exit_code(strict=strict))


def _validate(dataset: "Dataset", deep: bool, threads: int, *, hidden: bool) -> "Report":
    from tqdm import tqdm

    from lora_prep.validate import validate

    hidden = hidden or not sys.stderr.isatty()
    with tqdm(total=len(dataset), desc="validate", unit="img", disable=hidden) as bar:
        return validate(dataset, deep=deep, threads=threads, observe=bar.update)


def _as_text(report: "Report", dataset: "Dataset", verbose: bool) -> Iterator[str]:
    """The issues, one a line; how many of each kind, and what to do; the totals."""
    if report.issues:
        yield from _issues(report, dataset, verbose)
        yield ""
        yield from _kinds(report)
        yield ""
    totals = _number(report.pairs, "pair")
    if report.pairs != report.images:
        totals += f" of {_number(report.images, 'image')}"
    if report.issues:
        errors, warnings = _number(report.errors, "error"), _number(report.warnings, "warning")
        yield f"{totals}, {errors}, {warnings}"
    else:
        yield f"{totals}: all well"


def _issues(report: "Report", dataset: "Dataset", verbose: bool) -> Iterator[str]:
    from lora_prep.cli.console import SHOWN, name, short

    seen: Counter[str] = Counter()
    rows: list[tuple[str, Issue]] = []
    for issue in report.issues:
        seen[issue.code] += 1
        if verbose or seen[issue.code] <= SHOWN:
            place = os.path.normpath(dataset.root / issue.path)  # without `..` in the middle
            rows.append((short(Path(place)), issue))
    width = max((len(path) for path, _ in rows if len(path) <= PATH_WIDTH), default=0)
    for path, issue in rows:
        yield f"{path:{width}}  {issue.code}  {issue.severity:7}  {name(issue.message)}"
    for code, count in sorted(seen.items()):
        if not verbose and count > SHOWN:
            yield f"... and {count - SHOWN} more {code} (--verbose or --json lists all)"


def _kinds(report: "Report") -> Iterator[str]:
    from lora_prep.validate import CHECKS

    counts = Counter(issue.code for issue in report.issues)
    width = max(len(str(count)) for count in counts.values())
    for check in CHECKS:
        if count := counts[check.code]:
            yield f"{count:{width}} × {check.code}  {check.title}"
            yield f"{'':{width}}         -> {check.fix}"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _as_json(report: "Report") -> dict[str, "Json"]:
    return {
        "images": report.images,
        "pairs": report.pairs,
        "errors": report.errors,
        "warnings": report.warnings,
        "issues": [asdict(issue) for issue in report.issues],
    }


def _checks_as_text() -> Iterator[str]:
    from lora_prep.validate import CHECKS

    for check in CHECKS:
        yield f"{check.code}  {check.severity:7}  {check.title}"
        yield click.wrap_text(check.reason, 100, " " * 6, " " * 6)
        yield click.wrap_text(f"-> {check.fix}", 100, " " * 6, " " * 9)


def _checks_as_json() -> Iterator["Json"]:
    from lora_prep.validate import CHECKS

    for check in CHECKS:
        yield {field: getattr(check, field) for field in EXPLAINED}
