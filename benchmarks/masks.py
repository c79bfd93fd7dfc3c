"""How many masks a second: `python -m benchmarks.masks`.

In one run, on the same images, model and machine: the loop that recipes show, the real runner with
all that lora-prep does, and the bare image encoder on tensors that are ready. Weights are random
and what they say is noise, so everybody goes on with the same ellipse around the face instead: the
work behind the model is then that of a real mask. Models are loaded beforehand.

On CUDA the defaults are others: 64 images of each size, batches of 8 and more, 16 threads around
the model, everything once before it is timed. The released sizes:
`python -m benchmarks.masks --model hiera_l --device cuda`, and hiera_t, hiera_s, hiera_b+.
"""

import hashlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from PIL import Image as PilImage

from benchmarks.rows import processor, record
from lora_prep import anatomy, imageio
from lora_prep.backends import (
    DetectorSpec,
    FaceDetector,
    SegmenterSpec,
    default_batch_size,
    detector,
    sam2_model,
)
from lora_prep.backends.sam2 import Answer, Prepared, Sam2Segmenter
from lora_prep.dataset import Dataset
from lora_prep.executors.local import LocalExecutor
from lora_prep.faces import FaceRecord, faces_path
from lora_prep.run import run
from lora_prep.stages.masks import MakeMasks, Masking
from lora_prep.types import BoolMask, Face, Region
from sample_data.portraits import draw_portrait

MODELS = {
    f"hiera_{letter}": f"configs/sam2/sam2_hiera_{letter}.yaml" for letter in ("t", "s", "b+", "l")
}

RECIPE, OURS = "recipe's loop", "lora-prep"
DETECTING, ENCODER = "lora-prep, detecting", "bare encoder"
MODEL = "encoder and mask decoder"


@dataclass(frozen=True)
class Picture:
    """A portrait on disk, and where its face is."""

    path: Path
    face: Face
    height: int
    width: int

    def ellipse(self) -> BoolMask:
        """What all contenders take for the model's answer."""
        return anatomy.fill(anatomy.outlines(self.face, Region.FACE), self.height, self.width)


class Plausible(Sam2Segmenter):
    """Runs all of the model, then gives the ellipse of each face for its answer."""

    def segment(
        self, prepared: Sequence[Prepared], faces: Sequence[Sequence[Face]], region: Region
    ) -> list[Answer]:
        """The real answers' shapes, other values."""
        answers = super().segment(prepared, faces, region)
        for image, of_image, answer in zip(prepared, faces, answers, strict=True):
            for k, face in enumerate(of_image):
                rows, columns = answer.logits[k].shape
                scale = columns / image.width, rows / image.height
                inside = anatomy.fill(
                    anatomy.outlines(face, region), rows, columns, origin=(0, 0), scale=scale
                )
                answer.logits[k] = cv2.GaussianBlur(
                    np.where(inside, 8, -8).astype(np.float32), (0, 0), 1.5
                )
        return answers


@dataclass(frozen=True)
class Loaded(MakeMasks):
    """The stage as it is, but for models that are loaded already."""

    models: tuple[FaceDetector, Sam2Segmenter] | None = field(default=None, compare=False)

    def open(self) -> Masking:
        """The stage at work."""
        assert self.models
        return Masking(self, *self.models)


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    megapixels: float
    batch: int
    threads: int
    """Of torch, for the model."""


@dataclass
class Bench:
    """Models and pictures, and the contenders that use them."""

    spec: SegmenterSpec
    segmenter: Plausible
    naive: Any
    """A SAM2ImagePredictor."""
    detector: FaceDetector
    root: Path
    count: int
    around: int
    """Threads around the model, as `lora-prep masks --threads` has them."""
    pictures: dict[float, list[Picture]] = field(default_factory=dict)
    ready: dict[float, list[Prepared]] = field(default_factory=dict)
    """The same as the model takes them."""

    def draw(self, megapixels: float) -> None:
        """Write the pictures of one size, with what a detector would say about each."""
        folder = self.root / f"{megapixels:g}" / "faces"
        folder.mkdir(parents=True)
        made = []
        side = (megapixels * 1e6 / 12) ** 0.5
        height, width = round(4 * side), round(3 * side)
        for seed in range(self.count):
            portrait = draw_portrait(seed, size=(640, 480), people=1, scale=(0.4, 0.6), max_tilt=5)
            image = cv2.resize(portrait.image, (width, height), interpolation=cv2.INTER_CUBIC)
            noise = np.random.default_rng(seed).integers(0, 9, image.shape, dtype=np.uint8)
            data = imageio.encode_image(cv2.add(image, noise), "jpeg")
            path = folder / f"p{seed:02}.jpg"
            path.write_bytes(data)
            made.append(Picture(path, scaled(portrait.people[0].face, width / 480), height, width))
            self.ready.setdefault(megapixels, []).append(self.segmenter.prepare(image))
        self.pictures[megapixels] = made

    def stage(self, setting: Setting) -> Loaded:
        """The stage for a setting's pictures."""
        dataset = Dataset.at(self.root / f"{setting.megapixels:g}" / "faces")
        return Loaded(
            dataset,
            DetectorSpec("cascade"),
            self.spec,
            batch_size=setting.batch,
            models=(self.detector, self.segmenter),
        )

    def recipe(self, setting: Setting) -> int:
        """PIL, `set_image`, `predict` with one point, `masks[0]`, erode, PIL: one after another."""
        pictures = self.pictures[setting.megapixels]
        if not self.segmenter._on_cuda:
            pictures = pictures[:1]  # slow, and there is no pipeline to fill
        out = self.root / "naive"
        out.mkdir(exist_ok=True)
        for picture in pictures:
            image = np.array(PilImage.open(picture.path).convert("RGB"))
            with torch.inference_mode():
                self.naive.set_image(image)
                masks, _, _ = self.naive.predict(
                    point_coords=np.array([[picture.width / 2, picture.height / 2]]),
                    point_labels=np.array([1]),
                )
            assert masks[0].shape == image.shape[:2]
            mask = picture.ellipse().view(np.uint8) * np.uint8(255)
            PilImage.fromarray(cv2.erode(mask, np.ones((10, 10), np.uint8))).save(
                out / f"{picture.path.stem}.png"
            )
        return len(pictures)

    def faces_known(self, setting: Setting) -> int:
        """lora-prep, with the faces recorded by an earlier command."""
        stage = self.stage(setting)
        for picture in self.pictures[setting.megapixels]:
            digest = hashlib.sha256(picture.path.read_bytes()).hexdigest()
            record = FaceRecord(
                stage.detector_identity, digest, picture.width, picture.height, (picture.face,)
            )
            path = faces_path(stage.dataset, stage.dataset.sample(picture.path.name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(record.to_bytes())
        return self._run(stage)

    def detecting(self, setting: Setting) -> int:
        """lora-prep, finding the faces as well: the embedded cascade, on the CPU."""
        stage = self.stage(setting)
        for path in (stage.dataset.state / "faces").glob("*.json"):
            path.unlink()
        return self._run(stage)

    def encoder(self, setting: Setting) -> int:
        """The image encoder alone, in the same batches, on tensors that lie on its device."""
        model, size = self.segmenter._model, self.segmenter._size
        count = len(self.pictures[setting.megapixels])
        on = self.segmenter._device
        images = torch.rand((count, 3, size, size), device=on)
        precision = torch.autocast(
            on.split(":")[0], torch.bfloat16, enabled=self.segmenter._bfloat16
        )
        self.synchronize()
        with torch.inference_mode(), precision:
            for start in range(0, count, setting.batch):
                model.forward_image(images[start : start + setting.batch])
        self.synchronize()
        return count

    def model(self, setting: Setting) -> int:
        """Encoder, prompts and mask decoder, on resized images and known faces; nothing else."""
        ready, faces = self.ready[setting.megapixels], self.pictures[setting.megapixels]
        for start in range(0, len(ready), setting.batch):
            some = slice(start, start + setting.batch)
            boxes = [[picture.face] for picture in faces[some]]
            Sam2Segmenter.segment(self.segmenter, ready[some], boxes, Region.FACE)
        self.synchronize()
        return len(ready)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.segmenter._on_cuda:
            torch.cuda.synchronize()

    def _run(self, stage: Loaded) -> int:
        report = run(stage, stage.dataset.root, executor=LocalExecutor(self.around), force=True)
        # A cascade may miss a drawn face; the model then has less to do, which must not count.
        if report.exit_code:
            raise click.ClickException(f"not all images were done: {report.problems}")
        return report.total


@dataclass
class Times:
    """Seconds an image, of each repetition."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def scaled(face: Face, by: float) -> Face:
    """The face in a picture that is so many times as large."""
    x0, y0, x1, y1 = (by * v for v in face.box)
    points: Any = face.landmarks and tuple((by * x, by * y) for x, y in face.landmarks)
    return replace(face, box=(x0, y0, x1, y1), landmarks=points)


def measure(
    bench: Bench, setting: Setting, contenders: Sequence[Callable[[Setting], int]], repeats: int
) -> list[Times]:
    """Run the contenders in turn, every other time in reverse."""
    torch.set_num_threads(setting.threads)
    if bench.segmenter._on_cuda:  # which chooses its kernels when it first sees a size
        for contender in contenders:
            contender(setting)
    times = [Times() for _ in contenders]
    order = list(enumerate(contenders))
    for repetition in range(repeats):
        for k, contender in order if repetition % 2 == 0 else reversed(order):
            wall, cpu = time.perf_counter(), time.process_time()
            count = contender(setting)
            bench.synchronize()
            times[k].wall.append((time.perf_counter() - wall) / count)
            times[k].cpu.append((time.process_time() - cpu) / count)
    return times


def show(setting: Setting, names: Sequence[str], times: Sequence[Times]) -> None:
    """Print a row a contender; its ratios are to the recipe's loop and to the bare encoder."""
    wall = {name: statistics.median(t.wall) for name, t in zip(names, times, strict=True)}
    cpu = {name: statistics.median(t.cpu) for name, t in zip(names, times, strict=True)}
    note(setting, wall, cpu)
    for name in names:
        cells = [
            f"{setting.megapixels:g}",
            f"{setting.batch}",
            f"{setting.threads}",
            name,
            f"{1 / wall[name]:.3g}",
            f"{wall[name]:.3g}",
            f"{cpu[name]:.3g}",
            f"{wall[RECIPE] / wall[name]:.2f}" if RECIPE in wall else "",
            f"{wall[name] / wall[ENCODER]:.3f}",
            f"{cpu[name] / cpu[ENCODER]:.3f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def note(setting: Setting, wall: Mapping[str, float], cpu: Mapping[str, float]) -> None:
    """Rows of the table of all benchmarks."""
    batch = "" if setting.batch == 1 else f", batches of {setting.batch}"
    threads = "" if setting.threads == 1 else f", {setting.threads} threads"
    what = f"an image of {setting.megapixels:g} MP{batch}{threads}"
    for unit, seconds in (("CPU s", cpu), ("wall s", wall)):
        for peer, target in ((RECIPE, "≤ 0.69"), (MODEL, ""), (ENCODER, "≤ 1.05")):
            if peer in seconds:
                record("masks by SAM2", what, unit, seconds[OURS], peer, seconds[peer], target)


def random_model(name: str, folder: Path) -> tuple[Path, Path]:
    """Checkpoint and configuration of a model with random weights."""
    if name == "tiny":
        made: tuple[Path, Path] = import_module("tests.fakes.tiny_sam2").write_tiny_sam2(folder)
        return made
    from sam2.build_sam import build_sam2

    torch.manual_seed(0)
    checkpoint = folder / f"sam2_{name}.pt"
    torch.save({"model": build_sam2(MODELS[name], device="cpu").state_dict()}, checkpoint)
    config = sam2_model.find(SegmenterSpec(model=str(checkpoint), config=MODELS[name])).config
    return checkpoint, config


@click.command()
@click.option("--sizes", default="1,4,12", show_default=True, help="Megapixels.")
@click.option(
    "-n", "count", type=int, help="Images of each size.  [default: 3 on the CPU, 64 on CUDA]"
)
@click.option("--model", type=click.Choice(["tiny", *MODELS]), default="hiera_t", show_default=True)
@click.option("--repeats", default=2, show_default=True)
@click.option(
    "--batches",
    help="More batch sizes, at the middle size.  [default: 3 on the CPU, 1,16,32 on CUDA]",
)
@click.option("--threads", type=int, help="Around the model.  [default: 4 on the CPU, 16 on CUDA]")
@click.option("--device", default="auto", show_default=True)
def main(
    sizes: str,
    count: int | None,
    model: str,
    repeats: int,
    batches: str | None,
    threads: int | None,
    device: str,
) -> None:
    """Images a second: the recipe's loop, lora-prep, and the bare image encoder."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        checkpoint, config = random_model(model, root)
        spec = SegmenterSpec(model=str(checkpoint), config=str(config), device=device)
        segmenter = Plausible(spec)
        naive = sam2_model.load(sam2_model.find(spec), segmenter._device)
        on_cuda = segmenter._on_cuda
        count, around = count or (64 if on_cuda else 3), threads or (16 if on_cuda else 4)
        cascade = detector(DetectorSpec("cascade"))
        bench = Bench(spec, segmenter, naive, cascade, root, count, around)
        packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "sam2", "opencv-python"))
        where = torch.cuda.get_device_name(segmenter._device) if on_cuda else processor()
        print(f"{where}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {packages}")
        print(f"{segmenter.describe()}; {count} images a size, {around} threads around the model")
        print(f"medians of {repeats} repetitions; column threads: of torch")
        print(f"load average before: {os.getloadavg()[0]:.1f}\n")
        megapixels = [float(size) for size in sizes.split(",")]
        for size in megapixels:
            bench.draw(size)
        middle = megapixels[len(megapixels) // 2]
        usual = default_batch_size(spec)
        if batches is None:
            batches = "1,16,32" if on_cuda else "3"
        torch.set_num_threads(1)
        bench.encoder(Setting(megapixels[0], usual, 1))  # the first time takes longer
        print(
            "| MP | batch | threads | what | images/s | wall s | CPU s | × recipe | wall / encoder "
            "| CPU / encoder |\n" + "|---" * 10 + "|"
        )
        names = {
            RECIPE: bench.recipe,
            OURS: bench.faces_known,
            DETECTING: bench.detecting,
            MODEL: bench.model,
            ENCODER: bench.encoder,
        }
        for size in megapixels:
            setting = Setting(size, usual, 1)
            chosen = [n for n in names if n != DETECTING or size == middle]
            show(setting, chosen, measure(bench, setting, [names[n] for n in chosen], repeats))
        pair = [OURS, MODEL, ENCODER]
        more = [Setting(middle, int(b), 1) for b in batches.split(",") if b]
        if not on_cuda:
            more.append(Setting(middle, usual, 2))
        for setting in more:
            show(setting, pair, measure(bench, setting, [names[n] for n in pair], repeats))
        print(f"\nload average after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
