"""What validating costs: `python -m benchmarks.validate [--pairs N]`.

The same files for all: JPEG images of 256 to 512 pixels with their masks, in the page cache. The
peers do other work: cleanvision looks at exposure, blur and duplicates of the images, datasets'
imagefolder lists and decodes them; neither opens a mask. The floor is what reading every byte and
decoding every image and mask with OpenCV takes, one thread, nothing checked.
"""

import contextlib
import importlib
import io
import json
import logging
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from benchmarks.rows import record
from lora_prep.dataset import Dataset
from lora_prep.imageio import encode_mask
from lora_prep.validate import cache_path, validate
from sample_data.portraits import draw_portrait

PORTRAITS = 24
THREADS = 2

TARGETS = {
    "lora-prep validate": "≤ 0.29 × the floor",
    "lora-prep validate, again": "≤ 0.1 × the floor",
    "lora-prep validate --deep": "≤ 0.78 × the floor",
}
"""They were set as 3, 1 and 8 s for 20,000 pairs on two cores, where the floor took 1.03 ms of CPU
time a pair; so this is what they come to on any machine."""


def make(root: Path, pairs: int) -> int:
    """Write the data set; returns its size in bytes."""
    people = [draw_portrait(i, size=(560, 560), people=1) for i in range(PORTRAITS)]
    rng = np.random.default_rng(0)
    size = 0
    for folder in ("faces", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(pairs):
        portrait = people[index % PORTRAITS]
        height, width = (int(n) for n in rng.integers(256, 513, 2))
        top, left = (int(rng.integers(0, 560 - n + 1)) for n in (height, width))
        window = np.s_[top : top + height, left : left + width]
        image = portrait.image[window].astype(np.int16)
        image = np.clip(image + rng.integers(-6, 7, (height, width, 1)), 0, 255).astype(np.uint8)
        mask = portrait.people[0].head_mask[window].astype(np.uint8) * 255
        jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        for path, data in (
            (root / "faces" / f"{index:06}.jpg", jpeg.tobytes()),
            (root / "masks" / f"{index:06}.png", encode_mask(mask)),
        ):
            path.write_bytes(data)
            size += len(data)
    return size


def decode_everything(root: Path) -> None:
    """The floor."""
    for folder, flag in (("faces", cv2.IMREAD_COLOR), ("masks", cv2.IMREAD_UNCHANGED)):
        for entry in os.scandir(root / folder):
            with open(entry.path, "rb") as file:  # noqa: PTH123 the shortest way
                assert cv2.imdecode(np.frombuffer(file.read(), np.uint8), flag) is not None


def cleanvision(root: Path) -> None:
    """All of its checks, in this process."""
    from cleanvision import Imagelab

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Imagelab(data_path=str(root / "faces")).find_issues(n_jobs=1, verbose=False)


def imagefolder(root: Path, cache: Path) -> None:
    """List, load and decode."""
    datasets: Any = importlib.import_module("datasets")

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(root / "faces"), split="train", cache_dir=str(cache)
    )
    for row in loaded:
        row["image"].load()


def measure(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds, children counted."""

    def cpu() -> float:
        used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    before, started = cpu(), time.perf_counter()
    work()
    return time.perf_counter() - started, cpu() - before


@click.command()
@click.option("--pairs", default=2000, show_default=True)
@click.option("--peers/--no-peers", default=True, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(pairs: int, peers: bool, as_json: bool) -> None:
    """Measure each once, after one pass that warms the page cache."""
    cv2.setNumThreads(1)
    logging.disable(logging.WARNING)
    rows: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "data"
        size = make(root, pairs)
        time.sleep(2.1)  # younger files are not trusted to keep their dates
        dataset = Dataset.at(root)
        cache = cache_path(dataset)
        list(dataset)

        def check(**options: Any) -> Callable[[], Any]:
            return lambda: validate(Dataset.at(root), threads=THREADS, **options)

        rows["decode floor (cv2, 1 thread)"] = measure(lambda: decode_everything(root))
        rows["lora-prep validate"] = measure(check(cache=cache))
        rows["lora-prep validate, again"] = measure(check(cache=cache))
        rows["lora-prep validate --deep"] = measure(check(deep=True))
        if peers:
            for peer in ("cleanvision", "datasets"):
                importlib.import_module(peer)  # not part of the time
            rows["datasets imagefolder, decoded"] = measure(
                lambda: imagefolder(root, Path(folder) / "cache")
            )
            rows["cleanvision, all its checks"] = measure(lambda: cleanvision(root))
    floor, *others = [name for name in rows if not name.startswith("lora-prep")]
    for ours, target in TARGETS.items():
        what = f"1,000 pairs, {ours}"
        mine, theirs = (1000 * rows[name][1] / pairs for name in (ours, floor))
        record("validate", what, "CPU s", mine, floor, theirs, target)
        for name in others:
            mine, theirs = (1000 * rows[who][0] / pairs for who in (ours, name))
            record("validate", what, "wall s", mine, f"{name} (images only)", theirs)
    names = ["numpy", "opencv-python-headless", "Pillow", "zlib-ng"]
    names += ["cleanvision", "datasets"] if peers else []
    versions = {name: version(name) for name in names}
    if as_json:
        click.echo(json.dumps({"pairs": pairs, "bytes": size, "rows": rows, **versions}))
        return
    click.echo(f"{pairs:,} pairs of 256 to 512 px, {size / 1e6:.0f} MB, page cache warm")
    click.echo(f"{'':34}{'wall s':>9}{'CPU s':>9}   a 1,000 pairs")
    for name, (wall, cpu) in rows.items():
        click.echo(f"{name:34}{1000 * wall / pairs:9.2f}{1000 * cpu / pairs:9.2f}")
    click.echo("The peers read images alone, and look for other things.")
    click.echo(
        f"Python {sys.version.split()[0]}, {platform.machine()}, {os.cpu_count()} cores; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
    )


if __name__ == "__main__":
    main()
