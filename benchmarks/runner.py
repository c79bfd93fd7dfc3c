"""What an item costs besides its model: `python -m benchmarks.runner [--items N]`.

The stage of `benchmarks.scale`, whose model does nothing, through each executor; beside it a bare
loop that makes the same files as safely as one would by hand (read, hash, write beside, rename),
and one that only asks for the dates of both files. Ray and the processes start their workers
first, which is measured by a run of a few items and told apart.
"""

import hashlib
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import click

from benchmarks.rows import record
from benchmarks.scale import Synthetic
from lora_prep import executors
from lora_prep.run import Executor, run

FEW = 64
"""Items of the run that starts the workers."""

LOOP, STAT = "bare loop: read, hash, write, rename", "bare loop: stat both files"


def write_all(stage: Synthetic) -> None:
    """The same files by hand, whole or not at all."""
    for item in stage.items():
        (source,), (out,) = item.inputs, item.outputs
        data = source.read_bytes()
        hashlib.sha256(data).hexdigest()
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_suffix(".part")
        part.write_bytes(data)
        part.replace(out)


def stat_all(stage: Synthetic) -> None:
    """The least that says whether anything has changed."""
    for item in stage.items():
        for path in (*item.inputs, *item.outputs):
            path.stat()


def through(executor: Executor, stage: Synthetic) -> tuple[float, float]:
    """Wall and the driver's CPU seconds of a run."""
    cpu = time.process_time()
    report = run(stage, stage.root, executor=executor)
    assert report.done == stage.count
    return report.seconds, time.process_time() - cpu


def fresh_root(folder: Path, name: str) -> Path:
    """A folder with the file that all items read, of a date that is trusted."""
    root = folder / name
    root.mkdir()
    (root / "source.bin").write_bytes(b"x" * 100)
    os.utime(root / "source.bin", (0, 0))
    return root


def loops(folder: Path, count: int) -> dict[str, float]:
    """CPU seconds of the bare loops."""
    stage = Synthetic(fresh_root(folder, "bare"), count)
    found = {}
    for name, work in ((LOOP, write_all), (STAT, stat_all)):
        before = time.process_time()
        work(stage)
        found[name] = time.process_time() - before
    return found


@click.command()
@click.option("--items", default=10_000, show_default=True, type=click.IntRange(FEW + 1))
@click.option("--workers", default=2, show_default=True)
@click.option("--ray/--no-ray", default=True, show_default=True)
def main(items: int, workers: int, ray: bool) -> None:
    """Microseconds an item, of each executor and of the bare loops."""
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))  # for Ray's workers
    folder = Path(tempfile.mkdtemp(prefix="runner-"))
    try:
        bare = {name: 1e6 * s / items for name, s in loops(folder, items).items()}
        for name, us in bare.items():
            print(f"{name:42}{us:8.0f} CPU µs an item")
        walls = {}
        for name in ("local", "processes", "ray")[: 3 if ray else 2]:
            executor = executors.choose(name, threads=2, workers=workers)
            start, _ = through(executor, Synthetic(fresh_root(folder, f"{name}-few"), FEW))
            stage = Synthetic(fresh_root(folder, name), items)
            wall, cpu = through(executor, stage)
            walls[name] = max(wall - start, 0.0) / (items - FEW) * 1e6
            driver = cpu / items * 1e6
            print(
                f"{name:12}starts in {start:5.1f} s, then {walls[name]:6.0f} µs wall an item, "
                f"the driver's CPU {driver:6.0f} µs"
            )
            if name == "local":
                record("runner", "an item that is made", "CPU µs", driver, LOOP, bare[LOOP])
                _, again = through(executor, stage)
                again = again / items * 1e6
                print(f"{'':12}and where all is fresh {again:6.0f} µs CPU an item")
                record("runner", "an item that is fresh", "CPU µs", again, STAT, bare[STAT])
            else:
                what = f"an item by --executor {name}, {workers} workers"
                record("runner", what, "wall µs", walls[name], "--executor local", walls["local"])
                record("runner", f"--executor {name} starts", "wall s", start, "local: none", None)
    finally:
        shutil.rmtree(folder)
    print(f"{items:,} items; Python {platform.python_version()}, {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
