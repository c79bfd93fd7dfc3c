"""Reading, cutting and shrinking pictures the way trainers do it: mostly, with Pillow."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import cv2
import numpy as np
from jaxtyping import Float
from PIL import Image as PillowImage
from PIL import ImageOps

from lora_prep.errors import ItemError
from lora_prep.imageio.decode import open_image
from lora_prep.trainers.view import Seen, Weights

Picture = PillowImage.Image
Size = tuple[int, int]
"""Width and height, as in Pillow."""

LATENT = 8
"""Pixels to an element of the latents, in each direction."""

MISPLACED = 0.95
"""A mask that agrees less with where it belongs is a problem; below NEARLY it is a note."""
NEARLY = 0.99

ORIENTATION = 0x0112
_BACK = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_90,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_270,
}
"""What lays an upright picture down as it is stored, by EXIF orientation."""


def read(path: Path) -> Picture:
    """A picture as stored, decoded; Pillow turns TIFFs upright by itself. Raises ItemError."""
    try:
        image, _ = open_image(path.read_bytes())
    except OSError as error:
        raise ItemError(f"cannot read {path.name}: {error.strerror}", code="unreadable") from error
    try:
        image.load()
    except Exception as error:  # Pillow documents none of what it raises for damaged files
        raise ItemError(f"{path.name} is damaged or cut off", code="unreadable") from error
    return image


def orientation(picture: Picture) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or an invalid one."""
    value = picture.getexif().get(ORIENTATION)
    return int(value) if value in _BACK else 1


def upright(picture: Picture) -> Picture:
    """With the EXIF orientation applied."""
    return ImageOps.exif_transpose(picture)


def laid_down(picture: Picture, turned: int) -> Picture:
    """An upright picture as one with that EXIF orientation is stored."""
    return picture.transpose(_BACK[turned]) if turned != 1 else picture


def marks(path: Path) -> Picture:
    """What a mask file means to say, mode L, upright, white where it marks: not what is read of it.

    Alpha counts where nothing else varies, and values are stretched to white: 16 bits, 0 and 1.
    Raises ItemError.
    """
    picture = upright(read(path))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        full = picture.convert("RGBA")
        opaque, alpha = full.getchannel("R"), full.getchannel("A")
        flat = opaque.getextrema()[0] == opaque.getextrema()[1]
        picture = alpha if flat else opaque
    elif picture.mode not in ("L", "1") and not picture.mode.startswith(("I", "F")):
        picture = picture.convert("RGB").getchannel("R")
    values = np.asarray(picture, np.float32)
    top = float(values.max())
    stretched = values * (255 / top) if top > 0 else values
    return PillowImage.fromarray(np.rint(stretched).astype(np.uint8))


@dataclass(frozen=True, slots=True)
class Fit:
    """Image pixels to bucket pixels: scale, then cut."""

    scaled: Size
    left: int
    top: int
    size: Size

    def __call__(self, picture: Picture, resize: Callable[[Picture, Size], Picture]) -> Picture:
        """The picture in its bucket."""
        if picture.size != self.scaled:
            picture = resize(picture, self.scaled)
        width, height = self.size
        return picture.crop((self.left, self.top, self.left + width, self.top + height))


def middle(scaled: Size, size: Size) -> Fit:
    """Cut from the middle."""
    return Fit(scaled, (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2, size)


def bicubic(picture: Picture, size: Size) -> Picture:
    """Pillow's, which averages when it makes smaller."""
    return picture.resize(size, PillowImage.Resampling.BICUBIC)


def bilinear(picture: Picture, size: Size) -> Picture:
    """Pillow's, which averages when it makes smaller; torchvision's with antialias."""
    return picture.resize(size, PillowImage.Resampling.BILINEAR)


def lanczos(picture: Picture, size: Size) -> Picture:
    """Pillow's."""
    return picture.resize(size, PillowImage.Resampling.LANCZOS)


def area_or_lanczos(picture: Picture, size: Size) -> Picture:
    """kohya's: OpenCV's area averages if neither side grows, otherwise Pillow's Lanczos."""
    if picture.width < size[0] or picture.height < size[1]:
        return lanczos(picture, size)
    pixels = cv2.resize(np.asarray(picture), size, interpolation=cv2.INTER_AREA)
    return PillowImage.fromarray(pixels)


def unit(picture: Picture) -> Float[np.ndarray, "h w"]:
    """Mode L as float32 from 0 to 1."""
    return np.asarray(picture, np.float32) / np.float32(255)


Shrink = Literal["nearest-exact", "nearest", "area", "bilinear"]


def to_latents(mask: Float[np.ndarray, "H W"], how: Shrink) -> Weights:
    """A mask of bucket size at 1/8, as torch's `interpolate` of that name (bilinear: antialiased).

    float32; the sides are taken for multiples of 8, what is over is cut off.
    """
    height, width = mask.shape[0] // LATENT, mask.shape[1] // LATENT
    mask = np.ascontiguousarray(mask[: height * LATENT, : width * LATENT], np.float32)
    match how:
        case "nearest-exact":
            weights = mask[LATENT // 2 :: LATENT, LATENT // 2 :: LATENT]
        case "nearest":
            weights = mask[::LATENT, ::LATENT]
        case "area":
            weights = mask.reshape(height, LATENT, width, LATENT).mean((1, 3))
        case "bilinear":
            small = bilinear(PillowImage.fromarray(mask), (width, height))
            weights = np.asarray(small)
        case _:
            assert_never(how)
    return np.ascontiguousarray(weights, np.float32)


def iou(a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"]) -> float | None:
    """Intersection over union of where each is at least a half; None where b is nowhere."""
    first, second = a >= 0.5, b >= 0.5
    if not second.any():
        return None
    return float((first & second).sum() / (first | second).sum())


def seen(
    image: Picture,
    aligned: Float[np.ndarray, "H W"],
    weights: Weights,
    *,
    mask_file: Path | None,
    used: bool,
    meant: Float[np.ndarray, "H W"] | None = None,
    scale: float = 1.0,
    notes: tuple[str, ...] = (),
    problem: str = "",
) -> Seen:
    """Put together what became of an image, and measure it.

    `meant` is the mask where it belongs over the image: a mask that lies elsewhere, or says
    something else, becomes a problem.
    """
    share = float(weights.mean())
    inside = agreement = None
    if meant is not None:
        total = float(weights.sum())
        inside = float((weights * to_latents(meant, "area")).sum()) / total if total else None
        agreement = iou(aligned, meant)
    found = list(notes)
    if used and not problem:
        if weights.max() < 0.02:
            problem = (
                "no element of the latents has any weight worth speaking of (at most "
                f"{weights.max():.3f}): next to nothing of this image is learned"
            )
        elif agreement is not None and agreement < MISPLACED:
            problem = f"what it takes for the mask is not what the mask marks (IoU {agreement:.2f})"
    if used and agreement is not None and MISPLACED <= agreement < NEARLY:
        found.append("the mask lies a little off")
    return Seen(
        image=np.array(image.convert("RGB")),
        weights=weights,
        aligned=np.ascontiguousarray(aligned, np.float32),
        mask_file=mask_file,
        used=used,
        share=share,
        inside=inside,
        agreement=agreement,
        meant=meant,
        scale=scale,
        notes=tuple(found),
        problem=problem,
    )


def unmasked(
    image: Picture,
    *,
    note: str = "",
    problem: str = "",
    notes: tuple[str, ...] = (),
    meant: Float[np.ndarray, "H W"] | None = None,
) -> Seen:
    """An image that is trained on as a whole."""
    width, height = image.size
    whole = np.ones((height, width), np.float32)
    return seen(
        image,
        whole,
        np.ones((height // LATENT, width // LATENT), np.float32),
        mask_file=None,
        used=False,
        meant=meant,
        notes=(*((note,) if note else ()), *notes),
        problem=problem,
    )


def stopped(problem: str, *, mask_file: Path | None = None, notes: tuple[str, ...] = ()) -> Seen:
    """An image at which the trainer stops, or that it cannot read."""
    nothing = np.zeros((0, 0), np.float32)
    image = np.zeros((0, 0, 3), np.uint8)
    return Seen(image, nothing, nothing, mask_file, False, 0.0, notes=notes, problem=problem)


def remarks(picture: Picture) -> tuple[str, ...]:
    """What is to be said about a mask's mode, for trainers that read it by Pillow."""
    found = []
    if picture.mode.startswith("I") or picture.mode == "F":
        found.append(f"the mask is of mode {picture.mode}: values above 255 become white")
    elif picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        found.append("the mask has an alpha channel, which is ignored")
    elif picture.mode == "P":
        found.append("the mask has a palette: its colours count, not its labels")
    elif picture.mode == "L" and 0 < np.asarray(picture).max() <= 1:
        found.append("the mask holds 0 and 1 instead of 0 and 255: 1 weighs 0.004")
    return tuple(found)


def rounded(value: float, multiple: int) -> int:
    """To the nearest multiple, at least one."""
    return max(round(value / multiple) * multiple, multiple)


def cover(source: Size, size: Size, whole: Callable[[float], int]) -> Fit:
    """Scale to cover `size` with both sides made whole by `whole`, and cut from the middle."""
    scale = max(size[0] / source[0], size[1] / source[1])
    return middle((whole(source[0] * scale), whole(source[1] * scale)), size)


def half_up(value: float) -> int:
    """kohya's rounding."""
    return int(value + 0.5)


def ceiling(value: float) -> int:
    """ai-toolkit's rounding."""
    return math.ceil(value)
