"""Several processes on this machine, each with its own model.

Tasks go out a few at a time, and each comes back as it is finished. A process that dies, as when
the system takes its memory back, costs no more than what it was at: each of those items is tried
once more, alone, and what kills a second process has failed. The driver alone journals and renames.
"""

import ctypes
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lora_prep.attempt import Attempt, Finished, Task
from lora_prep.errors import BackendError, ItemError, UsageError
from lora_prep.executors.local import Workshop, beforehand, portion_size, portions
from lora_prep.run import Stop
from lora_prep.stage import Stage

MOST_DEATHS = 10
"""So many workers in a row that finish nothing, and it is not the images' fault."""

POLL_SECONDS = 0.2
"""How soon the wish to stop is seen."""

_PR_SET_PDEATHSIG = 1
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class ProcessesExecutor:
    """Takes tasks through a stage in worker processes; they come back as they are finished."""

    workers: int | None = None
    """None: one a CPU, or as many as the GPUs have room for."""
    threads: int = 4
    """In each of them."""
    num_gpus: float = 0.0
    """GPUs that each of them sees; 0.5 lets two share one, 0 leaves it to the stage."""

    def __call__(
        self, stage: Stage, tasks: Iterator[Task], attempt: Attempt, stop: Stop
    ) -> Generator[Finished]:
        """Yield tasks as they are finished, at most a few portions a worker under way."""
        left = yield from beforehand(tasks, attempt, self.threads)
        if left and not stop:
            gpus = _visible_gpus() if self.num_gpus else []
            workers = self.workers or self._fitting(gpus)
            with closing(_Crew(stage, attempt, workers, self, gpus)) as crew:
                yield from crew.work(portions(chain(left, tasks), portion_size(stage)), stop)

    def _fitting(self, gpus: Sequence[str]) -> int:
        if not self.num_gpus:
            return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        if self.num_gpus > len(gpus):
            raise UsageError(f"--num-gpus {self.num_gpus:g}: {len(gpus)} GPUs are to be seen here")
        return int(len(gpus) / self.num_gpus)


@dataclass(frozen=True, slots=True)
class _Portion:
    """Tasks that go to a worker together."""

    tasks: dict[str, Task]
    """By the key of their item; those that are finished are taken out."""
    again: bool = False
    """A worker has died of it already, or of one that it was sent with."""


@dataclass
class _Member:
    """A worker process, seen from the driver."""

    process: BaseProcess
    pipe: Connection
    portions: deque[_Portion] = field(default_factory=deque)
    """What it is at, and what it will be at next."""


class _Crew:
    """The worker processes and what each of them is at."""

    def __init__(
        self,
        stage: Stage,
        attempt: Attempt,
        workers: int,
        options: ProcessesExecutor,
        gpus: Sequence[str],
    ) -> None:
        self._stage, self._attempt, self._options = stage, attempt, options
        self._gpus = [_share(gpus, place, options.num_gpus) for place in range(workers)]
        self._places: list[_Member | None] = [None] * workers
        self._retries: deque[_Portion] = deque()
        self._deaths = 0
        self._said = False

    def work(self, fresh: Iterator[Sequence[Task]], stop: Stop) -> Iterator[Finished]:
        """Hand out the portions; yield what comes back. What is not begun is dropped at a stop."""
        told = False
        while True:
            if stop and not told:
                told = True
                self._retries.clear()
                self._tell_to_stop()
            while not stop and (place := self._free_place()) is not None:
                portion = self._next(fresh)
                if portion is None:
                    break
                self._send(place, portion)
            busy = {m.pipe: m for m in self._places if m and m.portions}
            if not busy:
                return
            for pipe in wait(list(busy), POLL_SECONDS):
                assert isinstance(pipe, Connection)
                yield from self._received(busy[pipe], stop)

    def close(self) -> None:
        """End the workers at once: nothing that they do outlasts them half done."""
        members = [member for member in self._places if member]
        for member in members:
            member.process.kill()
        for member in members:
            member.process.join()
            member.pipe.close()

    def _tell_to_stop(self) -> None:
        for member in self._places:
            if member and member.portions:
                with suppress(OSError):
                    member.pipe.send(None)

    def _free_place(self) -> int | None:
        """The place that wants work most: one at nothing, an empty one, one with nothing next."""

        def order(place: int) -> int:
            member = self._places[place]
            return 1 if member is None else 2 * len(member.portions)

        best = min(range(len(self._places)), key=order)
        return best if order(best) <= 2 else None

    def _next(self, fresh: Iterator[Sequence[Task]]) -> _Portion | None:
        if self._retries:
            return self._retries.popleft()
        tasks = next(fresh, None)
        return None if tasks is None else _Portion({task.item.key: task for task in tasks})

    def _send(self, place: int, portion: _Portion) -> None:
        member = self._places[place] = self._places[place] or self._start(place)
        member.portions.append(portion)
        with suppress(OSError):  # it has died: that is seen when its answer is read
            member.pipe.send(list(portion.tasks.values()))

    def _start(self, place: int) -> _Member:
        ours, theirs = _spawn.Pipe()
        level = logging.getLogger("lora_prep").level
        if self._said:
            level = max(level, logging.WARNING)  # all say the same of their models
        self._said = True
        arguments = (theirs, self._stage, self._attempt.twin(), self._options.threads, level)
        process = _spawn.Process(
            target=_serve, args=(*arguments, os.getpid()), daemon=True, name=f"lora-prep-{place}"
        )
        with _environment(len(self._places), self._gpus[place]):
            process.start()
        theirs.close()
        return _Member(process, ours)

    def _received(self, member: _Member, stop: Stop) -> Iterator[Finished]:
        try:
            answer = member.pipe.recv()
        except (EOFError, OSError):
            yield from self._bury(member, stop)
            return
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            member.portions.popleft()
        elif member.portions[0].tasks.pop(answer.item.key, None):
            self._deaths = 0
            yield answer

    def _bury(self, member: _Member, stop: Stop) -> Iterator[Finished]:
        """A worker is gone. What it was at is tried again, item by item, or has failed."""
        member.process.join()
        member.pipe.close()
        self._places[self._places.index(member)] = None
        self._deaths += 1
        how = _end_of(member.process.exitcode)
        if self._deaths > MOST_DEATHS:
            raise BackendError(
                f"{self._deaths} workers in a row ended before they finished anything; the last "
                f"{how}. If the memory is too small, give fewer --workers; the lines above may say "
                "more"
            )
        if stop:
            return
        first, *waiting = member.portions
        self._retries.extendleft(reversed(waiting))
        for key, task in first.tasks.items():
            if first.again:
                yield self._attempt.failed(task, killer(how))
            else:
                self._retries.append(_Portion({key: task}, again=True))


def killer(how: str) -> ItemError:
    """Why an item has failed that ended two workers."""
    return ItemError(
        f"the worker {how} while working on it, and the next one with this image alone ended the "
        "same way: it may need more memory than there is, or hit a fault in a library",
        code="worker-died",
    )


def sendable(error: BaseException) -> BaseException:
    """An exception that can be sent to another process, with the lines that led to it as a note."""
    lines = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # an exception of any library's, with a constructor of its own
        copy = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            copy.add_note(note)
    assert isinstance(copy, BaseException)
    copy.add_note(f"in a worker:\n{lines}")
    return copy


def _end_of(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"was killed ({signal.Signals(-code).name})"
    return f"ended (exit code {code})"


# ------------------------------------------------------------------------------- in the worker
def _serve(
    pipe: Connection, stage: Stage, attempt: Attempt, threads: int, level: int, parent: int
) -> None:
    """Take tasks through the stage until the driver is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the driver's business, and it kills what is left
    _end_with(parent)
    _report(level)
    inbox: queue.SimpleQueue[Sequence[Task]] = queue.SimpleQueue()
    stop = Stop()
    threading.Thread(target=_listen, args=(pipe, inbox, stop), daemon=True).start()
    workshop = Workshop(stage, attempt, threads)
    try:
        while True:
            tasks = inbox.get()
            for finished in workshop.work(() if stop else tasks, stop):
                pipe.send(finished)
            pipe.send(None)
    except BrokenPipeError:
        os._exit(0)
    except BaseException as error:
        pipe.send(sendable(error))
        raise SystemExit from None


def _listen(pipe: Connection, inbox: "queue.SimpleQueue[Sequence[Task]]", stop: Stop) -> None:
    """Always ready to receive, so that the driver never waits for a worker that waits for it."""
    try:
        while True:
            message: Any = pipe.recv()
            if message is None:
                stop.signal = signal.SIGTERM
            else:
                inbox.put(message)
    except (EOFError, OSError):
        os._exit(0)  # the driver is gone


def _end_with(parent: int) -> None:
    """Have the system kill this process when the driver dies, even amidst a call into C."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _report(level: int) -> None:
    logger = logging.getLogger("lora_prep")
    logger.setLevel(level)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)


# ------------------------------------------------------------------------------------ resources
@contextmanager
def _environment(workers: int, gpus: str | None) -> Iterator[None]:
    """What a worker is started with: its share of the CPUs for each library, and its GPUs."""
    share = str(max(1, (os.cpu_count() or 1) // workers))
    wanted = dict.fromkeys(("OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), share)
    wanted = {name: value for name, value in wanted.items() if name not in os.environ}
    if gpus is not None:
        wanted["CUDA_VISIBLE_DEVICES"] = gpus
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name here."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one for one in named.split(",") if one.strip()]
    return [str(place) for place, _ in enumerate(_cards())]


def _cards() -> Iterable[Path]:
    folder = Path("/proc/driver/nvidia/gpus")
    return sorted(folder.iterdir()) if folder.is_dir() else ()


def _share(gpus: Sequence[str], place: int, each: float) -> str | None:
    """The GPUs of the worker at a place; None: all."""
    if not gpus or not each:
        return None
    if each < 1:
        return gpus[place // int(1 / each) % len(gpus)]
    first = place * int(each) % len(gpus)
    return ",".join(gpus[first : first + int(each)])
