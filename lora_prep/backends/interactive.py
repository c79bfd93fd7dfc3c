"""Masks from a few clicks: points inside and outside, and a box, for the segmenters of `masks`.

An image is looked at once (`look`), which takes the model's time; each further click costs its
decoder alone. SAM2 takes the prompts as they are; GrabCut starts from them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, assert_never, runtime_checkable

import cv2
import numpy as np

from lora_prep import masks
from lora_prep.anatomy import Box
from lora_prep.backends import SegmenterSpec
from lora_prep.errors import ItemError
from lora_prep.types import BoolMask, Face, Image, Mask

WORKING_SIDE = 384
"""GrabCut: the longer side in pixels of what it gets to see."""

REACH = 0.35
"""GrabCut without a box: a mask reaches so far from the points, in shares of the shorter side."""

FIRM = 0.015
"""GrabCut: what lies so near to a point is certain, in the same shares."""


@dataclass(frozen=True, slots=True)
class Click:
    """A point in pixels of the image."""

    x: float
    y: float
    inside: bool
    """Whether it is on what is meant, or beside it."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What somebody pointed at."""

    clicks: Sequence[Click]
    box: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1 in pixels of the image."""

    def __post_init__(self) -> None:
        if self.box is None and not any(click.inside for click in self.clicks):
            raise ItemError(
                "nothing says what is meant: click on it, or drag a box around it", code="no-prompt"
            )


@runtime_checkable
class PromptedSegmenter(Protocol):
    """Segments what is pointed at. Never called by two threads at once."""

    def describe(self) -> str:
        """What runs where, for the user."""
        ...

    def look(self, image: Image) -> Any:
        """What `segment` needs of an image. Raises OutOfMemory."""
        ...

    def segment(self, looked: Any, prompts: Prompts) -> BoolMask:
        """A mask as large as the image. Raises OutOfMemory."""
        ...


def prompted(spec: SegmenterSpec, embeddings: Path | None = None) -> PromptedSegmenter:
    """Load a segmenter. Raises BackendError where its model is not to be had.

    `embeddings` is the folder to keep sam2's image features in, so that they are computed once.
    """
    match spec.name:
        case "sam2":
            return PromptedSam2(spec, embeddings)
        case "grabcut":
            return PromptedGrabCut()
        case _:
            assert_never(spec.name)


class PromptedSam2:
    """SAM2, with the encoder and the decoder of `sam2.Sam2Segmenter`."""

    def __init__(self, spec: SegmenterSpec, embeddings: Path | None = None) -> None:
        """As `Sam2Segmenter`."""
        from lora_prep.backends import sam2_model
        from lora_prep.backends.sam2 import Sam2Segmenter

        sam2_model.find(spec)  # a model that is not to be had is said before torch is imported
        self._sam2 = Sam2Segmenter(spec, embeddings)

    def describe(self) -> str:
        """Model, size of its input, device and precision."""
        return self._sam2.describe()

    def look(self, image: Image) -> Any:
        """The image's features, on the device."""
        from lora_prep.backends.sam2 import Answer

        prepared = self._sam2.prepare(image)
        with self._sam2._running():
            features, (new,) = self._sam2._features([prepared])
        for _ in self._sam2.finish(prepared, Answer([], new)):
            pass  # no face, no mask: this keeps new features in the cache
        return prepared, features

    def segment(self, looked: Any, prompts: Prompts) -> BoolMask:
        """SAM2's single mask, or for one point alone the alternative that it thinks best of.

        One point may mean the part or the whole; the order of SAM2's three alternatives says
        nothing about which of them is good.
        """
        prepared, features = looked
        height, width = prepared.height, prepared.width
        corners = [(prompts.box[:2], 2), (prompts.box[2:], 3)] if prompts.box else []
        given = [*corners, *(((c.x, c.y), int(c.inside)) for c in prompts.clicks)]
        prompt = _prompt(given, height, width)
        with self._sam2._running():
            ((logits, scores),) = self._sam2._decode(features, [prompt], [0])
        best = 0 if len(given) > 1 else 1 + int(np.argmax(scores[1:]))
        grown = cv2.resize(logits[best], (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(grown > 0)


def _prompt(given: Sequence[tuple[Any, int]], height: int, width: int) -> Any:
    from lora_prep.backends.sam2_prompts import Prompt

    shares = np.array([point for point, _ in given], np.float64) / (width, height)
    labels = np.array([label for _, label in given])
    return Prompt(Face((0.0, 0.0, 1.0, 1.0), 1.0), height, width, shares, labels)


class PromptedGrabCut:
    """OpenCV's GrabCut. Draft quality."""

    def describe(self) -> str:
        """What runs where."""
        return f"GrabCut of OpenCV {cv2.__version__}, CPU (draft quality)"

    def look(self, image: Image) -> Image:
        """The image itself."""
        return image

    def segment(self, looked: Image, prompts: Prompts) -> BoolMask:
        """What has the colours of the points inside and hangs together with them.

        Within the box or, without one, within reach of the points; what is certain is what lies
        next to a point, and the middle of a box without a point in it.
        """
        height, width = looked.shape[:2]
        x0, y0, x1, y1 = _window(prompts, height, width)
        window = looked[y0:y1, x0:x1]
        zoom = min(WORKING_SIDE / max(window.shape[:2]), 1.0)
        columns, rows = (max(1, round(side * zoom)) for side in (x1 - x0, y1 - y0))
        small = cv2.resize(window, (columns, rows), interpolation=cv2.INTER_AREA)
        scale = np.array([columns / (x1 - x0), rows / (y1 - y0)])
        guess = _guess(prompts, (x0, y0), scale, small.shape[:2], min(height, width))
        part = _wanted(_cut(small, guess), guess)
        soft = cv2.GaussianBlur(part.view(np.uint8) * np.uint8(255), (0, 0), 1.0)
        soft = cv2.resize(soft, (x1 - x0, y1 - y0), interpolation=cv2.INTER_CUBIC)
        whole = np.zeros((height, width), np.bool_)
        whole[y0:y1, x0:x1] = soft >= 128
        return whole


def _window(prompts: Prompts, height: int, width: int) -> Box:
    """The part of the image to look at, in whole pixels, at least one large."""
    if prompts.box:
        x0, y0, x1, y1 = prompts.box
        dx, dy = 0.3 * (x1 - x0), 0.3 * (y1 - y0)
    else:
        inside = [(c.x, c.y) for c in prompts.clicks if c.inside]
        (x0, y0), (x1, y1) = np.min(inside, axis=0).tolist(), np.max(inside, axis=0).tolist()
        dx = dy = 1.3 * REACH * min(height, width)
    left, top = (int(max(v, 0)) for v in (min(x0 - dx, width - 1), min(y0 - dy, height - 1)))
    right = max(left + 1, min(width, int(np.ceil(x1 + dx))))
    bottom = max(top + 1, min(height, int(np.ceil(y1 + dy))))
    return left, top, right, bottom


def _guess(
    prompts: Prompts,
    origin: tuple[int, int],
    scale: np.ndarray,
    shape: tuple[int, ...],
    side: int,
) -> Mask:
    """GrabCut's first guess, in pixels of the window as it is scaled."""
    guess: Mask = np.full(shape, cv2.GC_BGD, np.uint8)

    def disc(click: Click, share: float, value: int) -> None:
        x, y = ((click.x, click.y) - np.array(origin)) * scale
        radius = max(2, round(share * side * float(scale.mean())))
        cv2.circle(guess, (round(x), round(y)), radius, value, cv2.FILLED)

    if prompts.box:
        corners = (np.array(prompts.box).reshape(2, 2) - origin) * scale
        (x0, y0), (x1, y1) = np.rint(corners).astype(int).tolist()
        guess[max(y0, 0) : y1, max(x0, 0) : x1] = cv2.GC_PR_FGD
        if not any(click.inside for click in prompts.clicks):
            centre = ((x0 + x1) // 2, (y0 + y1) // 2)
            axes = (max(1, (x1 - x0) // 8), max(1, (y1 - y0) // 8))
            cv2.ellipse(guess, centre, axes, 0, 0, 360, cv2.GC_FGD, cv2.FILLED)
    else:
        for share, value in ((REACH, cv2.GC_PR_BGD), (REACH / 3, cv2.GC_PR_FGD)):
            for click in prompts.clicks:
                if click.inside:
                    disc(click, share, value)
    for click in prompts.clicks:
        if click.inside:
            disc(click, FIRM, cv2.GC_FGD)
        else:
            disc(click, _clearance(click, prompts, side), cv2.GC_BGD)
    return guess


def _clearance(click: Click, prompts: Prompts, side: int) -> float:
    """How much around a point that is not meant stays out: a third of the way to the next one."""
    ways = [math.hypot(click.x - c.x, click.y - c.y) for c in prompts.clicks if c.inside]
    return min(max(min(ways, default=0.0) / side / 3, FIRM), 0.08)


def _cut(image: Image, guess: Mask) -> Mask:
    """GrabCut from a guess; the guess itself where it leaves nothing to learn from."""
    inside = (guess == cv2.GC_FGD) | (guess == cv2.GC_PR_FGD)
    if inside.all() or not inside.any():
        return guess
    cut = guess.copy()
    cv2.setRNGSeed(0)  # its clustering draws from a generator of the thread
    unused = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, cut, None, *unused, 3, cv2.GC_INIT_WITH_MASK)
    return cut


def _wanted(cut: Mask, guess: Mask) -> BoolMask:
    """The parts of the cut that hold a certain pixel, smooth and without holes."""
    inside = (cut == cv2.GC_FGD) | (cut == cv2.GC_PR_FGD)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    smooth = cv2.morphologyEx(inside.view(np.uint8), cv2.MORPH_OPEN, kernel)
    smooth = cv2.morphologyEx(smooth, cv2.MORPH_CLOSE, kernel) | (guess == cv2.GC_FGD)
    _, labels = cv2.connectedComponents(smooth.astype(np.uint8), connectivity=4)
    parts = np.isin(labels, np.unique(labels[guess == cv2.GC_FGD]))
    whole = masks.clean(parts & (labels > 0), max_speck=0.0)
    whole[guess == cv2.GC_BGD] = False
    return whole
