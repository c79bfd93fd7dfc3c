"""Frontal faces without a download: the LBP cascade that scikit-image ships, and a second look.

A coarse scan proposes windows; most of them are no faces. Each proposal is then looked at again
more finely: cut out upright at a fixed size, turned a little and mirrored. A face is confirmed by
dozens of windows, a chance find by a few. Draft quality: finds frontal faces, misses profiles.
"""

import hashlib
import importlib.util
import math
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from lora_prep.errors import BackendError
from lora_prep.types import Face, Image

Grey = UInt8[np.ndarray, "rows columns"]
Boxes = Float[np.ndarray, "boxes 4"]
"""x0, y0, x1, y1 in pixels."""

LONG_SIDE = 800
"""Images are made to fit into a square of this many pixels."""
MIN_FACE = 0.06
"""Smallest face looked for, as a share of the image's short side."""
BORDER = 0.12
"""The image is continued by this share of its short side, for faces cut off by its border."""
FACE = 32
"""Size of the window in the second look, in pixels."""
ANGLES = (-24, 0, 24)
"""Degrees that a proposal is turned by; the cascade itself takes faces turned by up to 12."""
LEANS = (-36, 36)
"""Where no face is found, the picture is searched again turned by these degrees."""
WIGGLE = (-8, 0, 8)
"""Degrees around the best angle that the confirmations are averaged over."""
CONFIRMED = 30
"""Confirmations that make a face. In 29 pictures and three distortions of each nothing else had as
many; upright frontal faces had 37 to 161."""
REVISION = 2
"""Changes whenever the faces found change."""


def _cascade_file() -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise BackendError(
            "the cascade detector needs scikit-image: pip install scikit-image, or take "
            "--detector insightface"
        )
    path = Path(spec.origin).parent / "data" / "lbpcascade_frontalface_opencv.xml"
    if not path.is_file():
        raise BackendError(f"scikit-image came without its face cascade: {path} is missing")
    return path


IDENTITY = (
    f"cascade:{REVISION}:{hashlib.sha256(_cascade_file().read_bytes()).hexdigest()[:16]}"
    f":scikit-image-{version('scikit-image')}:opencv-{cv2.__version__}"
)
"""Names the cascade's content and the code that uses it."""


@dataclass(frozen=True, slots=True)
class _Sighting:
    """A window that may be a face: a square, upright when the picture is turned by `angle`."""

    confirmations: float
    centre: tuple[float, float]
    side: float
    angle: float
    """Degrees clockwise that the head leans."""


class CascadeDetector:
    """scikit-image's LBP cascade (frontal faces) behind `backends.FaceDetector`."""

    def __init__(self) -> None:
        from skimage.feature import Cascade

        self._cascade: Any = Cascade(str(_cascade_file()))

    def describe(self) -> str:
        """What runs where."""
        return "LBP cascade of scikit-image, CPU (draft quality: frontal faces only)"

    def detect(self, image: Image) -> list[Face]:
        """All faces, best score first.

        Boxes reach from forehead to chin and from ear to ear. The score is n / (n + 30) for n
        confirmations in the second look, so that it is 0.5 for the faintest face and a chance find
        can not be taken for a better one. No landmarks.
        """
        height, width = image.shape[:2]
        scale = min(1.0, LONG_SIDE / max(height, width))
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        smallest = max(24, round(MIN_FACE * min(grey.shape)))
        if min(grey.shape) < smallest:
            return []
        found = self._search(grey, smallest) or [
            sighting for lean in LEANS for sighting in self._search_turned(grey, smallest, lean)
        ]
        found.sort(key=lambda s: (-s.confirmations, s.centre))
        faces = [_face(sighting, scale) for sighting in found]
        boxes = np.array([face.box for face in faces]).reshape(-1, 4)
        same = (_overlaps(boxes, boxes) > 0.3) | (_inside(boxes) > 0.6)
        return [face for i, face in enumerate(faces) if not same[i, :i].any()]

    def _search(self, grey: Grey, smallest: int) -> list[_Sighting]:
        """Confirmed faces, some of them more than once."""
        sightings = [self._confirm(grey, box) for box in self._propose(grey, smallest)]
        return [s for s in sightings if s.confirmations >= CONFIRMED]

    def _search_turned(self, grey: Grey, smallest: int, lean: float) -> list[_Sighting]:
        """The same for heads that lean by about `lean` degrees."""
        rows, columns = grey.shape
        side = math.ceil(math.hypot(rows, columns))
        turn = cv2.getRotationMatrix2D((columns / 2, rows / 2), lean, 1.0)
        turn[:, 2] += side / 2 - np.array((columns / 2, rows / 2))
        turned = cv2.warpAffine(grey, turn, (side, side), borderMode=cv2.BORDER_REPLICATE)
        back = cv2.invertAffineTransform(turn)
        found = []
        for sighting in self._search(turned, smallest):
            x, y = (back @ (*sighting.centre, 1.0)).tolist()
            if 0 <= x < columns and 0 <= y < rows:
                found.append(replace(sighting, centre=(x, y), angle=sighting.angle + lean))
        return found

    def _propose(self, grey: Grey, smallest: int) -> Boxes:
        """Windows of the coarse scan, of `smallest` pixels or more; neighbours are averaged."""
        edge = round(BORDER * min(grey.shape))
        wide = cv2.copyMakeBorder(grey, edge, edge, edge, edge, cv2.BORDER_REPLICATE)
        windows = self._scan(wide, 1.2, 1.3, smallest, min(wide.shape)) - edge
        near = _overlaps(windows, windows) > 0.4
        left = np.ones(len(windows), bool)
        proposals = []
        while left.any():
            most = (near[:, left].sum(axis=1) * left).argmax()
            group = near[most] & left
            proposals.append(windows[group].mean(axis=0))
            left &= ~group
        return np.array(proposals).reshape(-1, 4)

    def _confirm(self, grey: Grey, box: Float[np.ndarray, "4"]) -> _Sighting:
        """Look again at one proposal: first at the angles, then around the best."""
        x0, y0, x1, y1 = box.tolist()
        centre, side = ((x0 + x1) / 2, (y0 + y1) / 2), x1 - x0
        best = max(
            (self._look(grey, centre, side, angle) for angle in ANGLES),
            key=lambda sighting: sighting.confirmations,
        )
        if best.confirmations < 4:
            return best
        views = [self._look(grey, best.centre, best.side, best.angle + w) for w in WIGGLE]
        counts = np.array([view.confirmations for view in views])
        if not counts.any():
            return views[0]
        x, y, side, angle = np.average(
            [(*view.centre, view.side, view.angle) for view in views], axis=0, weights=counts
        ).tolist()
        return _Sighting(float(counts.mean()), (x, y), side, angle)

    def _look(
        self, grey: Grey, centre: tuple[float, float], side: float, angle: float
    ) -> _Sighting:
        """Count the windows that agree with a square, as seen and mirrored."""
        span = round(1.7 * FACE)
        zoom = FACE / side
        if zoom < 1:
            grey = cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        middle = centre[0] * min(zoom, 1.0), centre[1] * min(zoom, 1.0)
        turn = cv2.getRotationMatrix2D(middle, angle, max(zoom, 1.0))
        turn[:, 2] += span / 2 - np.array(middle)
        view = cv2.warpAffine(grey, turn, (span, span), borderMode=cv2.BORDER_REPLICATE)
        seen = self._agreeing(view)
        if not len(seen):
            return _Sighting(0, centre, side, angle)
        mirrored = self._agreeing(np.ascontiguousarray(view[:, ::-1]))
        if not len(mirrored):
            return _Sighting(0, centre, side, angle)
        mirrored[:, [0, 2]] = span - mirrored[:, [2, 0]]
        x0, y0, x1, y1 = ((seen.mean(axis=0) + mirrored.mean(axis=0)) / 2).tolist()
        back = cv2.invertAffineTransform(turn)
        x, y = (back @ [(x0 + x1) / 2, (y0 + y1) / 2, 1] / min(zoom, 1.0)).tolist()
        count = 2 * min(len(seen), len(mirrored))
        return _Sighting(count, (x, y), (x1 - x0) * side / FACE, angle)

    def _agreeing(self, view: Grey) -> Boxes:
        """Windows of the fine scan that agree with a square of size FACE in the middle."""
        windows = self._scan(view, 1.05, 1.0, int(0.75 * FACE), int(1.3 * FACE))
        span = len(view)
        square = np.array([[span - FACE, span - FACE, span + FACE, span + FACE]]) / 2
        return windows[_overlaps(windows, square)[:, 0] > 0.45]

    def _scan(self, grey: Grey, factor: float, step: float, smallest: int, largest: int) -> Boxes:
        """All windows that the cascade takes for a face, ungrouped, in a fixed order."""
        if min(grey.shape) < smallest:
            return np.empty((0, 4))
        windows = self._cascade.detect_multi_scale(
            img=grey,
            scale_factor=factor,
            step_ratio=step,
            min_size=(smallest, smallest),
            max_size=(largest, largest),
            min_neighbor_number=1,
            intersection_score_threshold=2.0,  # never reached: no two windows are merged
        )
        boxes = sorted((w["c"], w["r"], w["c"] + w["width"], w["r"] + w["height"]) for w in windows)
        return np.array(boxes, np.float64).reshape(-1, 4)


def _face(sighting: _Sighting, scale: float) -> Face:
    """The face in the image's own pixels.

    The cascade's square reaches from the brows to below the mouth; the box is that of an ellipse
    around the whole face: .86 as wide and 1.08 as high, measured on hand-traced faces.
    """
    angle = np.deg2rad(sighting.angle)
    half_width, half_height = 0.43 * sighting.side, 0.54 * sighting.side
    across = float(np.hypot(half_width * np.cos(angle), half_height * np.sin(angle)))
    down = float(np.hypot(half_width * np.sin(angle), half_height * np.cos(angle)))
    (x, y), n = sighting.centre, sighting.confirmations
    box = (x - across) / scale, (y - down) / scale, (x + across) / scale, (y + down) / scale
    return Face(box, n / (n + CONFIRMED))


def _overlaps(a: Boxes, b: Float[np.ndarray, "others 4"]) -> Float[np.ndarray, "boxes others"]:
    """Intersection over union of each box in `a` with each in `b`."""
    shared = _shared(a, b)
    overlap: np.ndarray = shared / (_areas(a)[:, None] + _areas(b)[None] - shared)
    return overlap


def _inside(boxes: Boxes) -> Float[np.ndarray, "boxes boxes"]:
    """How much of the smaller one of two boxes lies in the other, 0 to 1.

    Nobody's face has another's in it, but for a find of its own eyes and mouth.
    """
    areas = _areas(boxes)
    share: np.ndarray = _shared(boxes, boxes) / np.minimum(areas[:, None], areas[None])
    return share


def _shared(a: Boxes, b: Float[np.ndarray, "others 4"]) -> Float[np.ndarray, "boxes others"]:
    """Area of the intersection of each box in `a` with each in `b`."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared: np.ndarray = np.clip(high - low, 0, None).prod(axis=2)
    return shared


def _areas(boxes: Boxes) -> Float[np.ndarray, "boxes"]:
    areas: np.ndarray = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return areas
