"""Family I: can the trainers read the image, and do they all see the same picture?"""

from lora_prep.validate.check import Check, Findings, error, warning
from lora_prep.validate.pair import Pair

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2",),
    "HEIF": (".heic", ".heif"),
}

_AI_TOOLKIT = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_KOHYA = _AI_TOOLKIT | {".bmp"}
_ONETRAINER = _KOHYA | {".tif", ".tiff"}
"""Endings that each lists: `library/train_util.py`, `toolkit/data_loader.py`,
`modules/util/path_util.py`. diffusion-pipe and SimpleTuner take whatever Pillow can open."""

_DEEP = ("I;16", "I;16B", "I;16L", "I", "F")
_OTHER_COLOURS = ("CMYK", "LAB", "HSV", "YCbCr")

_TURNS = {
    2: "mirrored",
    3: "upside down",
    4: "mirrored, upside down",
    5: "mirrored, on its side",
    6: "on its side",
    7: "mirrored, on its side",
    8: "on its side",
}


@error(
    "I001",
    "Image that cannot be read",
    reason="trainers stop at it in the middle of the training, skip it, or train on a half grey "
    "picture (OpenCV decodes a JPEG that is cut off without an error).",
    fix="copy it again from its source, or delete it",
)
def unreadable(pair: Pair) -> Findings:
    """By default the header and the end of the file, PNG's checksums; --deep decodes it all."""
    if (problem := pair.image.problem) and problem.code == "unreadable":
        yield pair.image.path, str(problem)


@error(
    "I002",
    "Orientation that is not baked in",
    reason="ai-toolkit and OneTrainer turn the image upright as EXIF says, diffusion-pipe and "
    "kohya do not: with the same mask, one of them trains on the wrong place.",
    fix="bake it in with `lora-prep normalize`, then make the mask anew",
)
def turned(pair: Pair) -> Findings:
    """EXIF orientation other than 1."""
    if (header := pair.image.header) and header.orientation != 1:
        turn = _TURNS[header.orientation]
        yield pair.image.path, f"EXIF orientation {header.orientation}: stored {turn}"


@error(
    "I003",
    "Animated image",
    reason="diffusion-pipe stops at an animated WebP; the others train on the first frame alone.",
    fix="save the frame that is meant, or use `lora-prep normalize`, which takes the first",
)
def animated(pair: Pair) -> Findings:
    """More than one frame or page."""
    if (header := pair.image.header) and header.animated:
        yield pair.image.path, f"a {header.format} of several frames"


@warning(
    "I004",
    "Colours other than RGB or grey",
    reason="trainers convert them without the colour profile that says what they look like: the "
    "colours shift.",
    fix="convert it to sRGB with `lora-prep normalize`",
)
def other_colours(pair: Pair) -> Findings:
    """CMYK, and what else is made for printing."""
    if (header := pair.image.header) and header.mode in _OTHER_COLOURS:
        yield pair.image.path, f"the colours are {header.mode}"


@error(
    "I005",
    "Image that is too large",
    reason="the trainers' Pillow refuses more than 178,956,970 pixels as a decompression bomb.",
    fix="scale it down",
)
def too_large(pair: Pair) -> Findings:
    """By the header, before anything is decoded."""
    if (problem := pair.image.problem) and problem.code == "too-large":
        yield pair.image.path, str(problem)


@warning(
    "I006",
    "Name that does not fit the content",
    reason="trainers list files by their ending and some choose the reader by it: diffusion-pipe "
    "looks for animations in what is called .webp only.",
    fix="rename it, or save it anew with `lora-prep normalize`",
)
def misnamed(pair: Pair) -> Findings:
    """A WebP or PNG that is called .jpg."""
    if header := pair.image.header:
        suffix = pair.image.suffix
        if suffix.lower() not in SUFFIXES[header.format]:
            yield pair.image.path, f"a {header.format} that is called {suffix}"


@warning(
    "I007",
    "Format that some trainers do not read",
    reason="they list files by their ending and pass over the others without a word; HEIC needs a "
    "plug-in that none of them brings.",
    fix="convert it to PNG or JPEG with `lora-prep normalize`",
)
def unread_format(pair: Pair) -> Findings:
    """By the ending; HEIC by its content, too."""
    problem, header = pair.image.problem, pair.image.header
    if problem and problem.code == "unsupported":
        yield pair.image.path, str(problem)
    elif skipping := trainers_that_skip(pair.image.suffix):
        yield pair.image.path, f"passed over by {', '.join(skipping)}"
    elif header and header.format == "HEIF":
        yield pair.image.path, "a HEIC picture: no trainer reads it without pillow-heif"


@warning(
    "I008",
    "Transparent pixels",
    reason="diffusion-pipe puts white behind them, kohya and ai-toolkit show what is stored there, "
    "kohya's alpha_mask takes them for the mask.",
    fix="put a background behind them with `lora-prep normalize`",
)
def transparent(pair: Pair) -> Findings:
    """An alpha channel that is opaque everywhere is fine."""
    if pair.image.transparent:
        yield pair.image.path, "some pixels are transparent"


@warning(
    "I009",
    "Colours other than sRGB",
    reason="none of diffusion-pipe, kohya, ai-toolkit, OneTrainer and SimpleTuner applies colour "
    "profiles: the Display P3 pictures of phones come out pale.",
    fix="convert it to sRGB with `lora-prep normalize`",
)
def wide_gamut(pair: Pair) -> Findings:
    """An ICC profile that changes RGB colours visibly."""
    if not pair.image.srgb:
        yield pair.image.path, "an ICC profile says that its colours are not sRGB"


@error(
    "I010",
    "Grey of more than 8 bits",
    reason="Pillow, which trainers read with, turns every value above 255 into white: the picture "
    "is white.",
    fix="convert it with `lora-prep normalize`",
)
def deep_grey(pair: Pair) -> Findings:
    """16-bit colours are fine: Pillow scales them."""
    if (header := pair.image.header) and header.mode in _DEEP:
        yield pair.image.path, f"{header.bits} bits a pixel"


CHECKS: tuple[Check[Pair], ...] = (
    unreadable,
    turned,
    animated,
    other_colours,
    too_large,
    misnamed,
    unread_format,
    transparent,
    wide_gamut,
    deep_grey,
)


def trainers_that_skip(suffix: str) -> list[str]:
    """The trainers that pass over files of this ending, given as written in the name."""
    lower = suffix.lower()
    kohya = lower in _KOHYA and suffix in (lower, suffix.upper())
    reads = {
        "kohya": kohya,
        "ai-toolkit": lower in _AI_TOOLKIT,
        "OneTrainer": lower in _ONETRAINER,
    }
    return [trainer for trainer, takes in reads.items() if not takes]
