"""The bytes of an exported image and its mask. Whatever a trainer would misread is mended here."""

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage

from lora_prep import imageio
from lora_prep.errors import ItemError
from lora_prep.imageio.decode import Header, open_image
from lora_prep.types import Image, Mask

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""What all seven trainers read, by ending in lower case."""


def is_plain(header: Header, suffix: str) -> bool:
    """Whether every trainer reads the file alike: upright, 8 bits, RGB, sRGB, of its name's format.

    diffusion-pipe, kohya and musubi-tuner do not apply EXIF orientation, no trainer applies ICC
    profiles, and what becomes of alpha differs.
    """
    return (
        FORMATS.get(suffix.lower()) == header.format
        and (header.mode, header.bits, header.orientation) == ("RGB", 8, 1)
        and not header.icc
        and not header.animated
    )


def plain_image(data: bytes, suffix: str, *, png: bool = False) -> tuple[bytes | None, str]:
    """The image as every trainer reads it, and its ending; None: the file is that already.

    `png`: it has to be a PNG file. Raises ItemError where the image cannot be read to its end.
    """
    header = imageio.read_header(data)
    if is_plain(header, suffix) and not (png and header.format != "PNG"):
        imageio.decode_image(data)  # raises where it is damaged
        return None, suffix.lower()
    wanted = ".png" if png or suffix.lower() not in FORMATS else suffix.lower()
    return imageio.normalized(data, wanted), wanted


def training_mask(data: bytes, image: bytes, floor: float) -> Mask:
    """The mask as weights, black lifted to `floor` (0 to 1).

    Raises ItemError where it is not of the image's size, or would not do what it says.
    """
    picture, _ = open_image(data)
    mask = imageio.decode_mask(data)
    header = imageio.read_header(image)
    height, width = mask.shape
    if (width, height) != (header.width, header.height):
        raise ItemError(
            f"the mask is {width}×{height}, the image {header.width}×{header.height}: make it "
            "again (`lora-prep masks --force`)",
            code="mask-size",
        )
    low, high = int(mask.min()), int(mask.max())
    if low == high and "A" in picture.getbands():
        picture.load()
        if len(set(picture.getchannel("A").getextrema())) == 2:
            raise ItemError(
                "the mask's shape is in its alpha channel, which trainers ignore: save it as grey",
                code="mask-alpha",
            )
    if 0 < high <= 1:
        raise ItemError(
            "the mask holds 0 and 1 instead of 0 and 255: it would weigh 0.004", code="mask-dark"
        )
    if high == 0 and floor == 0:
        raise ItemError(
            "the mask is black: nothing of the image is learned, and ai-toolkit's loss becomes NaN",
            code="mask-black",
        )
    return lifted(mask, floor)


def lifted(mask: Mask, floor: float) -> Mask:
    """0 becomes `floor`·255, 255 stays."""
    if floor == 0:
        return mask
    return np.round(255 * floor + mask.astype(np.float32) * (1 - floor)).astype(np.uint8)


def enlarged(pixels: UInt8[np.ndarray, "..."], size: tuple[int, int]) -> UInt8[np.ndarray, "..."]:
    """An image or a mask scaled to a width and a height."""
    lanczos = PillowImage.Resampling.LANCZOS
    return np.array(PillowImage.fromarray(pixels).resize(size, lanczos))


def with_alpha(image: Image, mask: Mask) -> bytes:
    """A PNG with the mask as alpha; the colours stay below alpha 0, too."""
    done, data = cv2.imencode(".png", np.dstack([image[:, :, ::-1], mask]))
    if not done:
        raise ItemError(f"a PNG of {image.shape} cannot be encoded", code="too-large")
    return data.tobytes()
