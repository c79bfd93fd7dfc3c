"""Starts lora-prep commands in milliseconds, so that hundreds of them can be disturbed.

One process imports everything once and forks for each command. The child is what `lora-prep` would
be: the command runs in its main thread with Python's own signal handlers.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 120.0
"""What no command takes: longer is a hang."""

MODULES = ("cv2", "PIL.Image", "tqdm", "lora_prep.cli.console", "lora_prep.executors.local")


class Hang(Exception):
    """A command did not end."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code; minus the signal that killed it."""
    said: str
    """Its output and its errors."""


@dataclass
class Running:
    """A command that was started."""

    zygote: "Zygote"
    pid: int
    log: Path

    def signal(self, number: int) -> None:
        """Send a signal, if the command is still there."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Its end. Raises Hang."""
        return Ended(self.zygote.wait(self.pid), self.log.read_text(errors="replace"))


@dataclass
class Zygote:
    """The process that forks."""

    process: "subprocess.Popen[str]"
    logs: Path
    started: int = 0
    ended: dict[int, int] = field(default_factory=dict)

    def start(self, arguments: Sequence[object], **how: Any) -> Running:
        """Start a command; `how` is what `_child` understands."""
        self.started += 1
        log = self.logs / f"{self.started}.log"
        log.touch()
        request = {"arguments": [str(a) for a in arguments], "log": str(log), **how}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Running(self, int(self._answer("pid")), log)

    def run(self, arguments: Sequence[object], **how: Any) -> Ended:
        """Run a command to its end."""
        return self.start(arguments, **how).wait()

    def wait(self, pid: int) -> int:
        """The exit code of a child."""
        while pid not in self.ended:
            found, _, code = self._answer("ended").partition(" ")
            self.ended[int(found)] = int(code)
        return self.ended.pop(pid)

    def _answer(self, kind: str) -> str:
        assert self.process.stdout
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
            line = self.process.stdout.readline() if ready else ""
            if not line:
                raise Hang(f"no answer within {SECONDS:g} s, or the zygote died")
            word, _, rest = line.strip().partition(" ")
            if word == kind:
                return rest
            pid, _, code = rest.partition(" ")
            self.ended[int(pid)] = int(code)


@contextmanager
def zygote(logs: Path, modules: Sequence[str] = ()) -> Iterator[Zygote]:
    """A zygote until the end of the block; `modules` are imported beforehand."""
    logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.faults.zygote", *MODULES, *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    forking = Zygote(process, logs)
    try:
        forking._answer("ready")
        yield forking
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(timeout=SECONDS)


# ---------------------------------------------------------------------------- in the zygote
def _serve(modules: Sequence[str]) -> None:
    """Fork for each line of the standard input, and say how each child ended.

    A byte of the wake-up pipe comes with each SIGCHLD, so that nothing is polled. No buffered
    reading: a line that waits in a buffer would not wake `select`.
    """
    import importlib

    for name in modules:
        importlib.import_module(name)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: set[int] = set()
    _say("ready")
    pending, open_ = b"", True
    while open_ or children:
        ready, _, _ = select.select([reading, *([0] if open_ else [])], [], [])
        if reading in ready:
            os.read(reading, 100)
        if 0 in ready:
            data = os.read(0, 1 << 16)
            open_ = bool(data)
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    _child(json.loads(line))
                children.add(pid)
                _say(f"pid {pid}")
        for pid in list(children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                children.discard(pid)
                _say(f"ended {pid} {os.waitstatus_to_exitcode(status)}")


def _say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def _child(request: Mapping[str, Any]) -> NoReturn:
    """Be a lora-prep process. Never returns."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for new, old in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(new, old)
        if "file_bytes" in request:
            _limit_files(request["file_bytes"])
        if "clock" in request:
            _shake_clock(request["clock"])
        if "fits" in request:
            _shrink_device(request["fits"])
        if request.get("naive"):
            _write_naively()
        from lora_prep.cli import main

        code = _exit_code(main, request["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    except KeyboardInterrupt:  # before the command could begin
        code = 128 + signal.SIGINT
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _exit_code(main: Any, arguments: Sequence[str]) -> int:
    try:
        main(list(arguments), prog_name="lora-prep")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _limit_files(count: int) -> None:
    """No file may grow beyond this many bytes: writing on is an error, as on a full disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))


def _shake_clock(seed: int) -> None:
    """Let the time of day jump by up to ten years either way, at about every second question."""
    import random

    moment = random.Random(seed)
    true_ns, offset = time.time_ns, [0]

    def shaken() -> int:
        if moment.random() < 0.5:
            offset[0] = moment.choice([-1, 1]) * moment.randrange(10 * 365 * 86_400) * 10**9
        return true_ns() + offset[0]

    time.time_ns = shaken
    time.time = lambda: shaken() / 1e9


def _shrink_device(fits: int) -> None:
    """Let the stages run out of the device's memory with more than so many items at a time."""
    from lora_prep.errors import OutOfMemory
    from lora_prep.stages import detect

    compute = detect.Detecting.compute

    def small(self: Any, batch: Sequence[Any]) -> Any:
        if len(batch) > fits:
            raise OutOfMemory(f"{len(batch)} images do not fit")
        return compute(self, batch)

    detect.Detecting.compute = small  # type: ignore[method-assign]


def _write_naively() -> None:
    """Write under the final name at once, as most scripts do: what the harness has to notice."""
    from lora_prep import imageio

    def write(path: Path, data: bytes, *, token: str) -> Path:  # noqa: ARG001
        with path.open("wb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            time.sleep(0.05)
            file.write(data[len(data) // 2 :])
        return path

    imageio.write_part = write
    imageio.commit = lambda *_: None


if __name__ == "__main__":
    _serve(sys.argv[1:])
