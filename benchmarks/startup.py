"""How long the command line takes to say something: `python -m benchmarks.startup`.

Each is a process of its own, in turn: Python that does nothing, Python that imports Click and shows
the help of one command, and `lora-prep`. Wall and CPU milliseconds, medians.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import click

from benchmarks.rows import record

BARE = """
import click

@click.command()
@click.option("--name", default="x", help="A name.")
def main(name):
    "Do something."

main(["--help"], prog_name="bare")
"""

NOTHING, CLICK = "python -c pass", "bare Click, --help"

CONTENDERS: dict[str, Sequence[str]] = {
    NOTHING: ["-c", "pass"],
    CLICK: ["-c", BARE],
    "lora-prep --version": ["-m", "lora_prep", "--version"],
    "lora-prep --help": ["-m", "lora_prep", "--help"],
    "lora-prep masks --help": ["-m", "lora_prep", "masks", "--help"],
    "lora-prep status (nothing there)": ["-m", "lora_prep", "status", "nowhere"],
}


def spent(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU milliseconds of one process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall * 1000, cpu * 1000


@click.command()
@click.option("--repeats", default=15, show_default=True, type=click.IntRange(1))
def main(repeats: int) -> None:
    """Start all of them in turn, and print the medians."""
    for arguments in CONTENDERS.values():
        spent(arguments)  # from the disk, and bytecode is written
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(repeats):
        for name, arguments in CONTENDERS.items():
            times[name].append(spent(arguments))
    wall = {name: statistics.median(w for w, _ in found) for name, found in times.items()}
    cpu = {name: statistics.median(c for _, c in found) for name, found in times.items()}
    print(f"{'':34}{'wall ms':>9}{'CPU ms':>9}{'× Click':>9}")
    for name in CONTENDERS:
        print(f"{name:34}{wall[name]:9.0f}{cpu[name]:9.0f}{cpu[name] / cpu[CLICK]:9.2f}")
        if name.startswith("lora-prep"):
            for peer in (NOTHING, CLICK):
                record("start", name, "CPU ms", cpu[name], peer, cpu[peer])


if __name__ == "__main__":
    main()
