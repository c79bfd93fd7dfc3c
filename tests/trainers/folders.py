"""Folders with marked pictures in them, as trainers are given them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from lora_prep import imageio
from lora_prep.trainers.view import Seen
from lora_prep.types import BoolMask
from sample_data.marked import Marked, draw_marked, marker

SIZES = ((750, 525), (570, 930), (600, 600), (675, 1275))
"""Height and width; none has a bucket's aspect ratio but the third."""


def write(root: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Marked]:
    """`images/m0.png`, ... and `masks/m0.png`, ..., with captions."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    marked = [draw_marked(seed, size) for seed, size in enumerate(sizes)]
    for i, one in enumerate(marked):
        (root / "images" / f"m{i}.png").write_bytes(imageio.encode_image(one.image, "png"))
        (root / "images" / f"m{i}.txt").write_text("a shape")
        write_mask(root / "masks" / f"m{i}.png", one.mask)
    return marked


def write_mask(path: Path, mask: BoolMask) -> None:
    """8-bit grey PNG, 0 and 255."""
    path.write_bytes(imageio.encode_mask(mask.astype(np.uint8) * np.uint8(255)))


def write_rgba(path: Path, marked: Marked) -> None:
    """The picture with the mask in its alpha."""
    alpha = marked.mask.astype(np.uint8) * np.uint8(255)
    PillowImage.fromarray(np.dstack([marked.image, alpha])).save(path, compress_level=1)


def write_sideways(path: Path, marked: Marked) -> None:
    """As cameras store a picture: lying, with EXIF orientation 6."""
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    lying = PillowImage.fromarray(marked.image).transpose(PillowImage.Transpose.ROTATE_90)
    lying.save(path, exif=exif)


def overlap(seen: Seen) -> float:
    """Intersection over union of the mask as the trainer laid it, and the colour beneath it."""
    coloured, masked = marker(seen.image), seen.aligned >= 0.5
    return float((coloured & masked).sum() / (coloured | masked).sum())
