"""Every figure in one table: `python -m benchmarks [NAME ...]`, or `make bench`.

Runs the benchmarks one after the other, each in a process of its own, in sizes that keep all of
them under 15 minutes on two cores. The table has a row a figure, beside its peer or limit from the
same run. What each benchmark prints by itself is kept in `build/bench/NAME.txt`; progress goes to
stderr. Larger sizes: run one alone, `python -m benchmarks.NAME --help` names its options.
"""

import contextlib
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from benchmarks.rows import RECORD, Row, processor, recorded, table

ROOT = Path(__file__).parents[1]

BENCHMARKS: dict[str, Sequence[str]] = {
    "startup": ["benchmarks.startup", "--repeats", "9"],
    "runner": ["benchmarks.runner"],
    "validate": ["benchmarks.validate", "--pairs", "1000"],
    "augment": ["benchmarks.augment"],
    "masks": ["benchmarks.masks", "--sizes", "4", "-n", "4", "--batches", ""],
    "mask_quality": ["benchmarks.mask_quality", "-n", "20"],
    "embedded_masks": ["benchmarks.embedded_masks", "-n", "12"],
    "drift": ["benchmarks.drift", "--portraits", "12"],
    "losses": ["benchmarks.losses"],
    "identity": ["benchmarks.identity", "--repeats", "2"],
    "learning": ["benchmarks.learning"],
    "faults": ["tools.faults", "--times", "4"],
    "fuzz": ["tools.fuzz", "all", "--count", "1000"],
}
"""Modules and their arguments, the quiet ones first."""

PACKAGES = (
    "lora-prep", "numpy", "opencv-python", "Pillow", "torch", "torchvision", "kornia",
    "albumentations", "cleanvision", "datasets", "sam2", "insightface", "onnxruntime",
    "diffusers", "ray", "click",
)  # fmt: skip

SECONDS = 600
"""No benchmark takes longer; one that does is ended, and said to have failed."""


def machine() -> Iterator[str]:
    """What the figures depend on."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    yield f"{now}; {processor()}, {os.cpu_count()} CPUs, {graphics()}; {platform.platform()}"
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    yield ", ".join(found)


def graphics() -> str:
    """The GPU, if there is one, without importing torch."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return "no GPU"


def measured(name: str, folder: Path) -> tuple[list[Row], str]:
    """Run one benchmark: its rows, and how it went."""
    rows, log = folder / f"{name}.jsonl", folder / f"{name}.txt"
    rows.unlink(missing_ok=True)
    environment = {**os.environ, RECORD: str(rows), "NO_ALBUMENTATIONS_UPDATE": "1"}
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w", encoding="utf-8") as out:
        command = [sys.executable, "-m", *BENCHMARKS[name]]
        try:
            code = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
                timeout=SECONDS, check=False,
            ).returncode  # fmt: skip
            how = f"exit code {code}" if code else "done"
        except subprocess.TimeoutExpired:
            code, how = 1, f"ended after {SECONDS} s"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    how += f" in {time.monotonic() - started:.0f} s, {cpu:.0f} of CPU time"
    found = recorded(rows)
    return found, "" if found and not code else f"{how}; see {log}"


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
def main(names: Sequence[str]) -> None:
    """Measure, and print the table."""
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    load, started = os.getloadavg()[0], time.monotonic()
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for name in names or BENCHMARKS:
        click.echo(f"{name} ...", err=True)
        found, trouble = measured(name, folder)
        rows += found
        if trouble:
            failed[name] = trouble
            click.echo(f"{name}: {trouble}", err=True)
    for line in machine():
        click.echo(line)
    minutes = (time.monotonic() - started) / 60
    click.echo(
        f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after; {minutes:.1f} minutes\n"
    )
    for line in table(rows):
        click.echo(line)
    for name, trouble in failed.items():
        click.echo(f"\nfailed: {name}: {trouble}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
