"""What `python -m tools.faults` counts, on a few disturbances of each kind."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tools.faults import change, disk, kill
from tools.faults.__main__ import table
from tools.faults.cases import CASES, make
from tools.faults.counts import Counts
from tools.faults.zygote import Zygote, zygote

NORMALIZE, DETECT, MASKS, AUGMENT, PAIRS, EMBED, _ = CASES
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


@pytest.fixture(scope="module")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    modules = [module for case in CASES if not case.slow for module in case.modules]
    with zygote(tmp_path_factory.mktemp("logs"), modules) as started:
        yield started


def assert_harmless(counts: Counts, *, unfinished: int = 1) -> None:
    assert counts.faults == 0, counts
    assert counts.unfinished >= unfinished, "nothing was disturbed in the middle"


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize(
    "case", [NORMALIZE, MASKS, AUGMENT, PAIRS, EMBED], ids=lambda case: case.name
)
def test_signals(forking: Zygote, tmp_path: Path, case, number) -> None:
    times = {"normalize": 6, "augment": 3}.get(case.name, 2)
    assert_harmless(kill.killed(forking, case, number, tmp_path, times=times, seed=1))


def test_the_harness_notices_a_writer_that_is_not_atomic(forking: Zygote, tmp_path: Path) -> None:
    few = replace(NORMALIZE, count=8)
    counts = kill.killed(forking, few, signal.SIGKILL, tmp_path, times=5, seed=1, naive=True)
    assert counts.partial > 0


def test_the_harness_notices_what_is_lost_left_and_other(tmp_path: Path) -> None:
    data = make(tmp_path / "data", 2)
    (data / "copies").mkdir()
    (data / "copies" / "a.png").write_bytes(b"half")
    (data / "copies" / ".a.png.x.part").write_bytes(b"")
    counts = Counts("by hand")
    counts.look(NORMALIZE, data, {"copies/a.png": b"whole", "copies/b.png": b"b"})
    counts.compare(NORMALIZE, data, {"copies/a.png": b"whole", "copies/b.png": b"b"})
    counts.keep({"i0.png": b"", "gone.png": b""}, data)
    counts.expect("exit code 0", "Traceback (most recent call last)", ok=True)
    found = (counts.unfinished, counts.partial, counts.left, counts.different)
    assert found == (1, 1, 1, 2)
    assert counts.lost == 5  # i0.png is another, gone.png is gone, three are new
    assert len(counts.unclear) == 1
    assert "| by hand | 1 | 1 | 1 | 1 | 2 | 5 |" in list(table([counts]))


def test_a_worker_that_the_system_kills(forking: Zygote, tmp_path: Path) -> None:
    counts = kill.worker_killed(forking, NORMALIZE, tmp_path, times=1)
    assert counts.faults == 0, counts


def test_the_second_of_two_runs_refuses(forking: Zygote, tmp_path: Path) -> None:
    assert_harmless(kill.two_at_once(forking, NORMALIZE, tmp_path, times=3))


def test_inputs_that_vanish_and_change(forking: Zygote, tmp_path: Path) -> None:
    assert_harmless(change.inputs_change(forking, NORMALIZE, tmp_path, times=3))


def test_a_clock_that_jumps(forking: Zygote, tmp_path: Path) -> None:
    counts = change.clock_jumps(forking, NORMALIZE, tmp_path, times=4)
    assert counts.faults == 0, counts


def test_a_device_that_is_full(forking: Zygote, tmp_path: Path) -> None:
    counts = change.device_full(forking, DETECT, tmp_path, sizes=range(0, 4, 3))
    assert_harmless(counts)  # with no room at all, nothing is made, and each image is reported


def test_a_disk_that_is_full_or_read_only(tmp_path: Path) -> None:
    for counts in disk.full_and_read_only(NORMALIZE, tmp_path, steps=[1, 2, 9, 14, 20]):
        assert_harmless(counts)


def test_a_limit_on_files_and_a_file_in_the_way(forking: Zygote, tmp_path: Path) -> None:
    sizes = [1500, 3000, 6000, 20_000]
    assert_harmless(disk.limited(forking, NORMALIZE, tmp_path / "limited", sizes=sizes))
    assert_harmless(disk.obstructed(forking, NORMALIZE, tmp_path / "obstructed"))
