"""What --fix moves: what is safe, to where it can be found again."""

import json
from pathlib import Path

import pytest

from lora_prep.dataset import Dataset
from lora_prep.errors import DatasetError
from lora_prep.validate import validate
from lora_prep.validate.fix import MANIFEST, Move, apply, moves, undo
from tests.validate.made import Data, encode, photo
from tests.validate.test_alignment import journal


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


def trash_of(data: Data, *lines: str) -> Path:
    folder = data.root / ".lora-prep" / "trash" / "then"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("".join(lines))
    return folder


def test_undo_wants_a_manifest_in_the_trash_of_this_data_set(data: Data, tmp_path: Path) -> None:
    dataset = Dataset.at(data.root)
    with pytest.raises(DatasetError, match="nothing was moved there"):
        list(undo(dataset, tmp_path))
    folder = trash_of(data, "")
    assert list(undo(dataset, folder)) == []
    other = Data(tmp_path / "other")
    other.image("a.jpg")
    with pytest.raises(DatasetError, match="give the data set that it belongs to"):
        list(undo(Dataset.at(other.root), folder))
    (folder.parent / "link").symlink_to(folder)
    with pytest.raises(DatasetError, match="no folder in"):
        list(undo(dataset, folder.parent / "link"))
    (folder / MANIFEST).unlink()
    with pytest.raises(DatasetError, match="nothing was moved there"):
        list(undo(dataset, folder))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("taken.txt", "../secret.txt"),
        ("../new.png", "masks/a.png"),
        ("faces/../../new.png", "masks/a.png"),
        ("out/new.png", "masks/a.png"),
        ("taken.txt", "out/secret.txt"),
    ],
)
def test_undo_moves_nothing_in_or_out(data: Data, before: str, now: str) -> None:
    """Nor anything of a manifest in which one line would."""
    secret = data.root.parent / "secret.txt"
    secret.write_text("not yours")
    (data.root / "out").symlink_to(data.root.parent)
    lines = [{"from": "moved.md", "to": "faces/notes.md"}, {"from": before, "to": now}]
    for order in (lines, lines[::-1]):
        folder = trash_of(data, *(json.dumps(line) + "\n" for line in order))
        kept = files(data)
        with pytest.raises(DatasetError, match="leads out of the data set"):
            list(undo(Dataset.at(data.root), folder))
        assert files(data) == kept
        assert secret.read_text() == "not yours"
        folder.rename(folder.with_name("done"))
        (folder.with_name("done") / MANIFEST).unlink()
        folder.with_name("done").rmdir()


def test_undo_follows_the_users_own_link_to_the_masks(data: Data, tmp_path: Path) -> None:
    data.masks.rename(tmp_path / "elsewhere")
    data.masks.symlink_to(tmp_path / "elsewhere")
    data.mask("extra.png")
    dataset = Dataset.at(data.root)
    trash = apply(dataset, planned(data))
    assert trash is not None
    assert list(undo(dataset, trash)) == ["masks/extra.png"]
    assert (tmp_path / "elsewhere" / "extra.png").is_file()


def test_undo_passes_over_a_torn_last_line(data: Data) -> None:
    line = json.dumps({"from": "faces/new.md", "to": "faces/notes.md"})
    folder = trash_of(data, line, "\n", line[:20])
    assert list(undo(Dataset.at(data.root), folder)) == ["faces/new.md"]


@pytest.mark.parametrize("line", ["{", "[]", '{"from": "a"}', '{"from": 1, "to": "b"}', "\0"])
def test_undo_names_a_line_that_is_nobodys(data: Data, line: str) -> None:
    folder = trash_of(data, line + "\n")
    with pytest.raises(DatasetError, match=r"manifest\.jsonl, line 1, is not lora-prep's"):
        list(undo(Dataset.at(data.root), folder))


def test_the_mask_of_a_renamed_image_stays(data: Data) -> None:
    (data.faces / "a.jpg").rename(data.faces / "renamed.jpg")
    assert [issue.path for issue in validate(Dataset.at(data.root), select=["P002"]).issues]
    assert planned(data) == []
    data.mask("renamed.png")
    assert [(m.code, m.source) for m in planned(data)] == [("P002", "masks/a.png")]


@pytest.mark.parametrize("case", ["gone", "mask", "renamed", "edited"])
def test_variants_go_only_with_their_image_and_as_they_were_made(data: Data, case: str) -> None:
    made = ["augmented/images/a-0.jpg", "augmented/masks/a-0.png"]
    for name in made:
        (data.root / name).parent.mkdir(parents=True, exist_ok=True)
        (data.root / name).write_bytes(name.encode())
    journal(data, "augment", "faces/a.jpg", ["faces/a.jpg", "masks/a.png"], made)
    (data.masks / "a.png").unlink()
    if case == "renamed":
        (data.faces / "a.jpg").rename(data.faces / "z.jpg")
    elif case != "mask":
        (data.faces / "a.jpg").unlink()
    if case == "edited":
        (data.root / made[0]).write_bytes(b"by hand")
    assert validate(Dataset.at(data.root), select=["A003"]).issues
    gone = [move.source for move in planned(data) if move.code == "A003"]
    assert gone == (made if case == "gone" else [])
