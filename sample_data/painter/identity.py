"""Who somebody is: everything about a face that stays the same from picture to picture.

Lengths are in head units: the face from hairline to chin is 2 units high, y = −1 at the hairline
and y = 1 at the chin, x = 0 in the middle.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sample_data.painter.curves import Points, mirrored, smooth

HairStyle: TypeAlias = Literal[
    "bald", "receding", "buzz", "short", "parted", "fringe", "curly", "bob", "long", "bun"
]
BeardStyle: TypeAlias = Literal["none", "stubble", "moustache", "goatee", "full"]
Colour: TypeAlias = tuple[float, float, float]

SKIN = np.array(
    [
        (0.98, 0.87, 0.79),
        (0.95, 0.80, 0.69),
        (0.89, 0.69, 0.55),
        (0.79, 0.57, 0.42),
        (0.65, 0.44, 0.31),
        (0.50, 0.33, 0.23),
        (0.38, 0.25, 0.18),
    ]
)
HAIR = np.array(
    [
        (0.07, 0.06, 0.06),
        (0.16, 0.10, 0.07),
        (0.30, 0.19, 0.11),
        (0.46, 0.30, 0.16),
        (0.72, 0.56, 0.33),
        (0.86, 0.74, 0.50),
        (0.55, 0.24, 0.11),
        (0.62, 0.61, 0.60),
        (0.85, 0.84, 0.82),
    ]
)
HAIR_WEIGHTS = np.array([0.22, 0.2, 0.16, 0.1, 0.08, 0.06, 0.07, 0.07, 0.04])
IRIS = np.array(
    [
        (0.20, 0.12, 0.08),
        (0.33, 0.20, 0.10),
        (0.35, 0.50, 0.62),
        (0.33, 0.45, 0.30),
        (0.45, 0.47, 0.48),
    ]
)
IRIS_WEIGHTS = np.array([0.34, 0.24, 0.2, 0.12, 0.1])


@dataclass(frozen=True, slots=True)
class Mole:
    """A dark spot on the skin."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Identity:
    """The lasting traits of one person."""

    number: int
    skin: Colour
    blush: float
    freckles: float
    moles: tuple[Mole, ...]
    age: float
    """0 young to 1 old: creases and slackness."""
    cheek_width: float
    """Half the width of the face at the cheekbones."""
    temple: float
    """Width at the temples, as a part of the cheekbones'."""
    jaw: float
    """Width at the corners of the jaw, as a part of the cheekbones'."""
    chin: float
    """Width of the chin, as a part of the cheekbones'."""
    ear: float
    eye_y: float
    eye_x: float
    """Half the distance of the eyes' centres."""
    eye_width: float
    """Half the width of an eye."""
    eye_open: float
    """Half its height, as a part of half its width."""
    eye_slant: float
    """Degrees by which the outer corner is raised."""
    iris: Colour
    lid_fold: float
    """Height of the crease above the eye; 0 for none."""
    brow_y: float
    """Distance of the eyebrow above the eye."""
    brow_thick: float
    brow_arch: float
    brow_slant: float
    brow_long: float
    brow_gap: float
    nose_y: float
    nose_width: float
    nose_bridge: float
    nose_tip: float
    mouth_y: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    cupid: float
    lip: Colour
    hair: Colour
    hair_style: HairStyle
    hair_volume: float
    hairline: float
    parting: float
    beard: BeardStyle
    wears_glasses: bool


def dimmed(colour: Colour, factor: float) -> Colour:
    """The colour with less light on it."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _colour(values: NDArray[np.float64]) -> Colour:
    r, g, b = (float(v) for v in np.clip(values, 0.02, 1.0))
    return r, g, b


def make_identity(number: int) -> Identity:
    """The person with this number (not negative): the same one always."""
    rng = np.random.default_rng([7919, number])

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    tone = between(0, len(SKIN) - 1.01)
    low = int(tone)
    skin = SKIN[low] + (tone - low) * (SKIN[low + 1] - SKIN[low])
    skin = skin + np.array([0.02, 0.0, -0.02]) * between(-1, 1) + between(-0.02, 0.02)

    natural = 1.0 if tone < 2.5 else 0.0  # darker skin mostly comes with dark hair
    weights = HAIR_WEIGHTS * np.where(np.arange(len(HAIR)) < 3, 1.0, max(natural, 0.12))
    hair = HAIR[rng.choice(len(HAIR), p=weights / weights.sum())] + rng.uniform(-0.04, 0.04, 3)
    if rng.random() < 0.015:
        hair = rng.uniform(0.15, 0.8, 3)
    iris_weights = IRIS_WEIGHTS * np.where(np.arange(len(IRIS)) < 2, 1.0, max(natural, 0.08))
    iris = IRIS[rng.choice(len(IRIS), p=iris_weights / iris_weights.sum())]

    styles: tuple[HairStyle, ...] = (
        "bald",
        "receding",
        "buzz",
        "short",
        "parted",
        "fringe",
        "curly",
        "bob",
        "long",
        "bun",
    )
    style = styles[
        rng.choice(len(styles), p=[0.06, 0.07, 0.09, 0.16, 0.14, 0.12, 0.1, 0.08, 0.12, 0.06])
    ]
    beard: BeardStyle = "none"
    if style not in ("bob", "long", "bun") and rng.random() < 0.5:
        beards: tuple[BeardStyle, ...] = ("stubble", "moustache", "goatee", "full")
        beard = beards[rng.choice(4, p=[0.3, 0.15, 0.2, 0.35])]

    eye_y = between(-0.27, -0.13)
    nose_y = between(0.24, 0.40)
    mouth_y = nose_y + between(0.22, 0.31)
    mole_count = int(rng.choice(4, p=[0.45, 0.3, 0.15, 0.1]))
    return Identity(
        number=number,
        skin=_colour(skin),
        blush=between(0, 1),
        freckles=between(0.3, 1) if natural and rng.random() < 0.2 else 0.0,
        moles=tuple(
            Mole(between(-0.55, 0.55), between(-0.75, 0.8), between(0.015, 0.04))
            for _ in range(mole_count)
        ),
        age=between(0, 1) ** 1.5,
        cheek_width=between(0.68, 0.84),
        temple=between(0.82, 0.98),
        jaw=between(0.70, 0.95),
        chin=between(0.24, 0.50),
        ear=between(0.8, 1.25),
        eye_y=eye_y,
        eye_x=between(0.29, 0.39),
        eye_width=between(0.125, 0.175),
        eye_open=between(0.34, 0.52),
        eye_slant=between(-7, 12),
        iris=_colour(iris * between(0.8, 1.2)),
        lid_fold=between(0.25, 1) if rng.random() < 0.75 else 0.0,
        brow_y=between(0.17, 0.29),
        brow_thick=between(0.035, 0.10),
        brow_arch=between(0.0, 0.09),
        brow_slant=between(-0.07, 0.04),
        brow_long=between(0.20, 0.29),
        brow_gap=between(-0.03, 0.06),
        nose_y=nose_y,
        nose_width=between(0.13, 0.235),
        nose_bridge=between(0.4, 1.0),
        nose_tip=between(0.5, 1.0),
        mouth_y=mouth_y,
        mouth_width=between(0.21, 0.34),
        upper_lip=between(0.03, 0.085),
        lower_lip=between(0.045, 0.11),
        cupid=between(0, 1),
        lip=_colour(
            skin * np.array([0.88, 0.62, 0.62]) + np.array([0.06, -0.02, 0.0]) * between(-0.3, 1.5)
        ),
        hair=_colour(hair),
        hair_style=style,
        hair_volume=between(0.5, 1.3),
        hairline=between(-0.06, 0.06),
        parting=between(-0.5, 0.5),
        beard=beard,
        wears_glasses=bool(rng.random() < 0.2),
    )


def face_outline(who: Identity) -> Points:
    """The face from hairline to chin and from ear to ear, in head units (N, 3)."""
    w = who.cheek_width
    return smooth(
        mirrored(
            [
                (0.0, -1.0, 0.78),
                (0.42 * w, -0.97, 0.72),
                (0.78 * who.temple * w, -0.78, 0.55),
                (who.temple * w, -0.42, 0.38),
                (w, 0.0, 0.30),
                (0.5 * (1 + who.jaw) * w, 0.35, 0.30),
                (who.jaw * w * 0.93, 0.62, 0.32),
                ((0.45 * who.jaw + 0.62 * who.chin) * w, 0.84, 0.48),
                (who.chin * w * 0.62, 0.965, 0.66),
                (0.0, 1.0, 0.72),
            ]
        )
    )


def skull_outline(who: Identity) -> Points:
    """The head without ears and hair, in head units (N, 3)."""
    w = who.cheek_width
    return smooth(
        mirrored(
            [
                (0.0, -1.46, 0.0),
                (0.52 * w, -1.38, 0.0),
                (0.90 * w, -1.08, 0.0),
                (1.04 * w, -0.62, 0.0),
                (1.03 * w, -0.15, 0.05),
                (0.5 * (1 + who.jaw) * w, 0.32, 0.2),
                (who.jaw * w * 0.9, 0.58, 0.28),
                ((0.45 * who.jaw + 0.6 * who.chin) * w, 0.8, 0.45),
                (0.0, 0.95, 0.7),
            ]
        )
    )
