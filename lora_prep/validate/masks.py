"""Family M: does every trainer read the same weights from the mask, and are they meant?

Not an issue, because all trainers agree on them: masks of 1 bit, black-and-white palettes, and RGB
files whose pixels are grey. Soft edges are one only for who asks (M015).
"""

from collections.abc import Sequence

from lora_prep.validate.check import Check, Findings, Level, error, warning
from lora_prep.validate.pair import Pair

DIM = 15
"""The highest level that counts as a label rather than a weight: 6 % of full weight."""

NEAR = 16
"""Levels closer than this to 0 or 255 are what compression leaves of them."""

SPECKS = 3

LATENT_CELL = 8 * 8
"""Pixels of the image that become one element of the latents, and so of the mask in training."""


@error(
    "M001",
    "Mask that cannot be read",
    reason="trainers stop at it, most in the middle of the training.",
    fix="make it anew, or copy it again from its source",
)
def unreadable(pair: Pair) -> Findings:
    """Masks are always decoded, and the checksums of PNG compared."""
    mask = pair.mask
    if mask and mask.problem and mask.problem.code != "empty":
        yield mask.path, str(mask.problem)


@error(
    "M002",
    "Mask of another size than the image",
    reason="diffusion-pipe and kohya stop, kohya in the middle of the training; ai-toolkit and "
    "OneTrainer stretch the mask without a word.",
    fix="delete it and make it anew with `lora-prep masks`; turned images: `lora-prep normalize` "
    "first",
)
def wrong_size(pair: Pair) -> Findings:
    """Sizes as displayed, EXIF orientation applied."""
    if not (pair.mask and pair.mask.header and pair.image.header):
        return
    image, mask = pair.image.header, pair.mask.header
    if (mask.width, mask.height) == (image.width, image.height):
        return
    message = f"{mask.width}×{mask.height}, the image is {image.width}×{image.height}"
    if (mask.width, mask.height) == (image.height, image.width):
        exif = f" by EXIF orientation {image.orientation}" if image.orientation >= 5 else ""
        message += f": turned{exif}?"
    yield pair.mask.path, message


@error(
    "M003",
    "Mask of more than 8 bits",
    reason="Pillow turns every value above 255 into white; OneTrainer, which divides by 255, reads "
    "white as a weight of 257.",
    fix="save it as an 8-bit grey PNG",
)
def deep(pair: Pair) -> Findings:
    """16-bit PNG and TIFF, floating point."""
    if pair.mask and pair.mask.header and pair.mask.header.bits > 8:
        yield pair.mask.path, f"{pair.mask.header.bits} bits a pixel"


@error(
    "M004",
    "Mask of labels rather than weights",
    reason="trainers divide by 255: a 1 is a weight of 0.004, so almost nothing is trained.",
    fix="write 255 for what is to be trained, 0 for the rest",
)
def labels(pair: Pair) -> Findings:
    """Values of 0 and 1, or a few small numbers."""
    if pair.mask and 0 < (level := pair.mask.brightest) <= DIM:
        message = f"its brightest pixel is {level} of 255: a weight of {level / 255:.3f}"
        yield pair.mask.path, message


@error(
    "M005",
    "Mask that is black",
    reason="nothing is trained; where it is alone in a batch, ai-toolkit divides by zero and the "
    "loss is NaN.",
    fix="delete it and make it anew with `lora-prep masks`, draw it, or take the image out",
)
def black(pair: Pair) -> Findings:
    """Less white than one element of the latents, which is 8 × 8 pixels."""
    mask = pair.mask
    if mask and mask.brightest == 0:
        yield mask.path, "all of it is black"
    elif mask and mask.brightest > DIM and mask.weight < LATENT_CELL:
        yield mask.path, f"only {mask.weight:.0f} pixels of it are white"


@warning(
    "M006",
    "Mask that is white",
    reason="it masks nothing: the background is learned as much as the face.",
    fix="delete it and make it anew with `lora-prep masks`, unless that is meant",
)
def white(pair: Pair) -> Findings:
    """Every pixel is 255."""
    if pair.mask and pair.mask.counts and not any(pair.mask.counts[:255]):
        yield pair.mask.path, "all of it is white"


@warning(
    "M007",
    "Mask with noise of compression",
    reason="levels that are almost, but not, 0 and 255 are what JPEG leaves around edges: the "
    "background is trained on a little.",
    fix="save it as PNG from its source, or set what is below 128 to 0 and the rest to 255",
)
def noisy(pair: Pair) -> Findings:
    """Most levels between black and white are near an end. Those of soft edges are not."""
    if pair.mask and pair.mask.brightest > DIM and is_noisy(pair.mask.counts):
        yield pair.mask.path, "most of its grey pixels are almost black or almost white"


@warning(
    "M008",
    "Mask that is no .png",
    reason="lora-prep keeps masks as .png, and so do its exports; ai-toolkit finds only .jpg, "
    ".jpeg, .png and .webp, in lower case, and trains without the mask otherwise.",
    fix="save it as an 8-bit grey PNG under the image's name",
)
def not_png(pair: Pair) -> Findings:
    """By name, and by content."""
    if not pair.mask:
        return
    if pair.mask.suffix != ".png":
        yield pair.mask.path, f"called {pair.mask.suffix}"
    elif pair.mask.header and pair.mask.header.format != "PNG":
        yield pair.mask.path, f"a {pair.mask.header.format} that is called .png"


@error(
    "M009",
    "Mask in the alpha channel",
    reason="trainers read the colours and drop alpha; where these are white they train unmasked, "
    "without a word.",
    fix="save the alpha channel as a grey PNG",
)
def in_alpha(pair: Pair) -> Findings:
    """An alpha channel that is the same everywhere is fine."""
    if pair.mask and pair.mask.in_alpha:
        yield pair.mask.path, "its alpha channel says something else than its colours do"


@error(
    "M010",
    "Mask of colours",
    reason="diffusion-pipe, kohya and SimpleTuner read the red channel, ai-toolkit and OneTrainer "
    "the brightness: label colours can come out as the opposite.",
    fix="save it as a grey PNG, white = train, black = ignore",
)
def coloured(pair: Pair) -> Findings:
    """RGB and palette files whose red channel and brightness differ."""
    if pair.mask and pair.mask.coloured:
        yield pair.mask.path, "its red channel and its brightness differ"


@error(
    "M011",
    "Mask whose orientation is not baked in",
    reason="some trainers turn it as EXIF says and some do not.",
    fix="save it as an 8-bit grey PNG, which drops EXIF",
)
def turned(pair: Pair) -> Findings:
    """EXIF orientation other than 1."""
    if pair.mask and pair.mask.header and pair.mask.header.orientation != 1:
        yield pair.mask.path, f"EXIF orientation {pair.mask.header.orientation}"


@warning(
    "M012",
    "Mask that is inverted",
    reason="trainers train what is white: here that is the background.",
    fix="make black white and white black (`magick a.png -negate a.png`)",
)
def inverted(pair: Pair) -> Findings:
    """White in all four corners and over half of the picture, and black somewhere."""
    mask = pair.mask
    if not mask or not mask.counts or mask.white_corners < 4:
        return
    area = sum(mask.counts)
    if mask.counts[0] >= LATENT_CELL and mask.weight > 0.5 * area:
        yield mask.path, f"its corners and {mask.weight / area:.0%} of it are white"


@warning(
    "M014",
    "Mask with specks",
    reason="islands smaller than one element of the latents are noise of whatever made the mask: "
    "they train bits of the background.",
    fix="erase them, or make it anew with `lora-prep masks`",
    level=Level.DEEP,
)
def specks(pair: Pair) -> Findings:
    """Three or more, beside a larger part."""
    if pair.mask and pair.mask.specks >= SPECKS:
        yield pair.mask.path, f"{pair.mask.specks} islands of it are smaller than 8 × 8 pixels"


@warning(
    "M015",
    "Mask with grey pixels",
    reason="every trainer that reads masks takes grey for a part of the weight: right for a "
    "feathered edge, wrong where the mask was to be black and white.",
    fix="set what is below 128 to 0 and the rest to 255, unless soft edges are meant",
    level=Level.OFF,
)
def soft(pair: Pair) -> Findings:
    """Levels between 0 and 255, but for labels (M004) and noise of compression (M007)."""
    mask = pair.mask
    if mask and mask.brightest > DIM and not is_noisy(mask.counts):
        grey = sum(mask.counts[1:255])
        if grey:
            yield mask.path, f"{grey / sum(mask.counts):.1%} of it is grey"


CHECKS: tuple[Check[Pair], ...] = (
    unreadable,
    wrong_size,
    deep,
    labels,
    black,
    white,
    noisy,
    not_png,
    in_alpha,
    coloured,
    turned,
    inverted,
    specks,
    soft,
)


def is_noisy(counts: Sequence[int]) -> bool:
    """Whether 65 % of the grey pixels, and 0.05 % of all, lie within 15 levels of an end.

    Measured on ellipses: 74 to 100 % for JPEG and WebP of quality 60 to 95 whatever the size, 70 %
    for the ringing of Lanczos scaling; up to 60 % for Gaussian edges (sigma 0.4 to 16), at most
    44 % for linear, smooth, blurred, anti-aliased and resampled ones.
    """
    grey = sum(counts[1:255])
    near = sum(counts[1:NEAR]) + sum(counts[256 - NEAR : 255])
    return near > 0.65 * grey and near > 0.0005 * sum(counts)
