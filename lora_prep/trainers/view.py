"""What the trainers' views have in common: where the files are, and what becomes of an image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from lora_prep.types import Image, Json

Weights = Float[np.ndarray, "h w"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a trainer's files are, and the settings of its that change what becomes of a mask."""

    images: Path
    masks: Path | None = None
    """The trainer's mask folder, where it has one: `mask_path`, `conditioning_data_dir`, ..."""
    resolution: int = 1024
    """Side of the square whose area the images are scaled to."""
    buckets: bool = True
    """Whether images keep about their shape; otherwise all become squares."""
    min_ratio: float = 0.5
    """diffusion-pipe: `min_ar`, `max_ar` and `num_ar_buckets`."""
    max_ratio: float = 2.0
    ratios: int = 7
    max_bucket: int = 1024
    """kohya: longest side of a bucket (`max_bucket_reso`)."""
    no_upscale: bool = False
    """kohya: `bucket_no_upscale`."""
    batch_size: int = 1
    masked_loss: bool = True
    """kohya's `--masked_loss`, OneTrainer's `masked_training`."""
    alpha_mask: bool = False
    """kohya, ai-toolkit: the mask is the image's alpha channel."""
    class_images: bool = False
    """kohya: another subset has `is_reg`."""
    mask_min_value: float = 0.0
    """ai-toolkit: weight of black."""
    unmasked_weight: float = 0.1
    """OneTrainer: least weight."""
    normalize: bool = False
    """OneTrainer's `normalize_masked_area_loss`."""
    recursive: bool = False
    """Of a lora-prep data set: sub-folders, too."""
    prepared: bool = False
    """The folders are a lora-prep data set, not what the trainer is given: show what it sees once
    `lora-prep export` has put the masks where it looks for them."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a trainer makes of one image. Arrays are empty (0 × 0) where it would stop before."""

    image: Image
    """As trained on: cropped and scaled to its bucket."""
    weights: Weights
    """Loss weight of each element of the latents, float32 from 0 to 1, before a batch's or an
    image's weights are scaled to a mean of 1."""
    aligned: Float[np.ndarray, "H W"]
    """The mask as the trainer read it, where it lies over `image`: float32, 0 to 1; 1 everywhere
    without a mask."""
    mask_file: Path | None
    """Where the mask came from; the image itself for alpha masks."""
    used: bool
    """The weights follow a mask."""
    share: float
    """Effective pixel share: the mean of `weights`, the part of an unmasked image's loss that is
    left where the error is the same everywhere."""
    inside: float | None = None
    """Part of the loss that falls on what the mask marks; None where no mask is known."""
    agreement: float | None = None
    """Intersection over union of `aligned` and the mask where it belongs over `image`; None where
    no mask is known, or it marks nothing."""
    meant: Float[np.ndarray, "H W"] | None = None
    """The mask where it belongs over `image`, 0 to 1."""
    scale: float = 1.0
    """What the trainer multiplies this image's loss with afterwards, alone in its batch."""
    notes: tuple[str, ...] = ()
    problem: str = ""
    """What the trainer would raise, or why this image's masking is lost."""

    @property
    def good(self) -> bool:
        """The mask is used, and nothing is wrong."""
        return self.used and not self.problem

    def to_json(self) -> dict[str, Json]:
        """Everything but the pixels."""
        height, width = self.image.shape[:2]
        return {
            "used": self.used,
            "mask": None if self.mask_file is None else self.mask_file.as_posix(),
            "width": width,
            "height": height,
            "share": round(self.share, 4),
            "inside": None if self.inside is None else round(self.inside, 4),
            "agreement": None if self.agreement is None else round(self.agreement, 4),
            "scale": round(self.scale, 4),
            "notes": list(self.notes),
            "problem": self.problem,
        }


@runtime_checkable
class View(Protocol):
    """One trainer's view of its folders."""

    @property
    def layout(self) -> Layout:
        """Its folders and settings."""
        ...

    def names(self) -> list[str]:
        """The images that it finds, relative to the image folder, with forward slashes."""
        ...

    def problems(self) -> list[str]:
        """What is wrong with the folders as a whole: what it would raise or lose at the start."""
        ...

    def see(self, name: str) -> Seen:
        """What becomes of one image. Never raises for a bad file: that is a `problem`."""
        ...
