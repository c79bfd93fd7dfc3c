"""Painted portraits with exact ground truth: faces, landmarks, nested masks, identities.

The same seed and arguments give the same bytes, in every process.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_prep.types import Image
from sample_data.painter.canvas import Canvas
from sample_data.painter.identity import make_identity
from sample_data.painter.person import Person, behind, paint_person
from sample_data.painter.pose import Light, Pose
from sample_data.painter.scene import background, develop, foreground, random_light

__all__ = ["STRANGERS", "Person", "Portrait", "draw_portrait"]

STRANGERS = 1_000_000
"""Identities from here on are given to people of whom the caller named none."""


@dataclass(frozen=True, slots=True)
class Portrait:
    """A picture, uint8 RGB, and the truth about it.

    `people` has the largest face first, which is also the foremost person.
    """

    image: Image
    people: tuple[Person, ...]


def draw_portrait(
    seed: int,
    *,
    size: tuple[int, int] = (256, 256),
    people: int | None = None,
    identity: int | None = None,
    scale: tuple[float, float] = (0.12, 0.6),
    max_tilt: float = 35.0,
    max_yaw: float = 22.0,
) -> Portrait:
    """Paint a portrait.

    Args:
        seed: not negative; pose, light, mood, background, clothes and accessories come from it.
        size: height and width in pixels, at least 64.
        people: 1 to 3; from the seed (mostly 1) where None.
        identity: who the one with the largest face is, from 0 to STRANGERS − 1; a stranger where
            None. The others are always strangers.
        scale: smallest and largest height of a face as a part of the picture's short side.
        max_tilt: largest tilt of a head in degrees, to both sides.
        max_yaw: largest turn of a head in degrees, to both sides.

    Raises ValueError for arguments out of range.
    """
    if min(size) < 64 or (people is not None and not 1 <= people <= 3):
        raise ValueError(f"size {size} must be at least 64 and people ({people}) 1 to 3")
    if identity is not None and not 0 <= identity < STRANGERS:
        raise ValueError(f"identity {identity} is not from 0 to {STRANGERS - 1}")
    rng = np.random.default_rng([seed, *size])
    count = people if people is not None else int(rng.choice(3, p=[0.76, 0.16, 0.08])) + 1
    numbers = [STRANGERS + int(n) for n in rng.integers(0, 2**31, count)]
    if identity is not None:
        numbers[0] = identity
    light = random_light(rng)
    canvas = background(size, light, rng)
    poses = _arrange(size, count, scale, max_tilt, max_yaw, rng)
    painted: list[Person] = []
    for number, pose in reversed(list(zip(numbers, poses, strict=True))):
        person = paint_person(canvas, make_identity(number), pose, light, rng)
        painted = [person, *(behind(other, person.person_mask) for other in painted)]
    if rng.random() < 0.12:
        painted = _hide(canvas, painted, light, rng)
    pixels = np.clip(develop(canvas, rng) * 255 + 0.5, 0, 255).astype(np.uint8)
    return Portrait(pixels, tuple(painted))


def _arrange(
    size: tuple[int, int],
    count: int,
    scale: tuple[float, float],
    max_tilt: float,
    max_yaw: float,
    rng: np.random.Generator,
) -> list[Pose]:
    """Poses, the largest and foremost first; all faces lie in the picture, mostly unhidden."""
    height, width = size
    low, high = (part * min(size) for part in scale)
    if count > 1:
        high = max(low, min(high, (0.42, 0.3)[count - 2] * max(0.8 * width, min(size))))
    faces = low * (high / low) ** rng.uniform(0, 1) * rng.uniform(0.6, 1.0, count)
    poses: list[Pose] = []
    for face in sorted(np.maximum(faces, low), reverse=True):
        s = float(face) / 2
        edge = min(1.15 * s, width / 2, height / 2)
        places = np.column_stack(
            [
                rng.uniform(edge, width - edge, 40),
                rng.uniform(edge, max(edge, min(height - edge, 0.75 * height)), 40),
            ]
        )
        hidden = [_hidden(x, y, s, poses) for x, y in places]
        x, y = places[int(np.argmin(hidden))]
        poses.append(
            Pose(
                x=float(x),
                y=float(y),
                scale=s,
                # Most people hold their heads nearly upright.
                tilt=float(rng.uniform(-1, 1) * max_tilt * rng.choice([0.25, 1.0])),
                yaw=float(rng.uniform(-1, 1) * max_yaw),
                pitch=float(rng.uniform(-8, 10)),
            )
        )
    return poses


def _hidden(x: float, y: float, scale: float, front: Sequence[Pose]) -> float:
    """Roughly how much of a face at x, y the people in front hide; small values do not count."""
    gx, gy = np.meshgrid(np.linspace(-0.8, 0.8, 5) * scale + x, np.linspace(-1, 1, 5) * scale + y)
    covered = np.zeros(gx.shape, bool)
    for pose in front:
        u, v = (gx - pose.x) / pose.scale, (gy - pose.y) / pose.scale
        covered |= (u / 1.2) ** 2 + ((v + 0.2) / 1.6) ** 2 < 1
        covered |= (np.abs(u) < 2.7) & (v > 1.4)
    return max(0.1, float(covered.mean()))


def _hide(
    canvas: Canvas, people: list[Person], light: Light, rng: np.random.Generator
) -> list[Person]:
    """The people behind an object, unless it would hide much of somebody's face."""
    clear = canvas.pixels.copy()
    front = foreground(canvas, light, rng).mask(canvas.shape)
    hidden = [behind(person, front) for person in people]
    if any(
        after.visible < 0.75 * before.visible for after, before in zip(hidden, people, strict=True)
    ):
        canvas.pixels[:] = clear
        return people
    return hidden
