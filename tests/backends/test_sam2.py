import contextlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from lora_prep import masks
from lora_prep.backends import Segmenter, SegmenterSpec, sam2, segmenter, segmenter_identity
from lora_prep.backends.sam2 import Sam2Segmenter, identity
from lora_prep.errors import OutOfMemory
from lora_prep.types import Face, Region
from tests.fakes.tiny_sam2 import IMAGE_SIZE, write_tiny_sam2

LANDMARKS = ((100.0, 60.0), (130.0, 60.0), (115.0, 75.0), (104.0, 90.0), (126.0, 90.0))
FACE = Face((80.0, 30.0, 150.0, 110.0), 0.9, LANDMARKS)
OTHER = Face((20.0, 100.0, 60.0, 150.0), 0.8, tuple((x - 75, y + 55) for x, y in LANDMARKS))
HEIGHT, WIDTH = 240, 320


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small models get slower with more threads, much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_tiny_sam2(tmp_path_factory.mktemp("tiny sam2"))


@pytest.fixture(scope="module")
def spec(files):
    return SegmenterSpec(model=str(files[0]), config=str(files[1]), device="cpu")


@pytest.fixture(scope="module")
def model(spec):
    return Sam2Segmenter(spec)


class Spy:
    """Records the calls to the real predictor, and what it answered."""

    def __init__(self, predictor, monkeypatch):
        self.encoded, self.decoded = [], []
        set_image_batch, predict_batch = predictor.set_image_batch, predictor.predict_batch

        def encode(images):
            self.encoded.append(images)
            return set_image_batch(images)

        def decode(**prompts):
            answer = predict_batch(**prompts)
            self.decoded.append((prompts, answer))
            return answer

        monkeypatch.setattr(predictor, "set_image_batch", encode)
        monkeypatch.setattr(predictor, "predict_batch", decode)

    @property
    def prompts(self):
        return [prompts for prompts, _ in self.decoded]


@pytest.fixture
def spy(model, monkeypatch):
    return Spy(model._predictor, monkeypatch)


@pytest.fixture
def trusting(monkeypatch):
    """No single mask counts as poor."""
    monkeypatch.setattr(sam2, "POOR_IOU", -1.0)
    monkeypatch.setattr(sam2, "POOR_AGREEMENT", -1.0)


def image(seed, height=HEIGHT, width=WIDTH):
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def upsampled(logits, height=HEIGHT, width=WIDTH):
    """What SAM2 itself makes of low-resolution logits (h, w)."""
    grown = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None, None], (height, width), mode="bilinear"
    )
    return (grown[0, 0] > 0).numpy()


def same(a, b):
    """Equal but for pixels on the edge, where rounding decides."""
    return a.shape == b.shape and np.mean(a != b) < 0.001


class TestMasks:
    def test_through_the_protocol(self, spec):
        loaded = segmenter(spec)
        assert isinstance(loaded, Segmenter)
        assert loaded.describe() == f"sam2 tiny.pt at {IMAGE_SIZE}×{IMAGE_SIZE} on cpu, float32"
        (found,) = loaded.segment([loaded.prepare(image(0))], [[FACE]], Region.FACE)
        assert [(m.shape, m.dtype) for m in found] == [((HEIGHT, WIDTH), bool)]

    @pytest.mark.parametrize("region", list(Region))
    def test_one_mask_a_face_as_large_as_its_image(self, model, region):
        sizes = [(240, 320), (500, 130), (64, 64), (300, 300)]
        prepared = [model.prepare(image(i, *size)) for i, size in enumerate(sizes)]
        faces = [[FACE, OTHER], [FACE], [], [OTHER, FACE, OTHER]]
        found = model.segment(prepared, faces, region)
        assert [[m.shape for m in of_image] for of_image in found] == [
            [size] * len(of_image) for size, of_image in zip(sizes, faces, strict=True)
        ]

    def test_of_one_face_is_the_single_mask_interpolated(self, model, spy, trusting):
        ((mask,),) = model.segment([model.prepare(image(1))], [[FACE]], Region.FACE)
        ((prompts, (_, _, (logits,))),) = spy.decoded
        assert prompts["multimask_output"] is False
        assert logits.shape == (1, IMAGE_SIZE // 4, IMAGE_SIZE // 4)
        assert same(mask, upsampled(logits[0]))
        assert 0 < mask.mean() < 1

    def test_are_those_of_sam2s_own_predictor_on_the_original_image(self, model, trusting):
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        original = image(1, 200, 500)
        own = SAM2ImagePredictor(model._predictor.model)
        own._bb_feat_sizes = model._predictor._bb_feat_sizes
        own.set_image(original)
        expected, _, _ = own.predict(
            point_coords=np.array(LANDMARKS),
            point_labels=np.ones(5),
            box=np.array(FACE.box),
            multimask_output=False,
        )
        ((mask,),) = model.segment([model.prepare(original)], [[FACE]], Region.FACE)
        assert masks.iou(mask, expected[0] > 0) > 0.97

    def test_of_a_doubtful_face_is_chosen_among_four(self, model, spy):
        found = model.segment([model.prepare(image(1))], [[FACE, OTHER]], Region.FACE)
        (_, (_, (single_iou,), (single,))), (prompts, (_, (ious,), (several,))) = spy.decoded
        assert single_iou.max() < sam2.POOR_IOU
        assert prompts["multimask_output"] is True
        for k, (face, mask) in enumerate(zip((FACE, OTHER), found[0], strict=True)):
            candidates = np.concatenate([single[k], several[k]])
            scores = np.concatenate([single_iou[k], ious[k]]).tolist()
            scale = (IMAGE_SIZE / 4 / WIDTH, IMAGE_SIZE / 4 / HEIGHT)
            best = masks.choose(list(candidates > 0), scores, face, Region.FACE, scale=scale)
            assert same(mask, upsampled(candidates[best]))

    def test_a_mask_that_does_not_cover_the_face_is_doubtful(self, model, spy, monkeypatch):
        monkeypatch.setattr(sam2, "POOR_IOU", -1.0)
        monkeypatch.setattr(sam2, "POOR_AGREEMENT", 1.1)
        model.segment([model.prepare(image(1))], [[FACE]], Region.FACE)
        assert [p["multimask_output"] for p in spy.prompts] == [False, True]

    @pytest.mark.parametrize("region", [Region.HEAD, Region.PERSON])
    def test_larger_regions_always_look_at_the_alternatives(self, model, spy, trusting, region):
        model.segment([model.prepare(image(1))], [[FACE]], region)
        assert [p["multimask_output"] for p in spy.prompts] == [False, True]

    def test_one_doubtful_face_does_not_change_the_others(self, model, monkeypatch, trusting):
        prepared = [model.prepare(image(i)) for i in range(2)]
        alone = model.segment(prepared, [[FACE], [FACE, OTHER]], Region.FACE)
        poor = lambda prompt, *_: prompt.face is OTHER  # noqa: E731
        monkeypatch.setattr(sam2._Prompt, "is_poor", poor)
        together = model.segment(prepared, [[FACE], [FACE, OTHER]], Region.FACE)
        assert same(alone[0][0], together[0][0])
        assert same(alone[1][0], together[1][0])

    @pytest.mark.parametrize("region", list(Region))
    def test_do_not_depend_on_the_batch(self, model, region):
        prepared = [model.prepare(image(i)) for i in range(4)]
        faces = [[FACE], [OTHER, FACE], [], [OTHER]]
        batch = model.segment(prepared, faces, region)
        for one, own, found in zip(prepared, faces, batch, strict=True):
            (alone,) = model.segment([one], [own], region)
            assert len(alone) == len(found)
            assert all(same(a, b) for a, b in zip(alone, found, strict=True))

    def test_do_not_depend_on_the_other_faces(self, model):
        prepared = [model.prepare(image(5))]
        ((a, b),) = model.segment(prepared, [[FACE, OTHER]], Region.FACE)
        assert same(a, model.segment(prepared, [[FACE]], Region.FACE)[0][0])
        assert same(b, model.segment(prepared, [[OTHER]], Region.FACE)[0][0])


class TestPrompts:
    def test_are_the_box_and_the_landmarks(self, model, spy, trusting):
        model.segment([model.prepare(image(0))], [[FACE]], Region.FACE)
        (prompts,) = spy.prompts
        grow = np.array([IMAGE_SIZE / WIDTH, IMAGE_SIZE / HEIGHT])
        assert prompts["box_batch"][0] == pytest.approx(
            np.array([FACE.box]) * np.tile(grow, 2), abs=1e-3
        )
        assert prompts["point_coords_batch"][0] == pytest.approx(
            np.array([LANDMARKS]) * grow, abs=1e-3
        )
        assert prompts["point_labels_batch"][0].tolist() == [[1] * 5]

    def test_all_faces_of_an_image_go_in_one_call(self, model, spy, trusting):
        prepared = [model.prepare(image(i)) for i in range(2)]
        model.segment(prepared, [[FACE, OTHER], [FACE]], Region.FACE)
        (prompts,) = spy.prompts
        assert [b.shape for b in prompts["box_batch"]] == [(2, 4), (1, 4)]
        assert [p.shape for p in prompts["point_coords_batch"]] == [(2, 5, 2), (1, 5, 2)]

    def test_landmarks_outside_the_image_do_not_count(self, model, spy, trusting):
        cut = Face((-40.0, -20.0, 30.0, 60.0), 0.9, tuple((x - 112, y - 50) for x, y in LANDMARKS))
        model.segment([model.prepare(image(0))], [[cut]], Region.FACE)
        (prompts,) = spy.prompts
        assert prompts["point_labels_batch"][0].tolist() == [[-1, 1, 1, -1, 1]]
        assert prompts["box_batch"][0].min() == 0

    def test_a_face_without_landmarks_gets_points_well_inside(self, model, spy, trusting):
        bare = Face(FACE.box, 0.9)
        model.segment([model.prepare(image(0))], [[FACE, bare]], Region.FACE)
        (prompts,) = spy.prompts
        points = prompts["point_coords_batch"][0][1]
        x0, y0, x1, y1 = prompts["box_batch"][0][1]
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        assert (abs(points - middle) < 0.25 * np.array([x1 - x0, y1 - y0])).all()

    def test_a_head_is_more_than_a_face_and_a_person_more_than_a_head(self, model, spy, trusting):
        prepared = [model.prepare(image(0))]
        areas, points = [], []
        for region in Region:
            spy.decoded.clear()
            model.segment(prepared, [[FACE]], region)
            x0, y0, x1, y1 = spy.prompts[0]["box_batch"][0][0]
            areas.append((x1 - x0) * (y1 - y0))
            points.append(spy.prompts[0]["point_coords_batch"][0].shape[1])
        assert areas == sorted(areas)
        assert len(set(areas)) == 3
        # five points on a face would ask for the face, whatever the box
        assert dict(zip(Region, points, strict=True)) == {"face": 5, "head": 5, "person": 1}


class TestEncoder:
    def test_sees_only_images_with_faces(self, model, spy):
        prepared = [model.prepare(image(i)) for i in range(3)]
        assert model.segment(prepared, [[], [FACE], []], Region.FACE)[0] == []
        ((only,),) = spy.encoded
        assert only is prepared[1].square

    def test_is_not_called_without_faces(self, model, spy):
        prepared = [model.prepare(image(i)) for i in range(2)]
        assert model.segment(prepared, [[], []], Region.FACE) == [[], []]
        assert model.segment([], [], Region.FACE) == []
        assert spy.encoded == spy.decoded == []

    def test_keeps_nothing_of_a_batch(self, model):
        model.segment([model.prepare(image(0))], [[FACE]], Region.FACE)
        assert model._predictor._features is None


class TestPrepare:
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (3000, 40), (256, 256), (90, 700)])
    def test_gives_the_models_square_and_remembers_the_size(self, model, height, width):
        prepared = model.prepare(image(0, height, width))
        assert prepared.square.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        assert prepared.square.dtype == np.uint8
        assert (prepared.height, prepared.width) == (height, width)

    def test_is_close_to_sam2s_own_transform(self, model, monkeypatch, photographs):
        from sam2.utils.transforms import SAM2Transforms

        monkeypatch.setattr(model, "_size", 1024)
        transform = SAM2Transforms(1024, mask_threshold=0.0)
        mean, std = np.array(transform.mean), np.array(transform.std)
        for name, photograph in photographs.items():
            own = (transform(photograph).permute(1, 2, 0).numpy() * std + mean) * 255
            difference = abs(model.prepare(photograph).square - own)
            assert difference.mean() < 0.5, name
            assert difference.max() < 16, name

    @pytest.fixture(scope="class")
    def photographs(self):
        """Real ones that installed packages ship: smaller, larger and much larger than 1024."""
        import pathlib

        import insightface
        from skimage import data

        group = pathlib.Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
        astronaut = data.astronaut()
        return {
            "astronaut": astronaut,
            "group": cv2.cvtColor(cv2.imread(str(group)), cv2.COLOR_BGR2RGB),
            "large": cv2.resize(astronaut, (2600, 2000), interpolation=cv2.INTER_CUBIC),
        }


class TestOutOfMemory:
    def test_the_cpus_allocator(self, model, monkeypatch):
        """torch's own error for more memory than there is."""
        prepared = [model.prepare(image(0))]
        with monkeypatch.context() as patch:
            patch.setattr(model._predictor, "set_image_batch", lambda _: torch.empty(1 << 60))
            with pytest.raises(OutOfMemory, match="cpu ran out of memory"):
                model.segment(prepared, [[FACE]], Region.FACE)
        assert len(model.segment(prepared, [[FACE]], Region.FACE)[0]) == 1

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("CUDA error: out of memory"),
        ],
    )
    def test_cudas_errors(self, model, monkeypatch, error):
        def fail(**prompts):
            raise error

        monkeypatch.setattr(model._predictor, "predict_batch", fail)
        with pytest.raises(OutOfMemory):
            model.segment([model.prepare(image(0))], [[FACE]], Region.FACE)
        assert model._predictor._features is None

    def test_other_errors_stay_what_they_are(self, model, monkeypatch):
        def fail(images):
            raise RuntimeError("a bug")

        monkeypatch.setattr(model._predictor, "set_image_batch", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            model.segment([model.prepare(image(0))], [[FACE]], Region.FACE)


class TestDevice:
    def test_the_model_goes_where_it_is_told(self, spec, monkeypatch):
        monkeypatch.setattr(sam2.device, "torch_device", lambda _: "meta")
        loaded = Sam2Segmenter(spec)
        assert {p.device.type for p in loaded._predictor.model.parameters()} == {"meta"}

    def test_bfloat16_on_cuda_only(self, model, monkeypatch):
        asked = []

        def autocast(*args, enabled):
            asked.append((*args, enabled))
            return contextlib.nullcontext()

        monkeypatch.setattr(torch, "autocast", autocast)
        for name in ("cpu", "cuda", "cuda:1"):
            monkeypatch.setattr(model, "_device", name)
            model.segment([model.prepare(image(0))], [[FACE]], Region.FACE)
        assert asked == [("cuda", torch.bfloat16, on_cuda) for on_cuda in (False, True, True)]

    def test_nothing_is_printed_to_stdout(self, spec, capfd):
        loaded = Sam2Segmenter(spec)
        loaded.segment([loaded.prepare(image(0))], [[FACE]], Region.FACE)
        assert capfd.readouterr().out == ""


class TestIdentity:
    def test_follows_the_files_and_not_where_they_are(self, spec, files, tmp_path):
        name = segmenter_identity(spec)
        assert name.startswith("sam2 tiny.pt sha256=")
        checkpoint, config = write_tiny_sam2(tmp_path)
        moved = SegmenterSpec(model=str(checkpoint), config=str(config), device="cuda")
        assert identity(moved) == name
        config.write_text(config.read_text() + "\n# another")
        assert identity(moved) != name
        checkpoint, config = write_tiny_sam2(tmp_path, seed=1)
        assert identity(moved) != name

    def test_imports_neither_torch_nor_sam2(self, spec):
        code = (
            "import sys\n"
            "from lora_prep.backends import SegmenterSpec, segmenter_identity\n"
            f"segmenter_identity(SegmenterSpec(model={spec.model!r}, config={spec.config!r}))\n"
            "print([m for m in ('torch', 'sam2') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
