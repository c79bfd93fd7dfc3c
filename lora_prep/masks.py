"""Masks as arrays: combine, clean, erode, feather, measure, compare with a face, draw.

Pure functions: no files, no models. Outside the image counts as not in the mask, everywhere.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import cv2
import numpy as np

from lora_prep.errors import UsageError
from lora_prep.types import BoolMask, Face, Image, Mask, Region

Box: TypeAlias = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels; x1 and y1 are one past the last."""

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
        if self.unit == "px":
            return self.amount / 2
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
    either = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / either if either else 1.0


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
    """Take away all pixels within `radius` pixels of one that is not in the mask.

    An exact Euclidean disc of any radius, fractions included, at constant cost. Masks that touch
    the image's border lose pixels there too. A negative radius dilates: it adds all pixels within
    -radius of the mask.
    """
    if radius < 0:
        return _dilate(mask, -radius)
    box = bounding_box(mask)
    if radius == 0 or box is None:
        return mask.copy()
    eroded = np.zeros_like(mask)
    eroded[_slices(box)] = _depth(mask, box) > radius
    return eroded


def feather(mask: BoolMask, radius: float) -> Mask:
    """Weights that rise from the mask's edge inwards and reach 255 `radius` pixels inside it.

    Linear in the distance to the edge, at least 1 inside the mask and 0 outside: what was ignored
    stays ignored. Radius 0 gives a hard edge. Raises ValueError for a negative radius.
    """
    if radius < 0:
        raise ValueError(f"feather radius {radius} is negative")
    box = bounding_box(mask)
    weights = np.where(mask, np.uint8(255), np.uint8(0))
    if radius == 0 or box is None:
        return weights
    ramp = np.minimum(_depth(mask, box) * (255 / (radius + 1)), 255)
    weights[_slices(box)] = np.ceil(ramp).astype(np.uint8)
    return weights


def clean(mask: BoolMask, *, max_hole: float = 0.02, max_speck: float = 0.05) -> BoolMask:
    """Fill small holes and drop small specks. Cleaning twice changes nothing more.

    Args:
        mask: what a segmenter gave.
        max_hole: holes below this share of the largest part's area are filled. A larger one may be
            meant: the gap between an arm and the body.
        max_speck: parts below this share of the largest part's area are dropped.

    The area of a part includes its holes. The largest part always stays.
    """
    box = bounding_box(mask)
    if box is None:
        return mask.copy()
    part = np.pad(_bytes(mask[_slices(box)]), 1)
    _, gap_labels, gap_stats, _ = cv2.connectedComponentsWithStats(1 - part, connectivity=4)
    # Label 0 is the mask itself; the frame of padding belongs to what lies around it.
    outside = gap_labels[0, 0]
    _, _, outlines, _ = cv2.connectedComponentsWithStats(
        (gap_labels != outside).astype(np.uint8), connectivity=8
    )
    largest = outlines[1:, cv2.CC_STAT_AREA].max()
    filled = gap_stats[:, cv2.CC_STAT_AREA] < max_hole * largest
    filled[0], filled[outside] = True, False
    part = filled[gap_labels].astype(np.uint8)

    _, labels, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    kept = areas >= max_speck * largest
    kept[0], kept[areas.argmax()] = False, True
    cleaned = np.zeros_like(mask)
    cleaned[_slices(box)] = kept[labels][1:-1, 1:-1]
    return cleaned


def expected(
    face: Face,
    region: Region,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
) -> BoolMask:
    """What the region of a face would look like if people were made of ellipses.

    The face is an ellipse in the detector's box; the head is larger by the hair and the ears; the
    person has shoulders and a body down to the image's border. They turn with the line through the
    eyes where the face has landmarks; the body hangs along the image's nearest axis.

    Args:
        face: in pixels of the image.
        region: which one.
        height: of the mask that is returned.
        width: of the mask that is returned.
        scale: pixels of the mask to a pixel of the image, in x and y.
    """
    frame = _Frame.of(face)
    outlines = [frame.place(_ellipse(*_ELLIPSES[region]))]
    if region is Region.PERSON:
        outlines.append(frame.upright().place(_BODY))
    canvas = np.zeros((height, width), np.uint8)
    for outline in outlines:
        # Pixel centres lie at halves; fillPoly takes 4 binary digits of fraction.
        points = np.clip(outline * scale - 0.5, -30_000, 30_000)
        cv2.fillPoly(canvas, [np.rint(points * 16).astype(np.int32)], 1, shift=4)
    return canvas.view(bool)


def region_box(face: Face, region: Region, height: int, width: int) -> Box:
    """A box around a face's region for a segmenter's prompt, inside the image.

    For the face the detector's own box; for head and person that of `expected`, which follows the
    tilt of the head. At least one pixel large.
    """
    x0, y0, x1, y1 = face.box
    if region is not Region.FACE:
        frame = _Frame.of(face)
        points = frame.place(_ellipse(*_ELLIPSES[region]))
        if region is Region.PERSON:
            points = np.concatenate([points, frame.upright().place(_BODY)])
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    left = min(max(math.floor(x0), 0), width - 1)
    top = min(max(math.floor(y0), 0), height - 1)
    return (
        left,
        top,
        max(min(math.ceil(x1), width), left + 1),
        max(min(math.ceil(y1), height), top + 1),
    )


def agreement(
    mask: BoolMask, face: Face, region: Region, *, scale: tuple[float, float] = (1.0, 1.0)
) -> float:
    """How well a mask agrees with what a face says its region should be, 0 to 1.

    The overlap (IoU) with `expected`, times the share of the landmarks that lie in the mask.
    `scale` is in pixels of the mask to a pixel of the face's image, in x and y.
    """
    height, width = mask.shape
    overlap = iou(mask, expected(face, region, height, width, scale=scale))
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
    line = max(1, round(min(mask.shape) / 320))
    for face in faces:
        x0, y0, x1, y1 = (round(v) for v in face.box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), (0, 0, 0), line + 2)
        cv2.rectangle(picture, (x0, y0), (x1, y1), (255, 255, 255), line)
        for x, y in face.landmarks or ():
            centre = (round(x), round(y))
            cv2.circle(picture, centre, 2 * line + 1, (0, 0, 0), cv2.FILLED, cv2.LINE_AA)
            cv2.circle(picture, centre, 2 * line, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
    edges, _ = cv2.findContours(_bytes(mask > 0), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, edges, -1, (0, 40, 20), 2 * line + 2, cv2.LINE_AA)
    cv2.drawContours(picture, edges, -1, (0, 255, 140), 2 * line, cv2.LINE_AA)
    return np.asarray(picture)


_ELLIPSES = {
    Region.FACE: (0.0, 0.98, 1.0),
    Region.HEAD: (-0.3, 1.3, 1.3),
    Region.PERSON: (-0.3, 1.3, 1.3),
}
"""Centre (down), half width and half height in half widths and half heights of the face's box."""

_BODY = np.array(
    [
        *((0.62, 0.7), (0.68, 1.3), (2.1, 2.0), (2.85, 2.5), (2.95, 1000)),
        *((-2.95, 1000), (-2.85, 2.5), (-2.1, 2.0), (-0.68, 1.3), (-0.62, 0.7)),
    ]
)
"""Outline of neck, shoulders and body, in the same units."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where a face is and how it is turned: its ellipse, not the box around it."""

    x: float
    y: float
    half_width: float
    half_height: float
    roll: float
    """Radians, clockwise as seen."""

    @classmethod
    def of(cls, face: Face) -> "_Frame":
        """From the box, and the line through the eyes where there are landmarks.

        The box around an ellipse with half axes a, b that is turned by r reaches
        √(a² cos² r + b² sin² r) to the sides and √(a² sin² r + b² cos² r) up and down; this is
        solved for a and b, with a / b held between .6 and 1 as it is badly conditioned near 45°.
        """
        roll = 0.0
        if face.landmarks:
            (left_x, left_y), (right_x, right_y) = face.landmarks[:2]
            roll = math.atan2(right_y - left_y, right_x - left_x)
        if abs(math.sin(roll)) < 1e-6:
            return cls(*face.centre, face.width / 2, face.height / 2, roll)
        across, down = (face.width / 2) ** 2, (face.height / 2) ** 2
        cos, sin = math.cos(roll) ** 2, math.sin(roll) ** 2
        a, b = across * cos - down * sin, down * cos - across * sin
        ratio = min(max(a / b, 0.36), 1.0) if a * b > 0 else 0.55
        half_height = math.sqrt((across + down) / (1 + ratio))
        return cls(*face.centre, half_height * math.sqrt(ratio), half_height, roll)

    def upright(self) -> "_Frame":
        """The same, turned to the image's nearest axis."""
        quarter = math.pi / 2
        roll = round(self.roll / quarter) * quarter
        return _Frame(self.x, self.y, self.half_width, self.half_height, roll)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points in half widths and half heights of the face, (n, 2), in pixels of the image."""
        right, down = points[:, 0] * self.half_width, points[:, 1] * self.half_height
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        return np.stack(
            [self.x + right * cos - down * sin, self.y + right * sin + down * cos], axis=1
        )


def _ellipse(down: float, half_width: float, half_height: float) -> np.ndarray:
    """Outline of an ellipse as 64 points."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return np.stack([half_width * np.cos(angle), down + half_height * np.sin(angle)], axis=1)


def _bytes(mask: BoolMask) -> Mask:
    """The mask as 0 and 1, for OpenCV."""
    return np.ascontiguousarray(mask).view(np.uint8)


def _slices(box: Box) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box
    return slice(y0, y1), slice(x0, x1)


def _depth(mask: BoolMask, box: Box) -> np.ndarray:
    """Inside the box, how far each pixel is from the nearest one that is not in the mask.

    Pixels at the edge have 1, pixels outside have 0.
    """
    part = np.pad(_bytes(mask[_slices(box)]), 1)
    depth: np.ndarray = cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return depth[1:-1, 1:-1]


def _dilate(mask: BoolMask, radius: float) -> BoolMask:
    box = bounding_box(mask)
    if box is None:
        return mask.copy()
    grow, (height, width) = math.ceil(radius), mask.shape
    x0, y0, x1, y1 = box
    window = _slices(
        (max(x0 - grow, 0), max(y0 - grow, 0), min(x1 + grow, width), min(y1 + grow, height))
    )
    distance = cv2.distanceTransform(1 - _bytes(mask[window]), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    dilated = np.zeros_like(mask)
    dilated[window] = distance <= radius
    return dilated
