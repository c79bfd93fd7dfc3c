"""The runner: one loop for every stage.

A stage says what its items are and how one is loaded, computed and saved (`stage.py`). Everything
else is done here and in `attempt.py`, once: what is fresh, what must be left alone, failures, the
journal, commits, interrupts, the report.

    check ──> load ──> compute ──> save ──> commit
    thread    thread   the model   thread   driver

`check` compares an item with the journal. `save` encodes and writes hidden part files. Only the
driver commits: it appends the item's line to the journal, then renames the parts. Whatever dies in
between leaves either nothing or a complete, journalled file.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lora_prep import imageio
from lora_prep.attempt import Attempt, Finished, Task
from lora_prep.dataset import STATE_FOLDER
from lora_prep.journal import Journal, exclusive, hash_file
from lora_prep.shards import ShardOf, journal_path, refuse_unmerged
from lora_prep.stage import Item, Stage
from lora_prep.types import Outcome, Status


@runtime_checkable
class Executor(Protocol):
    """Takes tasks through check, load, compute and save, and gives them back in any order."""

    def __call__(
        self, stage: Stage, tasks: Iterator[Task], attempt: Attempt, stop: "Stop"
    ) -> Generator[Finished]:
        """Yield each task as it is finished, holding a bounded number of them.

        `tasks` ends when `stop` is set; what the model has not begun with may then be dropped.
        """
        ...


@dataclass
class Report:
    """How a run ended. It owns the exit code."""

    stage: str
    total: int
    counts: Counter[Status] = field(default_factory=Counter)
    problems: list[Outcome] = field(default_factory=list)
    """Failed items and items with warnings."""
    seconds: float = 0.0
    signal: int = 0
    """The signal that interrupted the run, or 0."""

    @property
    def done(self) -> int:
        """Number of items that were looked at."""
        return sum(self.counts.values())

    @property
    def exit_code(self) -> int:
        """0 = all well, 1 = some items failed, 128 + signal = interrupted."""
        if self.signal:
            return 128 + self.signal
        return 1 if self.counts[Status.FAILED] else 0

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.counts[outcome.status] += 1
        if outcome.status is Status.FAILED or outcome.warnings:
            self.problems.append(outcome)


def run(
    stage: Stage,
    root: Path,
    *,
    executor: Executor,
    force: bool = False,
    observe: Callable[[Outcome], None] | None = None,
    warn: Callable[[int], None] | None = None,
) -> Report:
    """Bring every item of a stage up to date.

    `stage` may be a `ShardOf` one: several of those can run at once on a data set. `observe` is
    called in the driver with each outcome, in the executor's order; `warn` before any work, with
    the number of items that were made with other settings than these, if there are any. Failures
    of items are in the report; raises DatasetError where the data set is in use or its folders
    cannot be written, and BackendError where the model is not to be had. An interrupted run returns
    a report, too.
    """
    report = Report(stage.name, len(stage))
    started = time.monotonic()
    with (
        _journal(stage, root) as journal,
        interruptible() as stop,
    ):
        attempt = Attempt(stage, root, force=force)
        if warn and (others := _made_otherwise(stage, journal, attempt)):
            warn(others)
        folders: set[Path] = set()
        tasks = _tasks(stage, journal, stop, attempt, folders)
        try:
            with closing(executor(stage, tasks, attempt, stop)) as results:
                for finished in results:
                    outcome = _commit(finished, journal)
                    report.add(outcome)
                    if observe:
                        observe(outcome)
        finally:
            for folder in folders:
                attempt.discard(folder)
    report.signal = stop.signal
    report.seconds = time.monotonic() - started
    return report


def _made_otherwise(stage: Stage, journal: Journal, attempt: Attempt) -> int:
    """How many items were made with other settings, by the journal alone: no file is looked at."""
    if not len(journal):
        return 0
    entries = ((item, journal.get(item.key)) for item in stage.items())
    return sum(
        entry is not None and entry.status is Status.DONE and not attempt.suits(item, entry)
        for item, entry in entries
    )


def plan(stage: Stage, root: Path, *, force: bool = False) -> Iterator[Outcome]:
    """What `run` would do, item by item, without a model: DONE stands for an item to be made.

    The code of such an item is `other-settings` if it was last worked on with others than these.
    Writes nothing. Whether an item would fail in the model is not known beforehand.
    """
    attempt = Attempt(stage, root, force=force)
    with ExitStack() as stack:
        journal = None
        for path in (journal_path(root, stage.name), *_own_journal(stage)):
            if path.exists():
                journal = stack.enter_context(Journal(path, read_only=True, base=journal))
        for item in stage.items():
            task = _task(item, journal, attempt)
            match attempt.check(task):
                case Finished() as finished:
                    yield _outcome(finished)
                case _:
                    same = task.previous is None or attempt.suits(item, task.previous)
                    yield Outcome(item.key, Status.DONE, code="" if same else "other-settings")


@contextmanager
def _journal(stage: Stage, root: Path) -> Iterator[Journal]:
    """The journal to write to, with the locks that it needs.

    A shard shares the data set with other shards, and only reads the stage's journal.
    """
    main = journal_path(root, stage.name)
    if not isinstance(stage, ShardOf):
        with exclusive(root / STATE_FOLDER):
            refuse_unmerged(root, stage.name)
            with Journal(main) as journal:
                yield journal
        return
    with (
        exclusive(root / STATE_FOLDER, shared=True),
        exclusive(stage.journal.parent),
        Journal(main, read_only=True) if main.exists() else nullcontext() as base,
        Journal(stage.journal, base=base) as journal,
    ):
        yield journal


def _own_journal(stage: Stage) -> Sequence[Path]:
    """A shard's."""
    return (stage.journal,) if isinstance(stage, ShardOf) else ()


class Stop:
    """Set when the user or the system asks for the end of the run."""

    def __init__(self) -> None:
        self.signal = 0

    def __bool__(self) -> bool:
        return self.signal != 0


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Let the first SIGINT or SIGTERM end the run after what is in flight, a second one at once.

    Ending at once is safe: nothing is ever half written. Outside the main thread it does nothing.
    """
    stop = Stop()

    def handle(number: int, _frame: Any) -> None:
        if stop:
            os.write(2, b"\nstopped at once; run the same command again to go on\n")
            os._exit(128 + number)
        stop.signal = number
        os.write(2, b"\nfinishing what is in flight; press Ctrl-C again to stop at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _task(item: Item, journal: Journal | None, attempt: Attempt) -> Task:
    if journal is None:
        return Task(item, None)
    previous = journal.get(item.key)
    if item.folder and previous:
        # Whatever a journal says: what lies elsewhere is no output of this item.
        outputs = (Path(os.path.normpath(attempt.root / path)) for path in previous.outputs)
        folder = Path(os.path.normpath(item.folder))
        item = replace(item, outputs=tuple(p for p in outputs if p.parent == folder))
    relative = [attempt.relative(path) for path in item.outputs]
    return Task(item, previous, journal.writers(item.key, relative))


def _tasks(
    stage: Stage, journal: Journal, stop: Stop, attempt: Attempt, folders: set[Path]
) -> Iterator[Task]:
    """The stage's items until the user wants to stop; `folders` collects where they are written."""
    for item in stage.items():
        if stop:
            return
        places = {item.folder} if item.folder else {path.parent for path in item.outputs}
        for folder in places - folders:
            imageio.sweep(folder)
            folders.add(folder)
        yield _task(item, journal, attempt)


def _commit(finished: Finished, journal: Journal) -> Outcome:
    """Record an item, then let its outputs appear."""
    for _, path, before in finished.parts:
        if path.exists() and path.stat().st_size and hash_file(path) != before:
            for part, _, _ in finished.parts:
                part.unlink(missing_ok=True)
            message = f"{path.name} was changed by somebody else during the run: left as it is"
            return Outcome(finished.item.key, Status.KEPT, code="kept", message=message)
    for path, before in finished.superseded:
        # First, so that death in between leaves an item without its file, and never with two.
        if path.exists() and hash_file(path) == before:
            path.unlink()
    # A shard also records what was fresh before it, since the merge looks at its journal alone.
    if finished.news or (journal.is_layered and finished.entry.key not in journal):
        journal.append(finished.entry)
    for part, path, _ in finished.parts:
        imageio.commit(part, path)
    return _outcome(finished)


def _outcome(finished: Finished) -> Outcome:
    entry = finished.entry
    return Outcome(
        entry.key, finished.status, entry.code, entry.message, entry.info, entry.warnings
    )
