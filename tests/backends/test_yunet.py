import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_prep import digests
from lora_prep.backends import DetectorSpec, FaceDetector, detector, detector_identity
from lora_prep.backends.yunet import YuNetDetector, identity
from lora_prep.errors import BackendError
from tests.fakes.red_square_detector import LANDMARKS, SIDE, write_detector
from tests.fakes.red_square_yunet import write_yunet

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_yunet(tmp_path_factory.mktemp("models") / "red.onnx")


@pytest.fixture(scope="module")
def spec(file):
    return DetectorSpec("yunet", str(file))


@pytest.fixture(scope="module")
def model(spec):
    return YuNetDetector(spec)


def picture(*squares, height=320, width=320):
    """Grey, with squares of (centre x, centre y, side, colour)."""
    image = np.full((height, width, 3), 90, np.uint8)
    for x, y, side, colour in squares:
        half = side // 2
        image[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = colour
    return image


class TestDetect:
    @settings(max_examples=25, deadline=None)
    @given(x=st.integers(4, 36), y=st.integers(4, 36), zoom=st.integers(1, 3))
    def test_finds_a_face_where_it_is(self, model, x, y, zoom):
        shrunk = max(1, zoom / 2)  # of 320, 640 and 960 pixels only the last does not fit
        cx, cy = 8 * x * zoom, 8 * y * zoom
        side = round(SIDE * shrunk)
        cx, cy = (round(round(v / shrunk / 8) * 8 * shrunk) for v in (cx, cy))
        image = picture((cx, cy, side, RED), height=320 * zoom, width=320 * zoom)
        (face,) = model.detect(image)
        half = side / 2
        assert face.box == pytest.approx((cx - half, cy - half, cx + half, cy + half), abs=0.1)
        assert face.score == pytest.approx(1, abs=0.02)
        expected = [(cx + dx * shrunk, cy + dy * shrunk) for dx, dy in LANDMARKS]
        assert np.array(face.landmarks) == pytest.approx(np.array(expected), abs=0.1)

    def test_landmarks_begin_with_the_eye_on_the_images_left(self, model):
        (face,) = model.detect(picture((160, 160, SIDE, RED)))
        left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
        assert left_eye[0] < nose[0] < right_eye[0]
        assert left_mouth[0] < nose[0] < right_mouth[0]
        assert left_eye[1] < nose[1] < left_mouth[1]

    @pytest.mark.parametrize(
        ("height", "width"), [(1280, 1280), (1280, 400), (400, 1280), (641, 640), (96, 640)]
    )
    def test_images_of_any_size_and_aspect(self, model, height, width):
        scale = max(1.0, height / 640, width / 640)
        side = round(SIDE * scale)
        x, y = (round(round(v / 2 / scale / 8) * 8 * scale) for v in (width, height))
        (face,) = model.detect(picture((x, y, side, RED), height=height, width=width))
        assert face.centre == pytest.approx((x, y), abs=1)
        assert face.width == pytest.approx(side, rel=0.02)

    def test_best_first_and_ties_in_order_of_their_boxes(self, model):
        image = picture((244, 240, SIDE, RED), (240, 80, SIDE, RED), (80, 160, SIDE, RED))
        faces = model.detect(image)
        assert [face.box[:2] for face in faces] == [(48, 128), (208, 48), (208, 208)]
        assert faces[0].score == faces[1].score > faces[2].score > 0.5

    def test_channels_are_in_the_right_order(self, model):
        assert model.detect(picture((160, 160, SIDE, BLUE))) == []

    def test_faces_below_the_minimum_score_are_dropped(self, file):
        image = picture((164, 160, SIDE, RED))
        assert YuNetDetector(DetectorSpec("yunet", str(file), min_score=0.95)).detect(image) == []
        (face,) = YuNetDetector(DetectorSpec("yunet", str(file), min_score=0.9)).detect(image)
        assert face.score == pytest.approx(0.875**0.5, abs=0.01)  # the root of two scores' product

    @pytest.mark.parametrize("size", [320, 100, 1280])
    def test_other_sizes_of_the_input(self, file, size):
        other = YuNetDetector(DetectorSpec("yunet", str(file), det_size=size))
        image = picture((48, 48, SIDE, RED), height=size, width=size)
        (face,) = other.detect(image)
        assert face.centre == pytest.approx((48, 48), abs=0.1)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 3000), st.integers(1, 7), st.booleans())
    def test_extreme_aspects_have_no_face_and_do_not_fail(self, model, long, short, tall):
        shape = (long, short, 3) if tall else (short, long, 3)
        assert model.detect(np.full(shape, 200, np.uint8)) == []

    def test_the_image_is_left_as_it_is(self, model):
        image = picture((160, 160, SIDE, RED))
        before = image.copy()
        image.setflags(write=False)
        model.detect(image)
        assert (image == before).all()

    def test_a_failure_of_the_model_is_named(self, spec):
        own = YuNetDetector(spec)
        own._model.setInputSize((32, 32))  # which the 640 pixels no longer fit
        with pytest.raises(BackendError, match=r"image of 320×320 pixels with YuNet red\.onnx"):
            own.detect(picture())


class TestLoad:
    def test_through_the_protocol(self, spec):
        loaded = detector(spec)
        assert isinstance(loaded, FaceDetector)
        assert loaded.describe() == "YuNet red.onnx at 640×640, OpenCV on the CPU"

    def test_nothing_is_printed(self, spec, capfd):
        YuNetDetector(spec).detect(picture((160, 160, SIDE, RED)))
        assert capfd.readouterr() == ("", "")

    def test_opencvs_own_warnings_are_let_through_again(self, spec):
        before = cv2.utils.logging.getLogLevel()
        YuNetDetector(spec)
        assert cv2.utils.logging.getLogLevel() == before

    def test_a_name_with_any_characters(self, file, tmp_path):
        path = shutil.copy(file, tmp_path / "Модель ü 😀.onnx")
        assert YuNetDetector(DetectorSpec("yunet", str(path))).detect(picture()) == []

    def test_a_file_that_is_not_there(self, tmp_path):
        missing = DetectorSpec("yunet", str(tmp_path / "no.onnx"))
        for use in (YuNetDetector, identity):
            with pytest.raises(BackendError, match=r"--face-model: there is no file .*no\.onnx"):
                use(missing)

    @pytest.mark.parametrize("keep", [0, 7, 0.5])
    def test_a_damaged_file(self, file, tmp_path, keep):
        content = file.read_bytes()
        path = tmp_path / "broken.onnx"
        path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
        with pytest.raises(BackendError, match=r"cannot run .*broken\.onnx as YuNet"):
            YuNetDetector(DetectorSpec("yunet", str(path)))

    def test_another_kind_of_detector(self, tmp_path):
        write_detector(tmp_path / "scrfd.onnx")
        with pytest.raises(BackendError, match=r"cannot run .*scrfd\.onnx as YuNet"):
            YuNetDetector(DetectorSpec("yunet", str(tmp_path / "scrfd.onnx")))

    def test_without_a_file_it_is_the_released_one(self, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        for use in (YuNetDetector, identity):
            with pytest.raises(BackendError) as raised:
                use(DetectorSpec("yunet"))
            assert "face_detection_yunet_2023mar.onnx is not in" in str(raised.value)
            assert "lora-prep models pull yunet" in str(raised.value)
            assert "--detector cascade" in str(raised.value)


class TestIdentity:
    def test_names_file_hash_and_settings(self, spec, file):
        assert detector_identity(spec) == (
            f"yunet red.onnx sha256={digests.sha256(file)} det_size=640 min_score=0.5 nms=0.3"
        )

    def test_follows_content_and_settings_and_nothing_else(self, spec, file, tmp_path):
        copy = shutil.copy(file, tmp_path / "red.onnx")
        here = identity(spec)
        assert identity(DetectorSpec("yunet", str(copy), device="cuda")) == here
        assert identity(DetectorSpec("yunet", str(copy), det_size=320)) != here
        assert identity(DetectorSpec("yunet", str(copy), min_score=0.6)) != here
        write_detector(copy)
        assert identity(DetectorSpec("yunet", str(copy))) != here

    def test_imports_no_runtime(self, spec):
        code = (
            "import sys\n"
            "from lora_prep.backends import DetectorSpec, detector_identity\n"
            f"detector_identity(DetectorSpec('yunet', {spec.model!r}))\n"
            "print([m for m in ('cv2', 'onnxruntime', 'insightface', 'torch') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
