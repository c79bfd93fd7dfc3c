"""`lora-prep clean` removes only what lora-prep made."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lora_prep import imageio, journal
from lora_prep.embeddings import Embeddings

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


def test_vectors_are_caches_too(made: Path, lora_prep: Callable[..., object]) -> None:
    vectors = made / ".lora-prep" / "identities" / "faces" / "p00.png.safetensors"
    vectors.parent.mkdir(parents=True)
    vectors.write_bytes(b"biometric")
    lora_prep("clean", made, "--yes", "--caches")
    assert not (made / ".lora-prep" / "identities").exists()


def test_other_mask_folders_stay_where_one_is_named(
    made: Path, lora_prep: Callable[..., object]
) -> None:
    lora_prep("masks", made, "--out", made / "wide", *EMBEDDED)
    asked = lora_prep("clean", made, code=2).output
    assert "10 files of masks in masks" in asked
    assert "10 files of masks-wide in wide" in asked
    lora_prep("clean", made, "--masks", made / "wide", "--yes")
    assert not (made / "wide").exists()
    assert len(files(made / "masks")) == 10
    lora_prep("masks", made, "--out", made / "wide", *EMBEDDED)
    lora_prep("clean", made, "--masks", made / "masks", "--yes")
    assert not (made / "masks").exists()
    assert len(files(made / "wide")) == 10


def test_a_mask_that_is_edited_while_the_question_is_open_stays(
    made: Path, lora_prep: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = made / "masks" / "p03.png"

    @contextmanager
    def edited_first(folder: Path) -> Iterator[None]:
        mask.write_bytes(imageio.encode_mask(np.zeros((320, 320), np.uint8)))
        yield

    monkeypatch.setattr(journal, "exclusive", edited_first)
    document = json.loads(lora_prep("clean", made, "--yes", "--json").output)
    assert files(made / "masks") == {"p03.png"}
    assert document["stayed"] == {"masks/p03.png": "edited"}
    assert len(document["removed"]) == 9


def write_embeddings(path: Path, images: str) -> None:
    """A file as `lora-prep embed` writes it, of one image without a face."""
    none = np.zeros((0, 4), np.float32)
    rows = Embeddings(
        names=(),
        faces=np.zeros(0, np.int32),
        boxes=none,
        landmarks=np.zeros((0, 5, 2), np.float32),
        scores=none[:, 0],
        vectors=none,
        norms=none[:, 0],
        sha256=(),
        metadata={"images": images},
        faceless=("p00.png",),
        faceless_sha256=("0" * 64,),
    )
    path.write_bytes(rows.to_bytes())


class TestEmbeddings:
    def test_go_with_the_step_that_made_them(
        self, made: Path, lora_prep: Callable[..., object]
    ) -> None:
        path = made / "embeddings.safetensors"
        write_embeddings(path, "faces")
        lora_prep("clean", made, "--only", "masks", "--dry-run")
        asked = lora_prep("clean", made, "--only", "embed", code=2).output
        assert "1 files of embed in embeddings.safetensors" in asked
        lora_prep("clean", made, "--only", "masks", "--yes")
        assert path.exists()
        lora_prep("clean", made, "--yes")
        assert not path.exists()

    @pytest.mark.parametrize("images", ["others", ""])
    def test_of_another_folder_stay(
        self, images: str, made: Path, lora_prep: Callable[..., object]
    ) -> None:
        path = made / "embeddings.safetensors"
        write_embeddings(path, images)
        assert "not made by `lora-prep embed`" in lora_prep("clean", made, "--yes").output
        assert path.exists()

    def test_of_somebody_else_stay(self, made: Path, lora_prep: Callable[..., object]) -> None:
        path = made / "embeddings.safetensors"
        for content in (b"", b"mine"):
            path.write_bytes(content)
            lora_prep("clean", made, "--yes")
            assert path.read_bytes() == content

    def test_behind_a_link_stay(
        self, made: Path, tmp_path: Path, lora_prep: Callable[..., object]
    ) -> None:
        victim = tmp_path / "victim"
        write_embeddings(victim, "faces")
        (made / "embeddings.safetensors").symlink_to(victim)
        assert "(outside)" in lora_prep("clean", made, "--yes").output
        assert victim.exists()
        assert (made / "embeddings.safetensors").is_symlink()


class TestWithoutImages:
    """The images are gone; what was made of them, vectors of faces among it, is still there."""

    @pytest.fixture(params=["root", "empty folder", "folder that is gone"])
    def left(self, request: pytest.FixtureRequest, made: Path) -> Path:
        write_embeddings(made / "embeddings.safetensors", "faces")
        shutil.rmtree(made / "faces")
        if request.param == "empty folder":
            (made / "faces").mkdir()
        return made if request.param == "root" else made / "faces"

    def test_all_that_was_made_goes(self, left: Path, lora_prep: Callable[..., object]) -> None:
        root = left if left.name != "faces" else left.parent
        lora_prep("clean", left, "--yes", "--caches")
        assert files(root) == {".lora-prep/masks.jsonl"}

    def test_a_mistyped_name_is_still_refused(
        self, made: Path, lora_prep: Callable[..., object]
    ) -> None:
        before = files(made)
        said = lora_prep("clean", made / "facse", "--yes", code=2).output
        assert "there is no folder" in said
        assert files(made) == before

    def test_the_root_knows_the_name_of_the_folder(
        self, made: Path, lora_prep: Callable[..., object]
    ) -> None:
        (made / "faces").rename(made / "photos")
        write_embeddings(made / "embeddings.safetensors", "photos")
        lora_prep("clean", made, "--only", "embed", "--yes")
        assert not (made / "embeddings.safetensors").exists()
        assert len(files(made / "photos")) == 10
