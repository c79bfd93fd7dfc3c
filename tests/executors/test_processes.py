"""Worker processes: the same files as local, whatever happens to a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_prep.errors import BackendError, DatasetError, UsageError
from lora_prep.executors import processes
from lora_prep.executors.processes import ProcessesExecutor
from lora_prep.run import Report, run
from lora_prep.types import Outcome, Status
from tests.fakes.hazards import Hazards

ROOT = Path(__file__).parents[2]


@pytest.fixture
def texts(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    def write(contents: dict[str, str]) -> Path:
        (tmp_path / "in").mkdir(exist_ok=True)
        for name, text in contents.items():
            (tmp_path / "in" / f"{name}.txt").write_text(text)
        return tmp_path

    return write


def plain(count: int) -> dict[str, str]:
    return {f"{i:03}": f"text {i}" for i in range(count)}


def outputs(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (root / "out").iterdir()}


def go(root: Path, workers: int = 2) -> tuple[Report, dict[str, Outcome]]:
    seen: dict[str, Outcome] = {}
    report = run(
        Hazards(root),
        root,
        executor=ProcessesExecutor(workers, 1),
        observe=lambda outcome: seen.update({outcome.key: outcome}),
    )
    assert len(seen) == report.done
    return report, seen


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def pids(root: Path) -> set[int]:
    folder = root / "pids"
    return {int(path.name) for path in folder.iterdir()} if folder.exists() else set()


def test_workers_share_the_work_and_the_next_run_starts_none(texts):
    root = texts(plain(40))
    report, _ = go(root)
    assert report.counts == {Status.DONE: 40}
    assert outputs(root) == {f"{n}.txt": text.upper() for n, text in plain(40).items()}
    workers = pids(root)
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert not any(map(is_alive, workers))
    report, _ = go(root)
    assert report.counts == {Status.FRESH: 40}
    assert pids(root) == workers


def test_what_kills_its_worker_is_tried_twice_and_harms_no_other(texts):
    root = texts({**plain(30), "004": "!kill", "011": "!kill-once", "017": "!fail"})
    report, seen = go(root)
    assert report.counts == {Status.DONE: 28, Status.FAILED: 2}
    assert seen["in/004.txt"].code == "worker-died"
    assert "SIGKILL" in seen["in/004.txt"].message
    assert seen["in/017.txt"].code == "shy"
    assert (root / "004.txt.seen").read_text() == "xx"
    assert sorted(outputs(root)) == [f"{n}.txt" for n in plain(30) if n not in ("004", "017")]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [("!bug", ZeroDivisionError, "a bug"), ("!disk", DatasetError, "the disk is full")],
)
def test_other_errors_surface_and_end_the_workers(texts, text, error, message):
    root = texts({**plain(6), "003": text})
    with pytest.raises(error, match=message) as raised:
        go(root)
    notes = "".join(raised.value.__notes__)
    assert "in/003.txt" in notes
    assert "hazards.py" in notes, "where it happened in the worker"
    assert not any(map(is_alive, pids(root)))
    assert not list((root / "out").glob(".*.part"))


def test_workers_that_all_die_end_the_run(texts, monkeypatch):
    monkeypatch.setattr(processes, "MOST_DEATHS", 2)
    root = texts(dict.fromkeys(plain(9), "!kill"))
    with pytest.raises(BackendError, match=r"3 workers in a row .*SIGKILL.*fewer --workers"):
        go(root)


SCRIPT = """
import sys
from pathlib import Path
from lora_prep.executors.processes import ProcessesExecutor
from lora_prep.run import run
from tests.fakes.hazards import Hazards

if __name__ == "__main__":
    root = Path(sys.argv[1])
    report = run(Hazards(root), root, executor=ProcessesExecutor(2, 1))
    print(report.done, flush=True)
    sys.exit(report.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_leave_no_worker_and_nothing_partial(texts, tmp_path, number):
    """A signal goes to the whole group, as a terminal sends it; SIGKILL goes to the driver."""
    root = texts({f"{i:03}": "!slow" for i in range(40)})
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", root],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(pids(root)) < 2 or not (root / "out").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    wanted = -number if number == signal.SIGKILL else 128 + number
    assert process.returncode == wanted, err
    if number != signal.SIGKILL:
        assert "finishing what is in flight" in err
        assert int(out) < 20, "portions under way were finished to their end"
    deadline = time.monotonic() + 20
    while any(map(is_alive, pids(root))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids(root)))
    assert set(outputs(root).values()) <= {"!SLOW", ""} if number == signal.SIGKILL else {"!SLOW"}


def test_gpus_are_shared_out():
    cards = ["0", "1", "2", "3"]
    assert [processes._share(cards, place, 2) for place in range(3)] == ["0,1", "2,3", "0,1"]
    assert [processes._share(cards, place, 0.5) for place in range(3)] == ["0", "0", "1"]
    assert processes._share([], 0, 1) is None


def test_more_gpus_than_there_are_is_said(texts, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    root = texts(plain(2))
    with pytest.raises(UsageError, match="0 GPUs"):
        run(Hazards(root), root, executor=ProcessesExecutor(num_gpus=1))
