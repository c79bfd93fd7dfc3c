"""Aspect buckets and crops."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_prep.errors import UsageError
from lora_prep.training.buckets import Bucket, Crop, buckets, nearest

sizes = st.integers(40, 700)
fractions = st.floats(0, 1)


@given(st.integers(256, 1536), st.sampled_from([8, 16, 32, 64]))
def test_buckets_fit_and_are_as_large_as_they_can(resolution: int, step: int) -> None:
    found = buckets(resolution, step=step)
    assert len(set(found)) == len(found)
    assert {Bucket(b.height, b.width) for b in found} == set(found)
    for b in found:
        assert b.width % step == b.height % step == 0
        assert 0.5 <= b.ratio <= 2
        assert b.width * b.height <= resolution**2
        assert (b.width + step) * (b.height + step) > resolution**2


@pytest.mark.parametrize(
    "settings", [{"resolution": 32}, {"resolution": 512, "step": 0}, {"min_ratio": 1.5}]
)
def test_settings_that_give_no_bucket_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="no bucket fits"):
        buckets(**{"resolution": 512, **settings})


@given(sizes, sizes)
def test_the_nearest_bucket_has_the_nearest_ratio(width: int, height: int) -> None:
    found = buckets(512)
    ratio = np.log(width / height)
    best = min(abs(np.log(b.ratio) - ratio) for b in found)
    assert abs(np.log(nearest(found, width, height).ratio) - ratio) == pytest.approx(best)


@given(sizes, sizes, st.sampled_from(buckets(256)), fractions, fractions, st.booleans())
def test_a_crop_covers_the_bucket_and_keeps_the_aspect(
    width: int, height: int, bucket: Bucket, x: float, y: float, flip: bool
) -> None:
    crop = Crop.of(width, height, bucket, at=(x, y), flip=flip)
    assert 0 <= crop.left <= crop.scaled[0] - bucket.width
    assert 0 <= crop.top <= crop.scaled[1] - bucket.height
    assert crop.scaled[0] == bucket.width or crop.scaled[1] == bucket.height
    assert abs(crop.scaled[0] * height - crop.scaled[1] * width) <= max(width, height)
    image = np.zeros((height, width, 3), np.uint8)
    assert crop.image(image).shape == (bucket.height, bucket.width, 3)
    assert crop.mask(image[..., 0]).shape == (bucket.height, bucket.width)


@given(
    st.integers(200, 500),
    st.integers(200, 500),
    fractions,
    fractions,
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_image_mask_and_landmarks_move_together(
    width: int, height: int, x: float, y: float, flip: bool, random: "np.random.Random"
) -> None:
    """A dot drawn at a point is where the point is said to be, in the image and in the mask."""
    bucket = nearest(buckets(256), width, height)
    crop = Crop.of(width, height, bucket, at=(x, y), flip=flip)
    point = np.array([[random.uniform(60, width - 60), random.uniform(60, height - 60)]])
    canvas = np.zeros((height, width), np.uint8)
    centre = np.rint(point[0] * 16).astype(int).tolist()
    cv2.circle(canvas, centre, 12 * 16, 255, -1, cv2.LINE_AA, shift=4)
    (expected,) = crop.points(point)
    inside = (np.array([14, 14]) < expected) & (expected < [bucket.width - 15, bucket.height - 15])
    image = crop.image(np.repeat(canvas[..., None], 3, 2))[..., 0].astype(float) / 255
    for drawn in (image, crop.mask(canvas)):
        if inside.all():
            rows, columns = np.indices(drawn.shape)
            found = np.array([(columns * drawn).sum(), (rows * drawn).sum()]) / drawn.sum()
            assert np.abs(found - expected).max() < 0.35


@pytest.mark.parametrize(("flip", "x"), [(False, 5.0), (True, 49 - 5.0)])
def test_points_are_pixel_centres_when_scaled(flip: bool, x: float) -> None:
    """Pixels 20..23 become pixel 5: their middle is 21.5, and its is 5."""
    crop = Crop.of(200, 200, Bucket(50, 50), flip=flip)
    np.testing.assert_allclose(crop.points(np.array([[21.5, 41.5]])), [[x, 10.0]])


def test_a_mirrored_face_has_its_left_eye_on_the_left() -> None:
    landmarks = np.array([[30, 40], [70, 40], [50, 60], [35, 80], [65, 80]], float)
    crop = Crop.of(100, 100, Bucket(100, 100), flip=True)
    moved = crop.landmarks(landmarks)
    assert moved[0, 0] < moved[1, 0]
    assert moved[3, 0] < moved[4, 0]
    np.testing.assert_allclose(moved[0], [99 - 70, 40])


def test_coverage_is_kept_when_scaled_down() -> None:
    mask = np.zeros((512, 512), np.uint8)
    mask[100:103] = 255
    crop = Crop.of(512, 512, Bucket(64, 64))
    assert crop.mask(mask).mean() == pytest.approx(3 / 512, rel=1e-4)


@given(fractions, fractions)
def test_a_centre_comes_as_near_to_the_middle_as_it_can(x: float, y: float) -> None:
    crop = Crop.of(300, 100, Bucket(100, 100), centre=(300 * x, 100 * y))
    assert crop.top == 0
    assert crop.left == min(max(round(300 * x - 50), 0), 200)
