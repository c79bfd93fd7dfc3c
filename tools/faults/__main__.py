"""Print the table of what runs survive.

    python -m tools.faults [--times N] [--seed N]

Every figure is counted here and now; the exit code is 1 where one that has to be 0 is not.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.rows import record
from tools.faults import change, disk, kill, several
from tools.faults.cases import CASES
from tools.faults.counts import Counts
from tools.faults.zygote import zygote

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def scenarios(folder: Path, *, times: int, seed: int) -> Iterator[Counts]:
    """All of them, one after the other."""
    few = max(2, times // 5)
    modules = [module for case in CASES for module in case.modules]
    with zygote(folder / "logs", modules) as forking:
        for case in CASES:
            for number in SIGNALS:
                place = folder / f"{case.name}-{number.name}"
                count = few if case.slow else times
                yield kill.killed(forking, case, number, place, times=count, seed=seed)
        normalize, detect = CASES[0], CASES[1]
        yield kill.worker_killed(forking, normalize, folder / "worker", times=few, seed=seed)
        yield kill.two_at_once(forking, normalize, folder / "two", times=few, seed=seed)
        yield change.inputs_change(forking, normalize, folder / "change", times=few, seed=seed)
        yield change.clock_jumps(forking, normalize, folder / "clock", times=few)
        yield change.device_full(forking, detect, folder / "device", sizes=range(4))
        with several.cluster() as machines:
            for case in CASES:
                yield from several.same(forking, case, folder / f"same-{case.name}")
            yield several.machine_lost(forking, CASES[3], folder / "lost", machines)
    for case in (CASES[0], CASES[2]):
        place = folder / f"{case.name}-disk"
        yield from disk.full_and_read_only(case, place, steps=range(1, 1 + 4 * few, 3))


def table(found: Sequence[Counts]) -> Iterator[str]:
    """The counts as a Markdown table."""
    yield "| disturbance | runs | in the middle | partial files | parts left | other bytes | lost |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for c in found:
        cells = (c.disturbed, c.unfinished, c.partial, c.left, c.different, c.lost)
        yield f"| {c.scenario} | {' | '.join(map(str, cells))} |"
    runs, middle = sum(c.disturbed for c in found), sum(c.unfinished for c in found)
    sums = (sum(getattr(c, n) for c in found) for n in ("partial", "left", "different", "lost"))
    yield f"| **all** | **{runs}** | **{middle}** | {' | '.join(f'**{n}**' for n in sums)} |"


def note(found: Sequence[Counts]) -> None:
    """A row of `python -m benchmarks`."""
    runs, middle = sum(c.disturbed for c in found), sum(c.unfinished for c in found)
    what = f"of {runs} disturbed runs, {middle} of them in the middle: files or ends that are wrong"
    record("faults", what, "count", sum(c.faults for c in found), "limit: none", None, "0")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tools.faults", description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="signals for each stage (20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for counts in scenarios(Path(folder), times=options.times, seed=options.seed):
            print(f"{counts.scenario}: {counts.faults} faults", file=sys.stderr, flush=True)
            for text in counts.unclear:
                print(text, file=sys.stderr)
            found.append(counts)
    print("\n".join(table(found)))
    note(found)
    return 1 if any(counts.faults for counts in found) else 0


if __name__ == "__main__":
    sys.exit(main())
