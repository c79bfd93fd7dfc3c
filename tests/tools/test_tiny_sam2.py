import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import tools.tiny_models.sam2
from tools.tiny_models.sam2 import model as tiny
from tools.tiny_models.sam2.evaluate import face_ious, held_out
from tools.tiny_models.sam2.loss import compare, total
from tools.tiny_models.sam2.portraits import Drawn, Zoom, drawn, sample
from tools.tiny_models.sam2.train import Plan, train

ASSETS = Path(__file__).parents[1] / "assets" / "tiny_sam2"
CARD = Path(tools.tiny_models.sam2.__file__).with_name("README.md")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def few_portraits(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("portraits"), 8)


def test_segments_faces_that_it_has_not_seen():
    predictor = tiny.load_predictor(ASSETS)
    found = [face_ious(predictor, portrait) for portrait in held_out(40)]
    mean = {kind: np.mean([of_one[kind] for of_one in found]) for kind in found[0]}
    assert mean["box + 5 landmarks, single"] >= 0.9
    assert mean["image-centre point, masks[0]"] < mean["box + 5 landmarks, single"] - 0.3


def test_checkpoint_has_exactly_the_weights_that_the_configuration_needs():
    content = torch.load(ASSETS / "tiny_sam2.pt", weights_only=True)
    assert list(content) == ["model"]
    tiny.build().load_state_dict(content["model"], strict=True)
    assert {tensor.dtype for tensor in content["model"].values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in content["model"].values())


def test_configuration_is_the_one_that_was_trained():
    assert (ASSETS / "tiny_sam2.yaml").read_bytes() == tiny.CONFIG.read_bytes()


def test_card_names_the_files():
    named = dict(
        re.findall(r"\| `(tiny_sam2\.\w+)` \|[^|]*\| `([0-9a-f]{64})` \|", CARD.read_text())
    )
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in ASSETS.iterdir()}
    assert named == there


def test_assets_are_small():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 2_200_000


def test_training_is_reproducible(few_portraits):
    plan = Plan(steps=2, batch=2, small_share=0.5, warm_up=1)
    first, second, other = (
        train(few_portraits, plan),
        train(few_portraits, plan),
        train(few_portraits, Plan(steps=2, batch=2, small_share=0.5, warm_up=1, seed=1)),
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_what_is_trained_on_is_what_is_saved_and_loaded(few_portraits, tmp_path):
    weights = train(few_portraits, Plan(steps=1, batch=2, small_share=0, warm_up=1))
    tiny.save(weights, tmp_path)
    loaded = tiny.load_predictor(tmp_path).model.state_dict()
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-6)


def test_portraits_are_drawn_once(few_portraits, tmp_path):
    first = drawn(tmp_path, 2)
    assert np.array_equal(first.images, few_portraits.images[:2])
    changed = next(tmp_path.glob("*/images.npy"))
    np.lib.format.open_memmap(changed, "r+")[0] = 7
    assert (drawn(tmp_path, 2).images[0] == 7).all()


@pytest.mark.parametrize("zoom", [Zoom(share=0, most=1), Zoom(share=1, most=2.5)])
def test_picture_mask_and_landmarks_move_together(zoom):
    """A face painted with its left eye (in the picture) red and its right one green."""
    image = np.zeros((256, 256, 3), np.uint8)
    labels = np.zeros((256, 256), np.uint8)
    labels[60:140, 70:130] = 3
    image[labels == 3] = 128
    image[85:96, 80:91], image[85:96, 110:121] = (255, 0, 0), (0, 255, 0)
    landmarks = [(85.5, 90.5), (115.5, 90.5), (100, 110), (88, 125), (112, 125)]
    values = np.array([70, 60, 130, 140, *np.ravel(landmarks)], np.float32)
    faces = np.full((1, 3, 14), np.nan, np.float32)
    faces[0, 0] = values
    portraits = Drawn(image[None], labels[None], faces)
    flips = set()
    for seed in range(20):
        moved = sample(portraits, 0, zoom, np.random.default_rng(seed))
        rows, columns = np.nonzero(moved.level)
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        visible = np.clip(moved.face.box, 0, 256)
        np.testing.assert_allclose(edges, visible, atol=1.5)
        eyes = [moved.image[int(y), int(x)].tolist() for x, y in moved.face.landmarks[:2]]
        assert sorted(eyes) == [[0, 255, 0], [255, 0, 0]]
        flips.add(eyes[0] == [0, 255, 0])
        xs = [x for x, _ in moved.face.landmarks]
        assert xs[0] < xs[1]
        assert xs[3] < xs[4]
    assert flips == {True, False}


def squares(*sides):
    masks = torch.zeros(1, len(sides), 32, 32)
    for mask, side in zip(masks[0], sides, strict=True):
        mask[:side, :side] = 1
    return masks


def test_right_mask_costs_least_and_has_iou_1():
    targets = squares(8, 16, 24)
    cost, iou = compare(targets * 20 - 10, targets)
    assert (cost[0].argmin(0) == torch.arange(3)).all()
    torch.testing.assert_close(iou[0].diagonal(), torch.ones(3))
    assert iou[0, 0, 1] == pytest.approx(64 / 256)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_alternatives_may_come_in_any_order(order):
    right_masks = squares(16, 24, 32)
    targets = right_masks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    logits = torch.cat([right_masks[:, :1], right_masks[:, order]], dim=1) * 20 - 10
    vague, certain = torch.full((1, 3), 1 / 3), torch.tensor([[0.0, 1.0, 0.0]])
    scores, wanted = torch.ones(1, 4), torch.tensor([0])
    right = total(logits, scores, targets, wanted, vague)
    worse = total(logits[:, [0, 1, 1, 1]], scores, targets, wanted, vague)
    assert right < worse - 0.1
    assert total(logits, scores, targets, torch.tensor([1]), certain) > total(
        logits, scores, targets, wanted, certain
    )
