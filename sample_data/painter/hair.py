"""Hair, hats and glasses."""

import numpy as np

from sample_data.painter.canvas import Array, Canvas, Patch, noise
from sample_data.painter.curves import (
    Points,
    ellipse,
    mirrored,
    moved,
    ribbon,
    smooth,
    smooth_open,
)
from sample_data.painter.identity import Colour, HairStyle, Identity
from sample_data.painter.pose import Light, Pose, round_shade

LONG: tuple[HairStyle, ...] = ("bob", "long")


class HairPainter:
    """Paints one person's hair; `back` comes before the head, `front` after the face."""

    def __init__(
        self,
        canvas: Canvas,
        who: Identity,
        style: HairStyle,
        pose: Pose,
        light: Light,
        face: Patch,
        rng: np.random.Generator,
    ) -> None:
        self.canvas = canvas
        self.face = face
        self.who = who
        self.style = style
        self.pose = pose
        self.light = light
        self.rng = rng
        self.volume = 0.10 + 0.13 * who.hair_volume
        if style == "curly":
            self.volume += 0.18

    def back(self) -> list[Patch]:
        """Paint what hangs or stands behind the head."""
        who, w, v = self.who, self.who.cheek_width, self.volume
        if self.style in LONG:
            end = 1.15 if self.style == "bob" else 1.9 + 0.3 * who.hair_volume
            shape = smooth(
                mirrored(
                    [
                        (0.0, -1.45 - v),
                        (0.9 * w, -1.15 - 0.8 * v),
                        (1.1 * w + v, -0.5),
                        (1.15 * w + v, 0.3),
                        (1.2 * w + v, 0.8 * end),
                        (0.9 * w + v, end),
                        (0.0, 0.92 * end),
                    ]
                )
            )
            return [self._paint(self._sway(shape), dim=0.7)]
        if self.style == "bun":
            x = 0.25 * who.parting
            bun = ellipse((x, -1.55 - v), (0.42, 0.36 + 0.1 * who.hair_volume), 24)
            return [self._paint(self._sway(bun), dim=0.85)]
        if self.style == "curly":
            puff = self._curls(ellipse((0, -0.55), (w + 1.3 * v, 0.98 + 1.1 * v), 44), 0.06)
            return [self._paint(self.pose.flat(puff), dim=0.75)]
        return []

    def front(self) -> list[Patch]:
        """Paint what lies on the head and over the face."""
        if self.style == "bald":
            return []
        outer, inner = self._rim(), self._hairline()
        shape = np.concatenate([self.pose.flat(outer), self.pose.place(inner)])
        shadow = self.canvas.cover(
            shape + 0.03 * self.pose.scale * np.array([-self.light.towards[0], 1.0]),
            soft=0.035 * self.pose.scale + 0.3,
        )
        self.canvas.darken(shadow.within(self.face), 0.3)
        patches = [self._paint(shape, thin=0.55 if self.style == "buzz" else 1.0)]
        if self.style in LONG:
            patches += self._locks()
        return patches

    def _rim(self) -> Points:
        """The hair's upper edge, from the side of the picture's left over the top to the right."""
        w, v = self.who.cheek_width, self.volume
        if self.style == "buzz":
            v = 0.05
        low = {"long": 0.6, "bob": 0.6, "curly": 0.25, "bun": 0.0}.get(self.style, 0.05)
        arc = np.linspace(np.pi, 2 * np.pi, 33)
        side = (1.05 * w + 0.8 * v) * np.cos(arc)
        top = -0.42 + (1.04 + v) * np.sin(arc)
        ends = np.array([(-(1.02 * w + 0.4 * v), low), (1.02 * w + 0.4 * v, low)])
        rim = np.concatenate([ends[:1], np.column_stack([side, top]), ends[1:]])
        if self.style == "curly":
            return self._curls(rim, 0.05)
        if self.style in ("short", "parted", "fringe"):
            return smooth_open(self._curls(rim, 0.02), 3)
        return rim

    def _hairline(self) -> Points:
        """The hair's lower edge over the face, from right to left, in head units (N, 3)."""
        who, w = self.who, self.who.cheek_width
        t = who.temple * w
        y = -0.98 + who.hairline
        burn = 0.15 if who.beard == "full" else 0.02
        ear = np.array([(1.06 * w, burn - 0.12), (0.97 * w, burn), (0.96 * w, -0.25)])
        far_ear = ear[::-1] * (-1, 1)
        p = who.parting
        if self.style == "receding":
            half = np.array([(1.0 * t, -0.55), (0.72 * t, y - 0.14), (0.35 * t, y - 0.22)])
            middle = np.concatenate([half, [(0.0, y - 0.06)], half[::-1] * (-1, 1)])
        elif self.style == "fringe":
            low = who.eye_y - who.brow_y - 0.12 + 0.7 * who.hairline
            x = np.linspace(0.97 * t, -0.97 * t, 21)
            ragged = self.rng.uniform(-0.07, 0.05, len(x)) - 0.12 * np.abs(x - p) ** 2
            middle = np.column_stack([x, low + ragged])
        elif self.style in ("parted", *LONG):
            drop = 0.12 + 0.25 * abs(p)
            middle = np.array(
                [
                    (0.97 * t, -0.45),
                    (0.80 * t, y + 0.10 + drop * (p < 0)),
                    (p + 0.3 * (t - p), y - 0.02 + 0.4 * drop * (p < 0)),
                    (p, y - 0.14),
                    (p - 0.3 * (t + p), y - 0.02 + 0.4 * drop * (p > 0)),
                    (-0.80 * t, y + 0.10 + drop * (p > 0)),
                    (-0.97 * t, -0.45),
                ]
            )
        else:
            half = np.array([(0.98 * t, -0.5), (0.84 * t, y + 0.14), (0.45 * t, y - 0.01)])
            middle = np.concatenate([half, [(0.0, y)], half[::-1] * (-1, 1)])
        line = smooth_open(np.concatenate([ear, middle, far_ear]), 4)
        depth = 0.78 * np.sqrt(np.maximum(1 - (line[:, 0] / (1.08 * w)) ** 2, 0))
        return np.column_stack([line, depth])

    def _locks(self) -> list[Patch]:
        """Hair that hangs down in front of the ears."""
        who, w, v = self.who, self.who.cheek_width, self.volume
        end = 1.05 if self.style == "bob" else 1.5 + 0.4 * who.hair_volume
        patches = []
        for side in (-1.0, 1.0):
            inner = 0.93 * w - 0.12 * who.hair_volume * (side * who.parting > 0)
            lock = np.array(
                [
                    (0.80 * w, -0.85),
                    (1.02 * w + 0.7 * v, -0.6),
                    (1.08 * w + v, 0.2),
                    (1.10 * w + 0.9 * v, 0.85 * end),
                    (1.02 * w + 0.3 * v, end),
                    (inner + 0.10, 0.7),
                    (inner, 0.2),
                    (inner - 0.02, -0.3),
                ]
            )
            patches.append(self._paint(self._sway(smooth(lock * (side, 1.0)))))
        return patches

    def _sway(self, points: Points) -> Points:
        """Head units to pixels: the further below the head, the straighter down it hangs."""
        free = np.clip((points[:, 1:] - 0.4) / 1.2, 0, 1) ** 1.5
        fixed = self.pose.flat(points)
        upright = points * self.pose.scale + (self.pose.x, self.pose.y)
        return fixed + 0.5 * free * (upright - fixed)

    def _curls(self, points: Points, size: float) -> Points:
        out = points - (0, -0.4)
        length = np.hypot(out[:, 0], out[:, 1])[:, None]
        return points + out / length * self.rng.uniform(-size, size, (len(points), 1))

    def _paint(self, shape: Points, dim: float = 1.0, thin: float = 1.0) -> Patch:
        patch = self.canvas.cover(shape)
        if patch.alpha.size:
            self.canvas.paint(patch.times(thin), self._colour(patch) * np.float32(dim))
        return patch

    def _colour(self, patch: Patch) -> Array:
        zoom = max(0.25, self.pose.scale / 60)
        kind = "clouds" if self.style == "curly" else "strands"
        if kind == "clouds":
            zoom *= 0.25
        lines = noise(kind, patch.alpha.shape, self.rng, angle=self.pose.tilt, zoom=zoom)
        s = self.pose.scale
        centre = (float(self.pose.x), float(self.pose.y - 0.3 * s))
        shade = round_shade(patch, centre, (1.25 * s, 1.5 * s), self.light)
        base = np.array(self.who.hair, np.float32)
        contrast = np.float32(0.30 - 0.20 * base.max())  # fair hair shows its strands less
        colour: Array = np.clip(base * shade * (1 + contrast * lines[..., None]), 0, 1)
        return colour


def paint_hat(
    canvas: Canvas, who: Identity, pose: Pose, light: Light, face: Patch, colour: Colour
) -> Patch:
    """Paint a woollen hat or a cap over the hair; gives what it covers."""
    w, s = who.cheek_width, pose.scale
    edge = np.array([(1.12 * w, -0.42), (0.7 * w, -0.66), (0.0, -0.74), (-0.7 * w, -0.66)])
    edge = smooth_open(np.concatenate([edge, [(-1.12 * w, -0.42)]]))
    depth = 0.8 * np.sqrt(np.maximum(1 - (edge[:, 0] / (1.14 * w)) ** 2, 0))
    arc = np.linspace(np.pi, 2 * np.pi, 25)
    dome = np.column_stack([1.22 * w * np.cos(arc), -0.42 + 1.32 * np.sin(arc)])
    outline = np.concatenate([pose.flat(dome), pose.place(np.column_stack([edge, depth]))])
    shadow = canvas.cover(moved(outline, 0, 0.1 * s), soft=0.05 * s + 0.3)
    canvas.darken(shadow.within(face), 0.35)
    patch = canvas.cover(outline)
    if patch.alpha.size:
        shade = round_shade(patch, (pose.x, pose.y - 0.7 * s), (1.3 * s, 1.3 * s), light)
        canvas.paint(patch, np.array(colour, np.float32) * shade)
        seam = pose.place(np.column_stack([edge - (0, 0.2), depth + 0.03]))
        line = canvas.cover(ribbon(seam, np.full(len(seam), 0.05 * s)))
        canvas.darken(line.within(patch), 0.3)
    return patch


def paint_glasses(
    canvas: Canvas, who: Identity, pose: Pose, colour: Colour, *, round_lens: bool, dark: bool
) -> list[Patch]:
    """Paint glasses; gives what frame and arms cover."""
    half_width, half_height = who.eye_width * 1.5, who.eye_width * (1.45 if round_lens else 1.05)
    thick = 0.028
    power = 2.0 if round_lens else 4.0
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    unit = np.column_stack(
        [np.sign(cos) * np.abs(cos) ** (2 / power), np.sign(sin) * np.abs(sin) ** (2 / power)]
    )
    outlines = []
    reach = 0.12
    for side in (-1.0, 1.0):
        centre = np.array([side * (who.eye_x + 0.01), who.eye_y + 0.03])
        lens = unit * (half_width, half_height) + centre
        rim = unit * (half_width + thick, half_height + thick) + centre
        glass = canvas.cover(pose.place(lens, reach))
        if dark:
            canvas.paint(glass.times(0.86), (0.05, 0.05, 0.06))
        else:
            canvas.darken(glass, -0.04)
        outlines += [pose.place(lens, reach), pose.place(rim, reach)]
    bridge_y = who.eye_y - 0.02
    bridge = np.array([(-1, -0.02), (1, -0.02), (1, 0.02), (-1, 0.02)]) * (
        max(who.eye_x - half_width, 0.03),
        1.0,
    ) + (0, bridge_y)
    arms = []
    for side in (-1.0, 1.0):
        hinge = side * (who.eye_x + half_width + thick)
        ear = side * who.cheek_width * 1.04
        arm = np.array(
            [
                (hinge, bridge_y - 0.05, 0.8),
                (ear, bridge_y - 0.02, 0.05),
                (ear, bridge_y + 0.02, 0.05),
                (hinge, bridge_y - 0.0, 0.8),
            ]
        )
        arms.append(pose.place(arm))
    bars = [canvas.cover(pose.place(bridge, reach + 0.05)), *(canvas.cover(arm) for arm in arms)]
    patches = [canvas.cover(*outlines), *bars]
    for patch in patches:
        canvas.paint(patch, colour)
    return patches
