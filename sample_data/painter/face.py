"""The face itself: outline, skin, eyes, eyebrows, nose, mouth, beard."""

import cv2
import numpy as np
from numpy.typing import NDArray

from lora_prep.types import Point
from sample_data.painter import skin
from sample_data.painter.canvas import Array, Canvas, Patch, noise
from sample_data.painter.curves import (
    Points,
    ellipse,
    mirrored,
    moved,
    ribbon,
    smooth,
    smooth_open,
    taper,
)
from sample_data.painter.identity import Identity, dimmed, face_outline, skull_outline
from sample_data.painter.pose import Light, Pose
from sample_data.painter.skin import Expression

Landmarks = tuple[Point, Point, Point, Point, Point]


class FacePainter:
    """Paints one face; the parts have to be called from the back to the front."""

    def __init__(
        self,
        canvas: Canvas,
        who: Identity,
        mood: Expression,
        pose: Pose,
        light: Light,
        rng: np.random.Generator,
    ) -> None:
        self.canvas = canvas
        self.who = who
        self.mood = mood
        self.pose = pose
        self.light = light
        self.rng = rng
        self.chart, self.relief = skin.chart(who, mood, pose, light)
        self.outline = pose.place(face_outline(who))
        self.cover = canvas.cover(self.outline)
        self.small = pose.scale < 14
        """Too small for what is thinner than a pixel."""

    def skin(self, patch: Patch) -> Array:
        """The lit skin's colours in the window of a patch."""
        return self.pose.look_up(patch, self.chart, self.relief, skin.PER_UNIT)

    def shape(self, points: Points, lift: float = 0.0, soft: float = 0.0) -> Patch:
        """What a shape covers of the face; `points`, `lift` and `soft` are in head units."""
        shape = self.canvas.cover(self.pose.place(points, lift), soft=soft * self.pose.scale)
        return shape.within(self.cover)

    def ear(self, side: float) -> Patch:
        """Paint the ear on the picture's left (side −1) or right (1); gives what it covers."""
        who = self.who
        x, y, size = side * who.cheek_width * 1.02, who.eye_y + 0.14, 0.26 * who.ear
        rim = np.array(
            [
                (x - side * 0.05, y - size * 0.9, 0.15),
                (x + side * 0.10, y - size, 0.0),
                (x + side * 0.17, y - size * 0.4, -0.05),
                (x + side * 0.10, y + size * 0.5, 0.0),
                (x + side * 0.01, y + size, 0.12),
                (x - side * 0.06, y + size * 0.7, 0.2),
            ]
        )
        patch = self.canvas.cover(self.pose.place(smooth(rim)))
        facing = 0.8 + 0.25 * side * self.light.towards[0]
        tone = np.array(who.skin) * (self.light.ambient + 0.75 * self.light.key) * facing
        self.canvas.paint(patch, (tone * (1.0, 0.9, 0.88)).astype(np.float32))
        middle = np.array([x + side * 0.05, y, 0.0])
        hollow = self.canvas.cover(
            self.pose.place(smooth((rim - middle) * (0.6, 0.6, 1) + middle)),
            soft=0.02 * self.pose.scale + 0.3,
        )
        self.canvas.darken(hollow.within(patch), 0.3)
        return patch

    def head(self) -> Patch:
        """Paint the skull and the face's skin; gives what both cover together."""
        around = np.concatenate([self.pose.place(skull_outline(self.who)), self.outline])
        hull = cv2.convexHull(around.astype(np.float32))[:, 0].astype(np.float64)
        whole = self.canvas.cover(hull)
        for patch in (whole, self.cover):
            if patch.alpha.size:
                self.canvas.paint(patch, self.skin(patch))
        return whole

    def features(self) -> tuple[Points, Points]:
        """Paint all that is on the skin; gives the mouth's corners as `mouth` does."""
        self.marks()
        for side in (-1.0, 1.0):
            self.eye(side)
        self.nose()
        corners = self.mouth()
        self.beard()
        for side in (-1.0, 1.0):
            self.brow(side)
        return corners

    def marks(self) -> None:
        """Paint freckles and moles."""
        who = self.who
        if who.freckles and not self.small:
            spots = np.random.default_rng([13, who.number])  # freckles stay where they are
            for x, y in spots.normal((0, 0.08), (0.33, 0.14), (int(40 * who.freckles), 2)):
                radius = spots.uniform(0.006, 0.014)
                spot = self.shape(ellipse((x, y), (radius, radius), 8))
                self.canvas.paint(spot.times(0.5), dimmed(who.skin, 0.62))
        for mole in who.moles:
            spot = self.shape(ellipse((mole.x, mole.y), (mole.radius, mole.radius), 12))
            self.canvas.paint(spot.times(0.85), dimmed(who.skin, 0.36))

    def eye(self, side: float) -> None:
        """Paint the eye on the picture's left (side −1) or right (1)."""
        who, mood, canvas = self.who, self.mood, self.canvas
        w = who.eye_width
        h = w * who.eye_open * (0.12 + 0.88 * mood.eyes_open)
        turn = np.deg2rad(who.eye_slant)
        slant = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        base = np.array([side * who.eye_x, who.eye_y])
        lift = -0.05

        def local(points: Points) -> Points:
            """From x outwards and y down, about the eye's centre, to head units."""
            placed: Points = (points @ slant) * (side, 1.0) + base
            return placed

        socket = self.shape(
            ellipse((base[0] * 0.97, base[1] - 0.06), (1.35 * w, 0.15)), lift, soft=0.07
        )
        canvas.darken(socket, 0.22)

        upper = np.array(
            [(-1.08, 0.3), (-0.7, -0.55), (-0.1, -1.0), (0.45, -0.9), (0.85, -0.3), (1.05, 0.15)]
        ) * (w, h)
        lower = np.array([(0.6, 0.62), (0.0, 0.85), (-0.6, 0.7)]) * (w, h)
        almond = self.shape(local(smooth(np.concatenate([upper, lower]))), lift)
        lit = min(1.0, self.light.ambient + 0.8 * self.light.key)
        canvas.paint(almond, (0.86 * lit, 0.83 * lit, 0.81 * lit))
        for corner in (-1.0, 0.95):
            edge = local(ellipse((corner * w, 0.1 * h), (0.35 * w, 0.9 * h), 12))
            canvas.darken(self.shape(edge, lift, soft=0.03).within(almond), 0.35)

        x = float(base[0] + 0.3 * mood.gaze_x * w)
        y = float(base[1] + 0.2 * mood.gaze_y * w - 0.2 * h)
        radius = 0.50 * w
        for size, colour in (
            (1.0, dimmed(who.iris, 0.45)),
            (0.86, who.iris),
            (0.45, (0.02, 0.02, 0.02)),
        ):
            disc = self.shape(ellipse((x, y), (size * radius, size * radius), 24), lift)
            canvas.paint(disc.within(almond), dimmed(colour, lit))
        lamp = self.light.towards
        glint = ellipse((x + 0.4 * radius * lamp[0], y + 0.4 * radius * lamp[1]), (0.02, 0.02), 10)
        canvas.paint(self.shape(glint, lift).within(almond).times(0.85), (1.0, 1.0, 1.0))
        shadow = self.shape(local(moved(upper, 0, 0.4 * h)), lift, soft=0.02)
        canvas.darken(shadow.within(almond), 0.4)

        dark = dimmed(who.skin, 0.22)
        line = smooth_open(upper)
        lash = self.shape(local(ribbon(line, taper(len(line), 0.018, 0.034))), lift)
        canvas.paint(lash.times(0.9), dark)
        if self.small:
            return
        rim = smooth_open(np.concatenate([upper[-1:], lower, upper[:1]]))
        canvas.darken(self.shape(local(ribbon(rim, taper(len(rim), 0.016, 0.016))), lift), 0.25)
        if who.lid_fold:
            fold = moved(line * (1.06, 1.0), 0, -0.03 - 0.05 * who.lid_fold)
            patch = self.shape(local(ribbon(fold, taper(len(fold), 0.004, 0.022))), lift, 0.006)
            canvas.darken(patch, 0.3)
        bag = smooth_open(moved(lower[::-1] * (1.2, 1.0), 0, 0.07))
        canvas.darken(
            self.shape(local(ribbon(bag, taper(len(bag), 0.0, 0.03))), lift, 0.012),
            0.08 + 0.2 * who.age,
        )

    def brow(self, side: float) -> None:
        """Paint an eyebrow."""
        who, mood = self.who, self.mood
        y = who.eye_y - who.brow_y - 0.07 * mood.brows_up
        x = who.eye_x - who.brow_long + 0.04 + who.brow_gap
        length = 2 * who.brow_long
        spine = np.array(
            [
                (x, y + 0.005),
                (x + 0.35 * length, y - 0.6 * who.brow_arch - 0.4 * who.brow_slant),
                (x + 0.68 * length, y - who.brow_arch - 0.7 * who.brow_slant),
                (x + length, y - who.brow_slant + 0.035),
            ]
        )
        line = smooth_open(spine)
        widths = who.brow_thick * np.interp(
            np.linspace(0, 1, len(line)), [0, 0.15, 0.6, 1], [0.55, 1, 0.85, 0.12]
        )
        soft = 0.008 if self.pose.scale > 40 else 0.0
        patch = self.shape(ribbon(line, widths) * (side, 1.0), 0.03, soft)
        if patch.alpha.size == 0:
            return
        hair = np.array(who.hair) * 0.75
        if hair.mean() > 0.45:
            hair = 0.55 * hair + 0.25 * np.array(who.skin)
        strands = self._strands(patch, 60.0 * side)
        tone = hair * (self.light.ambient + 0.7 * self.light.key)
        self.canvas.paint(
            patch.times(np.clip(0.82 + 0.22 * strands, 0, 1)), tone.astype(np.float32)
        )

    def nose(self) -> None:
        """Paint nostrils, the nose's lower edge and its wings' creases."""
        who, canvas = self.who, self.canvas
        tip = 0.16 * who.nose_tip
        under = np.array(
            [(-0.8, -0.02), (-0.4, 0.015), (0, 0.035), (0.4, 0.015), (0.8, -0.02), (0, 0.085)]
        ) * (who.nose_width, 1.0)
        canvas.darken(
            self.shape(smooth(moved(under, 0, who.nose_y)), 0.4 * tip, 0.03),
            0.38,
        )
        for side in (-1.0, 1.0):
            hole = ellipse(
                (side * 0.45 * who.nose_width, who.nose_y - 0.005),
                (0.24 * who.nose_width, 0.024),
                16,
            )
            patch = self.shape(hole, 0.6 * tip, soft=0.008)
            canvas.paint(patch.times(0.8), dimmed(who.skin, 0.25))
            wing = np.array([(0.80, -0.13), (1.0, -0.09), (1.04, -0.03), (0.9, 0.01)])
            line = smooth_open(moved(wing * (side * who.nose_width, 1), 0, who.nose_y))
            crease = self.shape(ribbon(line, taper(len(line), 0.0, 0.022)), 0.05, 0.008)
            canvas.darken(crease, 0.32)

    def mouth(self) -> tuple[Points, Points]:
        """Paint the mouth; gives its corners in head units, the picture's left first."""
        who, mood, canvas = self.who, self.mood, self.canvas
        w = who.mouth_width * (1 + 0.16 * mood.smile)
        up = 0.075 * mood.smile
        gap = 0.20 * mood.mouth_open
        y = who.mouth_y
        lift = 0.05

        def curve(x: NDArray[np.float64]) -> NDArray[np.float64]:
            """Where the lips meet, at x from −1 to 1."""
            return y + up * 0.35 - up * 1.35 * x**2 + 0.012 * (1 - np.abs(x))

        x = np.linspace(-1, 1, 13)
        seam = np.column_stack([x * w, curve(x)])
        inside = np.sqrt(np.maximum(1 - x**2, 0))
        dip = 1 - 0.35 * who.cupid * np.exp(-((x / 0.16) ** 2))
        peak = np.maximum(1 - np.abs(x) ** 1.6, 0) * dip
        top = seam - np.column_stack([0 * x, who.upper_lip * peak + 0.25 * gap * inside])
        top_edge = seam - np.column_stack([0 * x, 0.25 * gap * inside])
        bottom_edge = seam + np.column_stack([0 * x, 0.75 * gap * inside])
        bottom = bottom_edge + np.column_stack([0 * x, who.lower_lip * inside**1.3])

        shade = self.light.ambient + 0.75 * self.light.key
        lip = np.array(who.lip) * shade
        under = self.shape(
            ellipse((0, float(bottom[6, 1]) + 0.035), (0.5 * w, 0.03), 20), 0.0, soft=0.03
        )
        canvas.darken(under, 0.28)
        if gap > 0.01:
            opening = self.shape(np.concatenate([top_edge, bottom_edge[::-1]]), lift)
            canvas.paint(opening, (0.17 * shade, 0.05 * shade, 0.05 * shade))
            teeth = np.concatenate(
                [top_edge[1:-1], moved(top_edge[1:-1], 0, min(0.055, 0.6 * gap))[::-1]]
            )
            canvas.paint(
                self.shape(teeth, lift, soft=0.008).within(opening).times(0.9),
                (0.80 * shade, 0.76 * shade, 0.70 * shade),
            )
        lower = self.shape(np.concatenate([bottom_edge, bottom[::-1]]), lift, soft=0.004)
        canvas.paint(lower.times(0.85), lip.astype(np.float32))
        upper = self.shape(np.concatenate([top, top_edge[::-1]]), lift, soft=0.004)
        canvas.paint(upper.times(0.85), (lip * 0.80).astype(np.float32))
        shine = ellipse((0, float(bottom_edge[6, 1]) + 0.5 * who.lower_lip), (0.35 * w, 0.018), 16)
        canvas.darken(self.shape(shine, lift, soft=0.015).within(lower), -0.22)
        if gap <= 0.01:
            line = self.shape(ribbon(seam, taper(len(seam), 0.012, 0.028)), lift, soft=0.004)
            canvas.paint(line.times(0.8), (lip * 0.35).astype(np.float32))
        for side in (-1.0, 1.0):
            corner = ellipse((side * w, float(seam[0, 1])), (0.03, 0.02), 10)
            canvas.darken(self.shape(corner, lift, soft=0.012), 0.3)
        return seam[:1], seam[-1:]

    def beard(self) -> None:
        """Paint the beard, which counts as part of the face."""
        who, m = self.who, self.who.mouth_y
        if who.beard == "none":
            return
        w = who.cheek_width
        jaw = mirrored(
            [
                (0.0, m + 0.16),
                (0.22, m + 0.14),
                (who.mouth_width + 0.05, m + 0.02),
                (who.mouth_width + 0.06, m - 0.08),
                (0.62 * w, who.nose_y - 0.02),
                (0.92 * w, 0.0),
                (1.05 * w, 0.05),
                (1.05 * w, 0.5),
                (0.85 * w, 0.9),
                (0.0, 1.1),
            ]
        )
        lift = 0.05 * self.mood.mouth_open
        lip_y = (who.nose_y + m - lift) / 2
        moustache = mirrored(
            [
                (0.0, lip_y - 0.055),
                (0.6 * who.mouth_width, lip_y - 0.04),
                (who.mouth_width + 0.06, m - 0.01),
                (who.mouth_width + 0.04, m + 0.05),
                (0.6 * who.mouth_width, m - 0.045 - lift),
                (0.0, m - who.upper_lip - 0.005 - lift),
            ]
        )
        goatee = smooth(
            mirrored([(0.0, m + 0.14), (0.16, m + 0.13), (0.24, 0.85), (0.15, 1.02), (0.0, 1.05)])
        )
        shapes = {
            "stubble": [jaw, moustache],
            "moustache": [moustache],
            "goatee": [moustache, goatee],
            "full": [jaw, moustache],
        }[who.beard]
        dense = 0.35 if who.beard == "stubble" else 0.92
        for points in shapes:
            patch = self.shape(points, 0.03, soft=0.022)
            if patch.alpha.size == 0:
                continue
            strands = self._strands(patch, 0.0)
            under = self.canvas.pixels[patch.rows, patch.columns].mean(axis=2, keepdims=True)
            bright = 0.6 + 0.4 * under / max(1e-3, float(np.mean(who.skin)))
            colour = np.array(who.hair, np.float32) * bright * (1 + 0.22 * strands[..., None])
            self.canvas.paint(
                patch.times(np.clip(dense + 0.15 * strands, 0, 1)), np.clip(colour, 0, 1)
            )

    def landmarks(self, corners: tuple[Points, Points]) -> Landmarks:
        """The five landmarks in pixels, as they were painted."""
        who = self.who
        left, right = (
            self.pose.place(np.array([(side * who.eye_x, who.eye_y)]), -0.05) for side in (-1, 1)
        )
        tip_lift = 0.06 + 0.08 * who.nose_bridge + 0.16 * who.nose_tip
        tip = self.pose.place(np.array([(0.0, who.nose_y - 0.09)]), tip_lift)
        mouth = [self.pose.place(corner, 0.05) for corner in corners]
        a, b, c, d, e = (
            (float(p[0, 0]), float(p[0, 1])) for p in (left, right, tip, mouth[0], mouth[1])
        )
        return a, b, c, d, e

    def _strands(self, patch: Patch, angle: float) -> Array:
        zoom = max(0.25, self.pose.scale / 70)
        return noise(
            "strands", patch.alpha.shape[:2], self.rng, angle=angle + self.pose.tilt, zoom=zoom
        )
