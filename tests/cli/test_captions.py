"""`lora-prep captions`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def captioned(faces: Path) -> Path:
    texts = {"p00": "a photo of ohwx woman", "p01": "", "p02": "ohwxs", "p03": "OHWX, smiling"}
    for stem, text in texts.items():
        (faces / f"{stem}.txt").write_text(text)
    (faces / "p04.txt").write_bytes(b"\xff\xfe\x00")
    (faces / "p05.txt").write_text("a photo of ohwx woman\n")
    (faces / "p06.txt").write_text("x" * (1 << 20 | 1))
    return faces


def faults(output: str) -> dict[str, set[str]]:
    result: dict[str, set[str]] = {}
    for item in json.loads(output)["faults"]:
        result.setdefault(item["fault"], set()).add(item["image"][:3])
    return result


def test_finds_every_fault(captioned: Path, lora_prep: Callable[..., object]) -> None:
    found = faults(lora_prep("captions", captioned, "--trigger", "ohwx", "--json").output)
    assert found == {
        "missing": {"p07", "p08", "p09"},
        "empty": {"p01"},
        "not UTF-8": {"p04"},
        "too long": {"p06"},
        "duplicate": {"p05"},
        "without trigger": {"p02"},
    }


def test_without_a_trigger_none_is_missed(
    captioned: Path, lora_prep: Callable[..., object]
) -> None:
    assert "without trigger" not in faults(lora_prep("captions", captioned, "--json").output)


def test_fills_the_gaps_and_touches_no_text(
    captioned: Path, lora_prep: Callable[..., object]
) -> None:
    before = {p.name: p.read_bytes() for p in captioned.glob("*.txt")}
    template = "photo of {trigger}, {stem} in {folder}"
    result = lora_prep("captions", captioned, "--fill", template, "--trigger", "ohwx")
    assert "wrote 4 captions" in result.output
    assert (captioned / "p01.txt").read_text() == "photo of ohwx, p01 in faces\n"
    assert (captioned / "p09.txt").read_text() == "photo of ohwx, p09 in faces\n"
    del before["p01.txt"]
    assert before.items() <= {p.name: p.read_bytes() for p in captioned.glob("*.txt")}.items()


def test_dry_run_writes_nothing(captioned: Path, lora_prep: Callable[..., object]) -> None:
    result = lora_prep("captions", captioned, "--fill", "a person", "--dry-run")
    assert "would write  p07.jpg: a person" in result.output
    assert not (captioned / "p07.txt").exists()
    assert (captioned / "p01.txt").read_text() == ""


@pytest.mark.parametrize("template", ["{word}", "{trigger", "photo}", "{trigger.__class__}", "{}"])
def test_a_bad_template_is_refused_before_anything_is_written(
    template: str, captioned: Path, lora_prep: Callable[..., object]
) -> None:
    result = lora_prep("captions", captioned, "--fill", template, "--trigger", "x", code=2)
    assert "{trigger}, {stem}, {folder}" in result.output
    assert (captioned / "p01.txt").read_text() == ""


def test_a_template_with_a_trigger_wants_one(
    captioned: Path, lora_prep: Callable[..., object]
) -> None:
    assert "--trigger" in lora_prep("captions", captioned, "--fill", "{trigger}", code=2).output


def test_exit_code_on_demand(captioned: Path, lora_prep: Callable[..., object]) -> None:
    lora_prep("captions", captioned, "--exit-code", code=1)
    for path in captioned.glob("*.txt"):
        path.unlink()
    lora_prep("captions", captioned, "--fill", "{stem}", "--exit-code", code=0)
