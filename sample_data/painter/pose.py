"""Where a head is, which way it turns, and how light falls on it.

Head units are those of `identity`, with z towards the viewer. The head is an ellipsoid, seen from
far away (no perspective).
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from sample_data.painter.canvas import Array, Patch, grow
from sample_data.painter.curves import Points

CENTRE_Y = -0.2
RADII = (0.90, 1.35, 1.0)


@dataclass(frozen=True, slots=True)
class Light:
    """One lamp and its surroundings."""

    towards: tuple[float, float, float]
    """Unit vector to the lamp: right, down, towards the viewer."""
    ambient: float
    key: float


def surface(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Depth z of the head's ellipsoid at x, y; outside its rim it falls off more and more."""
    inside = 1 - (x / RADII[0]) ** 2 - ((y - CENTRE_Y) / RADII[1]) ** 2
    rim = 0.06
    beyond = np.minimum(inside - rim, 0) / (2 * rim**0.5)
    depth: NDArray[np.float64] = RADII[2] * (np.sqrt(np.maximum(inside, rim)) + beyond)
    return depth


@dataclass(frozen=True)
class Pose:
    """The head's place in the picture. Angles in degrees."""

    x: float
    """Where the middle of the head (0, 0, 0) is, in pixels."""
    y: float
    scale: float
    """Pixels a unit."""
    tilt: float
    """Clockwise in the picture."""
    yaw: float
    """Turned to the picture's right."""
    pitch: float
    """Looking down."""

    @cached_property
    def rotation(self) -> NDArray[np.float64]:
        """3 × 3, from the head's axes to the picture's: tilt after pitch after yaw."""
        a, b, c = np.deg2rad([self.yaw, self.pitch, self.tilt])
        yaw = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        pitch = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
        tilt = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
        rotation: NDArray[np.float64] = tilt @ pitch @ yaw
        return rotation

    def place(self, points: Points, lift: float = 0.0) -> Points:
        """Pixels (N, 2) of points (N, 2) that lie `lift` above the surface, or of (N, 3)."""
        if points.shape[1] == 2:
            depth = surface(points[:, 0], points[:, 1]) + lift
            points = np.column_stack([points, depth])
        turned = points @ self.rotation.T
        result: Points = turned[:, :2] * self.scale + (self.x, self.y)
        return result

    def flat(self, points: Points) -> Points:
        """Pixels of points in the plane through the middle of the head that faces the viewer.

        Only the tilt moves them: right for what has an outline from every side, such as hair.
        """
        c = np.deg2rad(self.tilt)
        turn = np.array([[np.cos(c), np.sin(c)], [-np.sin(c), np.cos(c)]])
        result: Points = points @ turn * self.scale + (self.x, self.y)
        return result

    def light(self, light: Light) -> NDArray[np.float64]:
        """The lamp's direction in the head's axes."""
        direction: NDArray[np.float64] = self.rotation.T @ np.array(light.towards)
        return direction

    def look_up(self, patch: Patch, chart: Array, relief: Array, per_unit: float) -> Array:
        """The chart's colours (see `skin.chart`) as they appear in the patch's window.

        A pixel looks along a ray that meets the ellipsoid; the relief on it moves what the ray
        meets against the way the head turns.
        """
        height, width = patch.alpha.shape
        rows, columns = max(2, height // 4), max(2, width // 4)
        x = patch.x + (np.arange(columns) + 0.5) * (width / columns)
        y = patch.y + (np.arange(rows) + 0.5) * (height / rows)
        gx, gy = np.meshgrid((x - self.x) / self.scale, (y - self.y) / self.scale)
        origin = np.stack([gx, gy, np.zeros_like(gx)], axis=-1) @ self.rotation
        ray = self.rotation[2]
        radii = np.array(RADII)
        o = (origin - (0, CENTRE_Y, 0)) / radii
        d = ray / radii
        a, b, c = d @ d, o @ d, (o * o).sum(axis=-1) - 1
        t = (-b + np.sqrt(np.maximum(b * b - a * c, 0))) / a
        hit = origin + t[..., None] * ray
        middle_x, middle_y = chart.shape[1] / 2, chart_row(0.0, per_unit)
        u = (hit[..., 0] * per_unit + middle_x).astype(np.float32) - 0.5
        v = (hit[..., 1] * per_unit + middle_y).astype(np.float32) - 0.5
        raised = cv2.remap(relief, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        u += np.float32(per_unit * ray[0] / ray[2]) * raised
        v += np.float32(per_unit * ray[1] / ray[2]) * raised
        u, v = grow(u, height, width), grow(v, height, width)
        colours: Array = cv2.remap(chart, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return colours


TOP = -1.65
"""y of the chart's first row, in head units."""


def chart_row(y: float, per_unit: float) -> float:
    """The chart's row (its upper edge is 0) at head coordinate y."""
    return (y - TOP) * per_unit


def round_shade(
    patch: Patch, centre: tuple[float, float], radii: tuple[float, float], light: Light
) -> Array:
    """Brightness (height, width, 1) of an upright ellipsoid, in pixels, over the patch's window."""
    height, width = patch.alpha.shape
    rows, columns = max(2, height // 6), max(2, width // 6)
    x = (patch.x + (np.arange(columns) + 0.5) * (width / columns) - centre[0]) / radii[0]
    y = (patch.y + (np.arange(rows) + 0.5) * (height / rows) - centre[1]) / radii[1]
    gx, gy = np.meshgrid(x, y)
    gz = np.sqrt(np.maximum(1 - gx * gx - gy * gy, 0.02))
    length = np.sqrt(gx * gx + gy * gy + gz * gz)
    facing = (gx * light.towards[0] + gy * light.towards[1] + gz * light.towards[2]) / length
    shade = light.ambient + light.key * np.maximum(0.25 + 0.75 * facing, 0)
    return grow(shade.astype(np.float32), height, width)[..., None]
