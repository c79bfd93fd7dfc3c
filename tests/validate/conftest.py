"""A clean data set to damage."""

from pathlib import Path

import pytest

from tests.validate.made import Data, encode, photo


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Three pairs, with a caption, a link within the data set, and names of other scripts."""
    made = Data(tmp_path / "data")
    made.image("a.jpg")
    made.image("été 北京.png", encode(photo()))
    made.image("c.webp", encode(photo(), "WEBP"))
    for stem in ("a", "été 北京", "c"):
        made.mask(f"{stem}.png")
    (made.faces / "notes.md").write_text("of two days")
    return made
