import subprocess
import sys

import cv2
import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.backends import DetectorSpec, FaceDetector, cascade, detector, detector_identity
from lora_prep.backends.cascade import CONFIRMED, CascadeDetector
from lora_prep.errors import BackendError
from lora_prep.types import Face
from sample_data.photos import photographs
from sample_data.portraits import draw_portrait


@pytest.fixture(scope="module")
def cascade_detector():
    return CascadeDetector()


@pytest.fixture(scope="module")
def photos():
    return {p.path.stem: imageio.decode_image(p.path.read_bytes()) for p in photographs()}


def overlap(a: Face, b: Face) -> float:
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a.area + b.area - shared)


# Boxes from hairline to chin and ear to ear, by hand.
COLLINS = Face((181, 75, 271, 181), 1.0)
HOPPER = Face((170, 131, 353, 337), 1.0)
FOUR = (
    Face((62, 262, 166, 398), 1.0),
    Face((466, 263, 577, 416), 1.0),
    Face((747, 338, 851, 480), 1.0),
    Face((1135, 264, 1228, 401), 1.0),
)


def test_faces_in_photographs(cascade_detector, photos):
    (collins,) = cascade_detector.detect(photos["astronaut"])
    (hopper,) = cascade_detector.detect(photos["grace_hopper"])
    assert overlap(collins, COLLINS) > 0.6
    assert overlap(hopper, HOPPER) > 0.6
    company = cascade_detector.detect(photos["t1"])
    assert len(company) == 4, "two of the six look away"
    for face in FOUR:
        assert max(overlap(face, found) for found in company) > 0.5


def test_no_faces_in_photographs_without_any(cascade_detector, photos):
    for name in ("coffee", "chelsea"):
        assert cascade_detector.detect(photos[name]) == []


def test_best_score_first_and_within_range(cascade_detector, photos):
    scores = [face.score for face in cascade_detector.detect(photos["t1"])]
    assert scores == sorted(scores, reverse=True)
    assert all(0.5 <= score < 1 for score in scores)


def test_faces_of_painted_people(cascade_detector):
    found = lied = 0
    for seed in range(6):
        portrait = draw_portrait(seed, size=(256, 256), people=1, scale=(0.3, 0.5), max_tilt=12)
        faces = cascade_detector.detect(portrait.image)
        hits = [overlap(portrait.people[0].face, face) > 0.5 for face in faces]
        found += any(hits)
        lied += len(hits) - sum(hits)
    assert found >= 5
    assert lied <= 1


def test_a_find_within_a_face_is_not_another_face(cascade_detector, monkeypatch):
    """Eyes and brow of this one are confirmed as well."""
    portrait = draw_portrait(39, size=(320, 320))
    (face,) = cascade_detector.detect(portrait.image)
    assert overlap(face, portrait.people[0].face) > 0.5
    monkeypatch.setattr(cascade, "_inside", lambda boxes: np.zeros((len(boxes), len(boxes))))
    whole, part = cascade_detector.detect(portrait.image)
    assert whole == face
    assert overlap(whole, part) < 0.3


@pytest.mark.parametrize("degrees", [-40, -25, 25, 40])
def test_a_head_that_leans_is_found_once(cascade_detector, photos, degrees):
    turn = cv2.getRotationMatrix2D((256, 230), degrees, 0.5)
    image = photos["grace_hopper"][:460]
    leaning = cv2.warpAffine(image, turn, (512, 460), borderMode=cv2.BORDER_REPLICATE)
    (face,) = cascade_detector.detect(leaning)
    x, y = turn @ (*HOPPER.centre, 1)
    assert np.hypot(face.centre[0] - x, face.centre[1] - y) < 0.15 * face.height


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_boxes_are_in_the_image_s_own_pixels(cascade_detector, photos, factor):
    image = cv2.resize(photos["grace_hopper"], None, fx=factor, fy=factor)
    (face,) = cascade_detector.detect(image)
    scaled = Face(tuple(v * factor for v in HOPPER.box), 1.0)
    assert overlap(face, scaled) > 0.6


def test_grey_and_closely_cropped(cascade_detector, photos):
    (face,) = cascade_detector.detect(photos["Tom_Hanks_54745"])
    assert overlap(face, Face((19, 0, 84, 112), 1.0)) > 0.6


@pytest.mark.parametrize("shape", [(1, 1), (10, 900), (900, 10), (23, 23), (24, 24), (2, 5000)])
def test_images_too_small_for_a_face(cascade_detector, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert cascade_detector.detect(noise) == []


def test_the_same_again_and_the_image_untouched(photos):
    image = photos["grace_hopper"].copy()
    first, second = CascadeDetector(), CascadeDetector()
    faces = first.detect(image)
    second.detect(photos["Tom_Hanks_54745"])
    assert second.detect(image) == faces
    np.testing.assert_array_equal(image, photos["grace_hopper"])


def test_it_is_the_detector_that_the_spec_names():
    loaded: FaceDetector = detector(DetectorSpec("cascade"))
    assert isinstance(loaded, CascadeDetector)
    assert "draft" in loaded.describe()
    assert detector_identity(DetectorSpec("cascade")) == cascade.IDENTITY


def test_the_identity_names_cascade_and_code_without_loading_them():
    code = (
        "import sys; from lora_prep.backends import cascade; print(cascade.IDENTITY);"
        "assert 'skimage' not in sys.modules and 'torch' not in sys.modules"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert made.stdout.strip() == cascade.IDENTITY
    assert f"cascade:{cascade.REVISION}:" in cascade.IDENTITY


def test_without_scikit_image_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackendError, match=r"pip install scikit-image.*--detector insightface"):
        CascadeDetector()


def test_the_faintest_face_has_half_a_point():
    faintest = cascade._Sighting(CONFIRMED, (50.0, 60.0), 40.0, 0.0)
    face = cascade._face(faintest, 0.5)
    assert face.score == 0.5
    assert face.centre == (100, 120)
    assert face.width / face.height == pytest.approx(0.43 / 0.54)
