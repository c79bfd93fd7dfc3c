"""Threads around one model, in this process."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
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
        depth = stage.batch_size + self.threads
        before, behind = ThreadPoolExecutor(self.threads), ThreadPoolExecutor(self.threads)
        try:
            checked = ahead(before, attempt.check, tasks, depth)
            for first in checked:
                if isinstance(first, Checked):
                    break
                yield first
            else:
                return  # nothing to do, so no model is loaded
            if stop:
                return
            worker = stage.open()
            loaded = ahead(
                before, lambda c: attempt.load(worker, c), chain([first], checked), depth
            )
            computed = _computed(loaded, stage.batch_size, attempt, worker, stop)
            yield from ahead(behind, lambda pair: attempt.save(worker, *pair), computed, depth)
        finally:
            before.shutdown(cancel_futures=True)
            behind.shutdown(cancel_futures=True)


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
