"""Text on pictures: it fits, it is there, and it reads alike with older OpenCV."""

import numpy as np
import pytest

from lora_prep.trainers import lettering

LONG = "what it takes for the mask is not what the mask marks, and so on and on"


@pytest.fixture(params=["opencv", "pillow"], autouse=True)
def font(request, monkeypatch):
    """OpenCV's own fonts, and what is drawn where it has none (before version 5)."""
    if request.param == "pillow":
        monkeypatch.setattr(lettering, "_SANS", None)


def drawn(text, width=400):
    canvas = np.full((40, width, 3), 255, np.uint8)
    lettering.write(canvas, (4, 8), text, (190, 20, 30), 13)
    return canvas


def test_a_line_is_drawn_where_it_is_measured():
    ink = (drawn("Mask used") < 255).any(axis=(0, 2)).nonzero()[0]
    assert 4 <= ink.min() < 8
    assert ink.max() == pytest.approx(4 + lettering.width("Mask used", 13), abs=4)
    assert (drawn("")).min() == 255


def test_text_over_the_edge_is_cut_off():
    assert drawn(LONG, 60).shape == (40, 60, 3)


def test_accents_are_letters():
    """The Pillow font has none: the letter without is drawn, not a box."""
    assert lettering.width("é", 13) == pytest.approx(lettering.width("e", 13), abs=1)


@pytest.mark.parametrize("room", [0, 30, 120, 4000])
def test_fitted_text_fits(room):
    short = lettering.fitted(LONG, 13, room)
    assert lettering.width(short, 13) <= max(room, lettering.width("…", 13))
    assert (short == LONG) == (room == 4000)
    assert lettering.fitted("a\nb", 13, 100) == "a?b"


def test_lines_keep_every_word_and_the_last_is_cut():
    found = lettering.lines(LONG, 13, 120, 9)
    assert " ".join(found) == LONG
    assert all(lettering.width(line, 13) <= 120 for line in found)
    assert lettering.lines(LONG, 13, 120, 2)[1].endswith("…")
    assert lettering.lines(LONG, 13, 120, 0) == []
