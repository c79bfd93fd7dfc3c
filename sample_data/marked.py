"""Pictures whose masks are drawn into them in a colour that nothing else in them has.

Whatever becomes of such a picture and its mask, the colour says where the mask has to be: by
`marker`, which relighting, blurring and resampling do not mislead.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage

from lora_prep import imageio
from lora_prep.types import BoolMask, Image

COLOUR = (40, 200, 60)
ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Marked:
    """A picture, and the mask that is drawn into it."""

    image: Image
    mask: BoolMask


def draw_marked(seed: int, size: tuple[int, int] = (400, 520)) -> Marked:
    """A grey picture of soft clouds with a lopsided green shape in its middle.

    Args:
        seed: another one, another picture.
        size: height and width in pixels. The shape is about two fifths of the shorter one across,
            so that a border which mirrors the picture does not mirror the shape into it.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    clouds = rng.uniform(60, 190, (6, 6)).astype(np.float32)
    grey = cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
    grey = np.clip(grey + rng.normal(0, 2, grey.shape), 30, 220)
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    phases = rng.uniform(0, 2 * np.pi, 2)
    radius = (
        0.2
        * min(size)
        * (1 + 0.1 * np.sin(2 * angles + phases[0]) + 0.07 * np.sin(3 * angles + phases[1]))
    )
    centre = np.array([width, height]) * rng.uniform(0.48, 0.52, 2)
    outline = centre + radius[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
    inside = np.zeros(size, np.uint8)
    cv2.fillPoly(inside, [np.round(outline).astype(np.int32)], 1)
    image = np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)
    image[inside > 0] = COLOUR
    return Marked(image, inside.astype(bool))


def marker(image: Image) -> BoolMask:
    """Where a picture has the colour.

    By the difference of the largest and the smallest channel: greys stay at 0 under any change of
    light, and a pixel that is partly colour has that part of it.
    """
    red, green, blue = (np.ascontiguousarray(image[:, :, i]) for i in range(3))
    highest = np.maximum(np.maximum(red, green), blue)  # quicker than max(axis=2)
    chroma = highest.astype(int) - np.minimum(np.minimum(red, green), blue)
    strong = chroma[chroma > chroma.max() / 2]
    return np.asarray(chroma > np.median(strong) / 2) if len(strong) else chroma < 0


def write_marked(out: Path, count: int, size: tuple[int, int] = (400, 520)) -> None:
    """Write OUT/photos, every second picture lying on its side as cameras store it, and OUT/masks.

    Masks fit the upright pictures, as `lora-prep normalize` makes them.
    """
    for folder in ("photos", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        marked = draw_marked(seed, size)
        (out / "photos" / f"marked{seed:02}.png").write_bytes(_photo(marked.image, seed % 2 == 1))
        mask = marked.mask.astype(np.uint8) * np.uint8(255)
        (out / "masks" / f"marked{seed:02}.png").write_bytes(imageio.encode_mask(mask))


def _photo(image: Image, sideways: bool) -> bytes:
    picture, exif, data = PillowImage.fromarray(image), PillowImage.Exif(), io.BytesIO()
    if sideways:
        exif[ORIENTATION] = 6
        picture = picture.transpose(PillowImage.Transpose.ROTATE_90)
    picture.save(data, "PNG", exif=exif)
    return data.getvalue()
