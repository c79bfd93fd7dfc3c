from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from lora_prep import imageio, masks
from lora_prep.backends import Segmenter, SegmenterSpec, grabcut, segmenter, segmenter_identity
from lora_prep.backends.grabcut import GrabCutSegmenter
from lora_prep.types import Face, Region
from sample_data.photos import photographs
from sample_data.portraits import draw_portrait

SEEDS = range(100, 110)


@pytest.fixture(scope="module")
def drawn():
    return [draw_portrait(seed, size=(320, 320), people=1, scale=(0.2, 0.5)) for seed in SEEDS]


def truth(person, region: Region) -> np.ndarray:
    return getattr(person, f"{region}_mask")


def segment(image, faces, region=Region.FACE) -> list[np.ndarray]:
    model = GrabCutSegmenter()
    prepared = model.prepare(image)
    (answer,) = model.segment([prepared], [faces], region)
    return list(model.finish(prepared, answer))


@pytest.mark.parametrize("landmarks", [True, False])
@pytest.mark.parametrize(
    ("region", "mean", "least"), [("face", 0.85, 0.6), ("head", 0.8, 0.55), ("person", 0.7, 0.15)]
)
def test_masks_of_painted_people(drawn, region, mean, least, landmarks):
    overlap = []
    for portrait in drawn:
        (person,) = portrait.people
        face = person.face if landmarks else Face(person.face.box, 1.0)
        (mask,) = segment(portrait.image, [face], Region(region))
        overlap.append(masks.iou(mask, truth(person, Region(region))))
    assert np.mean(overlap) > mean
    assert min(overlap) > least


def test_mask_of_a_photographed_face_leaves_hair_and_background_out():
    path = next(p.path for p in photographs() if p.name == "astronaut.png")
    image = imageio.decode_image(path.read_bytes())
    (mask,) = segment(image, [Face((181, 75, 271, 181), 1.0)])
    for x, y in ((203, 102), (245, 103), (224, 130), (224, 145), (224, 172), (200, 150)):
        assert mask[y, x], "eyes, nose, mouth, chin, cheek"
    for x, y in ((225, 40), (165, 90), (290, 90), (225, 205), (300, 30), (120, 300)):
        assert not mask[y, x], "hair, collar, wall, suit"
    (head,) = segment(image, [Face((181, 75, 271, 181), 1.0)], Region.HEAD)
    assert head[40, 225]
    assert head[90, 165]
    assert not head[300, 120]
    (person,) = segment(image, [Face((181, 75, 271, 181), 1.0)], Region.PERSON)
    assert person[300, 200]
    assert not person[60, 50]


def test_one_mask_a_face_in_order_each_as_large_as_its_image(drawn):
    model = GrabCutSegmenter()
    a, b = drawn[0], drawn[1]
    wide = np.concatenate([a.image, b.image], axis=1)
    left = a.people[0].face
    x0, y0, x1, y1 = b.people[0].face.box
    right = Face((x0 + 320, y0, x1 + 320, y1), 1.0)
    images = [wide, a.image, b.image]
    answers = model.segment(images, [[left, right], [], [left]], Region.FACE)
    made = [list(model.finish(*pair)) for pair in zip(images, answers, strict=True)]
    assert [len(some) for some in made] == [2, 0, 1]
    assert [m.shape for some in made for m in some] == [(320, 640), (320, 640), (320, 320)]
    assert not made[0][0][:, 320:].any()
    assert not made[0][1][:, :320].any()


@pytest.mark.parametrize("region", list(Region))
def test_masks_depend_on_nothing_but_image_and_face(drawn, region):
    def one(portrait):
        return segment(portrait.image, [portrait.people[0].face], region)[0]

    forward = [one(portrait) for portrait in drawn[:4]]
    cv2.setRNGSeed(12345)
    backward = [one(portrait) for portrait in drawn[3::-1]][::-1]
    with ThreadPoolExecutor(3) as pool:
        in_threads = list(pool.map(one, drawn[:4]))
    for a, b, c in zip(forward, backward, in_threads, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_a_tilted_face_with_landmarks_turns_with_the_picture():
    portrait = draw_portrait(104, size=(320, 320), people=1, scale=(0.4, 0.5), max_tilt=2)
    person = portrait.people[0]
    (upright,) = segment(portrait.image, [person.face])
    assert person.face.landmarks
    quarter = np.ascontiguousarray(np.rot90(portrait.image))
    x0, y0, x1, y1 = person.face.box
    points = tuple((y, 320 - x) for x, y in person.face.landmarks)
    lying = Face((y0, 320 - x1, y1, 320 - x0), 1.0, points)
    (turned,) = segment(quarter, [lying])
    assert masks.iou(turned, np.rot90(upright)) > 0.9


@pytest.mark.parametrize("region", list(Region))
@pytest.mark.parametrize(
    "box",
    [
        (-40.0, -60.0, 140.0, 160.0),
        (-500.0, -500.0, 600.0, 600.0),
        (10.0, 20.0, 10.5, 20.5),
        (90.0, 60.0, 130.0, 110.0),
        (0.0, 0.0, 100.0, 80.0),
    ],
)
def test_faces_that_fill_overhang_or_vanish(region, box):
    image = np.random.default_rng(1).integers(0, 256, (80, 100, 3), np.uint8)
    (mask,) = segment(image, [Face(box, 1.0)], region)
    assert mask.shape == (80, 100)
    assert mask.dtype == bool
    x, y = (
        min(max(int(c), 0), m - 1) for c, m in zip(Face(box, 1.0).centre, (100, 80), strict=True)
    )
    assert mask[y, x] or box[2] - box[0] < 1


def test_a_face_outside_the_image_has_an_empty_mask():
    (mask,) = segment(np.zeros((50, 60, 3), np.uint8), [Face((500, 500, 520, 530), 1.0)])
    assert not mask.any()


def test_where_there_is_nothing_to_cut_the_ellipse_stands_in():
    flat = np.full((200, 200, 3), 127, np.uint8)
    (mask,) = segment(flat, [Face((60, 50, 140, 150), 1.0)])
    expected = np.pi / 4 * 80 * 100
    assert 0.5 * expected < mask.sum() < 1.5 * expected


def test_large_images_get_a_smooth_edge():
    portrait = draw_portrait(104, size=(320, 320), people=1, scale=(0.4, 0.5), max_tilt=2)
    face = portrait.people[0].face
    large = cv2.resize(portrait.image, (2560, 2560), interpolation=cv2.INTER_CUBIC)
    scaled = Face(tuple(v * 8 for v in face.box), 1.0)
    (small_mask,) = segment(portrait.image, [Face(face.box, 1.0)])
    (mask,) = segment(large, [scaled])
    lines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    assert len(lines) == 1
    corners = cv2.approxPolyDP(lines[0], 4, closed=True)
    assert len(corners) < 60, "no staircase"
    reduced = cv2.resize(mask.view(np.uint8) * 255, (320, 320), interpolation=cv2.INTER_AREA) > 127
    assert masks.iou(reduced, small_mask) > 0.93


def test_it_is_the_segmenter_that_the_spec_names():
    loaded: Segmenter = segmenter(SegmenterSpec("grabcut"))
    assert isinstance(loaded, GrabCutSegmenter)
    assert "draft" in loaded.describe()
    assert segmenter_identity(SegmenterSpec("grabcut")) == grabcut.IDENTITY
    assert cv2.__version__ in grabcut.IDENTITY
