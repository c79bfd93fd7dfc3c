"""What --fix moves: what is safe, to where it can be found again."""

import json
from pathlib import Path

import pytest

from lora_prep.dataset import Dataset
from lora_prep.errors import DatasetError
from lora_prep.validate import validate
from lora_prep.validate.fix import MANIFEST, Move, apply, moves, undo
from tests.validate.made import Data, encode, photo


def planned(data: Data) -> list[Move]:
    dataset = Dataset.at(data.root)
    return moves(dataset, validate(dataset).issues)


def files(data: Data) -> dict[str, bytes]:
    """What lies in the data set, lora-prep's own folder aside."""
    return {
        path.relative_to(data.root).as_posix(): path.read_bytes()
        for path in data.root.rglob("*")
        if path.is_file() and ".lora-prep" not in path.parts
    }


def spoil(data: Data) -> None:
    """A fault of every kind that can be mended."""
    data.mask("extra.png")  # P002
    (data.masks / "notes.txt").write_text("x")  # P008
    data.image("._a.jpg")  # P011
    (data.faces / "gone.jpg").symlink_to(data.root / "nothing")  # P012
    data.image("Twin.jpg", (data.faces / "a.jpg").read_bytes())  # I011
    data.mask("Twin.png")
    data.image("w.jpg", encode(photo((80, 48))))  # I006
    data.mask("w.png", encode(photo((80, 48), "1")))
    (data.masks / "c.png").rename(data.masks / "C.png")  # P009
    data.mask("a.bmp", encode(photo(mode="1"), "BMP"))  # P004


MENDED = {
    ("P002", "masks/extra.png", ""),
    ("P008", "masks/notes.txt", ""),
    ("P011", "faces/._a.jpg", ""),
    ("P012", "faces/gone.jpg", ""),
    ("I011", "faces/a.jpg", ""),
    ("I006", "faces/w.jpg", "faces/w.png"),
    ("P009", "masks/C.png", "masks/c.png"),
    ("P004", "masks/a.bmp", ""),
}


def test_everything_safe_is_mended_and_can_be_undone(data: Data) -> None:
    spoil(data)
    before = files(data)
    plan = planned(data)
    assert {(m.code, m.source, m.target) for m in plan} >= MENDED - {("P004", "masks/a.bmp", "")}
    assert files(data) == before  # planning touches nothing
    dataset = Dataset.at(data.root)
    trash = apply(dataset, plan)
    assert trash is not None
    after = files(data)
    assert sorted(after.values()) != sorted(before.values())
    kept = {
        p.relative_to(trash).as_posix(): p.read_bytes() for p in trash.rglob("*") if p.is_file()
    }
    manifest = [json.loads(line) for line in kept.pop(MANIFEST).splitlines()]
    assert len(manifest) == len(plan)
    assert sorted([*after.values(), *kept.values()]) == sorted(before.values())  # nothing is lost
    assert planned(data) == []  # idempotent
    codes = {issue.code for issue in validate(Dataset.at(data.root)).issues}
    assert not codes & {"P002", "P004", "P008", "P009", "P011", "P012", "I011", "I006"}
    put_back = list(undo(dataset, trash))
    assert len(put_back) == len(plan)
    assert files(data) == before
    assert (data.faces / "gone.jpg").is_symlink()


def test_names_that_collide_elsewhere_are_told_apart_with_all_that_is_theirs(data: Data) -> None:
    data.image("A.jpg")
    data.mask("A.png")
    (data.faces / "A.txt").write_text("upper")
    (data.faces / "a.txt").write_text("lower")
    dataset = Dataset.at(data.root)
    report = validate(dataset, select=["P005"])
    apply(dataset, moves(dataset, report.issues))
    assert (data.faces / "A.txt").read_text() == "upper"
    assert (data.faces / "a-2.txt").read_text() == "lower"
    assert (data.faces / "a-2.jpg").is_file()
    assert (data.masks / "a-2.png").is_file()
    assert validate(Dataset.at(data.root), select=["P"]).issues == ()


def test_nothing_is_written_over(data: Data) -> None:
    data.image("w.jpg", encode(photo()))
    data.image("w.png", encode(photo((80, 48))))
    assert not [move for move in planned(data) if move.code == "I006"]


def test_a_mask_that_could_be_of_two_images_is_left_alone(data: Data) -> None:
    data.image("X.jpg")
    data.image("x.jpg")
    data.mask("ⅹ.png")
    data.mask("x.PNG".replace("x.", "X_."))
    assert not [move for move in planned(data) if move.code == "P009"]


def test_a_place_that_is_taken_meanwhile_is_said_and_nothing_lost(data: Data) -> None:
    data.image("w.jpg", encode(photo((80, 48))))
    plan = [move for move in planned(data) if move.code == "I006"]
    data.image("w.png", b"mine")
    with pytest.raises(DatasetError, match="Nothing is lost"):
        apply(Dataset.at(data.root), plan)
    assert (data.faces / "w.png").read_bytes() == b"mine"
    assert (data.faces / "w.jpg").is_file()


def test_undo_leaves_what_has_taken_the_place(data: Data) -> None:
    data.mask("extra.png")
    dataset = Dataset.at(data.root)
    trash = apply(dataset, planned(data))
    assert trash is not None
    (data.masks / "extra.png").write_bytes(b"new")
    assert list(undo(dataset, trash)) == []
    assert (data.masks / "extra.png").read_bytes() == b"new"
    assert (trash / "masks" / "extra.png").is_file()


def test_undo_wants_a_manifest(data: Data, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing was moved there"):
        list(undo(Dataset.at(data.root), tmp_path))
