"""`lora-prep validate`."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

LEVELS = {"default": "", "deep": "--deep", "drift": "--drift", "select": "--select"}
"""What turns a check on, in `--list`."""

EXPLAINED = ("code", "title", "severity", "reason", "fix", "level")
"""What `--list --json` says of a check."""


@click.command(
    "validate",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep validate                     the data set of lora-prep.toml, or data here
  lora-prep validate data/faces --deep --drift
  lora-prep validate --select M,P001 --ignore M008
  lora-prep validate --fix --dry-run     what --fix would do
  lora-prep validate --format github     annotations in GitHub's pages
  lora-prep validate --list              every check, why it matters and what to do
\b
Always on are the checks that are cheap and certain. --deep adds damage that only decoding finds,
near-duplicates (I012), unusual masks (M013) and specks (M014); --drift adds A006 to A009. C004,
E007 and M015 run only when selected.
\b
Exit codes: 0 no errors (there may be warnings), 1 errors, or warnings with --strict, 2 wrong usage.
""",
)
@click.argument("images", type=FOLDER, required=False, metavar="[DATA]")
@click.option("--masks", type=FOLDER, help="The masks.  [default: masks beside the images]")
@options.recursive_option
@click.option(
    "--select",
    multiple=True,
    metavar="CODES",
    help="Run these checks and no others: codes or their beginnings (M, P001), or ALL; can be "
    "repeated.",
)
@click.option("--ignore", multiple=True, metavar="CODES", help="Leave these checks out.")
@click.option(
    "--deep", is_flag=True, help="Decode every image, too: finds more damage, takes longer."
)
@click.option(
    "--drift",
    is_flag=True,
    help="Look for masks that are turned, moved, or of another image: about 10 ms a pair.",
)
@click.option(
    "--resolution",
    type=click.IntRange(64),
    default=1024,
    show_default=True,
    help="The trainer's, in pixels: for masks and faces that become too small.",
)
@click.option(
    "--fix",
    is_flag=True,
    help="Mend what is safe to mend: rename, move extras to .lora-prep/trash, make stale masks "
    "anew. Nothing is deleted. Then check again.",
)
@click.option("--dry-run", is_flag=True, help="With --fix: say what would be done.")
@click.option(
    "--undo",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Put back what --fix moved: a folder in .lora-prep/trash.",
)
@click.option("--strict", is_flag=True, help="Warnings count as errors for the exit code.")
@click.option("--list", "list_checks", is_flag=True, help="Explain all checks, and check nothing.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "jsonl", "sarif", "junit", "github"]),
    default="text",
    show_default=True,
    help="What to print.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--no-cache",
    is_flag=True,
    help="Read every file again, whatever .lora-prep/validate.jsonl remembers, and write nothing.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Threads that read files.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress; only problems.")
@click.option("-v", "--verbose", is_flag=True, help="List all issues, however many.")
def command(
    images: Path | None,
    masks: Path | None,
    recursive: bool,
    fix: bool,
    dry_run: bool,
    undo: Path | None,
    strict: bool,
    list_checks: bool,
    form: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **how: Any,
) -> None:
    """Check that the images, masks and captions of DATA train what is meant.

    DATA is the image folder, or the folder that holds it. Finds images without masks, masks that do
    not fit, that are out of date or lie in the wrong place, damaged files, and what trainers read
    differently from one another or pass over without a word. By default, each image's header and
    end are read, and all of each mask; files that have not changed since the last time are not read
    again. Changes nothing but that memory, unless --fix is given.
    """
    from lora_prep.cli.console import SCHEMA
    from lora_prep.dataset import Dataset

    form = "json" if as_json else form
    if dry_run and not fix:
        raise click.UsageError("--dry-run goes with --fix: checking changes nothing")
    if list_checks:
        if form == "json":
            click.echo(json.dumps({"schema": SCHEMA, "checks": list(_checks_as_json())}))
        else:
            click.echo("\n".join(_checks_as_text()))
        return
    if undo is not None:
        _undo(options.required(images), masks, undo, recursive=recursive)
        return
    dataset = Dataset.at(options.required(images), masks=masks, recursive=recursive)
    hidden = quiet or form != "text"
    try:
        report = _validate(dataset, how, hidden=hidden)
        if fix:
            done = _fix(dataset, report, dry_run=dry_run)
            if done and not dry_run:
                dataset = Dataset.at(dataset.images, masks=dataset.masks, recursive=recursive)
                report = _validate(dataset, how, hidden=hidden)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    if form == "json":
        click.echo(json.dumps({"schema": SCHEMA, **_as_json(report)}))
    elif form != "text":
        _print_as(form, report, dataset, how)
    elif report.issues or not quiet:
        click.echo("\n".join(_as_text(report, dataset, verbose)))
    sys.exit(report.exit_code(strict=strict))


def _validate(dataset: "Dataset", how: Mapping[str, Any], *, hidden: bool) -> "Report":
    from tqdm import tqdm

    from lora_prep.validate import cache_path, validate

    how = dict(how)
    cache = None if how.pop("no_cache") else cache_path(dataset)
    hidden = hidden or not sys.stderr.isatty()
    with tqdm(total=len(dataset), desc="validate", unit="img", disable=hidden) as bar:
        return validate(dataset, cache=cache, observe=bar.update, **how)


def _print_as(form: str, report: "Report", dataset: "Dataset", how: Mapping[str, Any]) -> None:
    from lora_prep.validate import CHECKS, Selection
    from lora_prep.validate.formats import FORMATS

    names = ("select", "ignore", "deep", "drift")
    codes = Selection(**{name: how[name] for name in names}).codes
    base = Path(os.path.relpath(dataset.root)).as_posix()
    checks = [check for check in CHECKS if check.code in codes]
    for line in FORMATS[form](report, checks, "" if base == "." else f"{base}/"):
        click.echo(line)


def _fix(dataset: "Dataset", report: "Report", *, dry_run: bool) -> bool:
    """Mend what can be mended, and say so on stderr. Returns whether anything was done."""
    from lora_prep.cli.console import name, short
    from lora_prep.cli.remake import remake
    from lora_prep.journal import exclusive
    from lora_prep.validate.fix import apply, moves

    planned = moves(dataset, report.issues)
    done = "would" if dry_run else "did"
    for move in planned:
        target = name(move.target) if move.target else "the trash"
        click.echo(f"{done} move  {move.code}  {name(move.source)} -> {target}", err=True)
    if planned and not dry_run:
        with exclusive(dataset.state):
            folder = apply(dataset, planned)
        if folder:
            click.echo(f"trash: {short(folder)} (--undo {short(folder)} puts all back)", err=True)
    stale = sorted({issue.path for issue in report.issues if issue.code == "A001"})
    without = [issue.path for issue in report.issues if issue.code == "P001"]
    remade = bool(stale) and remake(dataset, stale, without, dry_run=dry_run)
    if not planned and not stale:
        click.echo("nothing that --fix can mend", err=True)
    return bool(planned) or remade


def _undo(images: Path, masks: Path | None, folder: Path, *, recursive: bool) -> None:
    from lora_prep.cli.console import name
    from lora_prep.journal import exclusive
    from lora_prep.validate.trash import undo

    dataset = _with_trash(images, masks, folder, recursive=recursive)
    with exclusive(dataset.state):
        back = list(undo(dataset, folder))
    for path in back:
        click.echo(f"back  {name(path)}")
    click.echo(f"{_number(len(back), 'file')} put back")


def _with_trash(images: Path, masks: Path | None, folder: Path, *, recursive: bool) -> "Dataset":
    """The data set whose trash a folder lies in, even if all its images are gone."""
    from lora_prep.dataset import Dataset
    from lora_prep.errors import DatasetError
    from lora_prep.validate.trash import trash_owner

    try:
        return Dataset.at(images, masks=masks, recursive=recursive)
    except DatasetError:
        given = Path(os.path.abspath(images))  # noqa: PTH100 keeps links
        places = (given, given.parent) if masks is None else (masks.parent,)
        root = trash_owner(folder, places)
        if root is None:
            raise
        return Dataset(given, masks or root / "masks", root)


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
        level = LEVELS[check.level]
        yield f"{check.code}  {check.severity:7}  {check.title}{level and f'  ({level})'}"
        yield click.wrap_text(check.reason, 100, " " * 6, " " * 6)
        yield click.wrap_text(f"-> {check.fix}", 100, " " * 6, " " * 9)


def _checks_as_json() -> Iterator["Json"]:
    from lora_prep.validate import CHECKS

    for check in CHECKS:
        yield {field: getattr(check, field) for field in EXPLAINED}
