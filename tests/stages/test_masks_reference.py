"""`lora-prep masks --faces reference`: of several people, the one meant."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.embeddings import Embeddings, read_embeddings, with_metadata
from lora_prep.journal import hash_file
from lora_prep.types import Face
from sample_data.portraits import draw_portrait

REFERENCE = ("--preset", "embedded", "--faces", "reference", "--erode", "0")
TINY = Path(__file__).parents[1] / "assets" / "tiny_faces"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures of the same two people, and who is where."""
    folder = tmp_path_factory.mktemp("group") / "faces"
    folder.mkdir()
    found = {}
    for seed, name in ((5, "a.png"), (11, "b.png")):
        portrait = draw_portrait(seed, size=(300, 420), people=2, scale=(0.3, 0.5))
        (folder / name).write_bytes(imageio.encode_image(portrait.image, "png"))
        found[name] = [person.face for person in portrait.people]
    return folder, found


@pytest.fixture
def group(pictures, tmp_path):
    """A copy of them, with the embeddings of a model that is sure: the first is meant."""
    folder, faces = pictures
    copy = Path(shutil.copytree(folder, tmp_path / "data" / "faces"))
    tell(copy, faces, {name: [0.9, 0.1] for name in faces})
    return copy, faces


def tell(folder: Path, faces: dict[str, list[Face]], alike: dict[str, list[float]], **more) -> None:
    """Write embeddings.safetensors with these similarities."""
    found = [(name, i, face) for name in sorted(faces) for i, face in enumerate(faces[name])]
    n = len(found)
    vectors = np.zeros((n, 4), np.float32)
    vectors[:, 0] = 1
    rows = Embeddings(
        names=tuple(name for name, _, _ in found),
        faces=np.array([i for _, i, _ in found], np.int32),
        boxes=np.array([face.box for _, _, face in found], np.float32).reshape(n, 4),
        landmarks=np.array([face.landmarks for _, _, face in found], np.float32).reshape(n, 5, 2),
        scores=np.array([face.score for _, _, face in found], np.float32),
        vectors=vectors,
        norms=np.ones(n, np.float32),
        sha256=tuple(hash_file(folder / name) for name, _, _ in found),
        metadata={
            "images": folder.name, "model": "sure", "model_sha256": "00", "detector": "d",
            "alignment": "a", "reference_sha256": "first", "min_similarity": "0.35", **more,
        },
        similarities=np.array([alike[name][i] for name, i, _ in found], np.float32),
    )  # fmt: skip
    (folder.parent / "embeddings.safetensors").write_bytes(rows.to_bytes())


def masked(folder: Path, name: str, faces: list[Face]) -> list[bool]:
    """Whose face is in the mask."""
    path = folder.parent / "masks" / f"{Path(name).stem}.png"
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return [bool(mask[tuple(round(v) for v in reversed(face.centre))]) for face in faces]


def counts(result):
    return json.loads(result.stdout)["counts"]


def test_only_the_person_meant_is_masked(group, lora_prep):
    folder, faces = group
    tell(folder, faces, {"a.png": [0.9, 0.1], "b.png": [0.2, 0.5]})
    lora_prep("masks", folder, *REFERENCE)
    assert masked(folder, "a.png", faces["a.png"]) == [True, False]
    assert masked(folder, "b.png", faces["b.png"]) == [False, True]


def test_no_detector_is_needed_and_its_models_are_not_asked_for(group, lora_prep, monkeypatch):
    def never(spec):
        raise AssertionError("a detector was asked for")

    monkeypatch.setattr("lora_prep.backends.detector", never)
    monkeypatch.setattr("lora_prep.backends.detector_identity", never)
    lora_prep("masks", group[0], *REFERENCE)


def test_an_image_with_nobody_alike_goes_by_the_policy_with_a_message_of_its_own(group, lora_prep):
    folder, faces = group
    tell(folder, faces, {"a.png": [0.9, 0.1], "b.png": [0.2, 0.1]})
    said = lora_prep("masks", folder, *REFERENCE, code=1).output
    assert "b.png: nobody in it is like the reference: of 2 faces the most similar has 0.20" in said
    assert "--min-similarity is 0.35" in said
    lora_prep("masks", folder, *REFERENCE, "--no-face", "black")
    assert masked(folder, "b.png", faces["b.png"]) == [False, False]
    lora_prep("masks", folder, *REFERENCE, "--min-similarity", "0.15")
    assert masked(folder, "b.png", faces["b.png"]) == [True, False]


def test_a_small_face_is_not_taken_however_much_it_is_alike(group, lora_prep):
    said = lora_prep("masks", group[0], *REFERENCE, "--min-face", "500", code=1).output
    assert "no face is large enough" in said


def test_an_image_without_a_face_is_told_so(group, lora_prep):
    folder, _ = group
    cv2.imwrite(str(folder / "wall.png"), np.full((200, 300, 3), 128, np.uint8))
    path = folder.parent / "embeddings.safetensors"
    digest = hash_file(folder / "wall.png")
    rows = replace(read_embeddings(path), faceless=("wall.png",), faceless_sha256=(digest,))
    path.write_bytes(rows.to_bytes())
    said = lora_prep("masks", folder, *REFERENCE, code=1).output
    assert "wall.png: no face was found by lora-prep embed" in said


def test_masks_are_made_again_when_the_choice_may_be_another(group, lora_prep):
    folder, faces = group
    lora_prep("masks", folder, *REFERENCE)
    assert counts(lora_prep("masks", folder, *REFERENCE, "--json"))["fresh"] == 2
    path = folder.parent / "embeddings.safetensors"
    path.write_bytes(with_metadata(read_embeddings(path), date="later").to_bytes())
    assert counts(lora_prep("masks", folder, *REFERENCE, "--json"))["fresh"] == 2
    tell(folder, faces, {name: [0.1, 0.9] for name in faces}, reference_sha256="second")
    assert counts(lora_prep("masks", folder, *REFERENCE, "--json"))["done"] == 2
    assert masked(folder, "a.png", faces["a.png"]) == [False, True]
    again = lora_prep("masks", folder, *REFERENCE, "--min-similarity", "0.5", "--json")
    assert counts(again)["done"] == 2


class TestRefused:
    def test_without_embeddings(self, pictures, tmp_path, lora_prep):
        folder = Path(shutil.copytree(pictures[0], tmp_path / "faces"))
        said = lora_prep("masks", folder, *REFERENCE, code=2).output
        assert "embeddings.safetensors" in said
        assert "make it with `lora-prep embed`" in said
        assert not (tmp_path / "masks").exists()

    def test_damaged_embeddings(self, group, lora_prep):
        (group[0].parent / "embeddings.safetensors").write_bytes(b"x" * 100)
        said = lora_prep("masks", group[0], *REFERENCE, code=2).output
        assert "it is no safetensors file" in said

    def test_embeddings_of_another_folder(self, group, lora_prep):
        folder, faces = group
        tell(folder, faces, {name: [0.9, 0.1] for name in faces}, images="others")
        said = lora_prep("masks", folder, *REFERENCE, code=2).output
        assert "has the faces of the folder others" in said

    def test_embeddings_without_a_reference(self, group, lora_prep):
        path = group[0].parent / "embeddings.safetensors"
        path.write_bytes(replace(read_embeddings(path), similarities=None).to_bytes())
        said = lora_prep("masks", group[0], *REFERENCE, code=2).output
        assert "run `lora-prep embed` with --reference IMG" in said

    def test_an_image_that_changed_since_or_is_new(self, group, lora_prep):
        folder, _ = group
        shutil.copy(folder / "b.png", folder / "new.png")
        (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
        said = lora_prep("masks", folder, *REFERENCE, code=1).output
        assert "b.png: it has changed since `lora-prep embed`: run that again" in said
        assert "new.png: it is not in embeddings.safetensors: run `lora-prep embed` again" in said

    def test_a_threshold_without_a_reference(self, group, lora_prep):
        said = lora_prep("masks", group[0], "--min-similarity", "0.5", code=2).output
        assert "--min-similarity goes with --faces reference" in said


def test_from_photographs_to_the_mask_of_the_person_in_the_reference(tmp_path, lora_prep):
    """The two commands, with models that have learned: the smaller of two people is meant."""
    folder = tmp_path / "data" / "faces"
    folder.mkdir(parents=True)
    portrait = draw_portrait(5, size=(300, 420), people=2, scale=(0.3, 0.5))
    faces = sorted((person.face for person in portrait.people), key=lambda face: face.area)
    (folder / "two.png").write_bytes(imageio.encode_image(portrait.image, "png"))
    x0, y0, x1, y1 = faces[0].box
    side = max(x1 - x0, y1 - y0) * 0.35
    window = [round(v) for v in (max(y0 - side, 0), y1 + side, max(x0 - side, 0), x1 + side)]
    alone = portrait.image[window[0] : window[1], window[2] : window[3]]
    alone = cv2.resize(alone, None, fx=1.5, fy=1.5)
    (tmp_path / "me.png").write_bytes(imageio.encode_image(alone, "png"))
    models = ("--face-model", TINY, "--det-size", "320")
    lora_prep("embed", folder, *models, "--reference", tmp_path / "me.png")
    lora_prep("masks", folder, *REFERENCE)
    assert masked(folder, "two.png", faces) == [True, False]
