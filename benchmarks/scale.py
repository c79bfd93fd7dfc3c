"""What the runner itself costs: the real one, over synthetic items and a model that does nothing.

    python -m benchmarks.scale                      100,000 items, and again over what is done
    python -m benchmarks.scale --items 1000000      the figures of docs/scale.md: minutes, 5 GB
    python -m benchmarks.scale --executor processes --workers 2

Each item reads a file, and writes one of 100 bytes: checked, hashed, journalled and renamed as any
mask. Prints the overhead of an item, the size of the journal, and the driver's memory as it goes.
"""

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from lora_prep import executors
from lora_prep.run import Executor, run
from lora_prep.stage import Item, Saved
from lora_prep.types import Outcome

FOLDER = 10_000
"""Outputs in a folder."""

POINTS = 5
"""How often the memory is looked at."""


@dataclass(frozen=True)
class Synthetic:
    """`count` items that all read the same file, with names as long as people's are."""

    root: Path
    count: int
    batch_size: int = 8
    name: str = "synthetic"

    def settings(self) -> dict[str, str]:
        """Nothing."""
        return {"stage": "synthetic/1"}

    def __len__(self) -> int:
        return self.count

    def items(self) -> Iterator[Item]:
        """One a number."""
        source = self.root / "source.bin"
        for number in range(self.count):
            name = f"{number // FOLDER:05}/IMG_20240101_{number:010}"
            yield Item(f"faces/{name}.jpg", (source,), (self.root / f"masks/{name}.png",))

    def open(self) -> "Nothing":
        """There is nothing to load."""
        return Nothing()


class Nothing:
    """A model that takes no time."""

    def load(self, item: Item, inputs: Sequence[bytes]) -> bytes:
        """The file's content."""
        return inputs[0]

    def compute(self, batch: Sequence[bytes]) -> list[bytes]:
        """The same."""
        return list(batch)

    def save(self, item: Item, computed: bytes) -> Saved:
        """The same, with facts like a mask's."""
        info = {"faces": 1, "masked": 1, "coverage": 0.1234}
        return Saved({item.outputs[0]: computed}, info)


def resident() -> float:
    """The process's memory in MB: what is in use where the system tells, else the most so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e6 if sys.platform == "darwin" else 1e3
    )


def measured(stage: Synthetic, executor: Executor) -> dict[str, object]:
    """Run a stage, and look at the memory as it goes."""
    memory: dict[int, float] = {}
    done = 0

    def observe(_outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if done % max(1, stage.count // POINTS) == 0:
            memory[done] = round(resident(), 1)

    before, cpu = resident(), time.process_time()
    report = run(stage, stage.root, executor=executor, observe=observe)
    return {
        "seconds": round(report.seconds, 2),
        "us_per_item": round(report.seconds / stage.count * 1e6, 1),
        "driver_cpu_us_per_item": round((time.process_time() - cpu) / stage.count * 1e6, 1),
        "memory_before_mb": round(before, 1),
        "memory_mb": memory,
        "counts": {str(status): count for status, count in report.counts.items()},
    }


@click.command()
@click.option("--items", default=100_000, show_default=True)
@click.option("--executor", type=click.Choice(["local", "processes", "ray"]), default="local")
@click.option("--workers", type=int)
@click.option("--threads", default=4, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="[default: a temporary one]")
@click.option("--json", "as_json", is_flag=True)
def main(
    items: int,
    executor: str,
    workers: int | None,
    threads: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Measure, and print."""
    root = Path(tempfile.mkdtemp(prefix="scale-", dir=folder))
    (root / "source.bin").write_bytes(b"x" * 100)
    os.utime(root / "source.bin", (0, 0))
    stage = Synthetic(root, items)
    chosen = executors.choose(executor, threads=threads, workers=workers)
    try:
        results = {"first run": measured(stage, chosen), "again": measured(stage, chosen)}
        journal = (root / ".lora-prep/synthetic.jsonl").stat().st_size
    finally:
        shutil.rmtree(root)
    about = {
        "items": items,
        "executor": executor,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "journal_bytes_per_item": round(journal / items, 1),
        "journal_mb": round(journal / 1e6, 1),
    }
    if as_json:
        click.echo(json.dumps({**about, **results}))
        return
    click.echo("  ".join(f"{key}={value}" for key, value in about.items()))
    for title, result in results.items():
        click.echo(f"\n{title}")
        for key, value in result.items():
            click.echo(f"  {key:22} {value}")


if __name__ == "__main__":
    main()
