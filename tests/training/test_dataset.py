"""A prepared folder as torch data: one crop for all, full batches, the same examples every time."""

import hashlib
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lora_prep import imageio
from lora_prep.dataset import Dataset
from lora_prep.decisions import Verdict, decide
from lora_prep.embeddings import Embeddings, read_embeddings
from lora_prep.errors import DatasetError, UsageError
from lora_prep.training.buckets import Bucket, Crop
from lora_prep.training.dataset import BucketBatches, Key, PreparedFolder, collate
from lora_prep.training.latents import LatentCache

SIZES = [(300, 200), (200, 300), (256, 256), (310, 210), (180, 300), (256, 250), (400, 220)]
"""Width and height of the images."""


def landmarks(i: int) -> np.ndarray:
    """Made so that the eyes lie in the upper left of the image."""
    return np.array([[60, 50], [90, 52], [75, 65], [64, 82], [86, 84]], np.float32) + i


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images with a red disc where the mask is white, and a blue dot on the left eye."""
    for folder in ("faces", "masks", "priors"):
        (tmp_path / folder).mkdir()
    for i, (width, height) in enumerate(SIZES):
        image = np.full((height, width, 3), 30 + 5 * i, np.uint8)
        mask = np.zeros((height, width), np.uint8)
        cv2.circle(mask, (width // 2 + 10, height // 2 - 5), 50, 255, -1)
        image[mask > 0] = (255, 0, 0)
        cv2.circle(image, tuple(int(v) for v in landmarks(i)[0]), 4, (0, 0, 255), -1)
        (tmp_path / "faces" / f"p{i}.png").write_bytes(imageio.encode_image(image, "png"))
        (tmp_path / "masks" / f"p{i}.png").write_bytes(imageio.encode_mask(mask))
        (tmp_path / "faces" / f"p{i}.txt").write_text(f"caption {i}\n")
    for i in range(3):
        image = np.full((128, 128, 3), 200 + i, np.uint8)
        (tmp_path / "priors" / f"{i}.png").write_bytes(imageio.encode_image(image, "png"))
    embeddings(tmp_path)
    return tmp_path


def embeddings(root: Path, *, without: tuple[int, ...] = (2,)) -> np.ndarray:
    """Two rows an image: the subject second, and somebody else first."""
    random = np.random.default_rng(0)
    subject, other = np.linalg.qr(random.normal(size=(8, 2)))[0].T.astype(np.float32)
    rows = [i for i in range(len(SIZES)) if i not in without for _ in range(2)]
    vectors = np.stack([other if r % 2 == 0 else subject for r in range(len(rows))])
    n = len(rows)
    points = np.stack([landmarks(i) + (100 if r % 2 == 0 else 0) for r, i in enumerate(rows)])
    found = Embeddings(
        names=tuple(f"p{i}.png" for i in rows),
        faces=np.arange(n, dtype=np.int32) % 2,
        boxes=np.concatenate([points.min(1) - 20, points.max(1) + 20], 1).astype(np.float32),
        landmarks=points.astype(np.float32),
        scores=np.ones(n, np.float32),
        vectors=vectors,
        norms=np.ones(n, np.float32),
        sha256=tuple(sha256(root / "faces" / f"p{i}.png") for i in rows),
        metadata={"model": "test"},
        similarities=np.array([0.0, 1.0] * (n // 2), np.float32),
    )
    (root / "embeddings.safetensors").write_bytes(found.to_bytes())
    return subject


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def folder(data: Path, **settings: object) -> PreparedFolder:
    return PreparedFolder.at(data, **{"resolution": 128, "step": 32, **settings})


# ------------------------------------------------------------------ what an example holds
@pytest.mark.parametrize("crop", ["center", "random", "face"])
@pytest.mark.parametrize("flip", [False, True])
def test_image_mask_and_landmarks_stay_together(data: Path, crop: str, flip: bool) -> None:
    prepared = folder(data, crop=crop, flip=flip)
    flipped = []
    for index in range(len(SIZES)):
        for epoch in range(4):
            example = prepared[Key(index, epoch=epoch)]
            red, _, blue = example.image
            marked = ((red > 0.5) & (blue < 0)).numpy()
            masked = (example.mask[0] > 0.5).numpy()
            assert (marked & masked).sum() / (marked | masked).sum() > 0.95
            flipped.append(example.crop.flip)
            if not example.has_face:
                assert index == 2 or cut_off(example.crop, landmarks(index))
                assert not example.landmarks.any()
                continue
            eye = 1 if example.crop.flip else 0  # in the mirror the left eye is on the right
            x, y = example.landmarks[eye].round().int().tolist()
            height, width = masked.shape
            if 2 <= x < width - 2 and 2 <= y < height - 2:
                assert example.image[2, y, x] > 0.5
                assert example.image[0, y, x] < 0
    assert any(flipped) == flip
    assert not all(flipped)


def cut_off(crop: Crop, points: np.ndarray) -> bool:
    """Whether a point lies outside of the crop."""
    moved = crop.points(points.astype(np.float64)) + 0.5
    return bool((moved < 0).any() or (moved > (crop.bucket.width, crop.bucket.height)).any())


def test_a_face_that_the_crop_cuts_off_is_no_face(tmp_path: Path) -> None:
    """A portrait whose face is at the top, cut at its middle."""
    (tmp_path / "faces").mkdir()
    path = tmp_path / "faces" / "tall.png"
    path.write_bytes(imageio.encode_image(np.full((1024, 256, 3), 90, np.uint8), "png"))
    points = np.array([[[80, 60], [150, 60], [115, 90], [90, 120], [140, 120]]], np.float32)
    one = np.ones(1, np.float32)
    box = np.array([[60, 20, 180, 160]], np.float32)
    vector = np.eye(1, 8, dtype=np.float32)
    found = Embeddings(("tall.png",), np.zeros(1, np.int32), box, points, one, vector, one,
                       (sha256(path),), {}, one)  # fmt: skip
    (tmp_path / "embeddings.safetensors").write_bytes(found.to_bytes())
    seen = {
        crop: folder(tmp_path, missing_mask="ones", resolution=512, crop=crop)[0]
        for crop in ("center", "face")
    }
    assert not seen["center"].has_face
    assert not seen["center"].landmarks.any()
    assert seen["face"].has_face
    assert seen["face"].face_mask.any()


def test_somebody_else_is_neither_a_face_nor_in_the_reference(data: Path) -> None:
    """Image 1 shows only a stranger: below the threshold that `embed` wrote down."""
    subject = embeddings(data)
    path = data / "embeddings.safetensors"
    found = read_embeddings(path)
    similarities = np.array(found.similarities)
    similarities[[name == "p1.png" for name in found.names]] = (0.1, 0.2)
    vectors = np.array(found.vectors)
    vectors[3] = np.eye(8, dtype=np.float32)[0]
    for metadata, faces in (({"min_similarity": "0.28"}, 5), ({}, 6)):
        made = replace(found, similarities=similarities, vectors=vectors, metadata=metadata)
        path.write_bytes(made.to_bytes())
        prepared = folder(data)
        assert sum(source.face is not None for source in prepared.sources) == faces
        assert np.allclose(prepared.reference, subject, atol=1e-6) == (faces == 5)


def test_an_image_that_is_gone_is_not_in_the_reference(data: Path) -> None:
    subject = embeddings(data)
    path = data / "embeddings.safetensors"
    found = read_embeddings(path)
    vectors = np.array(found.vectors)
    vectors[3] = np.eye(8, dtype=np.float32)[0]
    path.write_bytes(replace(found, vectors=vectors).to_bytes())
    (data / "faces" / "p1.png").unlink()
    np.testing.assert_allclose(folder(data).reference, subject, atol=1e-6)


def test_an_example_has_all_that_was_prepared(data: Path) -> None:
    subject = embeddings(data)
    example = folder(data)[1]
    assert example.caption == "caption 1"
    assert example.image.min() >= -1
    assert example.image.max() <= 1
    assert example.mask.unique().min() == 0
    assert not example.is_prior
    np.testing.assert_allclose(example.reference, subject, atol=1e-6)
    x, y = example.landmarks.mean(0).round().int().tolist()
    assert example.face_mask[0, y, x] == 1
    assert 0 < example.face_mask.mean() < 0.5


def test_the_face_is_the_subjects_and_not_the_first(data: Path) -> None:
    prepared = folder(data)
    face = prepared.sources[0].face
    assert face is not None
    assert face.landmarks is not None
    np.testing.assert_allclose(face.landmarks[0], landmarks(0)[0])


def test_class_images_train_everywhere(data: Path) -> None:
    prepared = folder(data, priors=data / "priors", prior_caption="a person")
    assert len(prepared) == len(SIZES) + 3
    example = prepared[len(SIZES)]
    assert example.is_prior
    assert example.caption == "a person"
    assert example.mask.min() == 1
    assert not example.has_face


def test_without_embeddings_there_is_no_reference(data: Path) -> None:
    (data / "embeddings.safetensors").unlink()
    example = folder(data)[0]
    assert example.reference.shape == (0,)
    assert not example.has_face
    assert example.face_mask.max() == 0


def test_a_missing_caption_takes_the_template(data: Path) -> None:
    (data / "faces" / "p0.txt").unlink()
    (data / "faces" / "p1.txt").write_text(" \n")
    prepared = folder(data, caption="a photo of ohwx")
    assert [prepared[i].caption for i in range(3)] == ["a photo of ohwx"] * 2 + ["caption 2"]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_opening_a_folder_reads_no_pixels(suffix: str, tmp_path: Path) -> None:
    """32 MB of them, the PNG's orientation behind."""
    (tmp_path / "faces").mkdir()
    path = tmp_path / "faces" / f"large.{suffix}"
    path.write_bytes(large(suffix))
    tracemalloc.start()
    prepared = folder(tmp_path, missing_mask="ones")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert prepared.sources[0].size == {"png": (200, 300), "jpg": (300, 200)}[suffix]
    assert peak < 8 << 20


def large(suffix: str) -> bytes:
    image = np.zeros((200, 300, 3), np.uint8)
    if suffix == "jpg":
        return imageio.encode_image(image, "jpeg") + bytes(32 << 20)
    small = imageio.encode_image(image, "png")
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    return small[:33] + chunk(b"IDAT", bytes(32 << 20)) + chunk(b"eXIf", exif) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + checksum


def test_a_header_longer_than_what_is_read_at_first_is_found(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    small = imageio.encode_image(np.zeros((200, 300, 3), np.uint8), "jpeg")
    comments = (b"\xff\xfe\xff\xff" + bytes(65533)) * 6
    (tmp_path / "faces" / "long.jpg").write_bytes(small[:2] + comments + small[2:])
    assert folder(tmp_path, missing_mask="ones").sources[0].size == (300, 200)


# ------------------------------------------------------------------ what is wrong is said
def test_an_image_that_changed_after_it_was_embedded_is_refused(data: Path) -> None:
    prepared = folder(data)
    renamed(data, prepared)
    with pytest.raises(DatasetError, match=r"p0\.png has changed .* run lora-prep embed"):
        prepared[0]
    assert prepared[1].has_face


def test_embeddings_of_another_folder_are_refused(data: Path) -> None:
    path = data / "embeddings.safetensors"
    found = read_embeddings(path)
    path.write_bytes(replace(found, metadata={"images": "others"}).to_bytes())
    with pytest.raises(DatasetError, match=r"folder others, not of faces: .* lora-prep embed"):
        folder(data)
    path.write_bytes(replace(found, metadata={"images": "faces"}).to_bytes())
    assert folder(data)[1].has_face


def test_images_without_masks_are_refused_or_train_whole(data: Path) -> None:
    (data / "masks" / "p3.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 7 images have no mask .* p3\.png"):
        folder(data)
    assert folder(data, missing_mask="ones")[3].mask.min() == 1


def test_a_mask_of_another_size_is_refused(data: Path) -> None:
    (data / "masks" / "p0.png").write_bytes(imageio.encode_mask(np.zeros((9, 8), np.uint8)))
    with pytest.raises(DatasetError, match=r"p0\.png is 8 × 9 pixels"):
        folder(data)[0]


def test_a_damaged_image_is_named(data: Path) -> None:
    path = data / "faces" / "p0.png"
    prepared = folder(data)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"p0\.png"):
        prepared[0]


def test_a_batch_of_many_sizes_says_what_to_do(data: Path) -> None:
    prepared = folder(data)
    with pytest.raises(UsageError, match="BucketBatches"):
        collate([prepared[0], prepared[1]])


# ------------------------------------------------------------------ batches
def test_every_image_comes_in_each_epoch_in_full_batches_of_one_bucket(data: Path) -> None:
    prepared = folder(data)
    batches = BucketBatches(prepared, 2)
    orders = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        keys = list(batches)
        assert len(keys) == len(batches)
        assert all(len(batch) == 2 for batch in keys)
        for batch in keys:
            assert {k.bucket for k in batch} == {prepared.bucket(k.index) for k in batch}
        assert {k.index for batch in keys for k in batch} == set(range(len(SIZES)))
        orders.append([k.index for batch in keys for k in batch])
    assert len({tuple(order) for order in orders}) > 1
    batches.set_epoch(0)
    assert [k.index for batch in batches for k in batch] == orders[0]


def test_paired_priors_take_the_second_half_in_the_same_bucket(data: Path) -> None:
    prepared = folder(data, priors=data / "priors", prior_caption="a person")
    loader = DataLoader(
        prepared, batch_sampler=BucketBatches(prepared, 4, pair_priors=True), collate_fn=collate
    )
    seen = set()
    for batch in loader:
        assert batch.is_prior.tolist() == [False, False, True, True]
        assert batch.captions[2:] == ("a person", "a person")
        seen |= set(batch.names)
    assert seen >= {f"p{i}.png" for i in range(len(SIZES))}


@pytest.mark.parametrize("batch_size", [3, 0])
def test_paired_priors_want_an_even_batch(data: Path, batch_size: int) -> None:
    prepared = folder(data, priors=data / "priors")
    with pytest.raises(UsageError, match="batch size"):
        BucketBatches(prepared, batch_size, pair_priors=True)


def test_workers_change_nothing(data: Path) -> None:
    prepared = folder(data, crop="random", flip=True)
    runs = []
    for workers in (0, 2):
        batches = BucketBatches(prepared, 2)
        batches.set_epoch(5)
        loader = DataLoader(
            prepared, batch_sampler=batches, collate_fn=collate, num_workers=workers
        )
        runs.append(list(loader))
    for one, other in zip(*runs, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.mask, other.mask)


def test_random_crops_differ_between_epochs_and_images(data: Path) -> None:
    prepared = folder(data, crop="random")
    crops = {prepared[Key(6, epoch=epoch)].crop for epoch in range(5)}
    assert len(crops) > 1


def test_goes_through_accelerate(data: Path) -> None:
    from accelerate import Accelerator

    prepared = folder(data)
    loader = DataLoader(prepared, batch_sampler=BucketBatches(prepared, 2), collate_fn=collate)
    seen = set()
    for batch in Accelerator(cpu=True).prepare(loader):
        assert len(batch) == 2
        seen |= set(batch.names)
    assert seen == {f"p{i}.png" for i in range(len(SIZES))}


def test_moving_a_batch_moves_all_tensors(data: Path) -> None:
    batch = collate([folder(data)[Key(0, Bucket(128, 128))]])
    moved = batch.to("meta")
    tensors = [v for v in vars(moved).values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 7
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.captions == batch.captions


# ------------------------------------------------------------------ latents
def test_latents_are_made_once_and_read_back(data: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return torch.nn.functional.avg_pool2d(images, 8)

    prepared = folder(data)
    cache = LatentCache(tmp_path / "latents", "average", encode)
    batches = [collate([prepared[i], prepared[i]]) for i in range(3)]
    first = [cache(batch) for batch in batches]
    assert calls == [1, 1, 1]  # an image that comes twice is encoded once
    second = [cache(batch) for batch in batches]
    assert calls == [1, 1, 1]
    for one, other, batch in zip(first, second, batches, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, torch.nn.functional.avg_pool2d(batch.images, 8))


def renamed(data: Path, prepared: PreparedFolder) -> None:
    """The image's bytes change, its name does not."""
    path = data / "faces" / "p0.png"
    path.write_bytes(imageio.encode_image(np.zeros((200, 300, 3), np.uint8), "png"))


@pytest.mark.parametrize("change", ["image", "crop", "identity", "damage"])
def test_latents_are_made_again_when_anything_changes(
    change: str, data: Path, tmp_path: Path
) -> None:
    calls: list[int] = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return torch.nn.functional.avg_pool2d(images, 8)

    (data / "embeddings.safetensors").unlink()  # which would no longer be those of the image
    prepared, kept = folder(data), tmp_path / "latents"
    LatentCache(kept, "a", encode)(collate([prepared[0]]))
    key, identity = Key(0), "a"
    match change:
        case "image":
            renamed(data, prepared)
        case "crop":
            key = Key(0, Bucket(128, 128))
        case "identity":
            identity = "b"
        case "damage":
            for path in kept.rglob("*.safetensors"):
                path.write_bytes(path.read_bytes()[:-5])
    batch = collate([prepared[key]])
    assert torch.equal(
        LatentCache(kept, identity, encode)(batch),
        torch.nn.functional.avg_pool2d(batch.images, 8),
    )
    assert calls == [1, 1]


def test_images_that_were_rejected_are_left_out(data: Path) -> None:
    dataset = Dataset.at(data)
    decide(dataset, dataset.sample("p3.png"), Verdict.REJECTED)
    names = [source.sample.name for source in folder(data).sources]
    assert len(names) == len(SIZES) - 1
    assert "p3.png" not in names
