import functools
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from lora_prep import masks
from lora_prep.backends import (
    Segmenter,
    SegmenterSpec,
    sam2,
    sam2_model,
    sam2_prompts,
    segmenter,
    segmenter_identity,
)
from lora_prep.backends.sam2 import Sam2Segmenter, identity
from lora_prep.errors import BackendError, OutOfMemory
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
    return SegmenterSpec(model=str(files[0]), config=str(files[1]), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def model(spec):
    return Sam2Segmenter(spec)


class Spy:
    """Records what goes into the real encoder and prompt encoder, and what the decoder says."""

    def __init__(self, segmenter, monkeypatch):
        self.encoded, self.prompts, self.decoded = [], [], []
        model = segmenter._model
        forward_image, embed = model.forward_image, model.sam_prompt_encoder.forward
        decode = segmenter._decode

        def encoded(batch):
            self.encoded.append(batch)
            return forward_image(batch)

        def prompted(points, boxes, masks):
            self.prompts.append(tuple(part.numpy() for part in points))
            return embed(points=points, boxes=boxes, masks=masks)

        def decoded(*given):
            self.decoded.append(list(decode(*given)))
            return iter(self.decoded[-1])

        monkeypatch.setattr(model, "forward_image", encoded)
        monkeypatch.setattr(model.sam_prompt_encoder, "forward", prompted)
        monkeypatch.setattr(segmenter, "_decode", decoded)


@pytest.fixture
def spy(model, monkeypatch):
    return Spy(model, monkeypatch)


@pytest.fixture
def trusting(monkeypatch):
    """No single mask counts as poor."""
    monkeypatch.setattr(sam2_prompts, "POOR_IOU", -1.0)
    monkeypatch.setattr(sam2_prompts, "POOR_AGREEMENT", -1.0)


@pytest.fixture
def predictor(files):
    """sam2's own, with the same weights."""
    return sam2_model.load(sam2_model.Files(*files), "cpu")


def segment(model, prepared, faces, region=Region.FACE):
    """The masks of each image."""
    answers = model.segment(prepared, faces, region)
    return [list(model.finish(*pair)) for pair in zip(prepared, answers, strict=True)]


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
        (found,) = segment(loaded, [loaded.prepare(image(0))], [[FACE]])
        assert [(m.shape, m.dtype) for m in found] == [((HEIGHT, WIDTH), bool)]

    @pytest.mark.parametrize("region", list(Region))
    def test_one_mask_a_face_as_large_as_its_image(self, model, region):
        sizes = [(240, 320), (500, 130), (64, 64), (300, 300)]
        prepared = [model.prepare(image(i, *size)) for i, size in enumerate(sizes)]
        faces = [[FACE, OTHER], [FACE], [], [OTHER, FACE, OTHER]]
        found = segment(model, prepared, faces, region)
        assert [[m.shape for m in of_image] for of_image in found] == [
            [size] * len(of_image) for size, of_image in zip(sizes, faces, strict=True)
        ]

    def test_of_one_face_is_the_single_mask_interpolated(self, model, spy, trusting):
        ((mask,),) = segment(model, [model.prepare(image(1))], [[FACE]])
        (((logits, _),),) = spy.decoded
        assert logits.shape == (4, IMAGE_SIZE // 4, IMAGE_SIZE // 4)
        assert same(mask, upsampled(logits[0]))
        assert 0 < mask.mean() < 1

    def test_are_those_of_sam2s_own_predictor_on_the_original_image(
        self, model, predictor, trusting
    ):
        original = image(1, 200, 500)
        predictor.set_image(original)
        expected, _, _ = predictor.predict(
            point_coords=np.array(LANDMARKS),
            point_labels=np.ones(5),
            box=np.array(FACE.box),
            multimask_output=False,
        )
        ((mask,),) = segment(model, [model.prepare(original)], [[FACE]])
        assert masks.iou(mask, expected[0] > 0) > 0.97

    def test_of_a_doubtful_face_is_chosen_among_four(self, model, spy):
        (found,) = segment(model, [model.prepare(image(1))], [[FACE, OTHER]])
        (answers,) = spy.decoded
        for face, mask, (candidates, scores) in zip((FACE, OTHER), found, answers, strict=True):
            assert scores[0] < sam2_prompts.POOR_IOU
            scale = (IMAGE_SIZE / 4 / WIDTH, IMAGE_SIZE / 4 / HEIGHT)
            best = masks.choose(
                list(candidates > 0), scores.tolist(), face, Region.FACE, scale=scale
            )
            assert same(mask, upsampled(candidates[best]))

    @pytest.mark.parametrize(
        ("region", "agreement", "chooses"),
        [
            (Region.FACE, -1.0, False),
            (Region.FACE, 1.1, True),  # the mask does not cover the face
            (Region.HEAD, -1.0, True),  # larger regions always look at the alternatives
            (Region.PERSON, -1.0, True),
        ],
    )
    def test_the_alternatives_are_looked_at(
        self, model, monkeypatch, trusting, region, agreement, chooses
    ):
        monkeypatch.setattr(sam2_prompts, "POOR_AGREEMENT", agreement)
        asked = []

        def choose(*given, **named):
            asked.append(given)
            return 3

        monkeypatch.setattr(sam2_prompts.masks, "choose", choose)
        model.segment([model.prepare(image(1))], [[FACE]], region)
        assert bool(asked) == chooses

    def test_one_doubtful_face_does_not_change_the_others(self, model, monkeypatch, trusting):
        prepared = [model.prepare(image(i)) for i in range(2)]
        alone = segment(model, prepared, [[FACE], [FACE, OTHER]], Region.FACE)
        poor = lambda prompt, *_: prompt.face is OTHER  # noqa: E731
        monkeypatch.setattr(sam2_prompts.Prompt, "is_poor", poor)
        together = segment(model, prepared, [[FACE], [FACE, OTHER]], Region.FACE)
        assert same(alone[0][0], together[0][0])
        assert same(alone[1][0], together[1][0])

    @pytest.mark.parametrize("region", list(Region))
    def test_do_not_depend_on_the_batch(self, model, region):
        prepared = [model.prepare(image(i)) for i in range(4)]
        faces = [[FACE], [OTHER, FACE], [], [OTHER]]
        batch = segment(model, prepared, faces, region)
        for one, own, found in zip(prepared, faces, batch, strict=True):
            (alone,) = segment(model, [one], [own], region)
            assert len(alone) == len(found)
            assert all(same(a, b) for a, b in zip(alone, found, strict=True))

    def test_do_not_depend_on_the_other_faces(self, model):
        prepared = [model.prepare(image(5))]
        ((a, b),) = segment(model, prepared, [[FACE, OTHER]], Region.FACE)
        assert same(a, segment(model, prepared, [[FACE]], Region.FACE)[0][0])
        assert same(b, segment(model, prepared, [[OTHER]], Region.FACE)[0][0])


class TestPrompts:
    def test_are_the_box_and_the_landmarks(self, model, spy, trusting):
        model.segment([model.prepare(image(0))], [[FACE]], Region.FACE)
        (((points,), (labels,)),) = spy.prompts
        grow = np.array([IMAGE_SIZE / WIDTH, IMAGE_SIZE / HEIGHT])
        assert points[:2] == pytest.approx(np.reshape(FACE.box, (2, 2)) * grow, abs=1e-3)
        assert points[2:] == pytest.approx(np.array(LANDMARKS) * grow, abs=1e-3)
        assert labels.tolist() == [2, 3, 1, 1, 1, 1, 1]

    def test_of_all_images_go_in_one_call(self, model, spy):
        prepared = [model.prepare(image(i)) for i in range(3)]
        model.segment(prepared, [[FACE, OTHER], [], [FACE]], Region.FACE)
        ((points, labels),) = spy.prompts
        assert (points.shape, labels.shape) == ((3, 7, 2), (3, 7))

    def test_of_a_crowd_go_in_several(self, model, spy, monkeypatch):
        prepared = [model.prepare(image(i)) for i in range(2)]
        faces = [[FACE, OTHER, FACE], [OTHER, FACE]]
        whole = segment(model, prepared, faces)
        monkeypatch.setattr(sam2, "MAX_PROMPTS", 2)
        parts = segment(model, prepared, faces)
        assert [len(points) for points, _ in spy.prompts] == [5, 2, 2, 1]
        for a, b in zip(whole, parts, strict=True):
            assert all(same(x, y) for x, y in zip(a, b, strict=True))

    def test_landmarks_outside_the_image_do_not_count(self, model, spy, trusting):
        cut = Face((-40.0, -20.0, 30.0, 60.0), 0.9, tuple((x - 112, y - 50) for x, y in LANDMARKS))
        model.segment([model.prepare(image(0))], [[cut]], Region.FACE)
        (((points,), (labels,)),) = spy.prompts
        assert labels.tolist() == [2, 3, -1, 1, 1, -1, 1]
        assert points[0].min() == 0

    def test_a_face_without_landmarks_gets_points_well_inside(self, model, spy, trusting):
        bare = Face(FACE.box, 0.9)
        model.segment([model.prepare(image(0))], [[FACE, bare]], Region.FACE)
        (((_, points), _),) = spy.prompts
        middle, size = points[:2].mean(axis=0), points[1] - points[0]
        assert (abs(points[2:] - middle) < 0.25 * size).all()

    def test_a_head_is_more_than_a_face_and_a_person_more_than_a_head(self, model, spy, trusting):
        prepared = [model.prepare(image(0))]
        areas, points = [], []
        for region in Region:
            model.segment(prepared, [[FACE]], region)
            ((x0, y0), (x1, y1)) = spy.prompts[-1][0][0][:2]
            areas.append((x1 - x0) * (y1 - y0))
            points.append(len(spy.prompts[-1][0][0]) - 2)
        assert areas == sorted(areas)
        assert len(set(areas)) == 3
        # five points on a face would ask for the face, whatever the box
        assert dict(zip(Region, points, strict=True)) == {"face": 5, "head": 5, "person": 1}


def squares(model, count):
    """Random pictures as large as the model's input, so that nobody has to resize them."""
    return [model.prepare(image(i, model._size, model._size)) for i in range(count)]


class TestAgainstSam2sOwnPredictor:
    def test_features_are_the_same(self, model, predictor):
        prepared = squares(model, 3)
        predictor.set_image_batch([p.square for p in prepared])
        own = [*predictor._features["high_res_feats"], predictor._features["image_embed"]]
        with torch.inference_mode():
            ours = model._encode([p.square for p in prepared])
        for a, b in zip(ours, own, strict=True):
            assert a.shape == b.shape
            assert torch.equal(a, b)

    @pytest.mark.parametrize("stable", [True, False])
    def test_logits_and_scores_are_the_same(self, model, predictor, monkeypatch, stable):
        """Also where the single mask is unstable, and the best of three takes its place."""
        for decoder in (model._model.sam_mask_decoder, predictor.model.sam_mask_decoder):
            assert decoder.dynamic_multimask_via_stability
            threshold = -1.0 if stable else 2.0
            monkeypatch.setattr(decoder, "dynamic_multimask_stability_thresh", threshold)
        prepared = squares(model, 3)
        faces = [[FACE], [OTHER, FACE], [OTHER, OTHER, FACE]]
        prompts = [
            [sam2_prompts.prompt_for(f, Region.FACE, IMAGE_SIZE, IMAGE_SIZE) for f in of_image]
            for of_image in faces
        ]
        predictor.set_image_batch([p.square for p in prepared])
        own = []
        for multimask in (False, True):
            _, scores, logits = predictor.predict_batch(
                [np.stack([p.points[2:] for p in row]) * IMAGE_SIZE for row in prompts],
                [np.stack([p.labels[2:] for p in row]) for row in prompts],
                [np.stack([p.points[:2].ravel() for p in row]) * IMAGE_SIZE for row in prompts],
                multimask_output=multimask,
            )
            shape = (-1, 3 if multimask else 1)
            own.append(
                (
                    np.concatenate([x.reshape(*shape, *x.shape[-2:]) for x in logits]),
                    np.concatenate([x.reshape(shape) for x in scores]),
                )
            )
        with torch.inference_mode():
            features = model._encode([p.square for p in prepared])
            ours = list(
                model._decode(features, [p for row in prompts for p in row], [0, 1, 1, 2, 2, 2])
            )
        expected = [np.concatenate(pair, axis=1) for pair in zip(*own, strict=True)]
        for k, (logits, scores) in enumerate(ours):
            assert logits == pytest.approx(expected[0][k], abs=1e-4)
            assert scores == pytest.approx(expected[1][k], abs=1e-5)

    def test_features_of_the_released_size_are_the_same(self, tmp_path):
        """Hiera-T at 1024 pixels, fewer layers, random weights."""
        from sam2.build_sam import build_sam2

        config = sam2_model._config("sam2.1_hiera_t.yaml").read_text()
        for full, short in (("[1, 2, 7, 2]", "[1, 1, 2, 1]"), ("[5, 7, 9]", "[3]")):
            assert full in config
            config = config.replace(full, short)
        files = tmp_path / "short.pt", tmp_path / "short.yaml"
        files[1].write_text(config)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            built = build_sam2("/" + files[1].as_posix(), device="cpu")
        torch.save({"model": built.state_dict()}, files[0])
        model = Sam2Segmenter(
            SegmenterSpec(model=str(files[0]), config=str(files[1]), device="cpu", dtype="float32")
        )
        own = sam2_model.load(sam2_model.Files(*files), "cpu")
        prepared = squares(model, 1)
        assert prepared[0].square.shape == (1024, 1024, 3)
        own.set_image_batch([prepared[0].square])
        with torch.inference_mode():
            ours = model._encode([prepared[0].square])
        expected = [*own._features["high_res_feats"], own._features["image_embed"]]
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


class TestDtype:
    def test_features_agree(self, spec, model):
        """Not masks: what random weights say lies everywhere close to the threshold."""
        half = Sam2Segmenter(replace(spec, dtype="bfloat16"))
        assert half.describe().endswith("on cpu, bfloat16")
        pictures = [p.square for p in squares(model, 2)]
        with torch.inference_mode():
            pairs = zip(model._encode(pictures), half._encode(pictures), strict=True)
            for full, rough in pairs:
                assert rough.dtype == torch.float32
                assert not torch.equal(full, rough)
                together = torch.stack([full.flatten(), rough.flatten()])
                assert torch.corrcoef(together)[0, 1] > 0.999

    @pytest.mark.parametrize(
        ("dtype", "where", "avx512", "amx", "expected"),
        [
            ("auto", "cpu", False, False, False),
            ("auto", "cpu", True, False, True),
            ("auto", "cpu", False, True, True),
            ("bfloat16", "cpu", False, False, True),
            ("float32", "cpu", True, True, False),
            ("auto", "meta", True, True, False),
        ],
    )
    def test_auto_follows_the_processor(self, monkeypatch, dtype, where, avx512, amx, expected):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        assert sam2.uses_bfloat16(dtype, where) is expected

    def test_auto_without_torchs_private_checks_is_float32(self, monkeypatch):
        monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
        monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
        assert not sam2.uses_bfloat16("auto", "cpu")

    @pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True)])
    def test_auto_follows_the_gpu(self, monkeypatch, capability, expected):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        assert sam2.uses_bfloat16("auto", "cuda:1") is expected


class TestCompile:
    def test_the_encoder_is_compiled_and_says_the_same(self, spec, model, monkeypatch):
        """With dynamo but without its C++ compiler, which takes minutes."""
        compiled = []

        def eager(function):
            compiled.append(function)
            return torch._dynamo.optimize("eager")(function)

        monkeypatch.setattr(torch, "compile", eager)
        fast = Sam2Segmenter(replace(spec, compile=True))
        assert fast.describe().endswith("float32, compiled")
        assert compiled == [
            type(fast._model.image_encoder).forward.__get__(fast._model.image_encoder)
        ]
        prepared = [model.prepare(image(i)) for i in range(2)]
        for a, b in zip(
            segment(model, prepared, [[FACE], [OTHER]]),
            segment(fast, prepared, [[FACE], [OTHER]]),
            strict=True,
        ):
            assert same(a[0], b[0])

    def test_a_compiler_that_is_missing_is_named(self, spec, monkeypatch):
        def broken(graph, inputs):
            raise OSError("no C++ compiler")

        compiling = functools.partial(torch.compile, backend=broken)
        monkeypatch.setattr(torch, "compile", compiling)
        model = Sam2Segmenter(replace(spec, compile=True))
        with pytest.raises(BackendError, match="--compile"):
            model.segment([model.prepare(image(0))], [[FACE]], Region.FACE)


class TestCache:
    @pytest.fixture
    def cached(self, spec, tmp_path):
        return Sam2Segmenter(spec, tmp_path / "embeddings")

    def test_the_encoder_runs_once_an_image(self, cached, monkeypatch):
        spy = Spy(cached, monkeypatch)
        pictures = [image(i) for i in range(3)]
        faces = [[FACE], [OTHER, FACE], []]
        first = segment(cached, [cached.prepare(p) for p in pictures], faces)
        again = segment(cached, [cached.prepare(p) for p in pictures], faces)
        assert [len(batch) for batch in spy.encoded] == [2]
        for a, b in zip(first, again, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        head = segment(cached, [cached.prepare(pictures[0])], [[FACE]], Region.HEAD)
        assert len(spy.encoded) == 1
        assert not np.array_equal(head[0][0], first[0][0])

    def test_known_and_new_images_share_a_batch(self, cached, monkeypatch):
        pictures = [image(i) for i in range(3)]
        alone = [segment(cached, [cached.prepare(p)], [[FACE]])[0][0] for p in pictures]
        cached._cache.path(cached.prepare(pictures[1]).key).unlink()
        spy = Spy(cached, monkeypatch)
        together = segment(cached, [cached.prepare(p) for p in pictures], [[FACE]] * 3)
        assert [len(batch) for batch in spy.encoded] == [1]
        assert all(same(a, b) for a, (b,) in zip(alone, together, strict=True))

    def test_its_float16_changes_next_to_nothing(self, cached, model):
        pictures = [image(i) for i in range(4)]
        with_cache = segment(cached, [cached.prepare(p) for p in pictures], [[FACE]] * 4)
        without = segment(model, [model.prepare(p) for p in pictures], [[FACE]] * 4)
        for (a,), (b,) in zip(with_cache, without, strict=True):
            assert masks.iou(a, b) >= 0.99

    def test_other_weights_and_other_precision_do_not_use_it(self, cached, spec, tmp_path):
        key = cached.prepare(image(0)).key
        checkpoint, config = write_tiny_sam2(tmp_path, seed=1)
        folder = tmp_path / "embeddings"
        other = replace(spec, model=str(checkpoint), config=str(config))
        rough = replace(spec, dtype="bfloat16")
        keys = {Sam2Segmenter(s, folder).prepare(image(0)).key for s in (other, rough)}
        assert len(keys | {key}) == 3


class TestEncoder:
    def test_sees_only_images_with_faces(self, model, spy):
        prepared = [model.prepare(image(i)) for i in range(3)]
        assert segment(model, prepared, [[], [FACE], []])[0] == []
        (batch,) = spy.encoded
        assert batch.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
        mean, std = (np.array(v) for v in (sam2.MEAN, sam2.STD))
        pixels = (batch[0].permute(1, 2, 0).numpy() * std + mean) * 255
        assert pixels == pytest.approx(prepared[1].square, abs=1e-3)

    def test_is_not_called_without_faces(self, model, spy):
        prepared = [model.prepare(image(i)) for i in range(2)]
        assert segment(model, prepared, [[], []]) == [[], []]
        assert segment(model, [], []) == []
        assert spy.encoded == spy.decoded == []


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
            patch.setattr(model._model, "forward_image", lambda _: torch.empty(1 << 60))
            with pytest.raises(OutOfMemory, match="cpu ran out of memory"):
                segment(model, prepared, [[FACE]], Region.FACE)
        assert len(segment(model, prepared, [[FACE]], Region.FACE)[0]) == 1

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("CUDA error: out of memory"),
        ],
    )
    def test_cudas_errors(self, model, monkeypatch, error):
        def fail(**given):
            raise error

        monkeypatch.setattr(model._model.sam_mask_decoder, "predict_masks", fail)
        with pytest.raises(OutOfMemory):
            segment(model, [model.prepare(image(0))], [[FACE]], Region.FACE)

    def test_other_errors_stay_what_they_are(self, model, monkeypatch):
        def fail(images):
            raise RuntimeError("a bug")

        monkeypatch.setattr(model._model, "forward_image", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            segment(model, [model.prepare(image(0))], [[FACE]], Region.FACE)


class TestDevice:
    def test_the_model_goes_where_it_is_told(self, spec, monkeypatch):
        monkeypatch.setattr(sam2.device, "torch_device", lambda _: "meta")
        loaded = Sam2Segmenter(spec)
        assert {p.device.type for p in loaded._model.parameters()} == {"meta"}

    def test_nothing_is_printed_to_stdout(self, spec, capfd):
        loaded = Sam2Segmenter(spec)
        segment(loaded, [loaded.prepare(image(0))], [[FACE]])
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
