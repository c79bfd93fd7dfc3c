"""Pipelines of albumentations: what they move, what they leave, what is not let in."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_prep.augmentation import PRESETS, is_binary
from lora_prep.backends.albumentations import REFUSED, Augmenter, check
from lora_prep.errors import ItemError, UsageError

HEIGHT, WIDTH = 160, 208

MOVING = [
    *PRESETS["strong"],
    {"transform": "Perspective", "scale": [0.02, 0.06], "p": 0.5},
    {"transform": "HorizontalFlip", "p": 0.5},
]
strong = Augmenter(MOVING)


def dotted(x, y):
    """A dark picture with a soft white dot at a point measured from the picture's corner."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    dot = 200 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 3.0**2))
    return np.repeat((30 + dot)[:, :, None], 3, axis=2).astype(np.uint8)


def centre(image):
    """Where the dot is."""
    light = image[:, :, 1].astype(float)
    light = np.clip(light - np.median(light) - 30, 0, None)
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]] + 0.5
    return np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(WIDTH * 0.4, WIDTH * 0.6),
    y=st.floats(HEIGHT * 0.4, HEIGHT * 0.6),
    seed=st.integers(0, 2**32 - 1),
)
def test_points_go_where_the_picture_goes(x, y, seed):
    made = strong.draw(dotted(x, y), None, np.array([[x, y], [-40.0, 900.0]]), seed)
    assert np.hypot(*(centre(made.image) - made.points[0])) < 0.3
    assert np.isfinite(made.points[1]).all()  # points outside are not dropped


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), soft=st.booleans())
def test_binary_masks_stay_binary_and_soft_ones_soft(seed, soft):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(mask, (100, 80), 40, 255, cv2.FILLED)
    if soft:
        mask = cv2.GaussianBlur(mask, (0, 0), 6)
    image = np.repeat(mask[:, :, None], 3, axis=2)
    made = strong.draw(image, mask, np.empty((0, 2)), seed, soft=soft)
    assert is_binary(made.mask) is not soft
    assert made.image.shape[:2] == made.mask.shape


@pytest.mark.parametrize("border", ["reflect_101", "replicate", "wrap", "constant"])
@pytest.mark.parametrize(
    "transform",
    [
        {"transform": "Affine", "translate_px": {"x": 30, "y": 0}},
        {"transform": "ShiftScaleRotate", "shift_limit_x": [0.14, 0.145], "shift_limit_y": 0},
        {"transform": "Rotate", "limit": [40, 40]},
        {"transform": "PadIfNeeded", "min_height": 300, "min_width": 300},
        {"transform": "Perspective", "scale": [0.2, 0.2], "keep_size": True, "fit_output": True},
    ],
    ids=lambda t: t["transform"],
)
def test_what_lies_outside_of_the_picture_is_ignored(transform, border):
    image, mask = (
        np.full((HEIGHT, WIDTH, 3), 200, np.uint8),
        np.full((HEIGHT, WIDTH), 255, np.uint8),
    )
    augmenter = Augmenter([{**transform, "border_mode": border, "p": 1.0}])
    made = augmenter.draw(image, mask, np.array([[10.0, 10.0]]), 1)
    assert made.points.shape == (1, 2)
    assert np.isfinite(made.points).all()
    assert 0 < np.count_nonzero(made.mask == 0) < made.mask.size
    assert (made.image == 200).all() == (border != "constant")


@pytest.mark.parametrize("name", PRESETS)
def test_colours_change_in_the_image_alone_and_the_originals_stay(name):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    mask = np.where(rng.random((HEIGHT, WIDTH)) < 0.5, np.uint8(0), np.uint8(255))
    before, weights = image.copy(), mask.copy()
    colours = [t for t in PRESETS[name] if t["transform"] not in ("Affine", "HorizontalFlip")]
    augmenter = Augmenter([{**t, "p": 1.0} for t in colours])
    made = augmenter.draw(image, mask, np.array([[3.0, 4.0]]), 5)
    assert np.array_equal(made.mask, weights)
    assert np.allclose(made.points, [[3, 4]])
    assert np.array_equal(made.image, before) == (not colours)
    Augmenter(PRESETS[name]).draw(image, mask, np.empty((0, 2)), 5)
    assert np.array_equal(image, before)
    assert np.array_equal(mask, weights)


def test_the_seed_alone_decides():
    image, points = dotted(90, 70), np.array([[90.0, 70.0]])
    first = [strong.draw(image, None, points, seed) for seed in (1, 2, 1)]
    other = Augmenter(MOVING).draw(image, None, points, 1)
    assert np.array_equal(first[0].image, first[2].image)
    assert np.array_equal(first[0].image, other.image)
    assert not np.array_equal(first[0].image, first[1].image)


def test_points_that_a_dropout_takes_are_nan_and_the_others_keep_their_places():
    holes = {"transform": "CoarseDropout", "fill_mask": 0, "p": 1.0, "num_holes_range": [30, 30]}
    points = np.stack(np.meshgrid(np.arange(5, WIDTH, 20), np.arange(5, HEIGHT, 20)), -1)
    points = points.reshape(-1, 2).astype(float)
    image, mask = dotted(90, 70), np.full((HEIGHT, WIDTH), 255, np.uint8)
    made = Augmenter([holes]).draw(image, mask, points, 3)
    there = np.isfinite(made.points).all(axis=1)
    assert there.any()
    assert np.allclose(made.points[there], points[there])
    assert (made.image[made.mask == 0] == 0).all()
    assert (made.mask == 0).any()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"transform": "Perspectiv"}, "did you mean Perspective?"),
        ({"transform": "os.system"}, "no transform 'os.system'"),
        ({"transform": "BasicTransform"}, "no transform 'BasicTransform'"),
        ({"transform": "RandomCrop3D"}, "no transform"),
        ({"rotate": 3}, "each table says its transform"),
        ({"transform": "Affine", "rotat": 3}, "no argument 'rotat'; did you mean 'rotate'?"),
        ({"transform": "Affine", "rotate": "far"}, "the pipeline's Affine: "),
        ({"transform": "Affine", "p": 2}, "the pipeline's Affine: "),
        ({"transform": "Affine", "border_mode": "mirror"}, "border_mode is one of constant"),
        ({"transform": "Affine", "fill_mask": 255}, "so it is 0"),
        ({"transform": "CoarseDropout"}, "Give fill_mask = 0"),
        ({"transform": "PixelDropout", "drop_value": 0}, "Give mask_drop_value = 0"),
        ({"transform": "OneOf"}, "wants transforms = "),
        ({"transform": "OneOf", "transforms": [{"transform": "D4"}]}, "D4 is refused"),
        ({"transform": "VerticalFlip"}, "give --flip"),
        ({"transform": "Sequential", "transforms": [{"transform": "HorizontalFlip"}]}, "--flip"),
        *(({"transform": name}, f"{name} is refused: {why}") for name, why in REFUSED.items()),
    ],
)
def test_what_is_unknown_or_harms_is_refused(table, said):
    with pytest.raises(UsageError) as error:
        check([table], flip=False)
    assert said in str(error.value)


def test_a_crop_larger_than_the_picture_is_that_pictures_problem():
    crop = {"transform": "RandomCrop", "height": 500, "width": 500, "p": 1.0}
    check([crop], flip=False)
    with pytest.raises(ItemError, match="does not fit this picture"):
        Augmenter([crop]).draw(dotted(90, 70), None, np.empty((0, 2)), 0)


def test_groups_of_transforms():
    group = {
        "transform": "OneOf",
        "p": 1.0,
        "transforms": [
            {"transform": "Resize", "height": 50, "width": 60, "p": 1.0},
            {"transform": "Resize", "height": 70, "width": 80, "p": 1.0},
        ],
    }
    check([group], flip=False)
    augmenter = Augmenter([group])
    drawn = [augmenter.draw(dotted(90, 70), None, np.empty((0, 2)), s) for s in range(12)]
    assert {made.image.shape for made in drawn} == {(50, 60, 3), (70, 80, 3)}
