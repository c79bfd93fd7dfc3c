"""Make pairs for a slider from single images: one side as it is, one after an image operation."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

import cv2
import numpy as np

from lora_prep import imageio
from lora_prep.dataset import Dataset
from lora_prep.errors import ItemError, UsageError
from lora_prep.pairs import NEGATIVE, POSITIVE
from lora_prep.stage import Item, Saved
from lora_prep.types import Image, Json

Side = Literal["positive", "negative"]

Operate: TypeAlias = Callable[[Image, float, np.random.Generator], Image]


@dataclass(frozen=True, slots=True)
class Operation:
    """An image operation at a strength above 0, up to 1."""

    apply: Operate
    side: Side
    """Where its result goes, so that a positive weight gives more detail, colour or light."""
    does: str


@dataclass(frozen=True)
class MakePairs:
    """Images to `positive/` and `negative/` of equal names: PNG both, captions carried along.

    Both sides are written without loss: compression on one side alone would be learned, too.
    """

    dataset: Dataset
    out: Path
    operation: str = "blur"
    strength: float = 0.5
    side: Side | None = None
    """Where the operation's result goes; None: the operation's own."""
    seed: int = 0
    """Of the noise."""
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise UsageError(
                f"no operation is called {self.operation!r}: take one of {', '.join(OPERATIONS)}"
            )
        if not 0 < self.strength <= 1:
            raise UsageError(f"--strength {self.strength:g}: it is above 0, up to 1")
        images, out = Path(os.path.realpath(self.dataset.images)), Path(os.path.realpath(self.out))
        if out == images or images in out.parents:
            raise UsageError(
                f"--out {self.out} lies in the image folder, whose pictures pairs are made of: "
                "choose a folder beside it"
            )
        if images in (out / POSITIVE, out / NEGATIVE):
            raise UsageError(
                f"--out {self.out} would write over the originals in {self.dataset.images}: choose "
                "another folder"
            )

    @property
    def name(self) -> str:
        """One journal for each folder that is written to."""
        return f"pairs-{self.out.name}"

    @property
    def made(self) -> Side:
        """Where the operation's result goes."""
        return self.side or OPERATIONS[self.operation].side

    def settings(self) -> dict[str, Json]:
        """All that changes the pictures."""
        return {
            "stage": "pairs/1",
            "operation": self.operation,
            "strength": self.strength,
            "side": self.made,
            "seed": self.seed if self.operation == "noise" else None,
        }

    def __len__(self) -> int:
        return len(self.dataset)

    def items(self) -> Iterator[Item]:
        """One item an image, with its caption where there is one."""
        for sample in self.dataset:
            name = PurePosixPath(sample.stem + ".png")
            pictures = [self.out / side / name for side in (POSITIVE, NEGATIVE)]
            inputs, outputs = [sample.image], list(pictures)
            if sample.caption.is_file():
                inputs.append(sample.caption)
                outputs += [p.with_suffix(sample.caption.suffix) for p in pictures]
            others = self.dataset.sharers(sample)
            problem = others and ItemError(
                f"{sample.name} and {', '.join(others)} would share the names of their pair: "
                "rename or remove all but one of them",
                code="shared-stem",
            )
            key = Path(os.path.relpath(sample.image, self.out.parent)).as_posix()
            yield Item(key, tuple(inputs), tuple(outputs), problem or None)

    def open(self) -> "Pairing":
        """There is no model to load."""
        return Pairing(self)


@dataclass(frozen=True, slots=True)
class Pairing:
    """Pairs being made."""

    stage: MakePairs

    def load(self, item: Item, inputs: Sequence[bytes]) -> tuple[Image, Image, tuple[bytes, ...]]:
        """Decode, and apply the operation. (positive, negative, caption)."""
        stage = self.stage
        image = imageio.decode_image(inputs[0])
        # Of the content, not of the name: a data set can be renamed and moved.
        digest = hashlib.sha256(stage.seed.to_bytes(8, "little", signed=True) + inputs[0]).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        changed = OPERATIONS[stage.operation].apply(image, stage.strength, generator)
        if np.array_equal(changed, image):
            raise ItemError(
                f"{stage.operation} at strength {stage.strength:g} changes nothing in it: both "
                "sides would be equal. Take the image out, or choose another operation",
                code="unchanged",
            )
        pair = (changed, image) if stage.made == POSITIVE else (image, changed)
        return *pair, tuple(inputs[1:])

    def compute(
        self, batch: Sequence[tuple[Image, Image, tuple[bytes, ...]]]
    ) -> list[tuple[Image, Image, tuple[bytes, ...]]]:
        """Nothing."""
        return list(batch)

    def save(self, item: Item, made: tuple[Image, Image, tuple[bytes, ...]]) -> Saved:
        """The two pictures, and the caption twice."""
        high, low, caption = made
        files = [imageio.encode_image(high, "png"), imageio.encode_image(low, "png")]
        return Saved(dict(zip(item.outputs, [*files, *caption * 2], strict=True)))


# ---------------------------------------------------------------------------- operations
def blur(image: Image, strength: float, _generator: np.random.Generator) -> Image:
    """Gaussian blur; sigma is strength · 1 % of the shorter side."""
    return _as_image(_smooth(image, strength * 0.01 * min(image.shape[:2])))


def sharpen(image: Image, strength: float, _generator: np.random.Generator) -> Image:
    """Unsharp mask: strength · 3 times the difference to a blur of 0.3 % of the shorter side."""
    low = _smooth(image, max(0.003 * min(image.shape[:2]), 0.8))
    return _as_image(image + 3 * strength * (image - low))


def desaturate(image: Image, strength: float, _generator: np.random.Generator) -> Image:
    """Towards grey of the same luma (Rec. 709); 1 takes all colour."""
    grey = image @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    return _as_image(image + strength * (grey[..., None] - image))


def noise(image: Image, strength: float, generator: np.random.Generator) -> Image:
    """Gaussian noise with a standard deviation of strength · 64 of 255, each channel its own."""
    return _as_image(image + generator.standard_normal(image.shape, np.float32) * strength * 64)


def jpeg(image: Image, strength: float, _generator: np.random.Generator) -> Image:
    """JPEG and back; the quality falls from 90 to 5."""
    quality = round(90 - 85 * strength)
    return imageio.decode_image(imageio.encode_image(image, "jpeg", quality=quality))


def pixelate(image: Image, strength: float, _generator: np.random.Generator) -> Image:
    """Squares of one colour, strength · 4 % of the shorter side wide, at least 2 pixels."""
    height, width = image.shape[:2]
    block = max(2, round(strength * 0.04 * min(height, width)))
    small = (max(1, round(width / block)), max(1, round(height / block)))
    squares = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return _as_image(cv2.resize(squares, (width, height), interpolation=cv2.INTER_NEAREST))


def brighten(image: Image, strength: float, _generator: np.random.Generator) -> Image:
    """Gamma of 2^strength: black and white stay."""
    return _as_image(255 * (image.astype(np.float32) / 255) ** np.float32(0.5**strength))


def darken(image: Image, strength: float, _generator: np.random.Generator) -> Image:
    """The other way."""
    return _as_image(255 * (image.astype(np.float32) / 255) ** np.float32(2.0**strength))


def flatten(image: Image, strength: float, _generator: np.random.Generator) -> Image:
    """Less contrast: towards the mean colour; 1 takes 80 %."""
    mean = image.reshape(-1, 3).mean(0, dtype=np.float64).astype(np.float32)
    return _as_image(image + 0.8 * strength * (mean - image))


OPERATIONS: Mapping[str, Operation] = {
    "blur": Operation(blur, "negative", "less detail"),
    "sharpen": Operation(sharpen, "positive", "more detail"),
    "desaturate": Operation(desaturate, "negative", "less colour"),
    "noise": Operation(noise, "negative", "grain"),
    "jpeg": Operation(jpeg, "negative", "compression artefacts"),
    "pixelate": Operation(pixelate, "negative", "coarse squares"),
    "brighten": Operation(brighten, "positive", "more light"),
    "darken": Operation(darken, "negative", "less light"),
    "flatten": Operation(flatten, "negative", "less contrast"),
}


def _smooth(image: Image, sigma: float) -> np.ndarray:
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma)
    return np.asarray(smooth, np.float32)


def _as_image(pixels: np.ndarray) -> Image:
    whole: Image = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return whole
