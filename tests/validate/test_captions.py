"""Family C, on captions that have the fault and ones that nearly have it."""

import pytest

from tests.validate.made import Data, encode, photo


@pytest.fixture
def captioned(data: Data) -> Data:
    """All three have a caption."""
    for stem in ("a", "été 北京", "c"):
        write(data, stem, f"photo of sks, {stem}".encode())
    return data


def write(data: Data, stem: str, content: bytes) -> None:
    (data.faces / f"{stem}.txt").write_bytes(content)


def test_good_captions_are_fine(captioned: Data) -> None:
    write(captioned, "a", "two\r\nlines\tand a tab, é\n".encode())
    assert captioned.codes() == {}


def test_no_captions_are_said_only_if_asked(data: Data) -> None:
    assert data.codes() == {}
    assert data.codes(select=["C"]) == {"C004": ["faces"]}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("caf\xe9".encode("latin-1"), "C001"),
        ("text".encode("utf-16"), "C001"),
        (b"\x89PNG\r\n", "C001"),
        (b"", "C002"),
        (b" \r\n\t", "C002"),
        (b"\xef\xbb\xbftext", "C006"),
        (b"te\x00xt", "C007"),
        (b"te\x1bxt", "C007"),
    ],
)
def test_faults(captioned: Data, content: bytes, code: str) -> None:
    write(captioned, "a", content)
    assert captioned.codes() == {code: ["faces/a.txt"]}


def test_a_missing_caption_where_others_have_one(captioned: Data) -> None:
    (captioned.faces / "c.txt").unlink()
    assert captioned.codes() == {"C003": ["faces/c.webp"]}


def test_a_caption_without_an_image(captioned: Data) -> None:
    write(captioned, "gone", b"x")
    assert captioned.codes() == {"C005": ["faces/gone.txt"]}


def test_notes_where_nothing_has_a_caption(data: Data) -> None:
    write(data, "notes", b"x")
    assert data.codes() == {}


def test_images_in_sub_folders(captioned: Data) -> None:
    captioned.image("more/x.png", encode(photo()))
    captioned.mask("more/x.png")
    write(captioned, "more/x", b"\xff")
    assert captioned.codes(recursive=True) == {"C001": ["faces/more/x.txt"]}
