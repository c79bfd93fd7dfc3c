"""Masks without a download: OpenCV's GrabCut, started from where a face should be. Draft quality.

GrabCut (Rother, Kolmogorov, Blake, SIGGRAPH 2004) learns the colours of the two sides from a guess
of each pixel's side and cuts between them. The guess comes from the face's box (and its tilt, where
there are landmarks): an inner zone is certain, the next is likely, a third is possible, all beyond
is background.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from lora_prep import masks
from lora_prep.anatomy import BODY, Frame, Outline, ellipse, fill, symmetric
from lora_prep.types import BoolMask, Face, Image, Mask, Region

REVISION = 1
"""Changes whenever the masks change."""

IDENTITY = f"grabcut:{REVISION}:opencv-{cv2.__version__}"
"""Names the code that the masks come from."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Zones in half widths and half heights of the face, and what is done to the cut."""

    head: tuple[Outline, Outline, Outline, Outline]
    """Certain, likely, possible, and all that GrabCut gets to see; they turn with the head."""
    limit: Outline
    """The mask never reaches beyond this, nor beyond the body where there is one."""
    zoom: int
    """Pixels that half the height of the face has for GrabCut."""
    kernel: int
    """Width of the opening and closing, in those pixels."""
    hull: bool
    """Whether the convex hull is taken: heads are convex, faces under a fringe are not."""
    body: tuple[Outline, Outline, Outline, Outline] | None = None
    """The same zones of a body; they hang straight down."""
    max_hole: float = 1.0
    """Holes up to this share of the mask are filled."""


# Tuned for IoU on hand-traced photographs and painted portraits, with true boxes and with the
# cascade's; see benchmarks/embedded_masks.py for what they reach.
_HEAD_ZONES = (
    ellipse(-0.15, 0.9, 1.0),
    ellipse(-0.37, 1.38, 1.25),
    ellipse(-0.4, 2.1, 1.62),
    ellipse(-0.4, 2.8, 2.6),
)
_RECIPES = {
    Region.FACE: _Recipe(
        head=(
            ellipse(0.02, 0.72, 0.77),
            ellipse(0.0, 0.9, 0.98),
            ellipse(0.03, 1.27, 1.3),
            ellipse(0.05, 2.1, 1.8),
        ),
        limit=ellipse(-0.08, 1.1, 1.15),
        zoom=44,
        kernel=9,
        hull=False,
    ),
    Region.HEAD: _Recipe(
        head=_HEAD_ZONES, limit=ellipse(-0.34, 1.85, 1.6), zoom=31, kernel=7, hull=True
    ),
    Region.PERSON: _Recipe(
        head=_HEAD_ZONES,
        limit=_HEAD_ZONES[2],
        body=(
            symmetric((0.35, 0.7), (0.4, 1.5), (0.8, 2.6), (0.8, 3.5)),
            BODY,
            BODY * (1.5, 1) - (0, 0.45),
            symmetric((4.6, 0.0), (4.6, 9.0)),
        ),
        zoom=17,
        kernel=7,
        hull=False,
        max_hole=0.02,
    ),
}


@dataclass(frozen=True, slots=True)
class Patch:
    """The part of a mask that is not empty: a picture of many people has many masks."""

    x: int
    """Column of the image where the patch begins."""
    y: int
    mask: BoolMask


class GrabCutSegmenter:
    """GrabCut behind `backends.Segmenter`."""

    def describe(self) -> str:
        """What runs where."""
        return f"GrabCut of OpenCV {cv2.__version__}, CPU (draft quality: look at the masks)"

    def prepare(self, image: Image) -> Image:
        """The image itself."""
        return image

    def segment(
        self,
        prepared: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        faces: Sequence[Sequence[Face]],
        region: Region,
    ) -> list[list[Patch]]:
        """One patch a face; empty where a face lies outside its image."""
        return [
            [_segment(image, face, _RECIPES[region]) for face in some]
            for image, some in zip(prepared, faces, strict=True)
        ]

    def finish(self, prepared: Image, answer: Sequence[Patch]) -> Iterator[BoolMask]:
        """The patches laid into masks as large as the image."""
        for patch in answer:
            whole = np.zeros(prepared.shape[:2], np.bool_)
            height, width = patch.mask.shape
            whole[patch.y : patch.y + height, patch.x : patch.x + width] = patch.mask
            yield whole


def _segment(image: Image, face: Face, recipe: _Recipe) -> Patch:
    height, width = image.shape[:2]
    frame = Frame.of(face)
    zones = [[frame.place(zone)] for zone in (*recipe.head, recipe.limit)]
    if recipe.body:
        straight = frame.upright()
        for zone, body in zip(zones, (*recipe.body, recipe.body[2]), strict=True):
            zone.append(straight.place(body))
    corners = np.concatenate(zones[3])
    x0, y0 = np.clip(np.floor(corners.min(axis=0)), 0, (width, height)).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(corners.max(axis=0)), 0, (width, height)).astype(int).tolist()
    if x0 >= x1 or y0 >= y1:
        return Patch(0, 0, np.zeros((0, 0), np.bool_))
    window = image[y0:y1, x0:x1]
    zoom = recipe.zoom / max(frame.half_height, 1.0)
    rows, columns = max(1, round((y1 - y0) * zoom)), max(1, round((x1 - x0) * zoom))
    small = cv2.resize(
        window, (columns, rows), interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    )
    scale = columns / (x1 - x0), rows / (y1 - y0)
    certain, likely, possible, _, limit = (
        fill(zone, rows, columns, origin=(x0, y0), scale=scale) for zone in zones
    )
    part = _tidy(_cut(small, certain, likely, possible), recipe) & limit
    if np.count_nonzero(part) < 0.4 * np.count_nonzero(likely):
        part = likely
    # Blurred and enlarged, the edge becomes a smooth line instead of steps.
    soft = cv2.GaussianBlur(part.view(np.uint8) * np.uint8(255), (0, 0), 1.2)
    soft = cv2.resize(soft, (x1 - x0, y1 - y0), interpolation=cv2.INTER_CUBIC)
    return Patch(x0, y0, soft >= 128)


def _cut(image: Image, certain: BoolMask, likely: BoolMask, possible: BoolMask) -> BoolMask:
    """GrabCut; `likely` where the zones leave it no background or no foreground to learn from."""
    guess: Mask = np.full(certain.shape, cv2.GC_BGD, np.uint8)
    guess[possible] = cv2.GC_PR_BGD
    guess[likely] = cv2.GC_PR_FGD
    guess[certain] = cv2.GC_FGD
    inside = likely | certain
    if inside.all() or not inside.any():
        return likely
    # Its clustering draws from a generator of the thread: without a seed, masks would depend on
    # what the thread did before.
    cv2.setRNGSeed(0)
    unused = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, guess, None, *unused, 1, cv2.GC_INIT_WITH_MASK)
    cut: BoolMask = (guess == cv2.GC_FGD) | (guess == cv2.GC_PR_FGD)
    return cut


def _tidy(mask: BoolMask, recipe: _Recipe) -> BoolMask:
    """Smooth the edge, keep the largest part, fill its holes, take the hull."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (recipe.kernel, recipe.kernel))
    smooth = cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_OPEN, kernel)
    smooth = cv2.morphologyEx(smooth, cv2.MORPH_CLOSE, kernel)
    part = masks.clean(smooth.view(np.bool_), max_hole=recipe.max_hole, max_speck=1.0)
    if not recipe.hull or not part.any():
        return part
    edges, _ = cv2.findContours(part.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = np.zeros(part.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(edges)), 1)
    return hull.view(np.bool_)
