"""Threads around one model, in this process."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

from lora_prep.attempt import Attempt, Checked, Finished, Task
from lora_prep.run import Stop
from lora_prep.stage import Stage, Worker

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Decodes ahead of the model and encodes behind it, in threads.

    At most `batch size + threads` items wait on each side of the model.
    """

    threads: int = 4

    def __call__(
        self, stage: Stage, tasks: Iterator[Task], attempt: Attempt, stop: Stop
    ) -> Generator[Finished]:
        """Take the tasks through the stage, in order."""
        with closing(Workshop(stage, attempt, self.threads)) as workshop:
            yield from workshop.work(tasks, stop)


class Workshop:
    """A stage's model, loaded when it is first needed, and the threads around it."""

    def __init__(self, stage: Stage, attempt: Attempt, threads: int) -> None:
        self._stage, self._attempt = stage, attempt
        self._depth = stage.batch_size + threads
        self._worker: Worker[Any, Any] | None = None
        self._before, self._behind = ThreadPoolExecutor(threads), ThreadPoolExecutor(threads)

    def close(self) -> None:
        """Wait for what the threads are at, and drop the rest."""
        self._before.shutdown(cancel_futures=True)
        self._behind.shutdown(cancel_futures=True)

    def work(self, tasks: Iterable[Task], stop: Stop) -> Iterator[Finished]:
        """Take the tasks through the stage, in order."""
        attempt, depth = self._attempt, self._depth
        checked = ahead(self._before, attempt.check, tasks, depth)
        for first in checked:
            if isinstance(first, Checked):
                break
            yield first
        else:
            return  # nothing to do, so no model is loaded
        if stop:
            return
        worker = self._worker = self._worker or self._stage.open()
        loaded = ahead(
            self._before, lambda c: attempt.load(worker, c), chain([first], checked), depth
        )
        computed = _computed(loaded, self._stage.batch_size, attempt, worker, stop)
        yield from ahead(self._behind, lambda pair: attempt.save(worker, *pair), computed, depth)


def beforehand(
    tasks: Iterator[Task], attempt: Attempt, threads: int
) -> Generator[Finished, None, list[Task]]:
    """Check tasks in this process until some are to be worked on: those are returned.

    So where nothing is left to do, no worker is started.
    """
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(tasks, 2 * threads)):
            results = list(pool.map(attempt.check, some))
            yield from (result for result in results if isinstance(result, Finished))
            if left := [result.task for result in results if isinstance(result, Checked)]:
                return left
    return []


def portions(tasks: Iterator[Task], size: int) -> Iterator[Sequence[Task]]:
    """The tasks, `size` at a time."""
    while some := list(islice(tasks, size)):
        yield some


def portion_size(stage: Stage) -> int:
    """How many tasks go to a worker of another process at once: whole batches, and 8 at least."""
    return stage.batch_size * -(-8 // stage.batch_size)


def ahead(
    pool: ThreadPoolExecutor,
    step: Callable[[Given], Made],
    items: Iterable[Given | Finished],
    depth: int,
) -> Iterator[Made | Finished]:
    """Map `step` over the items in threads, in order, at most `depth` at a time.

    What is finished already passes through.
    """
    pending: deque[Future[Made] | Finished] = deque()
    for item in items:
        pending.append(item if isinstance(item, Finished) else pool.submit(step, item))
        while pending and (len(pending) >= depth or _is_done(pending[0])):
            head = pending.popleft()
            yield head if isinstance(head, Finished) else head.result()
    for head in pending:
        yield head if isinstance(head, Finished) else head.result()


def _computed(
    loaded: Iterator[Checked[Any] | Finished],
    batch_size: int,
    attempt: Attempt,
    worker: Worker[Any, Any],
    stop: Stop,
) -> Iterator[tuple[Checked[Any], Any] | Finished]:
    """Run the model over batches; once the user wants to stop, what is only loaded is dropped."""
    waiting: list[Checked[Any] | Finished] = []
    for item in loaded:
        if stop:
            break
        waiting.append(item)
        ready = sum(isinstance(w, Checked) for w in waiting)
        if ready == batch_size or ready == 0 or len(waiting) > 8 * batch_size:
            yield from _compute(waiting, attempt, worker)
            waiting = []
    if not stop:
        yield from _compute(waiting, attempt, worker)


def _compute(
    waiting: list[Checked[Any] | Finished], attempt: Attempt, worker: Worker[Any, Any]
) -> Iterator[tuple[Checked[Any], Any] | Finished]:
    batch = [item for item in waiting if isinstance(item, Checked)]
    results = iter(attempt.compute(worker, batch) if batch else ())
    for item in waiting:
        yield item if isinstance(item, Finished) else next(results)


def _is_done(pending: "Future[Any] | Finished") -> bool:
    return isinstance(pending, Finished) or pending.done()
