"""One HTML file that shows a data set: what is in it, what is wrong with it, what was made of it.

`collect` looks at every image once; `write` makes the page of what it found. Checking the data set
and reading the decisions of the review are left to the caller, who hands over the results.
"""

from datetime import datetime
from pathlib import Path

from lora_prep import imageio
from lora_prep.errors import UsageError
from lora_prep.report.collect import Facts, ImageFacts, Kind, Options, collect
from lora_prep.report.page import is_ours, render, to_json

__all__ = ["Facts", "ImageFacts", "Kind", "Options", "check_target", "collect", "to_json", "write"]

HEAD = 4096
"""Bytes in which a page says what it is."""


def check_target(path: Path) -> None:
    """Raise UsageError where a page must not be written: over a file that is no report."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {path}: give a name that ends in .html")
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder: give the name of a file")
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UsageError(f"--out {path} is there and cannot be read: {error.strerror}") from error
    if head and not is_ours(head):
        raise UsageError(
            f"{path} is there already and no report of lora-prep: move it, or give another --out"
        )


def write(path: Path, facts: Facts) -> int:
    """Write the page, all of it or nothing. Returns its size in bytes. Raises DatasetError."""
    page = render(facts, datetime.now())
    imageio.make_folder(path.parent)
    imageio.sweep(path.parent)
    imageio.replace(path, page)
    return len(page)
