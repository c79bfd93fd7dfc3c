"""`lora-prep validate` as its users see it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from lora_prep.validate import CHECKS, Level
from tests.validate.made import Data, ellipse, encode, photo

Run = Callable[..., Result]

HEAVY = ["torch", "onnxruntime", "insightface", "sam2", "skimage", "albumentations", "scipy", "ray"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    """Two pairs in `data` of the working directory."""
    monkeypatch.chdir(tmp_path)
    made = Data(tmp_path / "data")
    for stem in ("a", "b"):
        made.image(f"{stem}.jpg")
        made.mask(f"{stem}.png")
    return made


def test_a_clean_data_set(data: Data, lora_prep: Run) -> None:
    assert lora_prep("validate").output == "2 pairs: all well\n"
    assert lora_prep("validate", "--deep", "--threads", 1).output == "2 pairs: all well\n"
    assert lora_prep("validate", "-q").output == ""


def test_issues_are_listed_then_counted_then_explained(data: Data, lora_prep: Run) -> None:
    data.mask("a.png", ellipse() * 0)
    data.mask("b.png", ellipse() | 255)
    data.image("long-name.jpg")
    black, white = (c for c in CHECKS if c.code in ("M005", "M006"))
    (missing,) = (c for c in CHECKS if c.code == "P001")
    assert lora_prep("validate", code=1).output.splitlines() == [
        "data/faces/long-name.jpg  P001  error    there is no mask masks/long-name.png",
        "data/masks/a.png          M005  error    all of it is black",
        "data/masks/b.png          M006  warning  all of it is white",
        "",
        "1 × P001  Image without a mask",
        f"          -> {missing.fix}",
        "1 × M005  Mask that is black",
        f"          -> {black.fix}",
        "1 × M006  Mask that is white",
        f"          -> {white.fix}",
        "",
        "2 pairs of 3 images, 2 errors, 1 warning",
    ]


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--strict",), 1)])
def test_warnings_alone_fail_only_if_asked(
    data: Data, lora_prep: Run, options: tuple[str, ...], code: int
) -> None:
    data.mask("a.png", ellipse() | 255)
    assert lora_prep("validate", *options, code=code).output.endswith("0 errors, 1 warning\n")


def test_json(data: Data, lora_prep: Run) -> None:
    data.mask("a.png", ellipse() * 0)
    data.image("ü.jpg", encode(photo()))
    document = json.loads(lora_prep("validate", "data/faces", "--json", code=1).stdout)
    assert {key: document[key] for key in document if key != "issues"} == {
        "schema": 1,
        "images": 3,
        "pairs": 2,
        "errors": 2,
        "warnings": 1,
    }
    assert [(i["code"], i["severity"], i["path"]) for i in document["issues"]] == [
        ("I006", "warning", "faces/ü.jpg"),
        ("P001", "error", "faces/ü.jpg"),
        ("M005", "error", "masks/a.png"),
    ]
    assert all(
        list(i) == ["code", "severity", "path", "message", "fix"] for i in document["issues"]
    )


def test_json_of_a_clean_data_set(data: Data, lora_prep: Run) -> None:
    assert json.loads(lora_prep("validate", "--json").stdout) == {
        "schema": 1,
        "images": 2,
        "pairs": 2,
        "errors": 0,
        "warnings": 0,
        "issues": [],
    }


def test_many_issues_of_a_kind_are_cut_short(data: Data, lora_prep: Run) -> None:
    for i in range(25):
        data.image(f"x{i:02}.jpg")
    short = lora_prep("validate", code=1).output
    assert short.count("P001  error") == 20
    assert "... and 5 more P001 (--verbose or --json lists all)" in short.splitlines()
    assert "25 × P001  Image without a mask" in short.splitlines()
    full = lora_prep("validate", "-v", code=1).output
    assert full.count("P001  error") == 25
    assert "more P001" not in full
    assert len(json.loads(lora_prep("validate", "--json", code=1).stdout)["issues"]) == 25


def test_hostile_names_are_inert(data: Data, lora_prep: Run) -> None:
    for name in ("x\n::error::y.jpg", "x\x1b[31my.jpg", "x\u202egpj.jpg", "x\udcff.jpg"):
        data.image(name)
        data.image(name.replace(".jpg", ".png"), encode(photo()))
    output = lora_prep("validate", "-v", code=1).output
    assert all(c.isprintable() for line in output.splitlines() for c in line)
    assert not any(line.startswith("::error") for line in output.splitlines())
    assert r"x\n::error::y.jpg" in output
    document = json.loads(lora_prep("validate", "--json", code=1).stdout)
    assert "faces/x\n::error::y.jpg" in {issue["path"] for issue in document["issues"]}


def test_the_configuration_says_where_the_data_is(
    data: Data, lora_prep: Run, tmp_path: Path
) -> None:
    data.root.rename(tmp_path / "mine")
    (tmp_path / "mine" / "masks").rename(tmp_path / "mine" / "drawn")
    (tmp_path / "mine" / "drawn" / "a.png").write_bytes(encode(photo(mode="L"), "BMP"))
    (tmp_path / "lora-prep.toml").write_text(
        '[dataset]\nimages = "mine/faces"\nmasks = "mine/drawn"\n[validate]\nstrict = true\n'
    )
    assert "mine/drawn/a.png  M008" in lora_prep("validate", code=1).output


def test_masks_elsewhere(data: Data, lora_prep: Run, tmp_path: Path) -> None:
    data.masks.rename(tmp_path / "drawn")
    assert "P006" in lora_prep("validate", code=1).output
    assert lora_prep("validate", "--masks", "drawn").output == "2 pairs: all well\n"


def test_no_data_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_prep: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "give the folder of the images" in lora_prep("validate", code=2).output
    assert "there is no folder" in lora_prep("validate", "nowhere", code=2).output
    (tmp_path / "data").mkdir()
    assert "there is no image in" in lora_prep("validate", code=2).output


def test_list_explains_every_check(lora_prep: Run) -> None:
    lines = lora_prep("validate", "--list").output
    for check in CHECKS:
        level = "" if check.level is Level.DEFAULT else f"  (--{check.level})"
        assert f"{check.code}  {check.severity:7}  {check.title}{level}\n" in lines
    listed = json.loads(lora_prep("validate", "--list", "--json").output)["checks"]
    assert [check["code"] for check in listed] == [check.code for check in CHECKS]
    assert all(list(c) == ["code", "title", "severity", "reason", "fix", "level"] for c in listed)


def test_an_interrupt_exits_130(
    data: Data, lora_prep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_prep.validate.read_pair", interrupted)
    result = lora_prep("validate", code=130)
    assert result.stdout == ""
    assert result.stderr == "interrupted\n"


def test_as_a_program(data: Data) -> None:
    data.mask("a.png", ellipse() * 0)
    command = [sys.executable, "-m", "lora_prep", "validate"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=data.root.parent)
    assert result.returncode == 1
    assert result.stdout.endswith("2 pairs, 1 error, 0 warnings\n")
    assert result.stderr == ""


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "--help"], ["validate", "--deep"]])
def test_no_model_library_is_imported(data: Data, arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from lora_prep.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=data.root.parent)
    assert result.stdout.splitlines()[-1:] == ["LOADED []"], result.stderr
