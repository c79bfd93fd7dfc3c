"""The stages to disturb, each on a data set of a few tiny images."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from lora_prep import imageio
from lora_prep.embeddings import from_bytes, with_metadata
from sample_data.portraits import draw_portrait

PACK = Path(__file__).parents[2] / "tests" / "assets" / "tiny_faces"

SIZE = 96
IMAGES = 8
ONE = ("--threads", "1")
"""Few images are in flight at a time: with eight of them, a run is soon past being disturbed."""


@dataclass(frozen=True, slots=True)
class Case:
    """A command and where it writes."""

    name: str
    arguments: Sequence[str]
    """Of the command; `DATA` stands for the data set's folder."""
    outputs: Sequence[str]
    """Folders that it makes, relative to the data set."""
    modules: Sequence[str]
    """To be imported beforehand."""
    summary: str = ""
    """A file of all items together, relative to the data set. An interrupted run may leave one of
    fewer items; it holds a date, which does not count."""
    prepare: Callable[[Path], object] | None = None
    """Makes what else the command reads, below the data set's folder."""
    count: int = IMAGES
    slow: bool = False
    """Whether a run takes seconds: it is then disturbed less often."""
    picture: Callable[[int], bytes] | None = None
    """Draws an image; None: noise on a slope."""

    def make(self, data: Path) -> Path:
        """A data set of images with captions, and what else the command reads."""
        make(data, self.count, self.picture or picture)
        if self.prepare:
            self.prepare(data)
        return data

    def command(self, data: Path) -> list[str]:
        """The arguments for one data set."""
        return [self.name, *(a.replace("DATA", str(data)) for a in self.arguments), "-q"]

    def names(self, data: Path) -> list[str]:
        """What lies in the output folders under a final name; a run may be going on."""
        listed = (found for folder in self.outputs for found in os.walk(data / folder))
        return [name for _, _, files in listed for name in files if not name.startswith(".")]

    def made(self, data: Path) -> dict[str, bytes]:
        """Everything that lies in the output folders, by its path."""
        found = {
            str(path.relative_to(data)): path.read_bytes()
            for folder in self.outputs
            for path in sorted((data / folder).rglob("*"))
            if path.is_file()
        }
        if self.summary and (data / self.summary).exists():
            found[self.summary] = _undated((data / self.summary).read_bytes())
        return found

    def forget(self, data: Path) -> None:
        """Take away all that the command made, and its journal."""
        for folder in (*self.outputs, ".lora-prep"):
            shutil.rmtree(data / folder, ignore_errors=True)
        if self.summary:
            (data / self.summary).unlink(missing_ok=True)


def _undated(data: bytes) -> bytes:
    """An embeddings file without its date; anything else as it is."""
    with suppress(ValueError):
        return with_metadata(from_bytes(data), date="").to_bytes()
    return data


def portrait(seed: int) -> bytes:
    """A painted person, as a PNG."""
    drawn = draw_portrait(6_000_000 + seed, size=(160, 128), people=1, scale=(0.4, 0.6))
    return imageio.encode_image(drawn.image, "png")


def tiny_pipeline(data: Path) -> None:
    """A diffusers pipeline of a megabyte with random weights, in `model`."""
    import_module("tests.fakes.tiny_pipelines").saved("sd15", data / "model")


CASES = (
    Case(
        "normalize",
        ["DATA/faces", "--out", "DATA/copies", *ONE],
        ["copies"],
        ["lora_prep.cli.normalize", "lora_prep.stages.normalize"],
        count=3 * IMAGES,
    ),
    Case(
        "detect",
        ["DATA/faces", "--preset", "embedded"],
        [".lora-prep/faces"],
        ["lora_prep.cli.detect", "lora_prep.stages.detect", "lora_prep.backends.cascade"],
    ),
    Case(
        "masks",
        [
            *("DATA/faces", "--preset", "embedded", "--min-face", "100000"),
            *("--no-face", "white", *ONE),
        ],
        ["masks"],
        ["lora_prep.cli.masks", "lora_prep.stages.masks", "lora_prep.backends.grabcut"],
    ),
    Case(
        "augment",
        ["DATA/faces", "--no-masks", "-n", "2", "--seed", "3", *ONE],
        ["augmented"],
        ["lora_prep.cli.augment", "lora_prep.stages.augment", "lora_prep.backends.albumentations"],
    ),
    Case(
        "pairs",
        ["--make", "DATA/faces", "--out", "DATA/pairs", "--operation", "noise", *ONE],
        ["pairs"],
        ["lora_prep.cli.pairs", "lora_prep.stages.pairs"],
    ),
    Case(
        "embed",
        [
            *("DATA/faces", "--device", "cpu", "--det-size", "160", "--batch-size", "2"),
            *("--detector", "insightface", "--face-model", str(PACK)),
            *("--recogniser", "arcface", "--recogniser-model", str(PACK), *ONE),
        ],
        [".lora-prep/identities", ".lora-prep/faces"],
        ["lora_prep.cli.embed", "lora_prep.stages.embed", "insightface.app", "onnxruntime"],
        summary="embeddings.safetensors",
        picture=portrait,
    ),
    Case(
        "priors",
        [
            *("DATA", "--class", "a person", "-n", "6", "--steps", "1"),
            *("--model", "DATA/model", "--device", "cpu"),
        ],
        ["priors"],
        [
            *("lora_prep.cli.priors", "lora_prep.stages.priors", "torch", "diffusers"),
            *("lora_prep.backends.diffusers_pipeline", "transformers"),
        ],
        prepare=tiny_pipeline,
        slow=True,
    ),
)


def picture(seed: int) -> bytes:
    """A PNG of some kilobytes."""
    noise = np.random.default_rng(seed).integers(0, 40, (SIZE, SIZE, 3))
    slope = np.linspace(0, 200, SIZE)[:, None, None]
    return imageio.encode_image((noise + slope).astype(np.uint8), "png")


def make(data: Path, count: int = IMAGES, draw: Callable[[int], bytes] = picture) -> Path:
    """A data set of such pictures with captions. Returns its folder."""
    faces = data / "faces"
    faces.mkdir(parents=True)
    for number in range(count):
        (faces / f"i{number}.png").write_bytes(draw(number))
        (faces / f"i{number}.txt").write_text(f"picture {number}")
    return data


def parts(data: Path) -> list[Path]:
    """Part files that lie anywhere in the data set."""
    return sorted(data.rglob(".*.part"))
