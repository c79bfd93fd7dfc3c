"""`lora-prep validate` for other programs: formats, selection, --fix."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import Result

from lora_prep.imageio import encode_image
from lora_prep.validate import CHECKS, Level
from sample_data.portraits import Portrait
from tests.validate.made import Data, ellipse, encode, photo

Run = Callable[..., Result]
HOSTILE = "x\n::error file=y,line=1::owned \x1b[31m<&\"'>%0A]]>\udcff.jpg"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    """A black mask, a white one, and an image without a mask whose name attacks every format."""
    monkeypatch.chdir(tmp_path)
    made = Data(tmp_path / "data")
    for stem in ("a", "b"):
        made.image(f"{stem}.jpg")
    made.mask("a.png", ellipse() * 0)
    made.mask("b.png", ellipse() | 255)
    made.image(HOSTILE)
    return made


CODES = ["P001", "M005", "M006"]


def found(data: Data, lora_prep: Run, form: str) -> str:
    output: str = lora_prep("validate", "--format", form, code=1).stdout
    return output


def test_json_is_the_same_either_way(data: Data, lora_prep: Run) -> None:
    assert found(data, lora_prep, "json") == lora_prep("validate", "--json", code=1).stdout


def test_jsonl(data: Data, lora_prep: Run) -> None:
    rows = [json.loads(line) for line in found(data, lora_prep, "jsonl").splitlines()]
    assert [row["code"] for row in rows] == ["P001", "M005", "M006"]
    assert rows[0]["path"] == f"faces/{HOSTILE}"


def test_github_annotations_cannot_be_injected(data: Data, lora_prep: Run) -> None:
    lines = found(data, lora_prep, "github").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error", "::error", "::warning"]
    assert lines[1].startswith(
        "::error file=data/masks/a.png,title=M005 Mask that is black::all of"
    )
    assert all(line.isprintable() for line in lines)
    head = lines[0].removeprefix("::error ").partition("::")[0]
    assert head.startswith("file=data/faces/x\\n%3A%3Aerror file=y%2Cline=1%3A%3Aowned")
    assert [pair.split("=")[0] for pair in head.split(",")] == ["file", "title"]


def test_sarif(data: Data, lora_prep: Run) -> None:
    document = json.loads(found(data, lora_prep, "sarif"))
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [
        check.code for check in CHECKS if check.level is Level.DEFAULT
    ]
    assert [result["ruleId"] for result in run["results"]] == CODES
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"].isprintable()
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri.isascii()
    assert " " not in uri
    assert unquote(uri, errors="surrogateescape") == f"data/faces/{HOSTILE}"


def test_junit(data: Data, lora_prep: Run) -> None:
    suite = ET.fromstring(found(data, lora_prep, "junit"))[0]
    cases = {case.attrib["name"].split()[0]: case for case in suite}
    assert list(cases) == [check.code for check in CHECKS if check.level is Level.DEFAULT]
    assert suite.attrib["failures"] == "2"
    assert {code for code, case in cases.items() if case.find("failure") is not None} == {
        "P001",
        "M005",
    }
    warning = cases["M006"].find("system-out")
    assert warning is not None
    assert warning.text == "data/masks/b.png: all of it is white"
    failure = cases["P001"].find("failure")
    assert failure is not None
    assert "owned" in (failure.text or "")


@pytest.mark.parametrize("form", ["jsonl", "github"])
def test_nothing_is_printed_of_a_clean_data_set(data: Data, lora_prep: Run, form: str) -> None:
    result = lora_prep("validate", "--format", form, "--select", "E")
    assert "E007" in result.stdout
    assert lora_prep("validate", "--format", form, "--select", "E001").stdout == ""


def test_selected_on_the_command_line_and_in_the_file(data: Data, lora_prep: Run) -> None:
    assert "1 error, 0 warnings" in lora_prep("validate", "--select", "M005", code=1).output
    assert "0 errors, 1 warning" in lora_prep("validate", "--ignore", "P,M005").output
    Path("lora-prep.toml").write_text('[validate]\nignore = ["P001", "M005"]\n')
    assert "0 errors, 1 warning" in lora_prep("validate").output
    result = lora_prep("validate", "--select", "Q", code=2)
    assert "'Q' is the beginning of no code" in result.output


def test_the_memory_can_be_turned_off(data: Data, lora_prep: Run) -> None:
    lora_prep("validate", "--no-cache", code=1)
    assert not (data.root / ".lora-prep").exists()
    lora_prep("validate", code=1)
    assert (data.root / ".lora-prep" / "validate.jsonl").is_file()


def test_fix_shows_does_and_undoes(data: Data, lora_prep: Run) -> None:
    (data.faces / HOSTILE).unlink()
    data.mask("extra.png")
    shown = lora_prep("validate", "--fix", "--dry-run", code=1)
    assert "would move  P002  masks/extra.png -> the trash" in shown.stderr
    assert (data.masks / "extra.png").is_file()
    assert not (data.root / ".lora-prep" / "trash").exists()
    done = lora_prep("validate", "--fix", code=1)
    assert "did move  P002  masks/extra.png -> the trash" in done.stderr
    assert "P002" not in done.stdout  # checked again
    assert not (data.masks / "extra.png").exists()
    again = lora_prep("validate", "--fix", code=1)
    assert "nothing that --fix can mend" in again.stderr
    (trash,) = (data.root / ".lora-prep" / "trash").iterdir()
    assert "1 file put back" in lora_prep("validate", "--undo", str(trash)).output
    assert (data.masks / "extra.png").is_file()


def test_dry_run_alone_is_wrong_usage(data: Data, lora_prep: Run) -> None:
    assert "goes with --fix" in lora_prep("validate", "--dry-run", code=2).output


def test_stale_masks_are_made_anew_with_the_settings_that_made_them(
    data: Data, lora_prep: Run
) -> None:
    for path in (*data.masks.iterdir(), data.faces / HOSTILE):
        path.unlink()
    Path("lora-prep.toml").write_text('[masks]\npreset = "embedded"\nno-face = "black"\n')
    lora_prep("masks", "data/faces")
    data.image("a.jpg", encode(photo((80, 60)), "JPEG"))
    made = (data.masks / "b.png").stat().st_mtime_ns
    assert "A001" in lora_prep("validate", "--select", "A001", code=1).stdout
    Path("lora-prep.toml").write_text('[masks]\npreset = "embedded"\nno-face = "white"\n')
    other = lora_prep("validate", "--fix", "--select", "A001", code=1)
    assert "run `lora-prep masks` with the options that made them" in other.stderr
    Path("lora-prep.toml").write_text('[masks]\npreset = "embedded"\nno-face = "black"\n')
    data.image("new.jpg")  # images without a mask are no obstacle
    (data.faces / "broken.jpg").write_bytes(b"no picture")
    alone = lora_prep("validate", "--fix", "--select", "A001", code=1).stderr
    assert "left alone  A001  1 stale mask: `lora-prep masks` would also make 2 that are" in alone
    both = ("--select", "A001,P001")
    planned = lora_prep("validate", "--fix", "--dry-run", *both, code=1).stderr
    assert "would make  A001  1 stale mask\nwould make  P001  2 missing" in planned
    done = lora_prep("validate", "--fix", *both, code=1)
    assert "did make  A001  1 of 1 stale mask\ndid make  P001  1 of 2 missing" in done.stderr
    assert (data.masks / "b.png").stat().st_mtime_ns == made
    assert (data.masks / "new.png").is_file()


def test_stale_masks_of_other_settings_are_left_alone_even_if_all_are_stale(
    data: Data, lora_prep: Run
) -> None:
    for path in (*data.masks.iterdir(), data.faces / HOSTILE):
        path.unlink()
    used = '[masks]\npreset = "embedded"\nno-face = "black"\n'
    Path("lora-prep.toml").write_text(used)
    lora_prep("masks", "data/faces")
    made = {path: path.read_bytes() for path in data.masks.iterdir()}
    for stem in ("a", "b"):
        data.image(f"{stem}.jpg", encode(photo((80, 60)), "JPEG", comment=stem))
    Path("lora-prep.toml").write_text(used.replace("black", "white"))
    other = lora_prep("validate", "--fix", "--select", "A001", code=1)
    assert "run `lora-prep masks` with the options that made them" in other.stderr
    assert {path: path.read_bytes() for path in data.masks.iterdir()} == made
    Path("mine.toml").write_text(used)  # the file that is named counts, not the nearest one
    done = lora_prep("validate", "data", "--fix", "--select", "A001", "--config", "mine.toml")
    assert "did make  A001  2 of 2 stale masks" in done.stderr


@pytest.fixture
def portrait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portraits: list[Portrait]) -> Data:
    """An image with a face, and one without."""
    monkeypatch.chdir(tmp_path)
    made = Data(tmp_path / "data")
    made.image("p.png", encode_image(portraits[0].image, "png"))
    made.image("wall.png", encode(photo((320, 320))))
    return made


def test_what_failed_for_want_of_a_face_is_not_made_with_another_no_face(
    portrait: Data, portraits: list[Portrait], lora_prep: Run
) -> None:
    used = '[masks]\npreset = "embedded"\nno-face = "fail"\n'
    Path("lora-prep.toml").write_text(used)
    lora_prep("masks", "data/faces", code=1)
    portrait.image("p.png", encode_image(portraits[2].image, "png"))
    Path("lora-prep.toml").write_text(used.replace("fail", "white"))
    done = lora_prep("validate", "--fix", code=1)
    assert "run `lora-prep masks` with the options that made them" in done.stderr
    assert [path.name for path in portrait.masks.iterdir()] == ["p.png"]


@pytest.mark.parametrize("no_face", ["fail", "skip"])
def test_a_stale_mask_stays_one_if_none_can_be_made(
    portrait: Data, lora_prep: Run, no_face: str
) -> None:
    (portrait.faces / "wall.png").unlink()
    Path("lora-prep.toml").write_text(f'[masks]\npreset = "embedded"\nno-face = "{no_face}"\n')
    lora_prep("masks", "data/faces")
    lora_prep("validate")
    portrait.image("p.png", encode(photo((320, 320))))
    done = lora_prep("validate", "--fix", code=1)
    assert "did make  A001  0 of 1 stale mask" in done.stderr
    said = lora_prep("validate", code=1).stdout
    assert "faces/p.png was changed after it was made; since then, none could be made" in said
    if no_face == "skip":  # else it is tried again
        again = lora_prep("validate", "--fix", code=1)
        assert "`lora-prep masks` leaves their images out" in again.stderr


@pytest.mark.parametrize("no_face", ["fail", "skip"])
def test_a_mask_that_later_settings_would_not_make(
    data: Data, lora_prep: Run, no_face: str
) -> None:
    for path in (*data.masks.iterdir(), data.faces / HOSTILE):
        path.unlink()
    options = ("data/faces", "--preset", "embedded", "--min-face", "100000")
    lora_prep("masks", *options, "--no-face", "white")
    lora_prep("validate", "--select", "A")
    lora_prep("masks", *options, "--no-face", no_face, code=None)
    said = lora_prep("validate", "--select", "A", code=1).stdout
    assert said.count("A010  error    the last run") == 2
    data.mask("a.png", 255 - ellipse())  # drawn by hand since
    assert lora_prep("validate", "--select", "A", code=1).stdout.count("A010  error") == 1
    lora_prep("masks", *options, "--no-face", "white")
    assert "all well" in lora_prep("validate", "--select", "A").stdout


@pytest.mark.parametrize("given", ["data", "data/faces"])
def test_undo_needs_no_image(data: Data, lora_prep: Run, given: str) -> None:
    (data.faces / HOSTILE).unlink()
    data.mask("extra.png")
    lora_prep("validate", "--fix", code=1)
    (trash,) = (data.root / ".lora-prep" / "trash").iterdir()
    for path in data.faces.iterdir():
        path.unlink()
    data.faces.rmdir()
    assert "1 file put back" in lora_prep("validate", given, "--undo", trash).output
    assert (data.masks / "extra.png").is_file()
    result = lora_prep("validate", given, "--undo", data.masks, code=2)
    assert "there is no" in result.output
