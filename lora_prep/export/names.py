"""File names for an export: flat, unique everywhere, and readable by every trainer."""

import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

_FORBIDDEN = set('<>:"/\\|?*')
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10)}
_TAKEN_BY_TRAINERS = ("-masklabel", "-condlabel")
"""OneTrainer takes images of these names for masks."""
LONGEST = 150
"""Bytes of a stem: room for endings and caches' names below the 255 of file systems."""


def export_stems(names: Sequence[str], *, windows: bool = False) -> list[str]:
    """A stem for each image name (relative, forward slashes), in the order given.

    Folders become a part of the name, since most trainers look into one folder only. What no
    configuration or file system holds becomes `_`; names that differ by case or by Unicode
    composition alone get numbers.
    """
    taken: set[str] = set()
    found = []
    for name in names:
        stem = _readable(str(PurePosixPath(name).with_suffix("")).replace("/", "__"), windows)
        unique, number = stem, 1
        while _same(unique) in taken:
            number += 1
            unique = f"{stem}-{number}"
        taken.add(_same(unique))
        found.append(unique)
    return found


def _readable(stem: str, windows: bool) -> str:
    stem = "".join(c if c.isprintable() else "_" for c in stem)
    if windows:
        stem = "".join("_" if c in _FORBIDDEN else c for c in stem).rstrip(" .") or "_"
        if stem.split(".")[0].lower() in _RESERVED:
            stem = f"_{stem}"
    while len(stem.encode()) > LONGEST:
        stem = stem[:-1]
    if stem.lower().endswith(_TAKEN_BY_TRAINERS):
        stem += "_"
    return stem if not stem.startswith(".") else f"_{stem}"


def _same(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()
