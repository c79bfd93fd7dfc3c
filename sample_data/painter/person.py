"""One person, painted from the back to the front, and the truth about it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_prep.types import BoolMask, Face
from sample_data.painter.body import paint_clothes, paint_neck
from sample_data.painter.canvas import Canvas, Patch
from sample_data.painter.face import FacePainter
from sample_data.painter.hair import LONG, HairPainter, paint_glasses, paint_hat
from sample_data.painter.identity import Identity
from sample_data.painter.pose import Light, Pose
from sample_data.painter.scene import random_colour
from sample_data.painter.skin import Expression


@dataclass(frozen=True, slots=True)
class Person:
    """One person in a portrait. The masks show what is visible: face ⊂ head ⊂ person."""

    identity: int
    face: Face
    """Box around the face from hairline to chin and from ear to ear, as if nothing hid it, and
    the landmarks where they were painted. Coordinates count from the upper left corner of the
    upper left pixel, so that pixel's centre is (0.5, 0.5)."""
    tilt: float
    """Degrees clockwise."""
    yaw: float
    """Degrees; positive looks to the picture's right."""
    visible: float
    """The part of the face that nobody and nothing in front hides; its own hair does not count."""
    face_mask: BoolMask
    """Skin from hairline to chin with beard and glasses, without ears, hair and hat."""
    head_mask: BoolMask
    """Face, ears, hair, hat and glasses."""
    person_mask: BoolMask
    """Head, neck and clothes."""


def behind(person: Person, front: BoolMask) -> Person:
    """The person with what somebody in front hides taken off the masks."""
    face = person.face_mask & ~front
    return replace(
        person,
        visible=person.visible * float(face.sum() / max(1, person.face_mask.sum())),
        face_mask=face,
        head_mask=person.head_mask & ~front,
        person_mask=person.person_mask & ~front,
    )


def paint_person(
    canvas: Canvas, who: Identity, pose: Pose, light: Light, rng: np.random.Generator
) -> Person:
    """Paint one person over what is there, from the back to the front."""
    style = who.hair_style
    if rng.random() < 0.12 and style not in ("bald", "receding"):
        style = "bun" if style in LONG else "short"
    painter = FacePainter(canvas, who, _mood(rng), pose, light, rng)
    hair = HairPainter(canvas, who, style, pose, light, painter.cover, rng)

    colours = (random_colour(rng), random_colour(rng))
    head = _union(canvas, hair.back())
    body = _union(canvas, paint_clothes(canvas, pose, light, colours, rng))
    body |= _union(canvas, [paint_neck(canvas, who, pose, light, rng)])
    near = -1.0 if pose.yaw > 0 else 1.0  # the side of the ear that the viewer sees more of
    head &= ~body
    head |= _union(canvas, [painter.ear(-near), painter.ear(near), painter.head(), painter.cover])
    corners = painter.features()

    over_face = hair.front()
    if style not in (*LONG, "curly", "bald"):
        over_face.append(painter.ear(near))
    if rng.random() < 0.06:
        over_face.append(paint_hat(canvas, who, pose, light, painter.cover, random_colour(rng)))
    hair_mask = _union(canvas, over_face)
    face = painter.cover.mask(canvas.shape) & ~hair_mask
    head |= hair_mask
    if rng.random() < (0.75 if who.wears_glasses else 0.08):
        head |= _union(
            canvas,
            paint_glasses(
                canvas,
                who,
                pose,
                random_colour(rng, 0.03, 0.45),
                round_lens=bool(rng.random() < 0.5),
                dark=bool(rng.random() < 0.12),
            ),
        )
    (x0, y0), (x1, y1) = painter.outline.min(axis=0), painter.outline.max(axis=0)
    box = (float(x0), float(y0), float(x1), float(y1))
    return Person(
        identity=who.number,
        face=Face(box, 1.0, painter.landmarks(corners)),
        tilt=pose.tilt,
        yaw=pose.yaw,
        visible=1.0,
        face_mask=face,
        head_mask=head,
        person_mask=head | body,
    )


def _union(canvas: Canvas, patches: Sequence[Patch]) -> BoolMask:
    """The pixels of which at least one of the patches covers half or more."""
    mask = np.zeros(canvas.shape, bool)
    for patch in patches:
        mask[patch.rows, patch.columns] |= patch.alpha >= 0.5
    return mask


def _mood(rng: np.random.Generator) -> Expression:
    closed = rng.random() < 0.05
    return Expression(
        smile=float(rng.uniform(-0.35, 1.0)),
        mouth_open=float(rng.uniform(0.2, 1.0)) if rng.random() < 0.35 else 0.0,
        eyes_open=0.0 if closed else float(rng.uniform(0.65, 1.1)),
        brows_up=float(rng.uniform(0, 1) ** 2),
        gaze_x=float(rng.uniform(-1, 1)),
        gaze_y=float(rng.uniform(-0.6, 0.8)),
    )
