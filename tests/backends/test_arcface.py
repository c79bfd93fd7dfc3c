"""ArcFace against insightface itself, with the tiny pack's learned weights."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from lora_prep import digests
from lora_prep.backends import (
    DetectorSpec,
    FaceRecogniser,
    RecogniserSpec,
    detector,
    recogniser,
    recogniser_card,
)
from lora_prep.backends.arcface import ArcFaceRecogniser
from lora_prep.errors import BackendError, ItemError, UsageError
from lora_prep.types import Face
from sample_data.portraits import draw_portrait
from tests.fakes.cell_recogniser import write_recogniser
from tests.fakes.red_square_detector import write_detector

TINY = Path(__file__).parents[1] / "assets" / "tiny_faces"
DET_SIZE = 320


@pytest.fixture(scope="module")
def spec():
    return RecogniserSpec(model=str(TINY), device="cpu")


@pytest.fixture(scope="module")
def model(spec):
    return ArcFaceRecogniser(spec)


@pytest.fixture(scope="module")
def pictures():
    group = draw_portrait(5, size=(300, 420), people=2, scale=(0.3, 0.5))
    return [draw_portrait(3, size=(320, 320), people=1, scale=(0.4, 0.5)).image, group.image]


@pytest.fixture(scope="module")
def theirs(pictures):
    """insightface's own answer, best score first as ours are."""
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name=str(TINY), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_thresh=0.5, det_size=(DET_SIZE, DET_SIZE))
    found = [app.get(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)) for picture in pictures]
    return [sorted(faces, key=lambda face: -face.det_score) for faces in found]


def test_faces_and_vectors_are_those_of_faceanalysis(model, pictures, theirs):
    finder = detector(DetectorSpec(model=str(TINY), det_size=DET_SIZE, device="cpu"))
    count = 0
    for picture, expected in zip(pictures, theirs, strict=True):
        faces = finder.detect(picture)
        rows = model.vectors([model.crop(picture, face) for face in faces])
        assert len(rows) == len(expected) > 0
        for face, row, other in zip(faces, rows, expected, strict=True):
            assert face.box == pytest.approx(tuple(other.bbox), abs=1e-4)
            assert row == pytest.approx(other.embedding, abs=1e-5)
        count += len(rows)
    assert count >= 3


def test_a_vector_does_not_depend_on_the_crops_beside_it(model, pictures, theirs):
    faces = [Face((0, 0, 9, 9), 1, tuple(map(tuple, f.kps.tolist()))) for f in theirs[1]]
    crops = [model.crop(pictures[1], face) for face in faces] * 20  # more than one chunk
    rows = model.vectors(crops)
    alone = [model.vectors([crop])[0] for crop in crops[: len(faces)]]
    assert rows[: len(faces)] == pytest.approx(np.stack(alone), abs=1e-5)
    assert np.array_equal(rows[: len(faces)], rows[-len(faces) :])


@pytest.mark.parametrize(("batch", "really"), [(1, None), ("batch", 1)])
def test_a_model_for_one_crop_at_a_time_gets_one_at_a_time(tmp_path, batch, really):
    path = write_recogniser(tmp_path / "one.onnx", batch=batch, really=really)
    many = write_recogniser(tmp_path / "many.onnx", batch="batch")
    crops = list(np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), np.uint8))
    one, several = (ArcFaceRecogniser(RecogniserSpec(model=str(p))) for p in (path, many))
    assert one.vectors(crops) == pytest.approx(several.vectors(crops), abs=1e-5)


def test_it_is_a_recogniser_for_the_stages(spec):
    found = recogniser(spec)
    assert isinstance(found, FaceRecogniser)
    assert found.describe() == "ArcFace tiny_faces/rec_tiny.onnx, CPUExecutionProvider"


def test_landmarks_in_one_point_are_the_images_fault(model, pictures):
    with pytest.raises(ItemError, match="all lie in one point"):
        model.crop(pictures[0], Face((0, 0, 9, 9), 1, ((4.0, 4.0),) * 5))


def test_the_card_says_which_weights_and_what_they_may_be_used_for(spec):
    card = recogniser_card(spec)
    assert card.model == "arcface tiny_faces/rec_tiny.onnx"
    assert card.sha256 == digests.sha256(TINY / "rec_tiny.onnx")
    assert card.alignment == "insightface-norm_crop"
    assert card.license.startswith("unknown")


def test_the_licence_of_insightfaces_own_weights_is_known_by_name_or_by_hash(tmp_path, monkeypatch):
    from lora_prep.backends import catalogue

    path = write_recogniser(tmp_path / "w600k_r50.onnx")
    monkeypatch.setitem(catalogue.PACK_FILES, "w600k_r50.onnx", digests.sha256(path))
    card = recogniser_card(RecogniserSpec(model=str(path)))
    assert card.license == "insightface: for non-commercial research only"


def test_a_single_file_will_do(tmp_path):
    path = tmp_path / "glintr.onnx"
    shutil.copy(TINY / "rec_tiny.onnx", path)
    assert recogniser_card(RecogniserSpec(model=str(path))).model == "arcface glintr.onnx"
    assert isinstance(recogniser(RecogniserSpec(model=str(path))), FaceRecogniser)


def test_the_recogniser_of_a_pack_is_the_one_that_insightface_takes(tmp_path):
    write_detector(tmp_path / "a_detector.onnx")
    write_recogniser(tmp_path / "b_first.onnx")
    shutil.copy(TINY / "rec_tiny.onnx", tmp_path / "c_second.onnx")
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name=str(tmp_path), providers=["CPUExecutionProvider"])
    theirs = Path(app.models["recognition"].model_file)
    assert theirs.name == "b_first.onnx"
    assert recogniser_card(RecogniserSpec(model=str(tmp_path))).model.endswith("/b_first.onnx")


class TestRefused:
    def test_a_pack_without_a_recogniser(self, tmp_path):
        write_detector(tmp_path / "det.onnx")
        with pytest.raises(BackendError, match=r"has no face recogniser.*--recogniser sface"):
            recogniser_card(RecogniserSpec(model=str(tmp_path)))

    def test_a_detector_given_for_a_recogniser(self, tmp_path):
        write_detector(tmp_path / "det.onnx")
        with pytest.raises(BackendError, match="is no face recogniser"):
            recogniser(RecogniserSpec(model=str(tmp_path / "det.onnx")))

    def test_a_damaged_file(self, tmp_path):
        content = (TINY / "rec_tiny.onnx").read_bytes()
        (tmp_path / "rec.onnx").write_bytes(content[: len(content) // 2])
        with pytest.raises(BackendError, match=r"rec\.onnx"):
            recogniser(RecogniserSpec(model=str(tmp_path / "rec.onnx")))
        with pytest.raises(BackendError, match="is no readable insightface pack"):
            recogniser_card(RecogniserSpec(model=str(tmp_path)))

    def test_a_place_that_is_not_there(self, tmp_path):
        with pytest.raises(BackendError, match="neither a directory nor a file"):
            recogniser_card(RecogniserSpec(model=str(tmp_path / "none")))

    def test_a_pack_whose_licence_nobody_has_accepted(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("LORA_PREP_ACCEPT_LICENSE", raising=False)
        with pytest.raises(BackendError, match=r"non-commercial.*--recogniser sface"):
            recogniser_card(RecogniserSpec())

    def test_a_device_that_nothing_is_called(self, spec):
        with pytest.raises(UsageError, match="no device is called 'gpu'"):
            recogniser(RecogniserSpec(model=spec.model, device="gpu"))


def test_a_pack_with_a_manifest_is_read_by_it(tmp_path):
    """The manifest's recogniser is taken, not the first by name."""
    write_recogniser(tmp_path / "a_first.onnx")
    shutil.copy(TINY / "rec_tiny.onnx", tmp_path / "z_last.onnx")
    shutil.copy(TINY / "det_tiny.onnx", tmp_path / "det.onnx")
    tasks = {
        "detection": {"file": "det.onnx"},
        "recognition": {"file": "z_last.onnx", "embedding_dimension": 128},
    }
    manifest = {"manifest_version": 2, "model_id": "tiny", "license": "MODEL.LICENSE"}
    (tmp_path / "MODEL.LICENSE").write_text("for tests")
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "tasks": tasks}))
    spec = RecogniserSpec(model=str(tmp_path), device="cpu")
    assert recogniser_card(spec).model.endswith("/z_last.onnx")
    crop = np.zeros((112, 112, 3), np.uint8)
    assert recogniser(spec).vectors([crop]).shape == (1, 128)
