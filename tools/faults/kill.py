"""Signals at random moments, and workers that die."""

import random
import signal
import time
from pathlib import Path

from tools.faults.cases import Case
from tools.faults.counts import Counts, inputs
from tools.faults.zygote import Zygote


def killed(
    zygote: Zygote,
    case: Case,
    number: signal.Signals,
    folder: Path,
    *,
    times: int,
    seed: int = 0,
    **how: bool,
) -> Counts:
    """Send a signal to `times` runs, each at its own moment; a run ends what is left over.

    Where all was made before the signal came, all is taken away, to have something to disturb.
    """
    counts = Counts(f"{number.name} in {case.name}")
    data, twin = case.make(folder / "data"), case.make(folder / "twin")
    before = inputs(data)
    whole = seconds(zygote, case.command(twin), case, twin)
    wanted = case.made(twin)
    moment = random.Random(f"{seed} {case.name} {number.name}")
    for attempt in range(times):
        if case.made(data).keys() >= wanted.keys():
            case.forget(data)
        running = zygote.start(case.command(data), **how)
        if attempt % 2:
            time.sleep(moment.uniform(0.0, 1.0) * whole)
        else:  # however slow the machine is at the moment
            _await(case, data, moment.randrange(len(wanted)), 10 * whole)
        running.signal(number)
        ended = running.wait()
        fine = (0, 128 + number, -number)  # done before it came; told; before it could be told
        early = ended.said.strip() == "Aborted!"  # says Click, before the command could begin
        counts.expect(f"exit code {ended.code}", ended.said, ok=ended.code in fine or early)
        counts.look(case, data, wanted)
    ended = zygote.run(case.command(data))
    counts.expect(f"the run that followed ended with {ended.code}", ended.said, ok=ended.code == 0)
    counts.compare(case, data, wanted)
    counts.keep(before, data)
    return counts


def _await(case: Case, data: Path, count: int, seconds: float) -> None:
    """Wait until so many outputs are there, but no longer than that."""
    until = time.monotonic() + seconds
    while len(case.names(data)) < count and time.monotonic() < until:
        time.sleep(0.0005)


def seconds(zygote: Zygote, command: list[str], case: Case, data: Path) -> float:
    """How long a command takes that has all to do; the second time, when files are at hand."""
    zygote.run(command)
    case.forget(data)
    started = time.monotonic()
    zygote.run(command)
    return time.monotonic() - started


def worker_killed(zygote: Zygote, case: Case, folder: Path, *, times: int, seed: int = 0) -> Counts:
    """Kill one of two worker processes, as the system does when memory runs out."""
    counts = Counts(f"a worker killed in {case.name}")
    data, twin = case.make(folder / "data"), case.make(folder / "twin")
    before = inputs(data)
    processes = ["--executor", "processes", "--workers", "2"]
    whole = seconds(zygote, [*case.command(twin), *processes], case, twin)
    wanted = case.made(twin)
    moment = random.Random(seed)
    for _ in range(times):
        case.forget(data)
        running = zygote.start([*case.command(data), *processes])
        time.sleep(moment.uniform(0.3, 0.9) * whole)
        victims = _workers(running.pid)
        for victim in victims[:1]:
            try:
                signal.pidfd_send_signal(_open(victim), signal.SIGKILL)
            except ProcessLookupError:
                victims = []
        ended = running.wait()
        counts.expect(f"exit code {ended.code}", ended.said, ok=ended.code == 0)
        counts.disturbed += bool(victims)
        counts.unfinished += bool(victims)
        counts.compare(case, data, wanted)
    counts.keep(before, data)
    return counts


def _open(pid: int) -> int:
    import os

    return os.pidfd_open(pid)


def _workers(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    own = [int(word) for word in text.split()]
    return [*own, *(grandchild for child in own for grandchild in _workers(child))]


def two_at_once(zygote: Zygote, case: Case, folder: Path, *, times: int, seed: int = 0) -> Counts:
    """Start a second run while the first is held up; the second has to refuse, and say so."""
    counts = Counts(f"two runs of {case.name} at once")
    data, twin = case.make(folder / "data"), case.make(folder / "twin")
    before = inputs(data)
    zygote.run(case.command(twin))
    wanted = case.made(twin)
    moment = random.Random(seed)
    for _ in range(times):
        case.forget(data)
        first = zygote.start(case.command(data))
        while not [*(data / ".lora-prep").glob("*.jsonl")]:  # made when the lock is held
            time.sleep(0.0005)
        time.sleep(moment.uniform(0, 0.01))
        first.signal(signal.SIGSTOP)
        second = zygote.run(case.command(data))
        first.signal(signal.SIGCONT)
        ended = first.wait()
        refused = second.code == 2 and "another lora-prep is working" in second.said
        counts.look(case, data, wanted)
        counts.unfinished += refused
        # The one that came too early or too late did all the work, or found it done.
        counts.expect(f"second {second.code}", second.said, ok=refused or second.code == 0)
        other = ended.code == 2 and "another lora-prep is working" in ended.said
        counts.expect(f"first {ended.code}", ended.said, ok=ended.code == 0 or other)
        counts.compare(case, data, wanted)
    counts.keep(before, data)
    return counts
