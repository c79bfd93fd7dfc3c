"""Copies of images that every trainer reads alike."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_prep import imageio
from lora_prep.dataset import Dataset, Sample
from lora_prep.errors import ItemError, UsageError
from lora_prep.stage import Item, Saved
from lora_prep.types import Json


@dataclass(frozen=True)
class NormalizeImages:
    """Images to upright sRGB 8-bit RGB copies without metadata, captions copied along."""

    dataset: Dataset
    out: Path
    batch_size: int = 1

    def __post_init__(self) -> None:
        images, out = Path(os.path.realpath(self.dataset.images)), Path(os.path.realpath(self.out))
        if out == images:
            raise UsageError("images are never changed in place: give another folder with --out")
        if self.dataset.recursive and images in out.parents:
            raise UsageError("--out lies in the image folder, which --recursive would read again")

    @property
    def name(self) -> str:
        """One journal for each folder that is written to."""
        return f"normalize-{self.out.name}"

    def settings(self) -> dict[str, Json]:
        """The revision of what `imageio.normalized` does."""
        return {"stage": "normalize/1"}

    def __len__(self) -> int:
        return len(self.dataset)

    def items(self) -> Iterator[Item]:
        """One item an image, with its caption where there is one."""
        for sample in self.dataset:
            copy = self._copy(sample)
            inputs, outputs = [sample.image], [copy]
            if sample.caption.is_file():
                inputs.append(sample.caption)
                outputs.append(copy.with_suffix(sample.caption.suffix))
            others = self.dataset.sharers(sample)
            problem = others and ItemError(
                f"{sample.name} and {', '.join(others)} would share a mask and a caption: rename "
                "or remove all but one of them",
                code="shared-stem",
            )
            key = Path(os.path.relpath(sample.image, self.out.parent)).as_posix()
            yield Item(key, tuple(inputs), tuple(outputs), problem or None)

    def open(self) -> "Normalizing":
        """There is no model to load."""
        return Normalizing()

    def _copy(self, sample: Sample) -> Path:
        name = PurePosixPath(sample.name)
        return self.out / name.with_suffix(imageio.normalized_suffix(name.suffix))


@dataclass(frozen=True, slots=True)
class Normalizing:
    """Images being normalised: all of it is decoding and encoding."""

    def load(self, item: Item, inputs: Sequence[bytes]) -> tuple[bytes, ...]:
        """Make the copy's bytes."""
        image, *caption = inputs
        return imageio.normalized(image, item.inputs[0].suffix), *caption

    def compute(self, batch: Sequence[tuple[bytes, ...]]) -> list[tuple[bytes, ...]]:
        """Nothing."""
        return list(batch)

    def save(self, item: Item, files: tuple[bytes, ...]) -> Saved:
        """The copies."""
        return Saved(dict(zip(item.outputs, files, strict=True)))
