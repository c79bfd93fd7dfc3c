"""`lora-prep report`: where it writes, what it refuses, what it prints."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_prep import imageio
from tests.report.made import add, ellipse

Run = Callable[..., object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        add(root, name, i, caption=f"picture {i}")
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_writes_one_file_beside_the_masks_and_changes_no_other(root: Path, lora_prep: Run) -> None:
    before = files(root)
    said = lora_prep("report", root).stdout
    after = files(root)
    assert set(after) - set(before) == {"report.html", ".lora-prep/validate.jsonl"}
    assert all(after[name] == content for name, content in before.items())
    assert "3 images, 3 in the gallery, 0 issues -> " in said
    assert "report.html (" in said
    page = after["report.html"].decode()
    assert page.startswith("<!DOCTYPE html>")
    assert page.rstrip().endswith("</html>")


def test_a_report_is_replaced_and_nothing_else_is(root: Path, lora_prep: Run) -> None:
    lora_prep("report", root)
    add(root, "d.png", 5)
    lora_prep("report", root)
    assert "d.png" in (root / "report.html").read_text("utf-8")
    mine = root / "mine.html"
    mine.write_text("<p>my own page</p>")
    said = lora_prep("report", root, "--out", mine, code=2).output
    assert "no report of lora-prep" in said
    assert mine.read_text() == "<p>my own page</p>"


@pytest.mark.parametrize("name", ["faces/a.png", "report", "report.txt"])
def test_the_name_has_to_be_a_pages(name: str, root: Path, lora_prep: Run) -> None:
    before = files(root)
    assert "ends in .html" in lora_prep("report", root, "--out", root / name, code=2).output
    assert files(root) == before


def test_a_folder_that_is_missing_is_made(root: Path, tmp_path: Path, lora_prep: Run) -> None:
    lora_prep("report", root, "--out", tmp_path / "new" / "one" / "look.HTML")
    assert (tmp_path / "new" / "one" / "look.HTML").stat().st_size > 10_000


def test_a_place_that_cannot_be_written_keeps_the_old_report(root: Path, lora_prep: Run) -> None:
    lora_prep("report", root)
    before = files(root)["report.html"]
    (root / "file").touch()
    said = lora_prep("report", root, "--out", root / "file" / "report.html", code=2).output
    assert "a file is in the way" in said
    after = files(root)
    assert after["report.html"] == before
    assert not [name for name in after if name.endswith(".part")]


def test_json_is_the_facts(root: Path, lora_prep: Run) -> None:
    (root / "masks" / "b.png").write_bytes(imageio.encode_mask(0 * ellipse()))
    document = json.loads(lora_prep("report", root, "--json").stdout)
    assert document["schema"] == 1
    assert document["out"] == str(root / "report.html")
    assert document["bytes"] == (root / "report.html").stat().st_size
    assert [image["name"] for image in document["images"]] == ["a.png", "b.png", "c.png"]
    a, b, _ = document["images"]
    assert a["coverage"] == pytest.approx(ellipse().mean() / 255, abs=1e-4)
    assert (a["width"], a["height"], a["caption"]) == (128, 96, "picture 0")
    assert b["coverage"] == 0
    assert [code for code, _ in b["issues"]] == ["M005"]
    assert document["errors"] == 1
    assert any("lora-prep embed" in line for line in document["missing"])


def test_fewer_and_smaller_pictures_make_a_smaller_file(root: Path, lora_prep: Run) -> None:
    sizes = [
        json.loads(lora_prep("report", root, "--json", *more).stdout)["bytes"]
        for more in ((), ("--thumbnail-size", "32"), ("--max-images", "0"))
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_the_erosion_is_the_recorded_one_or_that_of_the_configuration(
    root: Path, lora_prep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "masks").rename(root / "old masks")
    embedded = ("--preset", "embedded", "--min-face", "100000", "--no-face", "white")
    lora_prep("masks", root, *embedded, "--erode", "4%")
    journal = root / ".lora-prep" / "masks.jsonl"
    (root / "lora-prep.toml").write_text('[masks]\nerode = "5%"\n')

    def erosions(*more: object) -> set[str]:
        document = json.loads(lora_prep("report", root, "--json", *more).stdout)
        return {image["erosion"] for image in document["images"]}

    assert erosions() == {"4%"}
    journal.write_text(journal.read_text().replace('"erode":"4%"', '"old":1'))
    assert erosions() == {"5%"}  # masks of an older lora-prep, which did not record it
    assert erosions("--erode", "3%") == {"3%"}
    assert "is no margin" in lora_prep("report", root, "--erode", "much", code=2).output


def test_without_images_nothing_is_written(tmp_path: Path, lora_prep: Run) -> None:
    lora_prep("report", tmp_path, code=2)
    assert files(tmp_path) == {}


def test_an_empty_image_folder_is_said_to_be_empty(tmp_path: Path, lora_prep: Run) -> None:
    (tmp_path / "faces").mkdir()
    said = lora_prep("report", tmp_path).stdout
    assert "There is no image in the image folder" in said
    assert "0 images, 0 in the gallery" in said
    assert "Nothing was measured" in (tmp_path / "report.html").read_text("utf-8")
