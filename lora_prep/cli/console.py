"""What the commands print: results to stdout, progress and notices to stderr."""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click
from tqdm import tqdm

from lora_prep.cli import printable
from lora_prep.executors.local import LocalExecutor
from lora_prep.run import Report, plan, run
from lora_prep.stage import Stage
from lora_prep.types import Json, Outcome, Status

SCHEMA = 1
"""Version of the JSON documents. Fields may be added to a version, never changed."""

SHOWN = 20
"""Problems that are listed without --verbose."""

LABELS = {
    Status.DONE: "made",
    Status.FRESH: "fresh",
    Status.KEPT: "kept",
    Status.SKIPPED: "skipped",
    Status.FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Verbosity:
    """How much to print, and in which form."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False


def run_stage(
    stage: Stage,
    root: Path,
    out: Path,
    verbosity: Verbosity,
    *,
    force: bool,
    dry_run: bool,
    threads: int,
    table: Callable[[Sequence[Outcome]], Iterable[str]] | None = None,
) -> NoReturn:
    """Run a stage (or say what it would do), print how it went, and exit with its code.

    `table` makes lines of the outcomes, for commands whose result is the table itself.
    """
    notices(verbosity)
    outcomes: list[Outcome] = []
    if dry_run:
        report = Report(stage.name, len(stage))
        for outcome in plan(stage, root, force=force):
            report.add(outcome)
            outcomes.append(outcome)
    else:
        report = _run(stage, root, outcomes, verbosity, force=force, threads=threads, table=table)
    if verbosity.as_json:
        click.echo(json.dumps(_document(report, outcomes, out, dry_run)))
    else:
        for line in table(outcomes) if table else ():
            click.echo(line)
        for line in summary(report, out, verbosity, dry_run=dry_run):
            click.echo(line)
    sys.exit(report.exit_code)


def summary(
    report: Report, out: Path, verbosity: Verbosity, *, dry_run: bool = False
) -> Iterable[str]:
    """The lines at the end of a run."""
    shown = report.problems if verbosity.verbose else report.problems[:SHOWN]
    for outcome in shown:
        if outcome.status is Status.FAILED:
            yield f"failed   {name(outcome.key)}: {name(outcome.message)}"
        for warning in outcome.warnings:
            yield f"warning  {name(outcome.key)}: {name(warning)}"
    if len(shown) < len(report.problems):
        yield f"... and {len(report.problems) - len(shown)} more (--verbose or --json lists all)"
    if verbosity.quiet and not report.exit_code:
        return
    counts = [f"{report.counts[s]} {LABELS[s]}" for s in Status if report.counts[s]]
    if dry_run:
        counts = [c.replace(" made", " to make") for c in counts]
    pace = "would be: " if dry_run else ""
    took = "" if dry_run else f" in {report.seconds:.1f} s"
    yield f"{report.stage}: {pace}{', '.join(counts) or 'nothing to do'}{took} -> {short(out)}"
    if report.counts[Status.KEPT]:
        yield "kept = made or edited by hand, so left alone; --force replaces them"
    if report.signal:
        left = report.total - report.done
        yield f"interrupted with {left} of {report.total} to go: run the same command to go on"


def notices(verbosity: Verbosity) -> None:
    """Let lora-prep's own notices (which model, which device) through to stderr."""
    logger = logging.getLogger("lora_prep")
    logger.handlers = [_Notices()]
    logger.propagate = False
    logger.setLevel(logging.WARNING if verbosity.quiet or verbosity.as_json else logging.INFO)


def name(text: str) -> str:
    """A file name made safe to print on one line."""
    return printable(text)


def short(path: Path) -> str:
    """A path as the user would write it from here."""
    try:
        return name(str(path.relative_to(Path.cwd())))
    except ValueError:
        return name(str(path))


def _run(
    stage: Stage,
    root: Path,
    outcomes: list[Outcome],
    verbosity: Verbosity,
    *,
    force: bool,
    threads: int,
    table: Callable[[Sequence[Outcome]], Iterable[str]] | None,
) -> Report:
    collect = verbosity.as_json or table is not None
    failed = 0
    hidden = verbosity.quiet or verbosity.as_json or not sys.stderr.isatty()
    with tqdm(total=len(stage), desc=stage.name, unit="img", disable=hidden) as bar:

        def observe(outcome: Outcome) -> None:
            nonlocal failed
            if collect:
                outcomes.append(outcome)
            if verbosity.verbose:
                line = f"{LABELS[outcome.status]:8} {name(outcome.key)}"
                tqdm.write(f"{line}  {_facts(outcome)}".rstrip(), file=sys.stderr)
            if outcome.status is Status.FAILED:
                failed += 1
                bar.set_postfix(failed=failed, refresh=False)
            bar.update()

        executor = LocalExecutor(threads)
        return run(stage, root, executor=executor, force=force, observe=observe)


def _facts(outcome: Outcome) -> str:
    if outcome.message:
        return name(outcome.message)
    facts = outcome.info or {}
    return " ".join(f"{k}={v}" for k, v in facts.items() if not isinstance(v, (list, dict)))


def _document(report: Report, outcomes: Sequence[Outcome], out: Path, dry_run: bool) -> Json:
    return {
        "schema": SCHEMA,
        "stage": report.stage,
        "out": str(out),
        "dry_run": dry_run,
        "total": report.total,
        "counts": {str(status): report.counts[status] for status in Status},
        "seconds": round(report.seconds, 3),
        "interrupted": report.signal != 0,
        "items": [
            {
                "key": outcome.key,
                "status": outcome.status,
                "code": outcome.code,
                "message": outcome.message,
                "warnings": list(outcome.warnings),
                "info": outcome.info or {},
            }
            for outcome in outcomes
        ],
    }


class _Notices(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
