"""The workers of a Ray cluster, by way of Ray Data.

A pool of actors, each with its own model, takes tasks from a stream and gives back what has to be
journalled. Nothing goes through Ray but names and records: the workers read the images themselves
and write hidden part files beside their final names, so every machine has to see the data set's
folder under the same path, and to have the same lora-prep. The driver alone journals and renames.
So a task that Ray does twice, since a machine was lost, appears once; and one whose results are
lost is done again, alone, before it counts as failed.
"""

import logging
import os
import pickle
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from lora_prep.attempt import Attempt, Finished, Task
from lora_prep.errors import BackendError
from lora_prep.executors.local import Workshop, beforehand, portion_size, portions
from lora_prep.executors.processes import killer, sendable
from lora_prep.run import Stop
from lora_prep.stage import Stage

WINDOW = 50_000
"""Tasks that are in the cluster at a time: the driver's memory is bounded by it."""

TRIES = 2
"""How often Ray repeats a portion by itself, whose worker or machine was lost."""

AHEAD = 100
"""Results that wait for the driver at most; Ray itself holds back what comes behind them."""

POLL_SECONDS = 0.2
"""How soon the wish to stop is seen."""


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Takes tasks through a stage on a Ray cluster; they come back as they are finished."""

    address: str | None = None
    """The head's, or `auto`; None: RAY_ADDRESS, or a cluster of this machine alone."""
    workers: int | None = None
    """Actors at most; None: as many as the cluster has GPUs or CPUs for."""
    threads: int = 4
    """In each of them."""
    num_gpus: float = 0.0
    """GPUs of each of them: 0.5 lets two share one."""
    window: int = WINDOW

    def __call__(
        self, stage: Stage, tasks: Iterator[Task], attempt: Attempt, stop: Stop
    ) -> Generator[Finished]:
        """Yield tasks as they are finished. What is under way at a stop is dropped."""
        left = yield from beforehand(tasks, attempt, self.threads)
        if not left or stop:
            return
        ray = _ray()
        rest = chain(left, tasks)
        with _connected(ray, self.address):
            while not stop and (window := list(islice(rest, self.window))):
                yield from self._through(ray, stage, window, attempt, stop)

    def _through(
        self, ray: Any, stage: Stage, window: Sequence[Task], attempt: Attempt, stop: Stop
    ) -> Iterator[Finished]:
        """A window of tasks: first in portions, then what was lost one by one."""
        pending = {task.item.key: task for task in window}
        for size, alone in ((portion_size(stage), False), (1, True)):
            results = self._stream(ray, stage, [*pending.values()], attempt, size, alone=alone)
            trouble = None
            for result in _polled(results, stop):
                if isinstance(result, ray.exceptions.RayError):
                    trouble = result
                elif isinstance(result, BaseException):
                    raise result
                elif pending.pop(result.item.key, None):  # else Ray has done it twice
                    yield result
            if stop or not pending:
                return
        if trouble:
            raise BackendError(
                f"Ray gives up ({type(trouble).__name__}: {_first_line(trouble)}). What is done is "
                "kept: see to the cluster, then run the same command again"
            ) from trouble
        for task in pending.values():
            yield attempt.failed(task, killer("or its machine was lost"))

    def _stream(
        self,
        ray: Any,
        stage: Stage,
        tasks: Sequence[Task],
        attempt: Attempt,
        size: int,
        *,
        alone: bool,
    ) -> Iterator[Finished | BaseException]:
        """What the actors make of the tasks, as Ray Data streams it, in any order."""
        # A portion is a row, a block and a batch: with GPUs, Ray wants to know a batch's size.
        rows = [{"portion": pickle.dumps(some)} for some in portions(iter(tasks), size)]
        most = min(len(rows), self.workers or self._room(ray))
        strategy = ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=most,
            initial_size=most,
            max_tasks_in_flight_per_actor=1 if alone else 2,
        )
        with warnings.catch_warnings():  # Ray 2.64 takes `max_task_retries` away
            warnings.simplefilter("ignore", DeprecationWarning)
            data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                Hand,
                fn_constructor_args=(stage, attempt, self.threads),
                batch_size=1,
                batch_format="numpy",
                compute=strategy,
                num_cpus=1,
                num_gpus=self.num_gpus or None,
                max_task_retries=TRIES,
            )
        try:
            for batch in data.iter_batches(batch_size=None, batch_format="numpy"):
                yield from (pickle.loads(bytes(result)) for result in batch["result"])
        except ray.exceptions.RayError as error:
            yield error

    def _room(self, ray: Any) -> int:
        """How many workers the cluster has room for."""
        resources = ray.cluster_resources()
        cpus = max(1, int(resources.get("CPU", 1)))  # each worker takes one
        if self.num_gpus:
            room = int(resources.get("GPU", 0) / self.num_gpus)
            if not room:
                raise BackendError(
                    f"--num-gpus {self.num_gpus:g}: the cluster has {resources.get('GPU', 0):g} "
                    "GPUs. Add machines with some, or leave the option out"
                )
            return min(room, cpus)
        return cpus


class Hand:
    """An actor: it holds the model, once there is something to do for it."""

    def __init__(self, stage: Stage, attempt: Attempt, threads: int) -> None:
        # A twin: an actor that was given up for dead may still write.
        self._workshop = Workshop(stage, attempt.twin(), threads)

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[bytes]]:
        """Take portions of tasks through the stage. What is raised is a result, too."""
        results: list[Finished | BaseException] = []
        try:
            for portion in rows["portion"]:
                results.extend(self._workshop.work(pickle.loads(bytes(portion)), Stop()))
        except Exception as error:
            results.append(sendable(error))
        return {"result": [pickle.dumps(result) for result in results]}


def _polled(results: Iterable[Any], stop: Stop) -> Iterator[Any]:
    """The results, or an end of them as soon as the user wants to stop.

    Ray waits for a result where no signal reaches it, so that is done in a thread, a few ahead.
    """
    inbox: queue.Queue[tuple[bool, Any]] = queue.Queue()
    room, over = threading.Semaphore(AHEAD), threading.Event()

    def fetch() -> None:
        try:
            for result in results:
                room.acquire()
                if over.is_set():
                    return
                inbox.put((True, result))
            inbox.put((False, None))
        except BaseException as error:
            inbox.put((False, error))

    threading.Thread(target=fetch, daemon=True).start()
    try:
        while not stop:
            with suppress(queue.Empty):
                more, result = inbox.get(timeout=POLL_SECONDS)
                if not more:
                    if result is not None:
                        raise result
                    return
                room.release()
                yield result
    finally:
        over.set()
        room.release()


def _ray() -> Any:
    if "ray" not in sys.modules:
        # After an interrupt, the thread that waits for results must not start a cluster of its own.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BackendError(
            f"--executor ray needs Ray ({error}): pip install 'lora-prep[ray]'"
        ) from error
    return ray


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to the cluster, or the one that the process has."""
    if ray.is_initialized():
        _quiet(ray)
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        # Without the workers' logs: of a lost machine they tell for pages, and failures are data.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BackendError(
            f"cannot reach a Ray cluster at {address or 'this machine'} ({_first_line(error)}): "
            "start it with `ray start --head`, or give the right --address"
        ) from error
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray has its own for SIGTERM
            signal.signal(number, handler)
    _quiet(ray)
    try:
        yield
    finally:
        ray.shutdown()


def _quiet(ray: Any) -> None:
    """The runner has its own progress, and blocks that are lost are done again."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
