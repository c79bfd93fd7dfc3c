"""A picture for the list: small, and dimmed where the mask ignores it."""

import cv2
import numpy as np
from jaxtyping import UInt8

from lora_prep import imageio
from lora_prep.types import Image, Mask

SIDE = 112
"""Longer side in pixels: twice what the list shows, for fine screens."""

DIMMED = 0.45
"""Brightness of what is ignored."""


def thumbnail(image: Image, mask: Mask | None) -> bytes:
    """A JPEG file. The mask has to be as large as the image; None: nothing is dimmed."""
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
