"""What SAM2 is asked about a face, and which of its answers to take."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Int

from lora_prep import masks
from lora_prep.types import Face, Point, Region

POOR_IOU = 0.8
"""A single mask whose predicted IoU is lower is compared with SAM2's three alternatives."""

POOR_AGREEMENT = 0.5
"""The same for `masks.agreement`. Hand-traced faces reach .62 to .8 against the ellipse."""

Logits: TypeAlias = Float32[np.ndarray, "h w"]
"""A quarter of the model's input in size, -32 to 32; above 0 is inside the mask."""

Candidates: TypeAlias = Float32[np.ndarray, "4 h w"]
"""The logits of SAM2's single mask for a prompt, then of its three alternatives."""

Scores: TypeAlias = Float32[np.ndarray, "4"]
"""The IoU that SAM2 predicts for each candidate, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One face, and what SAM2 is told about it in shares of the image's size."""

    face: Face
    height: int
    """Of the image, in pixels."""
    width: int
    points: Float[np.ndarray, "points 2"]
    """x, y: the corners of the box, then the points. Their number depends on the region only, so
    the prompts of many images go into one array."""
    labels: Int[np.ndarray, "points"]
    """2 and 3 = the box's corners, 1 = inside the mask, -1 = no point."""

    def is_poor(self, logits: Logits, score: float, region: Region) -> bool:
        """Whether the mask with these logits and predicted IoU is worth a second look."""
        if score < POOR_IOU:
            return True
        scale = self._scale(logits)
        return bool(masks.agreement(logits > 0, self.face, region, scale=scale) < POOR_AGREEMENT)

    def choose(self, logits: Candidates, scores: Scores, region: Region) -> int:
        """Index of the best candidate.

        SAM2's single mask is the best for a face with box and landmarks. Where it is doubtful, and
        for the larger regions, which a face's landmarks do not tell apart, the three alternatives
        are looked at as well: their order says nothing about which of them is meant.
        """
        if region is Region.FACE and not self.is_poor(logits[0], float(scores[0]), region):
            return 0
        return masks.choose(
            list(logits > 0), scores.tolist(), self.face, region, scale=self._scale(logits)
        )

    def _scale(self, logits: Logits | Candidates) -> tuple[float, float]:
        height, width = logits.shape[-2:]
        return width / self.width, height / self.height


def prompt_for(face: Face, region: Region, height: int, width: int) -> Prompt:
    """The region's box, and positive points on the face.

    For face and head the points are the landmarks; for a person, the middle of the face alone, as
    five points on a face would be a strong hint at the face. Points outside the image do not count.
    """
    if region is Region.PERSON:
        points = [face.landmarks[2] if face.landmarks else face.centre]
    else:
        points = list(face.landmarks or _five_inside(face))
    shares = np.array(points) / (width, height)
    visible = ((shares >= 0) & (shares <= 1)).all(axis=1)
    x0, y0, x1, y1 = masks.region_box(face, region, height, width)
    corners = np.array([(x0, y0), (x1, y1)]) / (width, height)
    labels = np.concatenate([[2, 3], np.where(visible, 1, -1)])
    return Prompt(face, height, width, np.concatenate([corners, shares]), labels)


def _five_inside(face: Face) -> list[Point]:
    """Five points well inside a face whose landmarks are not known."""
    x0, y0 = face.box[:2]
    shares = ((0.5, 0.55), (0.38, 0.45), (0.62, 0.45), (0.42, 0.7), (0.58, 0.7))
    return [(x0 + x * face.width, y0 + y * face.height) for x, y in shares]
