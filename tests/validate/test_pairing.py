"""Pairing by name, against the plainest possible words for it."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from lora_prep.dataset import Dataset
from lora_prep.validate.listing import Folder, Listing
from lora_prep.validate.pairing import LISTING_CHECKS

E_ACUTE = "\N{LATIN SMALL LETTER E WITH ACUTE}"
STEMS = ["a", "A", "a.b", "a.B", "b", "s/a", "S/a", "ß", "ss", E_ACUTE, E_ACUTE.upper(), "e\u0301"]
NAMES = st.sets(
    st.builds(str.__add__, st.sampled_from(STEMS), st.sampled_from([".png", ".jpg", ".PNG"])),
    max_size=10,
)


def found(images: Iterable[str], masks: Iterable[str]) -> dict[str, set[str]]:
    """Paths by code."""
    root = Path("/data")
    listing = Listing(
        Dataset(root / "faces", root / "masks", root),
        Folder(images=sorted(images)),
        Folder(images=sorted(masks)),
    )
    codes: dict[str, set[str]] = {}
    for check in LISTING_CHECKS:
        for issue in check(listing):
            codes.setdefault(issue.code, set()).add(issue.path)
    return codes


def stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def alike(a: str, b: str) -> bool:
    """Whether macOS would take two stems for one."""
    return unicodedata.normalize("NFD", a.casefold()) == unicodedata.normalize("NFD", b.casefold())


@given(images=NAMES.filter(bool), masks=NAMES)
def test_every_name_is_paired_or_reported(images: set[str], masks: set[str]) -> None:
    codes = found(images, masks)
    lonely_images = {i for i in images if not any(stem(m) == stem(i) for m in masks)}
    lonely_masks = {m for m in masks if not any(stem(m) == stem(i) for i in images)}
    near = {i for i in lonely_images if any(alike(stem(i), stem(m)) for m in lonely_masks)}
    extra = {m for m in lonely_masks if not any(alike(stem(i), stem(m)) for i in lonely_images)}
    assert codes.get("P009", set()) == {f"faces/{i}" for i in near}
    assert codes.get("P002", set()) == {f"masks/{m}" for m in extra}
    assert codes.get("P006", set()) == (set() if masks else {"masks"})
    missing = lonely_images - near if masks else set()
    assert codes.get("P001", set()) == {f"faces/{i}" for i in missing}


@given(images=NAMES.filter(bool), masks=NAMES)
def test_every_doubt_is_reported(images: set[str], masks: set[str]) -> None:
    codes = found(images, masks)
    for names, folder, same, collide in (
        (images, "faces", "P003", "P005"),
        (masks, "masks", "P004", "P005"),
    ):
        firsts = {min(n for n in names if stem(n) == stem(name)) for name in names}
        doubled = {f for f in firsts if sum(stem(n) == stem(f) for n in names) > 1}
        assert codes.get(same, set()) == {f"{folder}/{name}" for name in doubled}
        colliding = {
            min(n for n in names if alike(stem(n), stem(name)))
            for name in names
            if any(alike(stem(n), stem(name)) and stem(n) != stem(name) for n in names)
        }
        reported = {path for path in codes.get(collide, set()) if path.startswith(folder)}
        assert reported == {f"{folder}/{name}" for name in colliding}


@given(names=st.sets(st.sampled_from(["a", "b", "a.b", "ss", "s/a", E_ACUTE]), min_size=1))
def test_a_proper_data_set_has_no_issue(names: set[str]) -> None:
    assert found({f"{name}.jpg" for name in names}, {f"{name}.png" for name in names}) == {}
