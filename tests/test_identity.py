import tracemalloc

import cv2
import numpy as np
import pytest

from lora_prep import identity, imageio
from sample_data.portraits import draw_portrait


def unit(*rows):
    vectors = np.array(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def around(person, count, spread, rng, width=64):
    """Vectors near the axis of that number."""
    rows = rng.normal(0, spread / np.sqrt(width), (count, width))
    rows[:, person] += 1
    return unit(*rows)


def test_similarity_is_to_the_nearest_reference():
    vectors = unit([1, 0], [0, 1], [1, 1], [-1, 0])
    references = unit([1, 0], [0, 1])
    assert identity.similarities(vectors, references) == pytest.approx([1, 1, 0.7071, 0], abs=1e-4)


def test_the_medoid_is_who_is_in_most_images():
    rng = np.random.default_rng(0)
    subject, partner = around(0, 20, 1.0, rng), around(1, 8, 1.0, rng)
    rows, names = [], []
    for i in range(20):
        if i < 8:  # the partner stands first in eight of twenty
            rows.append(partner[i])
            names.append(f"{i}")
        rows.append(subject[i])
        names.append(f"{i}")
    vectors = np.stack(rows)
    row = identity.medoid(vectors, identity.starts(names))
    assert vectors[row, 0] > 0.5


def test_copies_of_an_odd_picture_do_not_make_it_the_medoid():
    rng = np.random.default_rng(1)
    subject = around(0, 10, 0.8, rng)
    odd = around(1, 1, 0.1, rng)
    vectors = np.concatenate([odd, odd, odd, subject])
    row = identity.medoid(vectors, np.arange(len(vectors)))
    assert row >= 3


def of_cosine(cosine: float, axis: int, own: int) -> np.ndarray:
    """A unit vector with that cosine to an axis, and otherwise along one of its own."""
    vector = np.zeros(32, np.float32)
    vector[axis], vector[own] = cosine, np.sqrt(1 - cosine**2)
    return vector


def test_copies_of_a_picture_count_once_for_whoever_is_like_it():
    copies = [of_cosine(1.0, 0, 1)] * 5
    partner = [of_cosine(0.5, 0, 2)]
    subject = [of_cosine(0.9, 10, 11 + i) for i in range(4)]
    vectors = np.stack([*copies, *partner, *subject])
    hashes = np.array([7] * 5 + [0xFF << 8 * i for i in range(1, 6)], np.uint64)
    firsts = np.arange(len(vectors))
    assert identity.medoid(vectors, firsts) == 5
    assert identity.medoid(vectors, firsts, hashes) >= 6


def test_a_face_that_is_a_little_like_everybody_is_not_the_medoid():
    strangers = [of_cosine(0.2, 0, 1 + i) for i in range(20)]
    subject = [of_cosine(0.9, 30, 21 + i) for i in range(3)]
    vectors = np.stack([of_cosine(1.0, 0, 1), *strangers, *subject])
    firsts = np.arange(len(vectors))
    assert identity.medoid(vectors, firsts) == 0
    assert identity.medoid(vectors, firsts, min_similarity=0.28) >= 21


def test_the_medoid_of_very_many_faces_is_still_the_persons():
    rng = np.random.default_rng(2)
    vectors = np.concatenate([around(1, 1500, 1.0, rng, 8), around(0, 4000, 1.0, rng, 8)])
    assert identity.medoid(vectors, np.arange(len(vectors))) >= 1500
    with pytest.raises(ValueError, match="no face"):
        identity.medoid(vectors[:0], np.arange(0))


def test_the_best_row_of_each_image():
    firsts = identity.starts(["a", "b", "b", "b", "c"])
    assert firsts.tolist() == [0, 1, 4]
    similarity = np.array([0.1, 0.2, 0.9, 0.9, -0.5], np.float32)
    assert identity.best_rows(similarity, firsts).tolist() == [0, 2, 4]


class TestOutliers:
    def test_somebody_else_and_an_odd_picture_are_told_apart(self):
        best = np.array([0.70, 0.72, 0.69, 0.71, 0.73, 0.70, 0.45, 0.05], np.float32)
        found = identity.outliers(best, 0.35)
        assert np.flatnonzero(found.others).tolist() == [7]
        assert np.flatnonzero(found.unlike).tolist() == [6]
        assert found.median == pytest.approx(0.70)
        assert 0.45 < found.bound < 0.69

    def test_wrong_pictures_do_not_hide_each_other(self):
        best = np.array([0.7] * 6 + [0.1] * 5, np.float32)
        found = identity.outliers(best, 0.35)
        assert np.flatnonzero(found.others).tolist() == [6, 7, 8, 9, 10]

    def test_alike_pictures_have_no_outlier(self):
        best = np.random.default_rng(0).normal(0.6, 0.05, 200).astype(np.float32)
        found = identity.outliers(best, 0.35)
        assert not found.others.any()
        assert found.unlike.sum() <= 2

    def test_nobody_is_the_person(self):
        found = identity.outliers(np.array([0.1, 0.2], np.float32), 0.35)
        assert found.others.all()
        assert not found.unlike.any()


def groups(pairs):
    """The sets of images that the pairs link."""
    found = {}
    for a, b in pairs:
        both = found.get(a, frozenset([a])) | found.get(b, frozenset([b]))
        found.update(dict.fromkeys(both, both))
    return set(found.values())


class TestNearDuplicates:
    def test_all_that_are_alike_in_both_are_linked_and_no_other(self):
        rng = np.random.default_rng(3)
        n = 300
        vectors = around(0, n, 0.35, rng)
        base = rng.integers(0, 2**63, 40).astype(np.uint64)
        hashes = base[rng.integers(0, 40, n)]
        for _ in range(5):  # up to five bits flipped
            hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, n).astype(np.uint64))
        rows = np.flatnonzero(rng.random(n) < 0.9)
        found = identity.near_duplicates(vectors, hashes, rows)
        apart = np.bitwise_count(hashes[:, None] ^ hashes[None])
        cosines = vectors @ vectors.T
        alike = (apart <= identity.SAME_PICTURE) & (cosines >= identity.SAME_VIEW)
        pairs = [(int(a), int(b)) for a in rows for b in rows if a < b and alike[a, b]]
        assert groups(pairs) == groups([(a, b) for a, b, _ in found])
        assert len(found) == sum(len(group) - 1 for group in groups(pairs))
        assert {(a, b) for a, b, _ in found} <= set(pairs)
        assert found == sorted(found)
        assert len(found) > 20
        assert all(cosine == pytest.approx(cosines[a, b], abs=1e-5) for a, b, cosine in found)

    def test_many_copies_take_little_memory_and_are_one_group(self):
        n = 3000  # 4.5 million pairs, 9 GB of their vectors
        vectors = np.ones((n, 256), np.float32) / 16
        hashes = np.full(n, 77, np.uint64)
        tracemalloc.start()
        found = identity.near_duplicates(vectors, hashes, np.arange(n))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found) == n - 1
        assert groups([(a, b) for a, b, _ in found]) == {frozenset(range(n))}
        assert peak < 100e6

    def test_the_same_backdrop_is_not_enough_nor_is_the_same_face(self):
        vectors = unit([1, 0], [0, 1], [1, 0.1])
        hashes = np.array([5, 5, 2**64 - 1], np.uint64)
        assert identity.near_duplicates(vectors, hashes, np.arange(3)) == []


def test_the_hash_survives_scaling_compression_and_light_and_tells_pictures_apart():
    images = [draw_portrait(seed, size=(256, 256), people=1).image for seed in range(6)]
    hashes = [identity.difference_hash(image) for image in images]
    for image, known in zip(images, hashes, strict=True):
        small = cv2.resize(image, (150, 150), interpolation=cv2.INTER_AREA)
        jpeg = imageio.decode_image(imageio.encode_image(image, "jpeg"))
        brighter = np.clip(image * 1.1 + 5, 0, 255).astype(np.uint8)
        for copy in (small, jpeg, brighter):
            apart = (identity.difference_hash(copy) ^ known).bit_count()
            assert apart <= identity.SAME_PICTURE
    between = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(between) > identity.SAME_PICTURE
