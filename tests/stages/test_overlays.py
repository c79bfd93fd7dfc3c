"""`lora-prep masks --overlay`: previews of the masks that are there."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.backends import DetectorSpec, detector_identity
from lora_prep.dataset import Dataset
from lora_prep.executors.local import LocalExecutor
from lora_prep.faces import FaceRecord, faces_path
from lora_prep.journal import hash_file
from lora_prep.run import run as run_stage
from lora_prep.stages.overlays import DrawOverlays
from lora_prep.types import Status
from sample_data.portraits import draw_portrait

EMBEDDED = ("masks", "--preset", "embedded")


@pytest.fixture
def images(tmp_path) -> Path:
    """Two portraits whose faces are known, and a wall."""
    folder = tmp_path / "data" / "faces"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "wall.png"), np.full((90, 120, 3), 128, np.uint8))
    portraits = [draw_portrait(seed, size=(200, 200), people=1) for seed in (1, 2)]
    for i, portrait in enumerate(portraits):
        (folder / f"p{i}.png").write_bytes(imageio.encode_image(portrait.image, "png"))
    found = [[portrait.people[0].face] for portrait in portraits]
    for sample, of_image in zip(dataset := Dataset.at(folder), [*found, []], strict=True):
        path = faces_path(dataset, sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        identity = detector_identity(DetectorSpec("cascade"))
        record = FaceRecord(identity, hash_file(sample.image), 1, 1, tuple(of_image))
        path.write_bytes(record.to_bytes())
    return folder


def run(lora_prep, images, *options):
    result = lora_prep(*EMBEDDED, images, "--no-face", "skip", *options, "--json")
    return json.loads(result.stdout)


def test_looking_makes_no_mask_again(images, lora_prep):
    look = images.parent / "look"
    assert run(lora_prep, images)["counts"]["done"] == 2
    found = run(lora_prep, images, "--overlay", look)
    assert (found["counts"]["fresh"], found["counts"]["done"]) == (2, 0)
    assert found["overlays"] == {"out": str(look), "counts": {"done": 2}, "problems": []}
    assert sorted(path.name for path in look.iterdir()) == ["p0.jpg", "p1.jpg"]
    assert run(lora_prep, images, "--overlay", look)["overlays"]["counts"] == {"fresh": 2}


def test_what_is_ignored_is_dimmed_and_the_face_is_marked(images, lora_prep):
    look = images.parent / "look"
    run(lora_prep, images, "--overlay", look)
    image, preview = cv2.imread(str(images / "p0.png")), cv2.imread(str(look / "p0.jpg"))
    assert preview.shape == image.shape
    mask = cv2.imread(str(images.parent / "masks" / "p0.png"), 0) > 0
    outside = ~cv2.dilate(mask.view(np.uint8), np.ones((31, 31))).astype(bool)
    assert preview[outside].mean() < 0.6 * image[outside].mean()
    face = draw_portrait(1, size=(200, 200), people=1).people[0].face
    assert preview[round(face.centre[1]), round(face.box[0])].min() > 120  # its box is light


def test_masks_of_the_users_own_are_drawn_as_they_are(images, lora_prep):
    look, mask = images.parent / "look", images.parent / "masks" / "p0.png"
    run(lora_prep, images, "--overlay", look)
    before = (look / "p0.jpg").read_bytes()
    cv2.imwrite(str(mask), np.full((200, 200), 255, np.uint8))
    found = run(lora_prep, images, "--overlay", look)
    assert found["counts"]["kept"] == 1
    assert found["overlays"]["counts"] == {"done": 1, "fresh": 1}
    assert (look / "p0.jpg").read_bytes() != before


def test_no_folder_keeps_previews_of_masks_that_were_edited_since(images, lora_prep):
    here, there = images.parent / "here", images.parent / "there"
    run(lora_prep, images, "--overlay", here)
    cv2.imwrite(str(images.parent / "masks" / "p0.png"), np.full((200, 200), 255, np.uint8))
    run(lora_prep, images, "--overlay", there)
    run(lora_prep, images, "--overlay", here)
    assert (here / "p0.jpg").read_bytes() == (there / "p0.jpg").read_bytes()
    assert run(lora_prep, images, "--overlay", here)["overlays"]["counts"] == {"fresh": 2}


def test_other_faces_are_drawn_anew(images, lora_prep):
    look = images.parent / "look"
    run(lora_prep, images, "--overlay", look)
    before = (look / "p0.jpg").read_bytes()
    sample = next(iter(Dataset.at(images)))
    face = draw_portrait(1, size=(200, 200), people=1).people[0].face
    wider = replace(face, box=(face.box[0] - 8, face.box[1], face.box[2] + 8, face.box[3]))
    record = FaceRecord("another", hash_file(sample.image), 200, 200, (wider,))
    faces_path(Dataset.at(images), sample).write_bytes(record.to_bytes())
    stage = DrawOverlays(Dataset.at(images), look)
    report = run_stage(stage, images.parent, executor=LocalExecutor(1))
    assert report.counts == {Status.DONE: 1, Status.FRESH: 1}
    assert (look / "p0.jpg").read_bytes() != before


def test_an_interrupt_while_drawing_is_one(images, lora_prep, monkeypatch):
    def interrupted(image, mask, faces):
        os.kill(os.getpid(), signal.SIGINT)
        return image

    monkeypatch.setattr("lora_prep.masks.overlay", interrupted)
    look = ("--overlay", images.parent / "look", "--threads", 1)
    result = lora_prep(*EMBEDDED, images, "--no-face", "skip", *look, "--json", code=130)
    assert json.loads(result.stdout)["interrupted"]


def test_a_mask_of_another_size_is_named_and_the_others_are_drawn(images, lora_prep):
    masks = images.parent / "masks"
    masks.mkdir()
    cv2.imwrite(str(masks / "p0.png"), np.full((20, 30), 255, np.uint8))
    result = lora_prep(
        *EMBEDDED, images, "--no-face", "skip", "--overlay", images.parent / "look", code=1
    )
    assert "p0.png: the mask has 30×20 pixels, the image 200×200" in result.stdout
    assert [path.name for path in (images.parent / "look").iterdir()] == ["p1.jpg"]


def test_a_foreign_picture_stays_and_hinders_no_mask(images, lora_prep):
    look = images.parent / "look"
    look.mkdir()
    (look / "p0.jpg").write_bytes(b"mine")
    found = run(lora_prep, images, "--overlay", look)
    assert found["counts"]["done"] == 2
    assert found["overlays"]["counts"] == {"kept": 1, "done": 1}
    assert (look / "p0.jpg").read_bytes() == b"mine"


def test_a_shard_says_that_it_draws_nothing(images, lora_prep):
    look = images.parent / "look"
    options = ("--no-face", "skip", "--overlay", look, "--shard", "1/1")
    assert "a shard draws nothing" in lora_prep(*EMBEDDED, images, *options).stderr
    assert not look.exists()


def test_clean_takes_the_previews_of_the_masks_away(images, lora_prep):
    run(lora_prep, images, "--overlay", images.parent / "look")
    lora_prep("clean", images, "--only", "masks", "--yes")
    assert not (images.parent / "look").exists()
    assert not (images.parent / "masks").exists()
