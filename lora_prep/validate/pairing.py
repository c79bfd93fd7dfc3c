"""Family P: do images and masks belong together?

The checks of `LISTING_CHECKS` look at names alone, those of `PAIR_CHECKS` at the files. What the
trainers do was read in, or seen in a run of, the source of diffusion-pipe, kohya's sd-scripts,
ai-toolkit, OneTrainer and SimpleTuner, as of 2026.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from lora_prep.validate.check import Check, Findings, error, warning
from lora_prep.validate.listing import Listing, stem_of
from lora_prep.validate.pair import Pair


@error(
    "P001",
    "Image without a mask",
    reason="kohya stops; diffusion-pipe trains on the whole image; ai-toolkit does so at batch "
    "size 1 and else learns nothing from the image.",
    fix="make it with `lora-prep masks`, or take the image out",
)
def image_without_mask(listing: Listing) -> Findings:
    """Silent where there is no mask at all (P006) or one of nearly the same name (P009)."""
    if not listing.masks.images:
        return
    near = _folded(_lonely_masks(listing))
    for stem in _lonely_images(listing):
        if _fold(stem) not in near:
            for name in listing.image_stems[stem]:
                yield listing.image_key(name), f"there is no mask {listing.mask_key(stem)}.png"


@error(
    "P002",
    "Mask without an image",
    reason="kohya stops at a mask that is left over; it is often a sign that an image was renamed.",
    fix="delete the mask, or give it the name of its image",
)
def mask_without_image(listing: Listing) -> Findings:
    """Silent where there is an image of nearly the same name (P009)."""
    near = _folded(_lonely_images(listing))
    for stem in _lonely_masks(listing):
        if _fold(stem) not in near:
            for name in listing.mask_stems[stem]:
                yield listing.mask_key(name), f"there is no image {listing.image_key(stem)}.*"


@error(
    "P003",
    "Several images of one stem",
    reason="every trainer finds masks and captions by the name without its ending: the images "
    "would share one mask and one caption.",
    fix="rename or remove all but one of them",
)
def shared_stem(listing: Listing) -> Findings:
    """`a.jpg` and `a.png`."""
    for names in listing.image_stems.values():
        if len(names) > 1:
            yield listing.image_key(names[0]), f"{' and '.join(names)} would share one mask"


@error(
    "P004",
    "Several masks of one stem",
    reason="trainers choose differently: ai-toolkit takes .jpg before .png, diffusion-pipe "
    "whichever the file system lists last.",
    fix="keep the .png and remove the others",
)
def ambiguous_mask(listing: Listing) -> Findings:
    """`a.png` and `a.jpg` in the mask folder."""
    for names in listing.mask_stems.values():
        if len(names) > 1:
            yield listing.mask_key(names[0]), f"{' and '.join(names)} are masks of one image"


@warning(
    "P005",
    "Names that differ only in case or Unicode form",
    reason="on macOS and Windows they are the same file: one of them is lost when the data set is "
    "copied there.",
    fix="rename one of them",
)
def colliding_names(listing: Listing) -> Findings:
    """`Anna.jpg` and `anna.jpg`; an é of one character and an é of two."""
    for stems, key in (
        (listing.image_stems, listing.image_key),
        (listing.mask_stems, listing.mask_key),
    ):
        for group in _folded(stems).values():
            if len(group) > 1:
                names = sorted(name for one in group for name in stems[one])
                yield key(names[0]), f"{' and '.join(names)} differ only in {_difference(group)}"


@error(
    "P006",
    "No masks",
    reason="kohya trains on whole images with no more than a warning, ai-toolkit without a word; "
    "diffusion-pipe stops.",
    fix="make them with `lora-prep masks`, or name their folder with --masks",
)
def no_masks(listing: Listing) -> Findings:
    """One issue for the data set, rather than one for each image."""
    if not listing.masks.images:
        what = "holds no mask" if listing.has_mask_folder else "does not exist"
        yield listing.dataset.key(listing.dataset.masks), f"the mask folder {what}"


@error(
    "P007",
    "Empty file",
    reason="it is what a full disk or an interrupted copy leaves; diffusion-pipe and ai-toolkit "
    "leave the image out, kohya stops.",
    fix="copy it again from its source, or delete it",
)
def empty_file(pair: Pair) -> Findings:
    """A file of no bytes."""
    for file in (pair.image, pair.mask):
        if file and file.problem and file.problem.code == "empty":
            yield file.path, "the file has 0 bytes"


@warning(
    "P008",
    "Stray file in the mask folder",
    reason="diffusion-pipe takes every file there for a mask, whatever its ending, and one of an "
    "image's name replaces the image's mask.",
    fix="move it somewhere else",
)
def stray_file(listing: Listing) -> Findings:
    """Anything in the mask folder that is not named like an image."""
    for name in listing.masks.others:
        used = stem_of(name) in listing.image_stems
        note = ", and it has the name of an image" if used else ""
        yield listing.mask_key(name), f"not an image{note}"


@error(
    "P009",
    "Mask whose name is not quite the image's",
    reason="on Linux, trainers compare names exactly: they see an image without a mask.",
    fix="give the mask the image's name, letter for letter",
)
def nearly_named(listing: Listing) -> Findings:
    """`IMG_1.jpg` and `img_1.png`; an é of one character and an é of two."""
    near = _folded(_lonely_masks(listing))
    for stem in _lonely_images(listing):
        if stems := near.get(_fold(stem)):
            masks = [listing.mask_key(mask) for one in stems for mask in listing.mask_stems[one]]
            message = f"the mask {' and '.join(masks)} differs in {_difference([stem, *stems])}"
            for name in listing.image_stems[stem]:
                yield listing.image_key(name), message


@warning(
    "P010",
    "Link that leads out of the data set",
    reason="the data set is not complete in itself: copied to another machine, the file is gone.",
    fix="put a copy of the file in the link's place",
)
def outside_link(pair: Pair) -> Findings:
    """Of an image or a mask."""
    for file in (pair.image, pair.mask):
        if file and file.outside:
            yield file.path, "a link to a file outside the data set"


@warning(
    "P011",
    "Hidden image file",
    reason="ai-toolkit and kohya pass over hidden files, diffusion-pipe takes them for images or "
    "masks: macOS leaves a `._img.jpg` for every file that it copies to a foreign disk.",
    fix="delete it",
)
def hidden_image(listing: Listing) -> Findings:
    """In the image folder or the mask folder."""
    for names, key in (
        (listing.images.hidden, listing.image_key),
        (listing.masks.hidden, listing.mask_key),
    ):
        for name in names:
            yield key(name), "a hidden file that is named like an image"


@error(
    "P012",
    "Link to nothing",
    reason="kohya stops at it, diffusion-pipe and ai-toolkit train without the image or mask.",
    fix="remove the link, or put the file back where it points",
)
def broken_link(listing: Listing) -> Findings:
    """In the image folder or the mask folder."""
    for names, key in (
        (listing.images.broken, listing.image_key),
        (listing.masks.broken, listing.mask_key),
    ):
        for name in names:
            yield key(name), "a link to a file that does not exist"


@warning(
    "P013",
    "Sub-folder that is not read",
    reason="ai-toolkit reads sub-folders always and trains on what is in them, checked or not; "
    "diffusion-pipe and kohya never do.",
    fix="give --recursive, or move the folder away",
)
def unread_folder(listing: Listing) -> Findings:
    """A sub-folder of the image folder with images in it; with --recursive, a linked one."""
    for name in listing.images.unread:
        why = "linked folders are not followed" if listing.dataset.recursive else "no --recursive"
        yield listing.image_key(name), f"its images were not looked at ({why})"


LISTING_CHECKS: tuple[Check[Listing], ...] = (
    image_without_mask,
    mask_without_image,
    shared_stem,
    ambiguous_mask,
    colliding_names,
    no_masks,
    stray_file,
    nearly_named,
    hidden_image,
    broken_link,
    unread_folder,
)

PAIR_CHECKS: tuple[Check[Pair], ...] = (empty_file, outside_link)


def _lonely_images(listing: Listing) -> Sequence[str]:
    """Stems of images without a mask of exactly that stem."""
    return [stem for stem in listing.image_stems if stem not in listing.mask_stems]


def _lonely_masks(listing: Listing) -> Sequence[str]:
    """Stems of masks without an image of exactly that stem."""
    return [stem for stem in listing.mask_stems if stem not in listing.image_stems]


def _folded(stems: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """Stems by what they are to a file system that ignores case and Unicode form."""
    groups = defaultdict(list)
    for stem in stems:
        groups[_fold(stem)].append(stem)
    return groups


def _fold(stem: str) -> str:
    return stem.lower() if stem.isascii() else unicodedata.normalize("NFD", stem.casefold())


def _difference(stems: Iterable[str]) -> str:
    if len({unicodedata.normalize("NFC", stem) for stem in stems}) == 1:
        return "Unicode form"
    return "case" if len({stem.casefold() for stem in stems}) == 1 else "case and Unicode form"
