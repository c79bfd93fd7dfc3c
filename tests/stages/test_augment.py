"""Variants of a data set: pairs, faces, repetition, what is lost."""

import hashlib
import json
import pickle

import cv2
import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.augmentation import PRESETS, face_points, move_faces
from lora_prep.dataset import Dataset
from lora_prep.errors import UsageError
from lora_prep.executors.local import LocalExecutor
from lora_prep.faces import FaceRecord, faces_path, read_faces
from lora_prep.run import run
from lora_prep.stages.augment import AugmentImages, Shared, with_flip
from lora_prep.types import Face, Status

DETECTOR = "somebody/1"
LANDMARKS = ((60.0, 70.0), (90.0, 72.0), (76.0, 85.0), (64.0, 98.0), (88.0, 99.0))
FACE = Face((45.0, 50.0, 105.0, 115.0), 0.9, LANDMARKS)
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]


@pytest.fixture
def data(tmp_path):
    """Two pictures with a mask, a caption, and a recorded face whose landmarks are drawn."""
    dataset = Dataset(tmp_path / "faces", tmp_path / "masks", tmp_path)
    for folder in (dataset.images, dataset.masks):
        folder.mkdir()
    for name in ("a.png", "b.png"):
        image = np.full((150, 160, 3), 120, np.uint8)
        for (x, y), colour in zip(LANDMARKS, COLOURS, strict=True):
            cv2.circle(image, (round(x), round(y)), 4, colour, cv2.FILLED)
        mask = np.zeros((150, 160), np.uint8)
        cv2.ellipse(mask, (75, 82), (28, 32), 0, 0, 360, 255, cv2.FILLED)
        sample = dataset.sample(name)
        sample.image.write_bytes(data := imageio.encode_image(image, "png"))
        sample.mask.write_bytes(imageio.encode_mask(mask))
        sample.caption.write_text(f"a photo of {name}\n")
        record(dataset, sample, data, (FACE,))
    return dataset


def record(dataset, sample, data, faces):
    path = faces_path(dataset, sample)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(data).hexdigest()
    path.write_bytes(FaceRecord(DETECTOR, digest, 160, 150, faces).to_bytes())


def stage_of(data, out="augmented", **options):
    return AugmentImages(data, data.root / out, **{"count": 3, **options})


def augment(data, out="augmented", threads=2, **options):
    stage, outcomes = stage_of(data, out, **options), []
    run(stage, data.root, executor=LocalExecutor(threads), observe=outcomes.append)
    return stage, outcomes


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def found_faces(stage):
    """Each variant with its picture and the faces recorded for its very bytes."""
    for sample in stage.made:
        data = sample.image.read_bytes()
        faces = read_faces(faces_path(stage.made, sample), data, DETECTOR)
        assert faces is not None, sample.name
        yield sample, imageio.decode_image(data), faces


def test_a_variant_is_an_image_a_mask_a_caption_and_its_faces(data):
    stage, outcomes = augment(data)
    assert [o.status for o in outcomes] == [Status.DONE] * 6
    assert [s.name for s in stage.made][:3] == ["a-a000.png", "a-a001.png", "a-a002.png"]
    for sample, image, faces in found_faces(stage):
        mask = imageio.decode_mask(sample.mask.read_bytes())
        assert mask.shape == image.shape[:2]
        assert sample.caption.read_text() == f"a photo of {sample.name[0]}.png\n"
        assert len(faces) == 1
    info = outcomes[1].info
    assert (info["parent"], info["variant"], info["faces"]) == ("faces/a.png", 1, 1)
    (a, b, tx), (c, d, ty) = info["matrix"]
    x, y = (v + 0.5 for v in LANDMARKS[0])  # the matrix counts from the image's corner
    moved = next(f for s, _, f in found_faces(stage) if "a001" in s.name)
    assert moved[0].landmarks[0] == pytest.approx(
        (a * x + b * y + tx - 0.5, c * x + d * y + ty - 0.5), abs=0.01
    )


def test_a_mirrored_landmark_is_on_the_mirrored_pixel(data):
    stage, _ = augment(data, count=1, pipeline=PRESETS["flip-only"])
    (left, y), (right, z) = LANDMARKS[:2]
    for _, image, (face,) in found_faces(stage):
        width = image.shape[1]
        assert face.landmarks[:2] == ((width - 1 - right, z), (width - 1 - left, y))
        assert face.box == pytest.approx((width - 105, 50, width - 45, 115))


def test_a_landmark_in_the_first_row_of_pixels_is_in_the_picture(data):
    sample = data.sample("a.png")
    high = ((60.0, -0.3), (90.0, -0.3), *LANDMARKS[2:])
    record(data, sample, sample.image.read_bytes(), (Face((45.0, 0.0, 105.0, 115.0), 0.9, high),))
    up = [{"transform": "Affine", "translate_px": {"x": 0, "y": -30}, "p": 1.0}]
    _, outcomes = augment(data, count=1, pipeline=up, with_masks=False, tries=1)
    assert [o.code for o in outcomes] == ["face-lost", ""], "it was watched, and left"


@pytest.mark.parametrize("flip", [False, True])
def test_landmarks_lie_on_the_dots_and_left_stays_left(data, flip):
    pipeline = PRESETS["flip-only"] if flip else PRESETS["standard"][:1]
    stage, outcomes = augment(data, pipeline=pipeline)
    assert {o.info["mirrored"] for o in outcomes} == {flip}
    order = (1, 0, 2, 4, 3) if flip else range(5)  # by the side that it lies on now
    for _, image, (face,) in found_faces(stage):
        assert face.landmarks[0][0] < face.landmarks[1][0]
        assert face.landmarks[3][0] < face.landmarks[4][0]
        for (x, y), source in zip(face.landmarks, order, strict=True):
            near = np.abs(image.astype(int) - COLOURS[source]).sum(axis=2) < 150
            rows, columns = np.nonzero(near)
            assert np.hypot(columns.mean() - x, rows.mean() - y) < 1


def test_the_same_files_whatever_the_threads_and_in_however_many_runs(data):
    augment(data, "one/augmented", threads=1)
    augment(data, "many/augmented", threads=8)
    augment(data, "later/augmented", count=1)
    _, outcomes = augment(data, "later/augmented", count=3)
    assert [o.status for o in outcomes].count(Status.FRESH) == 2
    one = files(data.root / "one")
    assert len(one) == 6 * 4
    assert one == files(data.root / "many") == files(data.root / "later")
    augment(data, "other/augmented", seed=1)
    other = files(data.root / "other")
    assert all(one[name] != other[name] for name in one if name.endswith(".png"))
    images = [data for name, data in one.items() if name.endswith(".png")]
    assert len(set(images)) == len(images)  # no two variants alike


def test_an_edited_mask_makes_its_variants_again_and_no_others(data):
    augment(data)
    mask = data.sample("a.png").mask
    mask.write_bytes(imageio.encode_mask(255 - imageio.decode_mask(mask.read_bytes())))
    _, outcomes = augment(data, min_kept=0.7)
    assert [o.status for o in outcomes] == [Status.DONE] * 3 + [Status.FRESH] * 3


def test_a_variant_that_was_edited_by_hand_is_kept(data):
    stage, _ = augment(data)
    edited = stage.made.sample("a-a001.png").mask
    edited.write_bytes(imageio.encode_mask(np.full((150, 160), 255, np.uint8)))
    before = files(data.root / "augmented")
    _, outcomes = augment(data, seed=5)
    assert [o.status for o in outcomes].count(Status.KEPT) == 1
    after = files(data.root / "augmented")
    kept = {n for n in before if before[n] == after[n]}
    assert {"images/a-a001.png", "masks/a-a001.png"} <= kept


def test_another_format_takes_the_place_of_the_first_and_back(data):
    augment(data)
    stage, outcomes = augment(data, format="jpeg")
    assert [o.status for o in outcomes] == [Status.DONE] * 6
    assert {p.suffix for p in stage.made.images.iterdir()} == {".jpg", ".txt"}
    assert len(list(stage.made.masks.iterdir())) == 6
    _, outcomes = augment(data, format="jpeg")
    assert [o.status for o in outcomes] == [Status.FRESH] * 6
    augment(data)
    assert {p.suffix for p in stage.made.images.iterdir()} == {".png", ".txt"}


def test_what_is_no_longer_made_goes_and_what_others_made_stays(data):
    stage, _ = augment(data)
    data.sample("a.png").caption.unlink()
    augment(data, with_masks=False)
    assert list(stage.made.masks.iterdir()) == []
    assert {p.name[0] for p in stage.made.images.glob("*.txt")} == {"b"}
    mask = stage.made.sample("a-a000.png").mask
    caption = stage.made.sample("a-a000.png").caption
    mask.write_bytes(imageio.encode_mask(np.zeros((150, 160), np.uint8)))
    caption.write_text("theirs")
    _, outcomes = augment(data, with_masks=False, seed=1)
    assert {o.status for o in outcomes} == {Status.DONE}
    assert mask.is_file()
    assert caption.read_text() == "theirs"


def test_an_edited_picture_of_the_other_format_is_kept_alone(data):
    stage, _ = augment(data)
    edited = stage.made.sample("a-a001.png").image
    edited.write_bytes(imageio.encode_image(np.zeros((150, 160, 3), np.uint8), "png"))
    _, outcomes = augment(data, format="jpeg")
    assert [o.status for o in outcomes].count(Status.KEPT) == 1
    assert edited.is_file()
    assert not edited.with_suffix(".jpg").exists()
    run(stage_of(data, format="jpeg"), data.root, executor=LocalExecutor(2), force=True)
    assert not edited.exists()
    assert edited.with_suffix(".jpg").is_file()


def test_both_formats_of_an_earlier_version_are_cleared_up(data):
    stage, _ = augment(data, count=1)
    before = files(stage.made.images)
    augment(data, count=1, format="jpeg")
    journal = data.state / "augment.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for first, second in zip(lines[:2], lines[2:], strict=True):  # as it was written once
        second["outputs"] = {**first["outputs"], **second["outputs"]}
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, content in before.items():
        (stage.made.images / name).write_bytes(content)
    augment(data, count=1, format="jpeg")
    assert {p.suffix for p in stage.made.images.iterdir()} == {".jpg", ".txt"}


def test_variants_above_the_number_are_named(data):
    assert stage_of(data).surplus() == []
    augment(data, count=3)
    assert stage_of(data).surplus() == []
    stage = stage_of(data, count=1)
    assert stage.surplus() == ["a-a001.png", "a-a002.png", "b-a001.png", "b-a002.png"]
    stage.made.sample("a-a001.png").image.unlink()
    assert stage.surplus() == ["a-a002.png", "b-a001.png", "b-a002.png"]


def shift(least, most):
    return [{"transform": "Affine", "translate_percent": {"x": [least, most], "y": 0}, "p": 1.0}]


def test_draws_that_lose_the_face_are_drawn_again(data):
    stage, outcomes = augment(data, count=6, pipeline=shift(-0.6, 0.6), tries=30)
    assert all(o.status is Status.DONE and o.info["kept"] >= 0.7 for o in outcomes)
    assert any(o.info["attempt"] > 0 for o in outcomes)
    for _, image, (face,) in found_faces(stage):
        assert all(0 <= x <= image.shape[1] for x, _ in face.landmarks)
    _, careless = augment(data, "careless", count=6, pipeline=shift(-0.6, 0.6), min_kept=0)
    assert {o.info["attempt"] for o in careless} == {0}


def test_what_never_succeeds_is_reported_and_leaves_nothing(data):
    _, outcomes = augment(data, count=1, pipeline=shift(0.8, 0.9), tries=3)
    assert {(o.status, o.code) for o in outcomes} == {(Status.FAILED, "face-lost")}
    assert "none of 3 draws" in outcomes[0].message
    assert files(data.root / "augmented") == {}


def test_without_a_mask_the_landmarks_decide(data):
    _, outcomes = augment(data, count=1, with_masks=False, pipeline=shift(0.6, 0.6), tries=2)
    assert {o.code for o in outcomes} == {"face-lost"}
    stage, outcomes = augment(data, count=1, with_masks=False)
    assert {o.status for o in outcomes} == {Status.DONE}
    assert not stage.made.masks.exists()


def test_zooming_in_loses_no_face_that_is_still_whole(data):
    zoom = [{"transform": "Affine", "scale": 0.5, "p": 1.0}]
    _, outcomes = augment(data, count=1, pipeline=zoom, tries=1)
    assert [o.info["kept"] for o in outcomes] == pytest.approx([1, 1], abs=0.02)


def test_a_face_that_is_not_trained_on_may_leave(data):
    sample = data.sample("a.png")
    aside = tuple((x + 65, y) for x, y in LANDMARKS)
    other = Face((110.0, 50.0, 160.0, 115.0), 0.8, aside)
    record(data, sample, sample.image.read_bytes(), (FACE, other))
    _, outcomes = augment(data, count=1, pipeline=shift(0.25, 0.25), tries=1)
    assert [o.status for o in outcomes] == [Status.DONE] * 2
    assert [o.info["faces"] for o in outcomes] == [1, 1]


def test_soft_masks_stay_soft(data):
    mask = data.sample("a.png").mask
    soft = cv2.GaussianBlur(imageio.decode_mask(mask.read_bytes()), (0, 0), 5)
    mask.write_bytes(imageio.encode_mask(soft))
    stage, _ = augment(data, count=1)
    levels = [len(np.unique(imageio.decode_mask(s.mask.read_bytes()))) for s in stage.made]
    assert levels[0] > 50
    assert levels[1] == 2


def test_images_without_a_fitting_mask_fail_alone(data):
    data.sample("a.png").mask.unlink()
    _, outcomes = augment(data, count=1)
    assert [(o.status, o.code) for o in outcomes] == [(Status.FAILED, "no-mask"), ("done", "")]
    data.sample("a.png").mask.write_bytes(imageio.encode_mask(np.zeros((160, 150), np.uint8)))
    _, outcomes = augment(data, count=1)
    assert [o.code for o in outcomes] == ["size-mismatch", ""]
    assert "160×150 and its mask 150×160" in outcomes[0].message


def test_a_damaged_image_fails_all_of_its_variants_and_no_other(data):
    image = data.sample("a.png").image
    image.write_bytes(image.read_bytes()[:200])
    _, outcomes = augment(data)
    assert [o.code for o in outcomes] == ["unreadable"] * 3 + [""] * 3


def test_stale_or_broken_face_records_are_not_carried_on(data):
    faces_path(data, data.sample("a.png")).write_text("{")
    record(data, data.sample("b.png"), b"another picture", (FACE,))
    stage, outcomes = augment(data, count=1)
    assert [o.status for o in outcomes] == [Status.DONE] * 2
    assert not (stage.made.state / "faces").exists()


def test_an_empty_mask_is_taken_with_a_warning(data):
    data.sample("a.png").mask.write_bytes(imageio.encode_mask(np.zeros((150, 160), np.uint8)))
    _, outcomes = augment(data, count=1)
    assert outcomes[0].status is Status.DONE
    assert "mask is empty" in outcomes[0].warnings[0]


@pytest.mark.parametrize("out", ["faces", "faces/x", "masks", "masks/x", "."])
def test_originals_and_variants_are_never_mixed(data, out):
    with pytest.raises(UsageError, match="choose a"):
        stage_of(data, out)


def test_an_augmented_set_can_be_augmented(data):
    stage, _ = augment(data, count=1)
    again, outcomes = augment(Dataset.at(stage.out), count=2)
    assert [o.status for o in outcomes] == [Status.DONE] * 4
    assert [len(f) for _, _, f in found_faces(again)] == [1] * 4


def test_settings_are_plain_data_and_leave_the_number_out(data):
    stage = stage_of(data, pipeline=with_flip(PRESETS["strong"]))
    assert json.loads(json.dumps(stage.settings())) == stage.settings()
    assert stage.settings() == stage_of(data, pipeline=stage.pipeline, count=9).settings()
    assert stage.settings() != stage_of(data, pipeline=stage.pipeline, format="jpeg").settings()
    assert with_flip(stage.pipeline) is stage.pipeline
    assert pickle.loads(pickle.dumps(stage)).settings() == stage.settings()  # for other processes


def test_a_box_that_does_not_move_stays_and_faces_outside_go():
    plain = Face((10.0, 20.0, 50.0, 80.0), 0.5)
    points = face_points([plain, FACE])
    first, second = move_faces([plain, FACE], points, (160, 150), mirrored=False)
    assert (first.box, first.landmarks) == (pytest.approx(plain.box), None)
    assert (second.box, second.landmarks) == (pytest.approx(FACE.box), LANDMARKS)
    assert move_faces([plain], points[:32] + 400, (160, 150), mirrored=False) == []


def test_shared_values_are_made_once_and_errors_reach_all():
    made, shared = [], Shared(2)
    assert [shared.get(k, lambda k=k: made.append(k) or k) for k in "aabab"] == list("aabab")
    assert made == ["a", "b"]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            shared.get("c", lambda: 1 // 0)
