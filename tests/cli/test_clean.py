"""`lora-prep clean` removes only what lora-prep made."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_prep import imageio

EMBEDDED = ("--preset", "embedded", "--min-face", "100000", "--no-face", "white")


@pytest.fixture
def made(faces: Path, lora_prep: Callable[..., object]) -> Path:
    lora_prep("masks", faces, *EMBEDDED)
    return faces.parent


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_removes_masks_and_nothing_else(made: Path, lora_prep: Callable[..., object]) -> None:
    (made / "masks" / "notes.txt").write_text("mine")
    before = files(made)
    lora_prep("clean", made, "--yes")
    gone = before - files(made)
    assert gone == {f"masks/p{i:02}.png" for i in range(10)}
    lora_prep("masks", made, *EMBEDDED)
    assert files(made) == before


def test_an_edited_mask_and_one_drawn_by_hand_stay(
    made: Path, lora_prep: Callable[..., object]
) -> None:
    edited, drawn = made / "masks" / "p00.png", made / "masks" / "mine.png"
    mask = imageio.decode_mask(edited.read_bytes())
    edited.write_bytes(imageio.encode_mask(255 - mask))
    drawn.write_bytes(edited.read_bytes())
    result = lora_prep("clean", made, "--yes")
    assert files(made / "masks") == {"p00.png", "mine.png"}
    assert "p00.png (edited by hand)" in result.output


def test_asks_before_it_removes(made: Path, lora_prep: Callable[..., object]) -> None:
    before = files(made)
    result = lora_prep("clean", made, code=2)
    assert "10 files of masks" in result.output
    assert "--yes" in result.output
    assert files(made) == before


def test_dry_run_lists_and_removes_nothing(made: Path, lora_prep: Callable[..., object]) -> None:
    before = files(made)
    document = json.loads(lora_prep("clean", made, "--dry-run", "--json").output)
    assert len(document["removed"]) == 10
    assert files(made) == before


def test_normalised_images_go_only_when_named(
    faces: Path, tmp_path: Path, lora_prep: Callable[..., object]
) -> None:
    out = tmp_path / "set" / "faces"
    lora_prep("normalize", faces, "--out", out)
    lora_prep("clean", out, "--yes")
    assert len(files(out)) == 10
    lora_prep("clean", out, "--only", "normalize", "--yes")
    assert not out.exists()
    assert len(files(faces)) == 10


def test_a_journal_cannot_reach_outside(
    made: Path, tmp_path: Path, lora_prep: Callable[..., object]
) -> None:
    journal = made / ".lora-prep" / "masks.jsonl"
    victim = tmp_path / "victim.png"
    victim.write_bytes((made / "masks" / "p00.png").read_bytes())
    journal.write_text(journal.read_text().replace("masks/p00.png", "../victim.png"))
    result = lora_prep("clean", made, "--yes")
    assert victim.exists()
    assert "victim.png (outside)" in result.output


def test_a_link_is_not_followed(
    made: Path, tmp_path: Path, lora_prep: Callable[..., object]
) -> None:
    mask, victim = made / "masks" / "p00.png", tmp_path / "victim.png"
    mask.rename(victim)
    mask.symlink_to(victim)
    lora_prep("clean", made, "--yes")
    assert victim.exists()
    assert mask.is_symlink()


def test_caches_go_when_asked_for(made: Path, lora_prep: Callable[..., object]) -> None:
    assert (made / ".lora-prep" / "faces").exists()
    lora_prep("clean", made, "--yes")
    assert (made / ".lora-prep" / "faces").exists()
    lora_prep("clean", made, "--yes", "--caches")
    assert not (made / ".lora-prep" / "faces").exists()
