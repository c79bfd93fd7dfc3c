"""Neck, shoulders and clothes."""

import numpy as np

from sample_data.painter.canvas import Array, Canvas, Patch, noise
from sample_data.painter.curves import Points, mirrored, ribbon, smooth, smooth_open
from sample_data.painter.identity import Colour, Identity, face_outline
from sample_data.painter.pose import Light, Pose, round_shade


def paint_clothes(
    canvas: Canvas,
    pose: Pose,
    light: Light,
    colours: tuple[Colour, Colour],
    rng: np.random.Generator,
) -> list[Patch]:
    """Paint legs, trunk, arms and shoulders; gives what they cover."""
    s = pose.scale
    lean = np.deg2rad(0.25 * pose.tilt)
    turn = np.array([[np.cos(lean), np.sin(lean)], [-np.sin(lean), np.cos(lean)]])
    origin = (pose.x - np.sin(np.deg2rad(pose.tilt)) * 0.6 * s, pose.y)
    broad, drop = rng.uniform(1.85, 2.35), rng.uniform(1.95, 2.2)
    spread = rng.uniform(0.05, 0.5, 2)
    patches = []

    def place(points: Points) -> Points:
        result: Points = points @ turn * s + origin
        return result

    if pose.y + 7.4 * s < canvas.shape[0]:
        legs = np.array([(-1.25, 7.0), (1.25, 7.0), (1.35, 14.5), (0.15, 14.5), (0, 8.2)])
        legs = np.concatenate([legs, [(-0.15, 14.5), (-1.35, 14.5)]])
        patches.append(canvas.cover(place(legs)))
        dark = 0.6 * np.array(colours[1], np.float32)
        shade = round_shade(patches[0], (origin[0], pose.y + 10 * s), (2.0 * s, 9.0 * s), light)
        canvas.paint(patches[0], dark * shade)
    trunk = place(
        smooth(
            mirrored(
                [
                    (0.0, 1.42),
                    (0.42, 1.40),
                    (0.75, 1.52),
                    (0.72 * broad, drop - 0.15),
                    (0.98 * broad, drop + 0.3),
                    (0.86 * broad, drop + 1.6),
                    (0.68 * broad, 5.4),
                    (0.72 * broad, 7.4),
                    (0.0, 7.5),
                ]
            )
        )
    )
    arms = []
    for side, out in zip((-1.0, 1.0), spread, strict=True):
        spine = np.array(
            [(0.84 * broad, drop + 0.3), (0.93 * broad + out, 4.3), (0.9 * broad + 0.4 * out, 6.3)]
        )
        line = smooth_open(spine * (side, 1.0))
        arms.append(place(ribbon(line, np.linspace(0.85, 0.55, len(line)))))
    body = canvas.cover(trunk)
    covers = [canvas.cover(arm) for arm in arms]
    whole = canvas.cover(np.concatenate([trunk, *arms]))
    if whole.alpha.size == 0:
        return patches
    colour = _cloth(whole, pose, colours, rng)
    folds = noise("clouds", whole.alpha.shape, rng, angle=20.0, zoom=max(0.5, s / 40))
    shade = round_shade(whole, (origin[0], pose.y + 3.2 * s), (2.6 * s, 4.5 * s), light)
    cloth = np.clip(colour * shade * (1 + 0.10 * folds[..., None]), 0, 1)
    for patch in (body, *covers):
        if patch.alpha.size:
            rows = slice(patch.y - whole.y, patch.y - whole.y + patch.alpha.shape[0])
            columns = slice(patch.x - whole.x, patch.x - whole.x + patch.alpha.shape[1])
            canvas.paint(patch, cloth[rows, columns])
    for arm in arms:
        gap = canvas.cover(ribbon(arm, np.full(len(arm), 0.07 * s)), soft=0.04 * s)
        canvas.darken(gap.within(body), 0.35)
    return [*patches, body, *covers]


def _cloth(
    patch: Patch, pose: Pose, colours: tuple[Colour, Colour], rng: np.random.Generator
) -> Array:
    """Colours of the cloth (height, width, 3): plain, striped, checked or mottled."""
    height, width = patch.alpha.shape
    first, second = (np.array(c, np.float32) for c in colours)
    kind = rng.integers(5)
    if kind <= 1:
        return np.broadcast_to(first, (height, width, 3))
    pitch = rng.uniform(0.12, 0.4) * pose.scale
    down = ((np.arange(height) + patch.y - pose.y) / pitch % 1 < rng.uniform(0.2, 0.6))[:, None]
    across = ((np.arange(width) + patch.x - pose.x) / pitch % 1 < 0.5)[None, :]
    if kind == 2:
        mix = np.broadcast_to(1.0 * down, (height, width))
    elif kind == 3:
        mix = (down + 1.0 * across) / 2
    else:
        mottle = noise("clouds", (height, width), rng, zoom=max(0.2, pose.scale / 120))
        mix = 1.0 * (mottle > 0.5)
    return first + mix[..., None].astype(np.float32) * (second - first)


def paint_neck(
    canvas: Canvas, who: Identity, pose: Pose, light: Light, rng: np.random.Generator
) -> Patch:
    """Paint the neck and what a neckline shows of the chest; gives what they cover."""
    s = pose.scale
    w = who.cheek_width * (0.52 + 0.25 * who.jaw)
    depth = rng.uniform(1.5, 2.1)
    open_width = rng.uniform(0.3, 0.62)
    jaw = pose.flat(np.array([(-0.80 * w, 0.35), (0.80 * w, 0.35)]))
    x = pose.x - np.sin(np.deg2rad(pose.tilt)) * 0.75 * s
    base = np.array(
        [
            (0.92 * w, 1.40),
            (1.2 * w, 1.56),
            (open_width, 1.56),
            (0.25 * open_width, depth),
            (-0.25 * open_width, depth),
            (-open_width, 1.56),
            (-1.2 * w, 1.56),
            (-0.92 * w, 1.40),
        ]
    ) * s + (x, pose.y)
    shape = np.concatenate([jaw, base])
    patch = canvas.cover(shape)
    if patch.alpha.size == 0:
        return patch
    shade = round_shade(patch, (x, pose.y + 1.2 * s), (1.1 * w * s, 2.5 * s), light)
    canvas.paint(patch, np.array(who.skin, np.float32) * shade * (1.0, 0.96, 0.94))
    # The chin's shadow.
    fall = np.array([-0.25 * light.towards[0], 0.1 - 0.2 * light.towards[1]]) * s
    shadow = canvas.cover(pose.place(face_outline(who)) + fall, soft=0.06 * s + 0.3)
    canvas.darken(shadow.within(patch), 0.25 + 0.35 * light.key)
    return patch
