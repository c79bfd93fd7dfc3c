"""Masks as arrays: combine, clean, erode, feather, measure, compare with a face, draw.

Pure functions: no files, no models. Outside the image counts as not in the mask, everywhere.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from lora_prep.anatomy import Box, fill, outlines
from lora_prep.anatomy import region_box as region_box
from lora_prep.errors import UsageError
from lora_prep.types import BoolMask, Face, Image, Mask, Region

_AMOUNT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(px|%|)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Margin:
    """How far a mask's edge moves inwards, as written on the command line.

    - `2%`: the edge moves by 2 % of √(area of the mask). It keeps about 93 % of a face, small or
      large.
    - `10px`: a kernel 10 pixels wide, as in `cv2.erode(mask, np.ones((10, 10)))`: the edge moves by
      half of that, 5 pixels.
    - `0`: the edge stays.

    Negative amounts move it outwards.
    """

    amount: float
    unit: Literal["px", "%"]

    @classmethod
    def parse(cls, text: str) -> "Margin":
        """A margin from text such as `2%`, `10px`, `0` or `-1%`. Raises UsageError."""
        match = _AMOUNT.fullmatch(text.strip())
        if not match or not math.isfinite(amount := float(match[1])):
            raise UsageError(f"{text!r} is no margin: write for example 2%, 10px or 0")
        if amount == 0:
            return cls(0.0, "px")
        if not match[2]:
            raise UsageError(f"{text!r} has no unit: is it {match[1]}px or {match[1]}%?")
        return cls(amount, "%" if match[2] == "%" else "px")

    def __str__(self) -> str:
        if self.amount == 0:
            return "0"
        return f"{int(self.amount) if self.amount.is_integer() else self.amount}{self.unit}"

    def radius(self, mask: BoolMask) -> float:
        """How far the edge of this mask moves inwards, in pixels; negative is outwards."""
        return self.distance(mask) / 2 if self.unit == "px" else self.distance(mask)

    def distance(self, mask: BoolMask) -> float:
        """The amount itself in pixels, for what is no kernel: `10px` is 10."""
        if self.unit == "px":
            return self.amount
        return self.amount / 100 * math.sqrt(np.count_nonzero(mask))


def bounding_box(mask: BoolMask) -> Box | None:
    """The smallest box around the mask; None where the mask is empty."""
    x, y, width, height = cv2.boundingRect(_bytes(mask))
    return (x, y, x + width, y + height) if width else None


def coverage(mask: BoolMask | Mask) -> float:
    """Mean weight of the mask, 0 to 1: the share of the image that is trained on."""
    return float(mask.mean()) / (1 if mask.dtype == bool else 255)


def iou(a: BoolMask, b: BoolMask) -> float:
    """Intersection over union, 0 to 1; 1 where both are empty."""
    either = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / either if either else 1.0


def components(mask: BoolMask) -> int:
    """Number of connected parts; pixels that touch at a corner are connected."""
    return int(cv2.connectedComponents(_bytes(mask), connectivity=8)[0]) - 1


def union(masks: Sequence[BoolMask]) -> BoolMask:
    """Pixels that are in any of the masks. Raises ValueError where there are none to unite."""
    if not masks:
        raise ValueError("union of no masks")
    whole = masks[0].copy()
    for mask in masks[1:]:
        whole |= mask
    return whole


def erode(mask: BoolMask, radius: float) -> BoolMask:
    """Move the mask's edge inwards: drop the pixels whose centre is nearer to it than `radius`.

    The edge runs between pixels. Distances are exact and Euclidean, for any radius in pixels,
    fractions included, at constant cost. Masks that touch the image's border lose pixels there too.
    A negative radius dilates: it adds the pixels nearer than -radius.
    """
    if radius < 0:
        return _dilate(mask, -radius)
    box = bounding_box(mask)
    if radius == 0 or box is None:
        return mask.copy()
    eroded = np.zeros_like(mask)
    eroded[_slices(box)] = _depth(mask, box) >= radius
    return eroded


def feather(mask: BoolMask, radius: float) -> Mask:
    """Weights that rise from the mask's edge inwards and reach 255 `radius` pixels inside it.

    Linear in the distance to the edge, at least 1 inside the mask and 0 outside: what was ignored
    stays ignored, and what `erode` would keep has full weight. Radius 0 gives a hard edge. Raises
    ValueError for a negative radius.
    """
    if radius < 0:
        raise ValueError(f"feather radius {radius} is negative")
    box = bounding_box(mask)
    weights = np.where(mask, np.uint8(255), np.uint8(0))
    if radius <= 0.5 or box is None:
        return weights
    ramp = np.clip(_depth(mask, box) * (255 / radius), 0, 255)
    weights[_slices(box)] = np.ceil(ramp).astype(np.uint8)
    return weights


def clean(mask: BoolMask, *, max_hole: float = 0.02, max_speck: float = 0.05) -> BoolMask:
    """Fill small holes and drop small specks. Cleaning twice changes nothing more.

    Args:
        mask: what a segmenter gave.
        max_hole: holes below this share of the largest part's area are filled. A larger one may be
            meant: the gap between an arm and the body.
        max_speck: parts below this share of the largest part's area are dropped.

    Areas are those inside an outline, with all that lies in it. The largest part always stays.
    """
    canvas = mask.astype(np.uint8)
    lines, tree = cv2.findContours(canvas, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    if not lines:
        return mask.copy()
    parents = tree[0, :, 3]
    hole = _nesting(parents) % 2 == 1
    # Lines run through the centres of a part's pixels, around a hole as well. Pick's theorem gives
    # the number of pixels on and inside a part's line, and of those inside a hole's line.
    steps = np.array([len(line) if len(line) > 1 else 0 for line in lines])
    enclosed = np.array([cv2.contourArea(line) for line in lines])
    pixels = enclosed + np.where(hole, -steps, steps) / 2 + 1
    limit = np.where(hole, max_hole, max_speck) * pixels.max()
    settled = np.zeros(len(lines), np.bool_)
    for i in np.argsort(-pixels, kind="stable").tolist():
        settled[i] = parents[i] >= 0 and settled[parents[i]]
        if not settled[i] and pixels[i] < limit[i]:
            cv2.drawContours(canvas, lines[i : i + 1], 0, int(hole[i]), cv2.FILLED)
            settled[i] = True
    return canvas.view(np.bool_)


def agreement(
    mask: BoolMask, face: Face, region: Region, *, scale: tuple[float, float] = (1.0, 1.0)
) -> float:
    """How well a mask agrees with what a face says its region should be, 0 to 1.

    The overlap (IoU) with `anatomy.outlines`, times the share of the landmarks in the picture that
    lie in the mask. `scale` is in pixels of the mask to a pixel of the face's image, in x and y.
    """
    height, width = mask.shape
    overlap = iou(mask, fill(outlines(face, region), height, width, scale=scale))
    inside = [
        bool(mask[y, x])
        for x, y in (
            (math.floor(x * scale[0]), math.floor(y * scale[1])) for x, y in face.landmarks or ()
        )
        if 0 <= x < width and 0 <= y < height
    ]
    return overlap * sum(inside) / len(inside) if inside else overlap


def choose(
    candidates: Sequence[BoolMask],
    scores: Sequence[float],
    face: Face,
    region: Region,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
) -> int:
    """Index of the candidate with the highest score × agreement; by score where none agrees.

    Args:
        candidates: one or more masks of the same size.
        scores: the segmenter's own guess of each one's quality, 0 to 1.
        face: in pixels of the image.
        region: what was asked for.
        scale: pixels of the masks to a pixel of the image, in x and y.
    """
    return max(
        range(len(candidates)),
        key=lambda i: (
            scores[i] * agreement(candidates[i], face, region, scale=scale),
            scores[i],
            -i,
        ),
    )


def overlay(image: Image, mask: Mask, faces: Sequence[Face] = ()) -> Image:
    """A preview: what is ignored dimmed and grey, the mask's edge and the faces drawn.

    Args:
        image: the picture.
        mask: weights; what has half of the weight is half dimmed.
        faces: drawn with box and landmarks.
    """
    dim = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    dim = cv2.convertScaleAbs(dim, alpha=0.4, beta=8)
    weight = cv2.cvtColor(mask, cv2.COLOR_GRAY2RGB)
    picture = cv2.add(
        cv2.multiply(image, weight, scale=1 / 255), cv2.multiply(dim, 255 - weight, scale=1 / 255)
    )
    line = max(1, round(min(mask.shape) / 250))
    # Dark rims make light lines readable on light skin; tiny pictures have no room for them.
    rim = 2 if line > 1 else 0
    thin = (line + 1) // 2
    for face in faces:
        x0, y0, x1, y1 = (round(v) for v in face.box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), (0, 0, 0), thin + rim)
        cv2.rectangle(picture, (x0, y0), (x1, y1), (255, 255, 255), thin)
    edges, _ = cv2.findContours(_bytes(mask > 0), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, edges, -1, (0, 40, 20), line + rim, cv2.LINE_AA)
    cv2.drawContours(picture, edges, -1, (0, 255, 140), line, cv2.LINE_AA)
    for face in faces:
        for x, y in face.landmarks or ():
            centre = (round(x), round(y))
            cv2.circle(picture, centre, line + rim // 2, (0, 0, 0), cv2.FILLED, cv2.LINE_AA)
            cv2.circle(picture, centre, line, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
    return np.asarray(picture)


def _bytes(mask: BoolMask) -> Mask:
    """The mask as 0 and 1, for OpenCV."""
    return np.ascontiguousarray(mask).view(np.uint8)


def _nesting(parents: np.ndarray) -> np.ndarray:
    """How many outlines lie around each; `parents` has the index of the next one, or -1."""
    depth, up = np.zeros(len(parents), int), parents
    while (up >= 0).any():
        depth += up >= 0
        up = np.where(up >= 0, parents[up], -1)
    return depth


def _slices(box: Box) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box
    return slice(y0, y1), slice(x0, x1)


def _depth(mask: BoolMask, box: Box) -> np.ndarray:
    """Inside the box, how far each pixel's centre is from the mask's edge; negative outside.

    The edge runs half way to the nearest pixel that is not in the mask.
    """
    part = np.pad(_bytes(mask[_slices(box)]), 1)
    depth: np.ndarray = cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return depth[1:-1, 1:-1] - np.float32(0.5)


def _dilate(mask: BoolMask, radius: float) -> BoolMask:
    box = bounding_box(mask)
    if box is None:
        return mask.copy()
    grow, (height, width) = math.ceil(radius + 0.5), mask.shape
    x0, y0, x1, y1 = box
    window = _slices(
        (max(x0 - grow, 0), max(y0 - grow, 0), min(x1 + grow, width), min(y1 + grow, height))
    )
    distance = cv2.distanceTransform(1 - _bytes(mask[window]), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    dilated = np.zeros_like(mask)
    dilated[window] = distance - np.float32(0.5) < radius
    return dilated
