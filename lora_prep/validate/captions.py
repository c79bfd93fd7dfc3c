"""Family C: do the trainers read the caption that was meant?

What is said of the text itself (its words, its trigger) is the matter of `lora-prep captions`.
"""

import unicodedata

from lora_prep.dataset import CAPTION_SUFFIX
from lora_prep.validate.check import Check, Findings, Level, error, warning
from lora_prep.validate.listing import Listing, stem_of
from lora_prep.validate.pair import Pair

_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


@error(
    "C001",
    "Caption that is not UTF-8",
    reason="trainers open captions as UTF-8: they stop at it, or train on another text.",
    fix="save it as UTF-8",
)
def not_utf8(pair: Pair) -> Findings:
    """Latin-1, UTF-16, or a file that is no text."""
    caption = pair.caption
    if caption and caption.data is not None and not _is_utf8(caption.data):
        yield caption.path, "it is not UTF-8"


@warning(
    "C002",
    "Caption without text",
    reason="the image is trained on an empty prompt, or left out: it spoils the trigger word.",
    fix="write one, or delete the file",
)
def empty(pair: Pair) -> Findings:
    """No bytes, or white space alone."""
    caption = pair.caption
    if caption and caption.data is not None and not caption.data.strip(b" \t\r\n\xef\xbb\xbf"):
        yield caption.path, "it holds no text"


@warning(
    "C003",
    "Image without a caption",
    reason="other images have one: diffusion-pipe leaves out images without a caption, the others "
    "train them on an empty prompt.",
    fix=f"write one beside the image, as {CAPTION_SUFFIX}",
)
def missing(listing: Listing) -> Findings:
    """Silent where no image has a caption (C004)."""
    if listing.captions:
        for name in listing.images.images:
            if name not in listing.captions:
                yield listing.image_key(name), "there is no caption"


@warning(
    "C004",
    "No captions",
    reason="diffusion-pipe leaves out images without a caption; other trainers take the prompt "
    "from their configuration.",
    fix="write them, or give the trainer one prompt for all",
    level=Level.OFF,
)
def none_at_all(listing: Listing) -> Findings:
    """One issue for the data set."""
    if not listing.captions:
        yield listing.dataset.key(listing.dataset.images), "no image has a caption"


@warning(
    "C005",
    "Caption without an image",
    reason="it is often a sign that an image was renamed or deleted, and another trains without.",
    fix="give it the name of its image, or move it away",
)
def orphan(listing: Listing) -> Findings:
    """A .txt file in the image folder, where others are captions, that is none."""
    if listing.captions:
        for name in listing.images.others:
            if name.endswith(CAPTION_SUFFIX) and stem_of(name) not in listing.image_stems:
                yield listing.image_key(name), "there is no image of its name"


@warning(
    "C006",
    "Caption that begins with a byte order mark",
    reason="trainers that open it as UTF-8 take the mark for the first character of the prompt.",
    fix="save it as UTF-8 without a byte order mark",
)
def byte_order_mark(pair: Pair) -> Findings:
    """As Windows' Notepad writes it."""
    if (caption := pair.caption) and caption.data and caption.data.startswith(_BOMS[0]):
        yield caption.path, "its first three bytes are a byte order mark"


@warning(
    "C007",
    "Control characters in a caption",
    reason="they become tokens that nobody will ever type.",
    fix="remove them",
)
def control_characters(pair: Pair) -> Findings:
    """Anything of Unicode's category Cc but tab and the ends of lines."""
    caption = pair.caption
    if caption and caption.data and _is_utf8(caption.data):
        text = caption.data.decode()
        if any(c not in "\t\r\n" and unicodedata.category(c) == "Cc" for c in text):
            yield caption.path, "it holds control characters"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


LISTING_CHECKS: tuple[Check[Listing], ...] = (missing, none_at_all, orphan)
PAIR_CHECKS: tuple[Check[Pair], ...] = (not_utf8, empty, byte_order_mark, control_characters)
