"""Outlines, as arrays of points."""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(N, 2) of x, y; or (N, 3) where a depth goes with them."""


def smooth(points: Points, steps: int = 6) -> Points:
    """A closed Catmull-Rom curve through the points."""
    t = np.arange(steps) / steps
    basis = 0.5 * np.stack(
        [
            -t + 2 * t**2 - t**3,
            2 - 5 * t**2 + 3 * t**3,
            t + 4 * t**2 - 3 * t**3,
            -(t**2) + t**3,
        ],
        axis=1,
    )
    neighbours = np.stack([np.roll(points, shift, axis=0) for shift in (1, 0, -1, -2)], axis=1)
    curve: Points = np.einsum("sk,nkd->nsd", basis, neighbours)
    return curve.reshape(-1, points.shape[1])


def smooth_open(points: Points, steps: int = 5) -> Points:
    """A Catmull-Rom curve through the points that ends at the last."""
    first, last = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
    closed = smooth(np.concatenate([[first], points, [last]]), steps)
    return closed[steps : steps * len(points) + 1]


def ellipse(centre: tuple[float, float], radii: tuple[float, float], n: int = 32) -> Points:
    """An upright ellipse as n points."""
    angle = np.arange(n) * (2 * np.pi / n)
    return np.stack(
        [centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], axis=1
    )


def ribbon(line: Points, widths: NDArray[np.float64]) -> Points:
    """The outline of an open line (N, 2) that is `widths` (N,) thick along its way."""
    along = np.gradient(line, axis=0)
    length = np.hypot(along[:, 0], along[:, 1])[:, None] + 1e-9
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / length * (widths / 2)[:, None]
    return np.concatenate([line + across, (line - across)[::-1]])


def taper(n: int, ends: float, middle: float) -> NDArray[np.float64]:
    """Widths of a line that is thickest in the middle."""
    return ends + (middle - ends) * np.sin(np.linspace(0, np.pi, n))


def mirrored(right: list[tuple[float, ...]]) -> Points:
    """A closed outline from its right half, given from top to bottom, first and last on x = 0."""
    half = np.array(right)
    other: Points = half[-2:0:-1] * np.where(np.arange(half.shape[1]) == 0, -1, 1)
    return np.concatenate([half, other])


def moved(points: Points, x: float, y: float) -> Points:
    """Points (N, 2), moved."""
    result: Points = points + np.array([x, y])
    return result
