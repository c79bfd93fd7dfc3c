import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_prep.backends import (
    DetectorSpec,
    FaceDetector,
    detector,
    detector_identity,
    device,
    licenses,
    weights,
)
from lora_prep.backends.insightface import InsightFaceDetector, identity
from lora_prep.errors import BackendError, UsageError
from tests.fakes import loopback
from tests.fakes.red_square_detector import LANDMARKS, SIDE, write_detector, write_pack

RED, BLUE = (255, 0, 0), (0, 0, 255)
DET_SIZE = 320


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("packs") / "red")


@pytest.fixture(scope="module")
def spec(pack):
    return DetectorSpec(model=str(pack), det_size=DET_SIZE, device="cpu")


@pytest.fixture(scope="module")
def model(spec):
    return InsightFaceDetector(spec)


def picture(*squares, height=DET_SIZE, width=DET_SIZE):
    """Grey, with squares of (centre x, centre y, side, colour)."""
    image = np.full((height, width, 3), 90, np.uint8)
    for x, y, side, colour in squares:
        half = side // 2
        image[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = colour
    return image


class TestDetect:
    @given(
        x=st.integers(4, 36),
        y=st.integers(4, 36),
        zoom=st.integers(1, 3),
    )
    def test_finds_a_face_where_it_is(self, model, x, y, zoom):
        cx, cy = 8 * x * zoom, 8 * y * zoom
        half = SIDE // 2 * zoom
        image = picture((cx, cy, 2 * half, RED), height=DET_SIZE * zoom, width=DET_SIZE * zoom)
        (face,) = model.detect(image)
        assert face.box == pytest.approx((cx - half, cy - half, cx + half, cy + half), abs=0.01)
        assert face.score == pytest.approx(1, abs=0.01)
        expected = [(cx + dx * zoom, cy + dy * zoom) for dx, dy in LANDMARKS]
        assert np.array(face.landmarks) == pytest.approx(np.array(expected), abs=0.01)

    @pytest.mark.parametrize(("height", "width"), [(320, 160), (160, 320), (640, 480)])
    def test_images_of_any_aspect_are_fitted_in(self, model, height, width):
        scale = DET_SIZE / max(height, width)
        side = round(SIDE / scale)
        image = picture((width // 2, height // 2, side, RED), height=height, width=width)
        (face,) = model.detect(image)
        assert face.centre == pytest.approx((width / 2, height / 2), abs=0.01)
        assert face.width == face.height == pytest.approx(side, abs=0.01)

    def test_best_first_and_ties_in_order_of_their_boxes(self, model):
        image = picture((244, 240, SIDE, RED), (240, 80, SIDE, RED), (80, 160, SIDE, RED))
        faces = model.detect(image)
        assert [face.box[:2] for face in faces] == [(48, 128), (208, 48), (208, 208)]
        assert faces[0].score == faces[1].score > faces[2].score > 0.5

    def test_channels_are_in_the_right_order(self, model):
        assert model.detect(picture((160, 160, SIDE, BLUE))) == []

    def test_faces_below_the_minimum_score_are_dropped(self, spec, pack):
        image = picture((164, 160, SIDE, RED))
        strict = InsightFaceDetector(DetectorSpec(model=str(pack), det_size=320, min_score=0.9))
        assert strict.detect(image) == []
        lax = InsightFaceDetector(DetectorSpec(model=str(pack), det_size=320, min_score=0.8))
        assert [face.score for face in lax.detect(image)] == [pytest.approx(0.875, abs=0.01)]

    def test_an_image_without_a_face(self, model):
        assert model.detect(picture()) == []

    @given(st.integers(1, 700), st.integers(1, 7), st.booleans())
    def test_extreme_aspects_have_no_face_and_do_not_fail(self, model, long, short, tall):
        shape = (long, short, 3) if tall else (short, long, 3)
        assert model.detect(np.full(shape, 200, np.uint8)) == []

    def test_a_failure_of_the_model_is_named(self, pack):
        own = InsightFaceDetector(DetectorSpec(model=str(pack), det_size=DET_SIZE))
        own._app.det_model.input_name = "no_such_input"
        with pytest.raises(BackendError, match=r"image of 320×320 pixels.*no_such_input"):
            own.detect(picture())


class TestLoad:
    def test_through_the_protocol(self, spec, model):
        loaded = detector(spec)
        assert isinstance(loaded, FaceDetector)
        assert loaded.describe() == (
            "insightface red/det_red_square.onnx at 320×320, CPUExecutionProvider"
        )

    def test_only_the_detector_is_loaded(self, model):
        assert set(model._app.models) == {"detection"}

    def test_the_detectors_input_size_is_pinned(self, model):
        # insightface's default is two sizes whose faces it merges
        assert model._app.det_model.input_sizes == [(DET_SIZE, DET_SIZE)]

    def test_nothing_is_printed_to_stdout(self, spec, capfd):
        InsightFaceDetector(spec).detect(picture((160, 160, SIDE, RED)))
        assert capfd.readouterr().out == ""

    @pytest.mark.parametrize("det_size", [-32, 0, 31, 100, 641])
    def test_sizes_that_are_no_multiple_of_32(self, pack, det_size):
        wrong = DetectorSpec(model=str(pack), det_size=det_size)
        for use in (InsightFaceDetector, identity):
            with pytest.raises(UsageError, match=f"--det-size {det_size}: .*multiple of 32"):
                use(wrong)

    def test_a_detector_of_a_fixed_size(self, tmp_path):
        write_detector(tmp_path / "det.onnx", size=256)
        fitting = DetectorSpec(model=str(tmp_path), det_size=256)
        assert len(InsightFaceDetector(fitting).detect(picture((160, 160, 80, RED)))) == 1
        with pytest.raises(UsageError, match=r"256×256 pixels only: --det-size 640"):
            InsightFaceDetector(DetectorSpec(model=str(tmp_path), det_size=640))

    def test_a_pack_without_a_detector(self, pack, tmp_path):
        shutil.copy(pack / "a_recogniser.onnx", tmp_path)
        with pytest.raises(BackendError, match="has no face detector"):
            InsightFaceDetector(DetectorSpec(model=str(tmp_path)))

    def test_a_damaged_detector(self, pack, tmp_path):
        content = (pack / "det_red_square.onnx").read_bytes()
        (tmp_path / "det.onnx").write_bytes(content[: len(content) // 2])
        with pytest.raises(BackendError, match=r"det\.onnx is damaged"):
            InsightFaceDetector(DetectorSpec(model=str(tmp_path)))

    def test_another_damaged_file(self, pack, tmp_path):
        shutil.copy(pack / "det_red_square.onnx", tmp_path)
        (tmp_path / "rec.onnx").write_bytes(b"")
        with pytest.raises(BackendError, match=r"cannot load the pack in .*rec\.onnx"):
            InsightFaceDetector(DetectorSpec(model=str(tmp_path)))

    def test_a_missing_pack_without_a_network(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("LORA_PREP_ACCEPT_LICENSE", "1")
        monkeypatch.setattr(weights, "RELEASES", loopback.closed() + "/")
        for use in (InsightFaceDetector, identity):
            with pytest.raises(BackendError, match=r"buffalo_l is not in .*--preset embedded"):
                use(DetectorSpec())

    def test_insightfaces_own_packs_want_their_licence_accepted(self, pack, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        monkeypatch.delenv("LORA_PREP_ACCEPT_LICENSE", raising=False)
        models = tmp_path / ".insightface" / "models"
        shutil.copytree(pack, models / "buffalo_l")
        for spec in (DetectorSpec(), DetectorSpec(model="buffalo_l")):
            for use in (InsightFaceDetector, identity):
                with pytest.raises(BackendError, match="has not been accepted yet"):
                    use(spec)
        here = identity(DetectorSpec(model=str(models / "buffalo_l")))
        licenses.accept()
        assert identity(DetectorSpec()) == identity(DetectorSpec(model="buffalo_l")) == here


class TestCuda:
    def test_not_built_in(self, pack):
        with pytest.raises(BackendError, match="--device cuda: "):
            InsightFaceDetector(DetectorSpec(model=str(pack), device="cuda"))

    def test_built_in_but_not_working(self, pack, monkeypatch, capfd):
        monkeypatch.setattr(
            onnxruntime,
            "get_available_providers",
            lambda: [device.CUDA_PROVIDER, device.CPU_PROVIDER],
        )
        with pytest.raises(BackendError, match="could not start it and fell back to CPU"):
            InsightFaceDetector(DetectorSpec(model=str(pack), device="cuda"))
        loaded = InsightFaceDetector(DetectorSpec(model=str(pack), device="auto"))
        assert loaded.describe().endswith("CPUExecutionProvider")
        assert capfd.readouterr().out == ""


class TestIdentity:
    def test_names_pack_hash_and_settings(self, spec):
        name = detector_identity(spec)
        assert name.startswith("insightface red/det_red_square.onnx sha256=")
        assert name.endswith("det_size=320 min_score=0.5")

    def test_follows_content_and_settings_and_nothing_else(self, pack, tmp_path):
        copy = shutil.copytree(pack, tmp_path / "red")
        here = identity(DetectorSpec(model=str(pack)))
        assert identity(DetectorSpec(model=str(copy), device="cpu")) == here
        assert identity(DetectorSpec(model=str(copy), det_size=320)) != here
        assert identity(DetectorSpec(model=str(copy), min_score=0.6)) != here
        (copy / "a_recogniser.onnx").unlink()
        assert identity(DetectorSpec(model=str(copy))) == here
        write_detector(copy / "det_red_square.onnx", size=640)
        assert identity(DetectorSpec(model=str(copy))) != here

    def test_takes_the_detector_that_insightface_takes(self, pack, tmp_path):
        write_detector(tmp_path / "b.onnx")
        shutil.copy(pack / "a_recogniser.onnx", tmp_path / "a.onnx")
        write_detector(tmp_path / "c.onnx", size=640)
        spec = DetectorSpec(model=str(tmp_path), device="cpu")
        assert "/b.onnx " in identity(spec)
        assert InsightFaceDetector(spec)._app.det_model.model_file == str(tmp_path / "b.onnx")

    def test_takes_the_detector_that_a_manifest_names(self, tmp_path):
        write_detector(tmp_path / "a.onnx", size=640)
        write_detector(tmp_path / "b.onnx")
        (tmp_path / "MODEL.LICENSE").touch()
        manifest = {
            "manifest_version": 2,
            "model_id": "red",
            "license": "MODEL.LICENSE",
            "tasks": {"detection": {"file": "b.onnx"}},
        }
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        spec = DetectorSpec(model=str(tmp_path), det_size=DET_SIZE, device="cpu")
        assert "/b.onnx " in identity(spec)
        assert len(InsightFaceDetector(spec).detect(picture((160, 160, SIDE, RED)))) == 1

    def test_imports_no_runtime(self, spec):
        code = (
            "import sys\n"
            "from lora_prep.backends import DetectorSpec, detector_identity\n"
            f"detector_identity(DetectorSpec(model={spec.model!r}))\n"
            "print([m for m in ('onnxruntime', 'insightface', 'torch') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
