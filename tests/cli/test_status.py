"""`lora-prep status`: what is done, stale and missing."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_prep import imageio
from lora_prep.journal import Entry, Journal, Stamp
from lora_prep.types import Status

EMBEDDED = ("--preset", "embedded", "--min-face", "100000", "--no-face", "white")


def table(text: str, step: str) -> dict[str, int]:
    lines = text.splitlines()
    head = lines[1].replace("by hand", "by-hand").split()
    row = next(line for line in lines[2:] if line.startswith(step))
    cells = [row[row.index(step) + len(step) :][i : i + 10] for i in range(0, 10 * len(head), 10)]
    return {name: int(cell or 0) for name, cell in zip(head, map(str.strip, cells), strict=False)}


def test_says_what_is_missing_before_anything_was_made(
    faces: Path, lora_prep: Callable[..., object]
) -> None:
    result = lora_prep("status", faces)
    assert "10 images, 0 captions" in result.output
    assert table(result.output, "masks") == {"done": 0, "missing": 10}
    assert "next: lora-prep masks" in result.output
    lora_prep("status", faces, "--exit-code", code=1)


def test_tells_done_stale_missing_edited_and_orphaned_apart(
    faces: Path, lora_prep: Callable[..., object]
) -> None:
    lora_prep("masks", faces, *EMBEDDED)
    lora_prep("status", faces, "--exit-code", code=0)
    masks = faces.parent / "masks"
    changed, edited, gone, without, new = (f"p{i:02}" for i in (0, 2, 4, 6, 8))
    image = imageio.decode_image((faces / f"{changed}.png").read_bytes())
    (faces / f"{changed}.png").write_bytes(imageio.encode_image(255 - image, "png"))
    mask = imageio.decode_mask((masks / f"{edited}.png").read_bytes())
    (masks / f"{edited}.png").write_bytes(imageio.encode_mask(255 - mask))
    (masks / f"{gone}.png").unlink()
    (faces / f"{without}.png").unlink()
    (faces / "new.png").write_bytes((faces / f"{new}.png").read_bytes())
    result = lora_prep("status", faces)
    assert table(result.output, "masks") == {
        "done": 6,
        "stale": 1,
        "missing": 2,
        "by-hand": 1,
        "orphaned": 1,
    }
    document = json.loads(lora_prep("status", faces, "--json").output)
    (masks_step,) = (step for step in document["steps"] if step["name"] == "masks")
    states = {item["key"]: item["state"] for item in masks_step["items"]}
    assert states == {
        f"faces/{changed}.png": "stale",
        f"faces/{edited}.png": "by hand",
        f"faces/{gone}.png": "missing",
        f"faces/{without}.png": "orphaned",
        "faces/new.png": "missing",
    }
    verbose = lora_prep("status", faces, "-v").output
    assert f"masks  stale     faces/{changed}.png: faces/{changed}.png has changed since" in verbose


def test_masks_of_somebody_elses_are_by_hand(faces: Path, lora_prep: Callable[..., object]) -> None:
    masks = faces.parent / "masks"
    masks.mkdir()
    (masks / "p00.png").write_bytes(b"anything")
    assert table(lora_prep("status", faces).output, "masks") == {
        "done": 0,
        "missing": 9,
        "by-hand": 1,
    }


def test_writes_nothing(faces: Path, lora_prep: Callable[..., object]) -> None:
    lora_prep("status", faces)
    assert not (faces.parent / ".lora-prep").exists()


@pytest.mark.parametrize("line", [b"", b"{}\n", b"\xff\xfe\n", b'{"key": 1, "outputs": []}\n'])
def test_a_damaged_journal_is_passed_over(
    line: bytes, faces: Path, lora_prep: Callable[..., object]
) -> None:
    state = faces.parent / ".lora-prep"
    state.mkdir()
    (state / "masks.jsonl").write_bytes(line)
    lora_prep("status", faces)


def test_pictures_beside_a_reference_are_not_missing(
    faces: Path, tmp_path: Path, lora_prep: Callable[..., object]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("me.png", "holiday.png"):
        shutil.copy(faces / "p00.png", pictures / name)
    seen = [(faces.parent, "faces/p00.png"), (faces.parent, "../pictures/me.png")]
    with Journal(faces.parent / ".lora-prep" / "embed.jsonl") as journal:
        for root, key in seen:
            path = root / key
            stamp = Stamp.of_input(path.read_bytes(), path.stat())
            journal.append(Entry(key, Status.DONE, "f", {key: stamp}, {}))
    result = lora_prep("status", faces, "-v")
    assert table(result.output, "embed") == {"done": 2, "missing": 9}
    assert "embed  missing   faces/p01.jpg" in result.output
    assert "holiday" not in result.output


def test_new_photographs_are_missing_from_normalize(
    faces: Path, tmp_path: Path, lora_prep: Callable[..., object]
) -> None:
    out = tmp_path / "set" / "faces"
    lora_prep("normalize", faces, "--out", out)
    (out / "p01.jpg").unlink()
    taken = lora_prep("status", out).output
    assert "taken out: 1;" in taken
    assert "next: lora-prep masks\n" in taken, "what somebody took out is not to be brought back"
    shutil.copy(faces / "p00.png", faces / "new.png")
    result = lora_prep("status", out)
    assert table(result.output, "normalize-faces") == {"done": 9, "missing": 2}
    assert f"next: lora-prep normalize {faces} --out {out}\n" in result.output


def test_normalize_is_called_for_the_folder_that_is_due(
    faces: Path, tmp_path: Path, lora_prep: Callable[..., object]
) -> None:
    out, first, second = tmp_path / "set" / "faces", tmp_path / "a few", tmp_path / "it's more"
    for folder, names in ((first, ["p00.png"]), (second / "in" / "depth", ["p02.png", "p04.png"])):
        folder.mkdir(parents=True)
        for name in names:
            shutil.copy(faces / name, folder / name)
    lora_prep("normalize", first, "--out", out)
    lora_prep("normalize", second, "--recursive", "--out", out)
    shutil.copy(faces / "p06.png", second / "in" / "depth" / "p02.png")
    (next_line,) = (
        line
        for line in lora_prep("status", out, "--recursive").output.splitlines()
        if line.startswith("next: lora-prep ")
    )
    called = shlex.split(next_line.removeprefix("next: lora-prep "))
    assert called == ["normalize", str(second), "--out", str(out), "--recursive"]
    lora_prep(*called)
    assert "next: lora-prep masks\n" in lora_prep("status", out, "--recursive").output
    shutil.copy(faces / "p08.png", first / "new.png")
    result = lora_prep("status", out, "--recursive")
    assert f"next: lora-prep normalize '{first}' --out {out}\n" in result.output
