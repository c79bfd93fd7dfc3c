"""The skin of a face: a small chart of its colours under the light, as if unrolled."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from sample_data.painter.canvas import Array
from sample_data.painter.identity import Identity
from sample_data.painter.pose import TOP, Light, Pose, surface

PER_UNIT = 40
"""Pixels of the chart for each head unit."""
WIDTH, HEIGHT = 88, 116


@dataclass(frozen=True, slots=True)
class Expression:
    """What a face does in one picture; `smile` from −0.4 to 1, the others from 0 to 1."""

    smile: float
    mouth_open: float
    eyes_open: float
    brows_up: float
    gaze_x: float
    gaze_y: float


@cache
def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    x = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / PER_UNIT
    y = (np.arange(HEIGHT) + 0.5) / PER_UNIT + TOP
    gx, gy = np.meshgrid(x, y)
    return gx, gy, surface(gx, gy)


def _bump(x: float, y: float, sx: float, sy: float) -> NDArray[np.float64]:
    """A hill of height 1."""
    gx, gy, _ = _grid()
    across = np.exp(-(((gx[0] - x) / sx) ** 2) / 2)
    down = np.exp(-(((gy[:, 0] - y) / sy) ** 2) / 2)
    return np.outer(down, across)


def _pair(x: float, y: float, sx: float, sy: float) -> NDArray[np.float64]:
    hill = _bump(x, y, sx, sy)
    return hill + hill[:, ::-1]


def _crease(a: tuple[float, float], b: tuple[float, float], width: float) -> NDArray[np.float64]:
    """A groove of depth 1 along a line, and its mirror image."""
    gx, gy, _ = _grid()
    dx, dy = b[0] - a[0], b[1] - a[1]
    t = np.clip(((gx - a[0]) * dx + (gy - a[1]) * dy) / (dx * dx + dy * dy), 0, 1)
    distance = (gx - a[0] - t * dx) ** 2 + (gy - a[1] - t * dy) ** 2
    groove = np.exp(-distance / (2 * width * width))
    return groove + groove[:, ::-1]


def _nose(who: Identity) -> NDArray[np.float64]:
    gx, gy, _ = _grid()
    y = gy[:, 0]
    top, tip = who.eye_y - 0.06, who.nose_y - 0.08
    way = np.clip((y - top) / (tip - top), 0, 1)
    height = (0.06 + 0.08 * who.nose_bridge) * np.sqrt(way) + 0.16 * who.nose_tip * way**2.5
    height *= 1 / (1 + np.exp((y - who.nose_y + 0.01) / 0.02))
    width = 0.055 + (0.45 * who.nose_width - 0.02) * way**2
    return height[:, None] * np.exp(-((gx / width[:, None]) ** 2) / 2)


def relief(who: Identity, mood: Expression) -> tuple[Array, Array]:
    """Height of the face above its ellipsoid in head units, and the nose's part of it."""
    nose = _nose(who)
    wings = _pair(who.nose_width * 0.75, who.nose_y - 0.045, 0.05, 0.045)
    mouth_width = who.mouth_width * (1 + 0.15 * mood.smile)
    folds = _crease(
        (who.nose_width + 0.03, who.nose_y - 0.08), (mouth_width + 0.1, who.mouth_y + 0.03), 0.035
    )
    height = (
        nose
        + 0.07 * wings
        - 0.13 * _pair(who.eye_x - 0.02, who.eye_y - 0.04, 0.17, 0.10)
        + 0.03 * _pair(who.eye_x, who.eye_y + 0.02, 0.10, 0.06)
        + 0.05 * _pair(who.eye_x, who.eye_y - who.brow_y, 0.22, 0.06)
        + (0.06 + 0.04 * mood.smile) * _pair(0.46, who.nose_y - 0.12, 0.17, 0.15)
        + 0.06 * _bump(0, who.mouth_y, mouth_width * 0.8, 0.10)
        - 0.05 * _bump(0, who.mouth_y + 0.17, 0.17, 0.05)
        + 0.09 * _bump(0, 0.86, 0.12 + 0.3 * who.chin * who.cheek_width, 0.11)
        - 0.02 * _bump(0, (who.nose_y + who.mouth_y) / 2 - 0.02, 0.03, 0.06)
        - (0.012 + 0.03 * who.age + 0.02 * max(mood.smile, 0)) * folds
        - 0.03 * who.age * _pair(who.eye_x + 0.02, who.eye_y + 0.16, 0.13, 0.025)
    )
    if who.age > 0.5:
        for y in (-0.75, -0.64, -0.53):
            height -= 0.012 * who.age * _bump(0, y, 0.35, 0.014)
    return height.astype(np.float32), nose.astype(np.float32)


def chart(who: Identity, mood: Expression, pose: Pose, light: Light) -> tuple[Array, Array]:
    """Colours (HEIGHT, WIDTH, 3) of the lit skin, and the relief (HEIGHT, WIDTH) below them."""
    height, nose = relief(who, mood)
    depth = _grid()[2] + height
    slope_y, slope_x = np.gradient(depth, 1 / PER_UNIT)
    steepness = np.sqrt(1 + slope_x**2 + slope_y**2)
    lx, ly, lz = pose.light(light)
    facing = (-slope_x * lx - slope_y * ly + lz) / steepness
    shade = light.ambient + light.key * np.maximum(0.2 + 0.8 * facing, 0)

    hollow = cv2.GaussianBlur(height, (0, 0), 5) - height
    shade *= 1 - np.clip(2.6 * hollow, -0.06, 0.45)

    # The nose's shadow: where going a little towards the lamp leads up onto the nose.
    reach = 0.22 * PER_UNIT
    shift = np.array([[1, 0, reach * lx], [0, 1, reach * ly]])
    uphill = cv2.warpAffine(nose, shift, (WIDTH, HEIGHT), flags=cv2.WARP_INVERSE_MAP)
    shadow = np.clip((uphill - nose - 0.05) * 5, 0, 1)
    shade *= 1 - 0.45 * light.key * cv2.GaussianBlur(shadow, (0, 0), 1.2)

    # Half-way vector for the gloss; the viewer is at (0, 0, 1) in the picture.
    view = pose.rotation[2]
    hx, hy, hz = np.array([lx, ly, lz]) + view
    length = np.sqrt(hx * hx + hy * hy + hz * hz) + 1e-6
    mirror = (-slope_x * hx - slope_y * hy + hz) / (steepness * length)
    gloss = 0.16 * light.key * np.maximum(mirror, 0) ** 24

    blush = 0.4 + who.blush
    red = blush * (
        0.9 * _pair(0.47, who.nose_y - 0.08, 0.16, 0.13)
        + 0.7 * _bump(0, who.nose_y - 0.08, 0.11, 0.08)
        + 0.3 * _bump(0, 0.86, 0.15, 0.1)
    )
    tired = 0.10 * (0.5 + who.age) * _pair(who.eye_x - 0.03, who.eye_y + 0.11, 0.10, 0.04)
    colours = np.empty((HEIGHT, WIDTH, 3), np.float32)
    # Shadows on skin are warmer than its lights.
    for channel, (warm, tint) in enumerate(((0.85, 0.03), (1.0, -0.06), (1.07, -0.05))):
        plain = who.skin[channel] * np.maximum(shade, 0.02) ** warm
        colours[..., channel] = plain * (1 + tint * red) * (1 - tired) + gloss
    return colours, height
