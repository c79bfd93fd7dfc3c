import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import tools.tiny_models.faces
from tests.fakes.tiny_faces import ASSETS, PACK
from tools.tiny_models.faces import detector, evaluate, recogniser
from tools.tiny_models.faces.data import Picture, draw_picture

CARD = Path(tools.tiny_models.faces.__file__).with_name("README.md")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def app():
    """insightface's FaceAnalysis over the committed pack."""
    return evaluate.load(PACK, 512)


@pytest.fixture(scope="module")
def unseen() -> list[Picture]:
    """20 held-out people, four portraits of each, alone or in company."""
    return evaluate.draw_people(20, 4, 512)


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


class TestPack:
    def test_insightface_takes_its_models_for_what_they_are(self, app):
        assert {task: type(model).__name__ for task, model in app.models.items()} == {
            "detection": "SCRFD",
            "recognition": "ArcFaceONNX",
        }
        recognition = app.models["recognition"]
        assert (recognition.input_mean, recognition.input_std) == (127.5, 127.5)
        assert recognition.input_size == (112, 112)
        assert app.det_model.use_kps

    def test_detector_has_scrfds_inputs_and_outputs(self):
        graph = onnx.load(PACK / "det_tiny.onnx").graph
        (image,) = graph.input
        dims = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
        assert dims == [1, 3, "height", "width"]
        names = [f"{what}_{stride}" for what in ("score", "bbox", "kps") for stride in (8, 16, 32)]
        assert [output.name for output in graph.output] == names
        found = session(PACK / "det_tiny.onnx").run(
            None, {"input": np.zeros((1, 3, 64, 96), np.float32)}
        )
        rows = [2 * (64 // stride) * (96 // stride) for stride in (8, 16, 32)]
        assert [a.shape for a in found] == [(n, k) for k in (1, 4, 10) for n in rows]
        assert all(((score >= 0) & (score <= 1)).all() for score in found[:3])

    def test_recogniser_has_arcfaces_inputs_and_outputs(self):
        model = session(PACK / "rec_tiny.onnx")
        (image,), (embedding,) = model.get_inputs(), model.get_outputs()
        assert image.shape == ["batch", 3, 112, 112]
        assert embedding.shape == ["batch", 128]
        crops = np.random.default_rng(0).uniform(-1, 1, (3, 3, 112, 112)).astype(np.float32)
        (together,) = model.run(None, {"input": crops})
        alone = [model.run(None, {"input": crops[i : i + 1]})[0][0] for i in range(3)]
        np.testing.assert_allclose(together, alone, atol=1e-4)

    def test_recogniser_has_the_real_packs_layers_only(self):
        used = {node.op_type for node in onnx.load(PACK / "rec_tiny.onnx").graph.node}
        real = {"Conv", "PRelu", "BatchNormalization", "Add", "Flatten", "Gemm"}
        assert used <= real | {"Identity"}

    def test_weights_are_finite(self):
        for path in PACK.glob("*.onnx"):
            onnx.checker.check_model(str(path), full_check=True)
            weights = onnx.load(path).graph.initializer
            assert all(np.isfinite(onnx.numpy_helper.to_array(w)).all() for w in weights)

    def test_faces_come_with_landmarks_and_embeddings(self, app, unseen):
        picture = unseen[0]
        found = app.get(np.ascontiguousarray(picture.image[..., ::-1]))
        assert len(found) == len(picture.boxes)
        largest = max(found, key=lambda face: np.prod(face.bbox[2:] - face.bbox[:2]))
        assert largest.kps == pytest.approx(picture.landmarks[0], abs=12)
        assert largest.normed_embedding.shape == (128,)

    def test_card_names_the_files(self):
        named = dict(
            re.findall(r"\| `(\w+\.onnx)` \|[^|]*\| `([0-9a-f]{64})` \|", CARD.read_text())
        )
        there = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in PACK.iterdir()}
        assert named == there

    def test_all_assets_are_small(self):
        assert sum(p.stat().st_size for p in ASSETS.rglob("*") if p.is_file()) < 5_000_000


class TestUnseenPortraits:
    def test_faces_are_found_and_nothing_else(self, app, unseen):
        found = evaluate.detection(app, unseen)
        assert found.faces > len(unseen)
        assert found.recall >= 0.95
        assert found.precision >= 0.95
        assert found.landmark_error < 0.12

    def test_people_are_told_apart(self, app, unseen):
        told = evaluate.verification(evaluate.embeddings(app, unseen, detect=True), 4)
        assert told.accuracy >= 0.95
        assert told.same > told.different + 0.3

    def test_other_landmarks_would_not_do(self, app, unseen):
        """What the figure above needs: the crops' alignment, and that somebody can fail."""
        moved = [Picture(p.image, p.boxes, p.landmarks + 0.3 * p.boxes[:, None, 2:] - 40)
                 for p in unseen[:24]]  # fmt: skip
        told = evaluate.verification(evaluate.embeddings(app, moved, detect=False), 4)
        assert told.accuracy < 0.9


class TestTraining:
    @pytest.fixture(autouse=True)
    def _small_batches(self, monkeypatch):
        canvases = ((64, 4), (96, 2), (128, 1), (160, 1))
        assert len(canvases) == len(detector.CANVAS_WEIGHTS)
        monkeypatch.setattr(detector, "CANVASES", canvases)
        monkeypatch.setattr(recogniser, "BATCH", 8)

    def test_detector_is_reproducible(self, tmp_path):
        pictures = [detector.draw_training_picture(i) for i in range(4)]
        made = {}
        for name, seed in (("first", 0), ("second", 0), ("other", 1)):
            detector.export(detector.train(pictures, seed=seed, steps=2), tmp_path / name)
            made[name] = (tmp_path / name).read_bytes()
        assert made["first"] == made["second"] != made["other"]

    def test_recogniser_is_reproducible(self, tmp_path):
        crops = np.concatenate([recogniser.draw_training_crop(i) for i in (0, 1, 8, 9)])
        people = np.array([0, 0, 1, 1]).repeat(recogniser.VARIANTS)
        made = {}
        for name, seed in (("first", 0), ("second", 0), ("other", 1)):
            net = recogniser.train(crops, people, seed=seed, steps=2)
            recogniser.export(net, tmp_path / name)
            made[name] = (tmp_path / name).read_bytes()
        assert made["first"] == made["second"] != made["other"]

    def test_detector_learns(self):
        """What is trained is what is asked for: the loss of two pictures falls."""
        pictures = [detector.draw_training_picture(i) for i in range(2)]
        batch = detector._batch(pictures, 96, 4, np.random.default_rng(5))
        losses = []
        for steps in (1, 12):
            net = detector.train(pictures, seed=0, steps=steps).train()
            losses.append([float(term.detach()) for term in detector._losses(net, *batch)])
        assert all(after < before for before, after in zip(*losses, strict=True))

    @pytest.mark.parametrize("seed", range(3))
    def test_pictures_boxes_and_landmarks_move_together(self, seed):
        """A face painted with its left eye (in the picture) red and its right one green."""
        image = np.zeros((200, 200, 3), np.uint8)
        image[60:140, 60:130] = 128
        image[80:96, 72:88], image[80:96, 104:120] = (255, 0, 0), (0, 255, 0)
        points = [(80, 88), (112, 88), (95, 105), (84, 125), (106, 125)]
        picture = Picture(
            image, np.array([(60, 60, 130, 140)], np.float32), np.array([points], np.float32)
        )
        rng = np.random.default_rng(seed)
        mirrored = set()
        for _ in range(20):
            view, boxes, landmarks = detector._view(picture, 160, rng)
            colours = []
            for x, y in landmarks[0, :2]:
                if not (2 <= x < 158 and 2 <= y < 158):
                    break
                colours.append(tuple((view[int(y), int(x)] > 100).tolist()))
            if len(colours) == 2:
                assert sorted(colours) == [(False, True, False), (True, False, False)]
                mirrored.add(colours[0] == (False, True, False))
            assert landmarks[0, 0, 0] < landmarks[0, 1, 0]
            assert landmarks[0, 3, 0] < landmarks[0, 4, 0]
            assert (boxes[0, :2] < landmarks[0].min(0)).all()
            assert (landmarks[0].max(0) < boxes[0, 2:]).all()
        assert mirrored == {False, True}

    def test_crops_are_aligned_as_insightface_does(self):
        from insightface.utils import face_align

        picture = draw_picture(3, (256, 256), scale=(0.4, 0.6), max_tilt=30)
        ours = recogniser.align(picture.image, picture.landmarks[0])
        theirs = face_align.norm_crop(picture.image, picture.landmarks[0])
        assert np.abs(ours.astype(int) - theirs).mean() < 0.5
        assert (
            cv2.absdiff(ours, recogniser.align(picture.image, picture.landmarks[0] + 4)).mean() > 5
        )
