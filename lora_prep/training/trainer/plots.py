"""The losses over the steps, a panel a term, as a PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from lora_prep import imageio
from lora_prep.types import Image

FILE = "losses.png"

WIDTH, HEIGHT = 900, 190
LEFT, RIGHT, TOP, BOTTOM = 84, 16, 34, 26
INK, FAINT, RAW, SMOOTH = (40, 40, 40), (222, 222, 222), (176, 205, 234), (23, 92, 160)
OTHERS = ("step", "seconds", "samples")


def draw(lines: Sequence[dict[str, Any]]) -> Image | None:
    """The picture of a log, RGB; None where there are fewer than two steps."""
    if len(lines) < 2:
        return None
    names = list(dict.fromkeys(key for line in lines for key in line if key not in OTHERS))
    panels = []
    for name in names:
        points = [
            (float(line["step"]), float(line[name]))
            for line in lines
            if name in line and np.isfinite(float(line[name]))
        ]
        if len(points) > 1:
            panels.append(_panel(name, np.array(points, np.float64)))
    return np.concatenate(panels) if panels else None


def write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Draw into a file, where there is something to draw. Raises DatasetError."""
    picture = draw(lines)
    if picture is not None:
        imageio.replace(path, imageio.encode_image(picture, "png"))


def smoothed(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """A running mean over a twentieth of the run."""
    width = max(len(values) // 20, 1)
    padded = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    mean: Float[np.ndarray, " n"] = (padded[ends] - padded[starts]) / (ends - starts)
    return mean


def _panel(name: str, points: Float[np.ndarray, "n 2"]) -> Image:
    panel = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    steps, values = points[:, 0], points[:, 1]
    low, high = float(values.min()), float(values.max())
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    x = LEFT + (steps - steps[0]) / max(float(steps[-1] - steps[0]), 1.0) * width
    for share in (0.0, 0.5, 1.0):
        y = round(TOP + height * (1 - share))
        cv2.line(panel, (LEFT, y), (LEFT + width, y), FAINT, 1)
        _text(panel, f"{low + share * (high - low):.3g}", (8, y + 4))
    for line, colour, thick in ((values, RAW, 1), (smoothed(values), SMOOTH, 2)):
        heights = TOP + (high - line) / (high - low) * height
        curve = np.rint(np.stack([x, heights], 1) * 16).astype(np.int32)
        cv2.polylines(panel, [curve], False, colour, thick, cv2.LINE_AA, 4)
    _text(panel, f"{name}   last {values[-1]:.4g}", (LEFT, 22), 0.5)
    _text(panel, f"step {steps[0]:.0f}", (LEFT, HEIGHT - 8))
    _text(panel, f"{steps[-1]:.0f}", (LEFT + width - 8 * len(f"{steps[-1]:.0f}"), HEIGHT - 8))
    return panel


def _text(panel: Image, text: str, at: tuple[int, int], size: float = 0.4) -> None:
    cv2.putText(panel, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)
