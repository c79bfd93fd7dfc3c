"""What the commands print: results to stdout, progress and notices to stderr."""

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import click
from tqdm import tqdm

from lora_prep import executors
from lora_prep.cli import printable
from lora_prep.cli.config import FILE_NAME
from lora_prep.cli.options import Running
from lora_prep.run import Report, plan, run
from lora_prep.shards import Merged, Shard, ShardOf, merge
from lora_prep.stage import Stage
from lora_prep.types import Json, Outcome, Status

SCHEMA = 1
"""Version of the JSON documents. Fields may be added to a version, never changed."""

SHOWN = 20
"""Problems that are listed without --verbose."""

OTHER_SETTINGS = "other-settings"
"""The code of such items in `run.plan`."""

IN_CHAIN = "lora_prep.in_chain"
"""Set in the context of the steps of `lora-prep run`."""

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


@dataclass(frozen=True, slots=True)
class End:
    """What came of the work that a command has after its stage."""

    fields: Mapping[str, Json] = field(default_factory=dict)
    """For the JSON document."""
    lines: Iterable[str] = ()
    """For the text."""
    exit_code: int = 0
    """As of a report; the command exits with the graver of the two."""


def run_stage(
    stage: Stage,
    root: Path,
    out: Path,
    running: Running,
    *,
    table: Callable[[Sequence[Outcome]], Iterable[str]] | None = None,
    finish: Callable[[Sequence[Outcome]], End] | None = None,
) -> NoReturn:
    """Run a stage (or say what it would do), print how it went, and exit with its code.

    `table` makes lines of the outcomes, for commands whose result is the table itself. `finish`
    does what is left to do once all items are done, or the run was interrupted; a dry run or a
    shard does not call it.
    """
    verbosity = Verbosity(running.as_json, running.quiet, running.verbose)
    dry_run, force = running.dry_run, running.force
    notices(verbosity)
    if running.merge:
        merge_stage(stage, root, running)
    if running.shard is not None:
        stage, finish = ShardOf(stage, Shard.parse(running.shard), root), None
    outcomes: list[Outcome] = []
    end = End()
    if dry_run:
        report = Report(stage.name, len(stage))
        for outcome in plan(stage, root, force=force):
            report.add(outcome)
            outcomes.append(outcome)
        others = sum(outcome.code == OTHER_SETTINGS for outcome in outcomes)
        if others and not force and not verbosity.quiet:
            warn_of_settings(stage, others)
    else:
        collect = verbosity.as_json or table is not None or finish is not None
        report = _run(stage, root, outcomes, verbosity, running, collect=collect)
        if finish:
            end = finish(outcomes)
    if verbosity.as_json:
        click.echo(json.dumps({**_document(report, outcomes, out, dry_run), **end.fields}))
    else:
        for line in table(outcomes) if table else ():
            click.echo(line)
        for line in end.lines:
            click.echo(line)
        for line in summary(report, out, verbosity, dry_run=dry_run):
            click.echo(line)
    sys.exit(max(report.exit_code, end.exit_code))  # interrupted > failed > all well


def warn_of_settings(stage: Stage, others: int) -> None:
    """Say that results are made again because the settings are others now.

    The steps of `lora-prep run` know the configuration alone: what somebody chose on the command
    line would be undone without a word.
    """
    were = "1 was" if others == 1 else f"{others} were"
    said = f"{stage.name}: {were} made with other settings or models"
    context = click.get_current_context(silent=True)
    table = context.info_name if context else None
    if context and context.meta.get(IN_CHAIN):
        said += (
            f" than {FILE_NAME} gives: made again, but for what was edited by hand. To keep what "
            f"was chosen on the command line, write it into [{table}] there"
        )
    else:
        said += ": made again, but for what was edited by hand"
    tqdm.write(said, file=sys.stderr)
    sys.stderr.flush()


def merge_stage(stage: Stage, root: Path, running: Running) -> NoReturn:
    """Merge the shards of a stage, print what is missing, and exit with 1 if anything is."""
    if running.dry_run:
        raise click.UsageError("--merge has no --dry-run: it only writes where nothing is missing")
    merged = merge(stage, root, partly=running.force)
    if running.as_json:
        click.echo(json.dumps(_merged_document(merged)))
    elif merged.exit_code or not running.quiet:
        for line in _merged_lines(merged, verbose=running.verbose):
            click.echo(line)
    sys.exit(merged.exit_code)


def _merged_lines(merged: Merged, *, verbose: bool) -> Iterable[str]:
    for what, shards in (("missing", merged.missing), ("other settings", merged.other)):
        for shard, keys in sorted(shards.items(), key=lambda pair: pair[0].index):
            shown = keys if verbose else keys[:3]
            more = "" if len(shown) == len(keys) else ", ..."
            listed = ", ".join(map(name, shown))
            yield f"shard {shard}: {what}: {len(keys)} items ({listed}{more})"
    counts = ", ".join(f"{merged.counts[s]} {LABELS[s]}" for s in Status if merged.counts[s])
    done = "merged" if merged.folded else "not merged"
    yield f"{merged.stage}: {done}, {merged.count} shards, {merged.total} items: {counts or 'none'}"
    if not merged.folded:
        again = sorted({s.index for s in (*merged.missing, *merged.other)})
        told = ", ".join(f"--shard {index}/{merged.count}" for index in again[:SHOWN])
        yield f"run {told}{', ...' if len(again) > SHOWN else ''} again with these options"


def _merged_document(merged: Merged) -> Json:
    return {
        "schema": SCHEMA,
        "stage": merged.stage,
        "merged": merged.folded,
        "shards": merged.count,
        "total": merged.total,
        "counts": {str(status): merged.counts[status] for status in Status},
        "missing": {str(shard): keys for shard, keys in merged.missing.items()},
        "other_settings": {str(shard): keys for shard, keys in merged.other.items()},
    }


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
    none = "nothing done" if report.signal else "nothing to do"
    yield f"{report.stage}: {pace}{', '.join(counts) or none}{took} -> {short(out)}"
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
    running: Running,
    *,
    collect: bool,
) -> Report:
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

        executor = executors.choose(
            running.executor,
            threads=running.threads,
            workers=running.workers,
            num_gpus=running.num_gpus,
            address=running.address,
        )
        quiet = running.force or verbosity.quiet
        report = run(
            stage,
            root,
            executor=executor,
            force=running.force,
            observe=observe,
            warn=None if quiet else functools.partial(warn_of_settings, stage),
        )
    if running.executor != "local" and (outcomes or report.problems):
        places = {item.key: place for place, item in enumerate(stage.items())}
        for listed in (outcomes, report.problems):  # workers finish in any order
            listed.sort(key=lambda outcome: places.get(outcome.key, len(places)))
    return report


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
