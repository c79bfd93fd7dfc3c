"""`lora-prep masks` through its command line, with the embedded models on drawn portraits."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from lora_prep import imageio, masks
from lora_prep.backends import DetectorSpec, detector_identity
from lora_prep.dataset import Dataset
from lora_prep.faces import FaceRecord, faces_path
from lora_prep.journal import hash_file
from lora_prep.types import Face
from sample_data.portraits import draw_portrait

EMBEDDED = ("--preset", "embedded")


def mask_of(folder: Path, stem: str) -> np.ndarray:
    mask = cv2.imread(str(folder.parent / "masks" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    return mask


def tell_faces(folder: Path, *truth: list[Face]) -> None:
    """Record faces as if the embedded detector had found them."""
    dataset = Dataset.at(folder)
    identity = detector_identity(DetectorSpec("cascade"))
    for sample, faces in zip(dataset, truth, strict=True):
        path = faces_path(dataset, sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = FaceRecord(identity, hash_file(sample.image), 1, 1, tuple(faces))
        path.write_bytes(record.to_bytes())


def test_masks_are_what_trainers_read(faces, portraits, lora_prep):
    lora_prep("masks", faces, *EMBEDDED, code=None)
    made = sorted((faces.parent / "masks").iterdir())
    assert len(made) >= 8, "the embedded detector finds most of these easy portraits"
    for path in made:
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert (mask.shape, mask.dtype) == ((320, 320), np.uint8)
        assert set(np.unique(mask)) == {0, 255}
        truth = portraits[int(path.stem[1:])].people[0].face_mask
        assert masks.iou(mask == 255, truth) > 0.6


def test_given_the_faces_the_masks_cover_them_and_nothing_else(faces, portraits, lora_prep):
    tell_faces(faces, *([p.people[0].face] for p in portraits))
    lora_prep("masks", faces, *EMBEDDED, "--erode", "0")
    overlap = [
        masks.iou(mask_of(faces, f"p{i:02}") == 255, portrait.people[0].face_mask)
        for i, portrait in enumerate(portraits)
    ]
    assert np.mean(overlap) > 0.75


def test_a_photograph_without_a_face_fails_by_default_and_writes_nothing(tmp_path, lora_prep):
    folder = tmp_path / "faces"
    folder.mkdir()
    cv2.imwrite(str(folder / "wall.png"), np.full((200, 300, 3), 128, np.uint8))
    result = lora_prep("masks", folder, *EMBEDDED, code=1)
    assert "wall.png: no face was found by cascade" in result.output
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(("policy", "colour"), [("white", 255), ("black", 0)])
def test_a_photograph_without_a_face_can_be_given_a_plain_mask(tmp_path, lora_prep, policy, colour):
    folder = tmp_path / "faces"
    folder.mkdir()
    cv2.imwrite(str(folder / "wall.png"), np.full((200, 300, 3), 128, np.uint8))
    lora_prep("masks", folder, *EMBEDDED, "--no-face", policy)
    mask = mask_of(folder, "wall")
    assert mask.shape == (200, 300)
    assert np.unique(mask) == [colour]


def test_a_photograph_without_a_face_can_be_left_out(tmp_path, lora_prep):
    folder = tmp_path / "faces"
    folder.mkdir()
    cv2.imwrite(str(folder / "wall.png"), np.full((200, 300, 3), 128, np.uint8))
    result = lora_prep("masks", folder, *EMBEDDED, "--no-face", "skip")
    assert "1 skipped" in result.output
    assert not (tmp_path / "masks").exists()


def test_another_answer_to_no_face_makes_no_other_mask_again(faces, lora_prep):
    """The advice for an image without a face costs the others nothing."""
    for path in sorted(faces.iterdir())[3:]:
        path.unlink()
    cv2.imwrite(str(faces / "wall.png"), np.full((200, 300, 3), 128, np.uint8))

    def counts(*options):
        result = lora_prep("masks", faces, *EMBEDDED, *options, "--json", code=None)
        return {k: n for k, n in json.loads(result.stdout)["counts"].items() if n}

    first = counts()
    made, failed = first["done"], first["failed"]
    assert counts("--no-face", "skip") == {"fresh": made, "skipped": failed}
    assert counts("--no-face", "skip") == {"fresh": made, "skipped": failed}
    assert counts("--no-face", "white") == {"fresh": made, "done": failed}
    assert counts("--no-face", "white") == {"fresh": made + failed}
    assert np.unique(mask_of(faces, "wall")) == [255]
    assert counts("--no-face", "black") == {"fresh": made, "done": failed}
    assert counts("--no-face", "fail") == {"fresh": made, "failed": failed}


def test_what_does_not_fit_into_memory_is_not_detected_again(faces, lora_prep, monkeypatch):
    from lora_prep.backends.cascade import CascadeDetector
    from lora_prep.backends.grabcut import GrabCutSegmenter
    from lora_prep.errors import OutOfMemory

    detected, batches = [], []
    segment = GrabCutSegmenter.segment

    def counting(self, image):
        detected.append(image.shape)
        return []

    def small(self, prepared, found, region):
        batches.append(len(prepared))
        if len(prepared) > 3:
            raise OutOfMemory("no room")
        return segment(self, prepared, found, region)

    monkeypatch.setattr(CascadeDetector, "detect", counting)
    monkeypatch.setattr(GrabCutSegmenter, "segment", small)
    lora_prep("masks", faces, *EMBEDDED, "--batch-size", 5, "--no-face", "black")
    assert batches == [5, 3, 2, 3, 2]
    assert len(detected) == 10


@pytest.fixture
def group(tmp_path) -> tuple[Path, list[Face]]:
    """One picture with two people, and their faces, largest first."""
    portrait = draw_portrait(5, size=(400, 600), people=2, scale=(0.2, 0.4))
    folder = tmp_path / "data" / "faces"
    folder.mkdir(parents=True)
    (folder / "two.png").write_bytes(imageio.encode_image(portrait.image, "png"))
    found = [person.face for person in portrait.people]
    tell_faces(folder, found)
    return folder, found


def inside(mask: np.ndarray, face: Face) -> bool:
    x, y = (round(v) for v in face.centre)
    return bool(mask[y, x] == 255)


def test_the_face_policy_chooses_who_is_trained_on(group, lora_prep):
    folder, faces = group
    areas = [face.area for face in faces]
    largest = faces[int(np.argmax(areas))]
    nearest = min(faces, key=lambda f: np.hypot(f.centre[0] - 300, f.centre[1] - 200))
    for policy, wanted in (("all", faces), ("largest", [largest]), ("center", [nearest])):
        lora_prep("masks", folder, *EMBEDDED, "--faces", policy)
        mask = mask_of(folder, "two")
        assert [inside(mask, face) for face in faces] == [face in wanted for face in faces], policy


def test_small_faces_are_passed_over_and_the_message_says_how_small(group, lora_prep):
    folder, _ = group
    result = lora_prep("masks", folder, *EMBEDDED, "--min-face", "500", code=1)
    assert "no face is large enough: the largest is " in result.output
    assert "--min-face is 500" in result.output


def test_erosion_takes_the_edge_off_and_never_everything(group, lora_prep):
    folder, _ = group
    areas = {}
    for erode in ("0", "2%", "10px", "-2%"):
        lora_prep("masks", folder, *EMBEDDED, "--erode", erode)
        areas[erode] = np.count_nonzero(mask_of(folder, "two"))
    assert areas["10px"] < areas["2%"] < areas["0"] < areas["-2%"]
    result = lora_prep("masks", folder, *EMBEDDED, "--erode", "400px", code=1)
    assert "--erode 400px would leave nothing of the mask: give less" in result.output
    assert np.count_nonzero(mask_of(folder, "two")) == areas["-2%"], "the older mask is left"


def test_feather_softens_inside_the_mask_alone(group, lora_prep):
    folder, _ = group
    lora_prep("masks", folder, *EMBEDDED)
    hard = mask_of(folder, "two")
    lora_prep("masks", folder, *EMBEDDED, "--feather", "8px")
    soft = mask_of(folder, "two")
    assert len(np.unique(soft)) > 4
    assert not soft[hard == 0].any()
    assert (soft == 255).any()


def test_regions_are_nested(group, lora_prep):
    folder, _ = group
    sizes = []
    for region in ("face", "head", "person"):
        lora_prep("masks", folder, *EMBEDDED, "--region", region, "--erode", "0")
        sizes.append(np.count_nonzero(mask_of(folder, "two")))
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_mask_follows_the_pixels_as_they_are_displayed(tmp_path, portraits, lora_prep):
    from PIL import Image

    folder = tmp_path / "faces"
    folder.mkdir()
    upright = Image.fromarray(portraits[0].image[:, :240])
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(folder / "plain.png")
    stored.save(folder / "turned.png", exif=exif)
    tell_faces(folder, [portraits[0].people[0].face], [portraits[0].people[0].face])
    lora_prep("masks", folder, *EMBEDDED)
    assert np.array_equal(mask_of(folder, "plain"), mask_of(folder, "turned"))


def test_images_with_one_stem_are_refused_by_name_and_the_others_are_made(faces, lora_prep):
    shutil.copy(faces / "p00.png", faces / "p01.png")
    result = lora_prep("masks", faces, *EMBEDDED, code=1)
    for name, other in (("p01.jpg", "p01.png"), ("p01.png", "p01.jpg")):
        assert f"{name} and {other} would share the mask p01.png" in result.output
    assert not (faces.parent / "masks" / "p01.png").exists()
    assert (faces.parent / "masks" / "p02.png").exists()


def test_damaged_and_foreign_files_are_failed_items(faces, lora_prep):
    whole = (faces / "p01.jpg").read_bytes()
    (faces / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (faces / "empty.jpg").write_bytes(b"")
    (faces / "text.jpg").write_text("not a picture")
    (faces / "._p00.png").write_bytes(b"\0\5\x16\7")
    result = lora_prep("masks", faces, *EMBEDDED, "--json", code=1)
    failed = {
        i["key"]: i["code"]
        for i in json.loads(result.stdout)["items"]
        if i["status"] == "failed" and i["code"] != "no-face"
    }
    assert failed == {
        "faces/cut.jpg": "unreadable",
        "faces/empty.jpg": "empty",
        "faces/text.jpg": "unreadable",
    }


def test_overlays_go_to_a_folder_of_their_own(faces, lora_prep):
    lora_prep("masks", faces, *EMBEDDED, "--overlay", faces.parent / "look", code=None)
    made = {p.stem for p in (faces.parent / "masks").iterdir()}
    assert {p.stem for p in (faces.parent / "look").iterdir()} == made
    for wrong in (faces, faces.parent / "masks", faces / "look"):
        result = lora_prep("masks", faces, *EMBEDDED, "--overlay", wrong, code=2)
        assert "--overlay needs a folder of its own" in result.output


def test_a_second_run_does_nothing_and_a_hand_edit_is_kept(faces, lora_prep):
    lora_prep("masks", faces, *EMBEDDED, code=None)
    mask = next((faces.parent / "masks").iterdir())
    cv2.imwrite(str(mask), np.full((320, 320), 255, np.uint8))
    edited = mask.read_bytes()
    result = lora_prep("masks", faces, *EMBEDDED, "--json", code=None)
    counts = json.loads(result.stdout)["counts"]
    assert (counts["done"], counts["kept"]) == (0, 1)
    lora_prep("masks", faces, *EMBEDDED, "--erode", "5%", code=None)
    assert mask.read_bytes() == edited
    lora_prep("masks", faces, *EMBEDDED, "--force", code=None)
    assert mask.read_bytes() != edited


def test_masks_reuse_the_faces_that_detect_found(faces, lora_prep, monkeypatch):
    lora_prep("detect", faces, *EMBEDDED)

    def never(self, image):
        raise AssertionError("detected again")

    monkeypatch.setattr("lora_prep.backends.cascade.CascadeDetector.detect", never)
    result = lora_prep("masks", faces, *EMBEDDED, "--json", code=None)
    assert json.loads(result.stdout)["counts"]["done"] >= 8


def test_the_same_bytes_from_any_number_of_threads_and_batches(faces, lora_prep):
    found = []
    for options in (("--threads", 1), ("--threads", 4, "--batch-size", 3)):
        lora_prep("masks", faces, *EMBEDDED, *options, code=None)
        found.append({p.name: p.read_bytes() for p in (faces.parent / "masks").iterdir()})
        shutil.rmtree(faces.parent / "masks")
    assert found[0] == found[1]


def test_dry_run_says_what_would_be_done_and_writes_nothing(faces, lora_prep):
    before = sorted(p for p in faces.parent.rglob("*"))
    result = lora_prep("masks", faces, *EMBEDDED, "--dry-run")
    assert "would be: 10 to make" in result.output
    assert sorted(p for p in faces.parent.rglob("*")) == before


def test_images_are_never_touched(faces, lora_prep):
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in faces.iterdir()}
    lora_prep("masks", faces, *EMBEDDED, "--overlay", faces.parent / "look", code=None)
    assert before == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in faces.iterdir()}


def test_a_wrong_margin_is_a_usage_error(faces, lora_prep):
    assert "has no unit" in lora_prep("masks", faces, "--erode", "10", code=2).output
    assert "only goes inwards" in lora_prep("masks", faces, "--feather", "-2px", code=2).output
