"""A picture for the list: small, and dimmed where the mask ignores it."""

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import ImageOps

from lora_prep import imageio
from lora_prep.imageio.decode import open_image
from lora_prep.types import Image

SIDE = 112
"""Longer side in pixels: twice what the list shows, for fine screens."""

DIMMED = 0.45
"""Brightness of what is ignored."""


def glimpse(data: bytes) -> Image:
    """The picture, upright; of a JPEG file one that is only large enough, for it is read faster.

    Raises ItemError where it cannot be read.
    """
    picture, header = open_image(data)
    if (header.format, header.mode) != ("JPEG", "RGB"):
        return imageio.decode_image(data)
    picture.draft("RGB", (2 * SIDE, 2 * SIDE))
    try:
        return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except OSError:  # damaged: says what is wrong with it
        return imageio.decode_image(data)


def thumbnail(image: Image, mask: UInt8[np.ndarray, "mask_height mask_width"] | None) -> bytes:
    """A JPEG file. The mask has the image's shape, in whatever size; None: nothing is dimmed."""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = _shrunk(image, size)
    if mask is not None:
        weights = _shrunk(mask, size)[:, :, None] / np.float32(255)
        small = np.rint(small * (DIMMED + (1 - DIMMED) * weights)).astype(np.uint8)
    return imageio.encode_image(small, "jpeg", quality=80)


def _shrunk(pixels: UInt8[np.ndarray, "..."], size: tuple[int, int]) -> UInt8[np.ndarray, "..."]:
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
