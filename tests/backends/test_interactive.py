"""Masks from clicks."""

import cv2
import numpy as np
import pytest
import torch

from lora_prep import masks
from lora_prep.backends import SegmenterSpec, sam2_model
from lora_prep.backends.interactive import (
    Click,
    PromptedGrabCut,
    PromptedSam2,
    PromptedSegmenter,
    Prompts,
    prompted,
)
from lora_prep.errors import BackendError, ItemError
from tests.fakes.tiny_sam2 import write_tiny_sam2

HEIGHT, WIDTH = 180, 240
LEFT, RIGHT = (70, 90), (170, 90)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    model, config = write_tiny_sam2(tmp_path_factory.mktemp("tiny sam2"))
    return SegmenterSpec(model=str(model), config=str(config), device="cpu", dtype="float32")


def two_discs():
    image = np.full((HEIGHT, WIDTH, 3), (30, 50, 80), np.uint8)
    image += np.random.default_rng(0).integers(0, 12, image.shape, dtype=np.uint8)
    truth = []
    for centre, colour in ((LEFT, (220, 170, 120)), (RIGHT, (215, 175, 125))):
        cv2.circle(image, centre, 35, colour, cv2.FILLED)
        disc = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.circle(disc, centre, 35, 1, cv2.FILLED)
        truth.append(disc > 0)
    return image, truth


def inside(*points):
    return [Click(x, y, True) for x, y in points]


def test_nothing_meant_is_no_prompt():
    for clicks in ([], [Click(1, 1, False)]):
        with pytest.raises(ItemError, match="nothing says what is meant"):
            Prompts(clicks)


def test_grabcut_takes_what_is_clicked_on_and_not_its_twin():
    image, (left, right) = two_discs()
    model = PromptedGrabCut()
    assert isinstance(model, PromptedSegmenter)
    found = model.segment(model.look(image), Prompts(inside(LEFT)))
    assert masks.iou(found, left) > 0.9
    found = model.segment(image, Prompts(inside(LEFT, RIGHT)))
    assert masks.iou(found, left | right) > 0.9
    found = model.segment(image, Prompts((), (130, 50, 210, 130)))
    assert masks.iou(found, right) > 0.9


def test_grabcut_leaves_out_what_is_not_meant():
    image, (left, _) = two_discs()
    beside = Click(70, 70, False)
    found = PromptedGrabCut().segment(image, Prompts([*inside(LEFT), beside]))
    assert not found[70, 70]
    assert found[90, 70]
    assert np.count_nonzero(found & ~left) < 0.1 * np.count_nonzero(left)


def test_grabcut_answers_alike_every_time():
    image, _ = two_discs()
    prompts = Prompts(inside(LEFT))
    first = PromptedGrabCut().segment(image, prompts)
    cv2.setRNGSeed(123)
    assert np.array_equal(PromptedGrabCut().segment(image, prompts), first)


@pytest.mark.parametrize(
    ("clicks", "box"),
    [
        ([(0, 0)], None),
        ([(240, 180)], None),
        ([(239.9, 0.1)], None),
        ([], (0, 0, 240, 180)),
        ([], (239.5, 179.5, 240, 180)),
        ([], (10, 10, 11, 12)),
        ([(5, 5)], (100, 100, 120, 120)),
    ],
)
def test_grabcut_at_the_border_and_in_the_tiniest_box(clicks, box):
    found = PromptedGrabCut().segment(two_discs()[0], Prompts(inside(*clicks), box))
    assert found.shape == (HEIGHT, WIDTH)


def test_grabcut_on_one_colour_and_on_one_pixel():
    flat = np.full((50, 60, 3), 128, np.uint8)
    assert PromptedGrabCut().segment(flat, Prompts(inside((30, 25))))[25, 30]
    dot = np.zeros((1, 1, 3), np.uint8)
    assert PromptedGrabCut().segment(dot, Prompts(inside((0.5, 0.5)))).shape == (1, 1)


@pytest.mark.parametrize("several", [False, True])
def test_sam2_says_what_its_own_predictor_says(spec, several):
    image, _ = two_discs()
    model = PromptedSam2(spec)
    size = model._sam2._size
    square = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    points = [(70.0, 90.0), (170.0, 90.0)] if several else [(70.0, 90.0)]
    labels = [1, 0] if several else [1]
    box = (30.0, 50.0, 110.0, 130.0) if several else None
    scale = np.array([size / WIDTH, size / HEIGHT])
    predictor = sam2_model.load(sam2_model.find(spec), "cpu")
    predictor.set_image(square)
    logits, scores, _ = predictor.predict(
        np.array(points) * scale,
        np.array(labels),
        None if box is None else np.array(box) * np.tile(scale, 2),
        multimask_output=not several,
        return_logits=True,
    )
    best = cv2.resize(logits[scores.argmax()], (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    prompts = Prompts([Click(x, y, bool(i)) for (x, y), i in zip(points, labels, strict=True)], box)
    found = model.segment(model.look(image), prompts)
    assert found.shape == (HEIGHT, WIDTH)
    assert 0.05 < found.mean() < 0.95
    assert masks.iou(found, best > 0) > 0.95


def test_sam2_keeps_what_it_saw_of_an_image(spec, tmp_path):
    image, _ = two_discs()
    model = prompted(spec, tmp_path / "embeddings")
    first = model.segment(model.look(image), Prompts(inside(LEFT)))
    (kept,) = (tmp_path / "embeddings").iterdir()
    assert kept.suffix == ".safetensors"
    again = prompted(spec, tmp_path / "embeddings")
    again._sam2._encode = None  # what is known is not computed again
    assert np.array_equal(again.segment(again.look(image), Prompts(inside(LEFT))), first)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(BackendError, match=r"no\.pt"):
        prompted(SegmenterSpec("sam2", model=str(tmp_path / "no.pt")))
