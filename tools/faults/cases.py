"""The stages to disturb, each on a data set of a few tiny images."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_prep import imageio

SIZE = 96
IMAGES = 8


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

    def command(self, data: Path) -> list[str]:
        """The arguments for one data set."""
        return [self.name, *(a.replace("DATA", str(data)) for a in self.arguments), "-q"]

    def names(self, data: Path) -> list[str]:
        """What lies in the output folders under a final name; a run may be going on."""
        listed = (found for folder in self.outputs for found in os.walk(data / folder))
        return [name for _, _, files in listed for name in files if not name.startswith(".")]

    def made(self, data: Path) -> dict[str, bytes]:
        """Everything that lies in the output folders, by its path."""
        return {
            str(path.relative_to(data)): path.read_bytes()
            for folder in self.outputs
            for path in sorted((data / folder).rglob("*"))
            if path.is_file()
        }

    def forget(self, data: Path) -> None:
        """Take away all that the command made, and its journal."""
        for folder in (*self.outputs, ".lora-prep"):
            shutil.rmtree(data / folder, ignore_errors=True)


CASES = (
    Case(
        "normalize",
        ["DATA/faces", "--out", "DATA/copies"],
        ["copies"],
        ["lora_prep.cli.normalize", "lora_prep.stages.normalize"],
    ),
    Case(
        "detect",
        ["DATA/faces", "--preset", "embedded"],
        [".lora-prep/faces"],
        ["lora_prep.cli.detect", "lora_prep.stages.detect", "lora_prep.backends.cascade"],
    ),
    Case(
        "masks",
        ["DATA/faces", "--preset", "embedded", "--min-face", "100000", "--no-face", "white"],
        ["masks"],
        ["lora_prep.cli.masks", "lora_prep.stages.masks", "lora_prep.backends.grabcut"],
    ),
    Case(
        "augment",
        ["DATA/faces", "--no-masks", "-n", "2", "--seed", "3"],
        ["augmented"],
        ["lora_prep.cli.augment", "lora_prep.stages.augment", "lora_prep.backends.albumentations"],
    ),
)


def make(data: Path, count: int = IMAGES) -> Path:
    """A data set of smooth and noisy pictures, with captions. Returns its folder."""
    faces = data / "faces"
    faces.mkdir(parents=True)
    for number in range(count):
        (faces / f"i{number}.png").write_bytes(picture(number))
        (faces / f"i{number}.txt").write_text(f"picture {number}")
    return data


def picture(seed: int) -> bytes:
    """A PNG of some kilobytes."""
    noise = np.random.default_rng(seed).integers(0, 40, (SIZE, SIZE, 3))
    slope = np.linspace(0, 200, SIZE)[:, None, None]
    return imageio.encode_image((noise + slope).astype(np.uint8), "png")


def parts(data: Path) -> list[Path]:
    """Part files that lie anywhere in the data set."""
    return sorted(data.rglob(".*.part"))
