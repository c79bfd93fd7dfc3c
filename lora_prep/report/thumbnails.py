"""Small pictures for the page: a JPEG, the mask as a shade over it, the mask's edge as a line."""

import base64
import io
import math
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage

from lora_prep import masks
from lora_prep.masks import Margin
from lora_prep.types import BoolMask, Image, Json, Mask

Weights: TypeAlias = UInt8[np.ndarray, "mask_height mask_width"]
"""A mask that need not be as large as its image."""

QUALITY = 80
"""Of the JPEG."""

FINER = 2
"""Lines are found on a mask that is so many times as large as the thumbnail."""

SHADES = 15
"""Steps of weight in a shade: enough to see a feathered edge, and few bytes."""

MOST_LINES = 200
"""Outlines of a mask that are kept, the longest ones: noise has thousands."""

SMOOTH = 0.3
"""How far a line may be from the mask's edge, in pixels of the thumbnail."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the page."""

    width: int
    height: int
    jpeg: bytes
    shade: bytes = b""
    """A black PNG as large as the JPEG, opaque where the mask ignores and clear where it trains;
    empty where there is no mask."""
    line: str = ""
    """The mask's edge, as the `d` of an SVG path in pixels of the JPEG."""
    wider: str = ""
    """The edge before the erosion, about."""

    def to_json(self) -> list[Json]:
        """The fields in their order, bytes as base64."""
        jpeg, shade = (base64.b64encode(data).decode() for data in (self.jpeg, self.shade))
        return [self.width, self.height, jpeg, shade, self.line, self.wider]


def picture(
    image: Image, mask: Weights | None, size: int, *, before: Margin | None = None
) -> Picture:
    """A picture whose longer side has at most `size` pixels.

    A mask of another size than the image's is stretched over it. `before` is the erosion that was
    taken off the mask: its `wider` line is drawn where the mask has an edge.
    """
    height, width = image.shape[:2]
    scale = min(1.0, size / max(height, width))
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = image if scale == 1 else cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(
        ".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    if mask is None:
        return Picture(*shape, jpeg.tobytes())
    fine = _fitted(mask, min(mask.shape[1], FINER * shape[0]), min(mask.shape[0], FINER * shape[1]))
    inside = fine >= 1 if fine.shape == mask.shape else fine >= 128
    factors = shape[0] / fine.shape[1], shape[1] / fine.shape[0]
    wider = ""
    if before is not None:
        grown = uneroded(inside, before, fine.shape[1] / mask.shape[1])
        wider = "" if grown is None else outline(grown, *factors)
    return Picture(
        *shape,
        jpeg.tobytes(),
        shade(_fitted(mask, *shape)),
        outline(inside, *factors),
        wider,
    )


def shade(mask: Mask) -> bytes:
    """A black palette PNG that is as opaque as the mask's weight is low."""
    steps = np.rint(mask * np.float32(SHADES / 255)).astype(np.uint8)
    return _palette_png(steps, [255 - round(255 * i / SHADES) for i in range(SHADES + 1)])


def outline(mask: BoolMask, across: float, down: float) -> str:
    """The edges of a mask as the `d` of an SVG path, scaled by `across` and `down`."""
    # With a rim of its own, a mask that reaches the border is closed there.
    padded = np.pad(mask.astype(np.uint8), 1)
    lines, _ = cv2.findContours(padded, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    longest = sorted(lines, key=len, reverse=True)[:MOST_LINES]
    parts = []
    for line in longest:
        # From pixel centres of the padded mask to pixel edges of the mask itself.
        points = cv2.approxPolyDP(line, SMOOTH / max(across, down), closed=True)[:, 0]
        scaled = (points.astype(np.float64) - 0.5) * (across, down)
        parts.append("M" + "L".join(f"{x:.4g} {y:.4g}" for x, y in scaled) + "Z")
    return "".join(parts)


def uneroded(mask: BoolMask, margin: Margin, scale: float = 1.0) -> BoolMask | None:
    """About what the mask was before `margin` was taken off its edge.

    The edge is moved back by as much. What the erosion removed altogether (thin strands, sharp
    corners) does not come back. `scale` is in pixels of this mask to a pixel of the one that was
    eroded, for margins in pixels. None where nothing was taken off, or nothing is left.
    """
    if margin.amount <= 0 or not mask.any():
        return None
    radius = margin.radius(mask) * (scale if margin.unit == "px" else 1.0)
    if margin.unit == "%":
        # It is part of the root of the area before, of which the radius itself is a part.
        for _ in range(3):
            radius = margin.amount / 100 * math.sqrt(np.count_nonzero(masks.erode(mask, -radius)))
    return masks.erode(mask, -radius)


def _fitted(mask: Weights, width: int, height: int) -> Mask:
    if mask.shape == (height, width):
        return mask
    fitted: Mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
    return fitted


def _palette_png(indices: np.ndarray, opacity: list[int]) -> bytes:
    """A PNG of black pixels whose opacity is looked up."""
    height, width = indices.shape
    image = PillowImage.frombytes("P", (width, height), indices.tobytes())
    image.putpalette(bytes(3 * len(opacity)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes(opacity), bits=4, compress_level=6)
    return buffer.getvalue()
