"""How long a variant takes on one core: `python -m benchmarks.augment`.

In one run, on the same pictures: lora-prep as it is (runner, journal, hashes and atomic writes
included), the loop that everybody writes (Pillow and albumentations, torchvision v2, kornia), and
the floor: decode, one warp, one table, encode, by OpenCV, and nothing else. All move, turn, scale
and relight each picture; each decodes a picture once for all its variants. What is measured is
CPU time, so that other work on the machine counts little.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from PIL import Image as PilImage

from benchmarks.rows import record
from lora_prep import imageio
from lora_prep.augmentation import PRESETS
from lora_prep.backends.albumentations import Augmenter
from lora_prep.dataset import Dataset
from lora_prep.executors.local import LocalExecutor
from lora_prep.run import run
from lora_prep.stages.augment import AugmentImages, FormatName
from lora_prep.types import Image, Mask
from sample_data.portraits import draw_portrait

SUFFIXES = {"png": ".png", "jpeg": ".jpg"}


@dataclass
class Bench:
    """The pictures, and the contenders: each makes all variants and writes them."""

    dataset: Dataset
    variants: int
    out: Path
    runs: int = 0
    augmenter: Augmenter = field(default_factory=lambda: Augmenter(PRESETS["standard"]))

    def lora_prep(self, format: FormatName) -> None:
        """The real command's stage, in a folder that is new each time."""
        self.runs += 1
        stage = AugmentImages(
            self.dataset, self.out / f"ours{self.runs}", count=self.variants, format=format
        )
        report = run(stage, self.dataset.root, executor=LocalExecutor(1))
        if report.exit_code:
            raise click.ClickException(f"not all variants were made: {report.problems}")

    def floor(self, format: FormatName) -> None:
        """What has to be done in any case, by OpenCV alone."""
        table = np.clip(np.arange(256) * 1.1 - 8, 0, 255).astype(np.uint8)
        for sample in self.dataset:
            image = cv2.imread(str(sample.image))
            mask = cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE)
            assert mask is not None
            height, width = mask.shape
            for k in range(self.variants):
                matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 2 * k - 3, 1.05)
                warped = cv2.warpAffine(
                    image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101
                )
                weights = cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST)
                quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if format == "jpeg" else []
                name = f"floor-{sample.stem}-{k}"
                picture = str(self.out / (name + SUFFIXES[format]))
                cv2.imwrite(picture, cv2.LUT(warped, table), quality)
                cv2.imwrite(str(self.out / f"{name}-mask.png"), weights)

    def raw_albumentations(self, format: FormatName) -> None:
        """The same transforms as lora-prep's, between Pillow's decoder and encoder."""
        import albumentations

        compose = albumentations.Compose(
            [
                albumentations.Affine(
                    scale=(0.9, 1.1),
                    rotate=(-8, 8),
                    translate_percent=(-0.04, 0.04),
                    border_mode=cv2.BORDER_REFLECT_101,
                    p=1.0,
                ),
                albumentations.RandomBrightnessContrast(0.14, 0.14, p=0.8),
                albumentations.RandomGamma((88, 114), p=0.5),
            ]
        )

        def transform(image: Image, mask: Mask) -> tuple[Image, Mask]:
            made = compose(image=image, mask=mask)
            return made["image"], made["mask"]

        self._loop(format, "albumentations", transform)

    def torchvision(self, format: FormatName) -> None:
        """torchvision's transforms v2 on tensors."""
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        compose = v2.Compose(
            [
                v2.RandomAffine(8, (0.04, 0.04), (0.9, 1.1), interpolation=2),
                v2.ColorJitter(brightness=0.14, contrast=0.14),
            ]
        )

        def transform(image: Image, mask: Mask) -> tuple[Image, Mask]:
            picture = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
            weights = tv_tensors.Mask(torch.from_numpy(mask)[None])
            made, moved = compose(picture, weights)
            return made.permute(1, 2, 0).contiguous().numpy(), moved[0].numpy()

        self._loop(format, "torchvision", transform)

    def kornia(self, format: FormatName) -> None:
        """kornia on float tensors."""
        from kornia import augmentation

        compose = augmentation.AugmentationSequential(
            augmentation.RandomAffine(8.0, (0.04, 0.04), (0.9, 1.1), p=1.0),
            augmentation.ColorJitter(0.14, 0.14, p=1.0),
            data_keys=["input", "mask"],
        )

        def transform(image: Image, mask: Mask) -> tuple[Image, Mask]:
            picture = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
            made, moved = compose(picture, torch.from_numpy(mask)[None, None].float() / 255)
            pixels = (made[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
            return pixels, (moved[0, 0] * 255).round().byte().numpy()

        self._loop(format, "kornia", transform)

    def _loop(self, format: FormatName, name: str, transform: Callable[..., Any]) -> None:
        for sample in self.dataset:
            with PilImage.open(sample.image) as opened:
                image = np.array(opened.convert("RGB"))
            with PilImage.open(sample.mask) as opened:
                mask = np.array(opened)
            for k in range(self.variants):
                picture, weights = transform(image, mask)
                path = self.out / f"{name}-{sample.stem}-{k}{SUFFIXES[format]}"
                PilImage.fromarray(picture).save(path, quality=95, subsampling=0)
                PilImage.fromarray(weights).save(path.with_name(f"{path.stem}-mask.png"))


def draw(folder: Path, count: int, side: int) -> Dataset:
    """JPEG photographs, as far as a drawing with noise is one, and their masks."""
    dataset = Dataset(folder / "faces", folder / "masks", folder)
    for place in (dataset.images, dataset.masks):
        place.mkdir()
    for seed in range(count):
        portrait = draw_portrait(seed, size=(512, 512), people=1, scale=(0.4, 0.6), max_tilt=5)
        image = cv2.resize(portrait.image, (side, side), interpolation=cv2.INTER_CUBIC)
        noise = np.random.default_rng(seed).integers(0, 9, image.shape, dtype=np.uint8)
        mask = portrait.people[0].face_mask.astype(np.uint8) * np.uint8(255)
        mask = cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST)
        sample = dataset.sample(f"p{seed}.jpg")
        sample.image.write_bytes(imageio.encode_image(cv2.add(image, noise), "jpeg"))
        sample.mask.write_bytes(imageio.encode_mask(np.asarray(mask)))
    return dataset


def measure(contender: Callable[[FormatName], None], format: FormatName, variants: int) -> float:
    """CPU milliseconds a variant."""
    started = time.process_time()
    contender(format)
    return (time.process_time() - started) / variants * 1000


def table(bench: Bench, format: FormatName, repeats: int) -> list[str]:
    """A row a contender; peers, which are slow, run once, the others in turn."""
    quick: Sequence[tuple[str, Callable[[FormatName], None]]] = [
        ("floor: OpenCV alone", bench.floor),
        ("lora-prep", bench.lora_prep),
    ]
    slow: Sequence[tuple[str, Callable[[FormatName], None]]] = [
        ("albumentations + Pillow", bench.raw_albumentations),
        ("torchvision v2 + Pillow", bench.torchvision),
        ("kornia + Pillow", bench.kornia),
    ]
    total = len(bench.dataset) * bench.variants
    times: dict[str, list[float]] = {}
    for _, contender in quick:
        contender(format)  # once unmeasured: imports, caches
    for _ in range(repeats):
        for name, contender in quick:
            times.setdefault(name, []).append(measure(contender, format, total))
    for name, contender in slow:
        times[name] = [measure(contender, format, total)]
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours = medians["lora-prep"]
    for name, ms in medians.items():
        if name != "lora-prep":
            record("augment", f"a variant as {format}, one core", "CPU ms", ours, name, ms)
    return [
        f"| {format} | {name} | {ms:.1f} | {ms / medians[quick[0][0]]:.2f} | {ms / ours:.2f} |"
        for name, ms in medians.items()
    ]


@click.command()
@click.option("--images", default=2, show_default=True, type=click.IntRange(1))
@click.option("--variants", default=4, show_default=True, type=click.IntRange(1))
@click.option("--side", default=1024, show_default=True, type=click.IntRange(64), help="Pixels.")
@click.option("--repeats", default=2, show_default=True, type=click.IntRange(1))
def main(images: int, variants: int, side: int, repeats: int) -> None:
    """CPU milliseconds a variant, on one core."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    import kornia  # noqa: F401 what imports cost is not measured
    import torchvision.transforms.v2  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "out").mkdir()
        bench = Bench(draw(root, images, side), variants, root / "out")
        rows = [row for f in SUFFIXES for row in table(bench, f, repeats)]  # type: ignore[arg-type]
    packages = ("albumentations", "opencv-python", "pillow", "torchvision", "kornia")
    print(f"{images} JPEG photographs of {side}×{side}, {variants} variants each, one core;")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    print("\n| output | | CPU-ms a variant | times the floor | times lora-prep |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
