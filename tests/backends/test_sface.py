import shutil

import cv2
import numpy as np
import pytest
from huggingface_hub import constants

from lora_prep import digests
from lora_prep.backends import (
    FaceRecogniser,
    RecogniserSpec,
    recogniser,
    recogniser_card,
    recogniser_identity,
)
from lora_prep.backends.sface import FILENAME, SFaceRecogniser
from lora_prep.errors import BackendError
from lora_prep.types import Face
from tests.fakes.cell_recogniser import answer, write_recogniser

TEMPLATE = ((38.3, 51.7), (73.5, 51.5), (56.0, 71.7), (41.5, 92.4), (70.7, 92.2))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_recogniser(tmp_path_factory.mktemp("models") / "cells.onnx")


@pytest.fixture(scope="module")
def spec(file):
    return RecogniserSpec("sface", str(file))


@pytest.fixture(scope="module")
def picture():
    return cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8), (400, 300))


def face_at(x, y, zoom):
    points = tuple((x + zoom * px, y + zoom * py) for px, py in TEMPLATE)
    return Face((x, y, x + zoom * 112, y + zoom * 112), 0.9, points)


def test_it_is_a_recogniser_for_the_stages(spec):
    assert isinstance(recogniser(spec), FaceRecogniser)


def test_the_crop_puts_the_landmarks_where_sface_wants_them(spec, picture):
    crop = SFaceRecogniser(spec).crop(picture, face_at(60, 50, 2.0))
    expected = cv2.resize(picture[50:274, 60:284], (112, 112), interpolation=cv2.INTER_LINEAR)
    assert crop.shape == (112, 112, 3)
    assert abs(crop.astype(int) - expected)[8:-8, 8:-8].mean() < 2.5


def test_the_vectors_are_those_of_opencv_in_the_order_of_the_crops(spec, picture):
    model = SFaceRecogniser(spec)
    crops = [model.crop(picture, face_at(x, 50, 1.5)) for x in (10, 60, 150)]
    rows = model.vectors(crops)
    assert rows.dtype == np.float32
    assert rows == pytest.approx(np.stack([answer(crop) for crop in crops]), abs=0.01)
    assert np.array_equal(model.vectors(crops[1:2]), rows[1:2])


def test_the_card_names_the_file_its_hash_and_what_it_may_be_used_for(spec, file):
    card = recogniser_card(spec)
    assert (card.model, card.sha256) == ("sface cells.onnx", digests.sha256(file))
    assert card.license.startswith("unknown")
    assert card.min_similarity == 0.363
    assert digests.sha256(file) in recogniser_identity(spec)
    assert "opencv-alignCrop" in recogniser_identity(spec)


def test_without_a_network_the_released_model_is_refused_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackendError) as caught:
        recogniser_card(RecogniserSpec("sface"))
    assert FILENAME in str(caught.value)
    assert "lora-prep models pull sface" in str(caught.value)
    assert "--recogniser-model FILE" in str(caught.value)


def test_a_missing_file_and_a_file_of_something_else_are_told(tmp_path, file):
    with pytest.raises(BackendError, match=r"there is no file .*nowhere.onnx"):
        recogniser_card(RecogniserSpec("sface", str(tmp_path / "nowhere.onnx")))
    torn = tmp_path / "torn.onnx"
    shutil.copy(file, torn)
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(BackendError, match=r"cannot run .*torn.onnx as SFace"):
        recogniser(RecogniserSpec("sface", str(torn)))
