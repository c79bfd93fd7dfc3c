import math
import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lora_prep import anatomy, masks
from lora_prep.errors import UsageError
from lora_prep.masks import Margin
from lora_prep.types import Face, Region
from sample_data.portraits import draw_portrait

small_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=18))
radii = st.floats(0, 6, allow_subnormal=False)


def disc(size: int, radius: float, centre: tuple[float, float] | None = None) -> np.ndarray:
    x0, y0 = centre or ((size - 1) / 2, (size - 1) / 2)
    y, x = np.mgrid[:size, :size]
    return np.hypot(x - x0, y - y0) <= radius


def far_from_others(mask: np.ndarray, radius: float) -> np.ndarray:
    """Erosion by its definition: no pixel outside the mask or the image within `radius` + 1/2."""
    reach = math.ceil(radius + 0.5)
    wide = np.pad(mask, reach + 1)
    result = np.zeros_like(wide)
    for y, x in zip(*np.nonzero(wide), strict=True):
        around = wide[y - reach : y + reach + 1, x - reach : x + reach + 1]
        dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        result[y, x] = around[np.hypot(dx, dy) - 0.5 < radius].all()
    inner = slice(reach + 1, -reach - 1)
    return result[inner, inner]


def part_sizes(mask: np.ndarray) -> list[int]:
    _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    return np.bincount(labels.ravel())[1:].tolist()


# ------------------------------------------------------------------ margins


@pytest.mark.parametrize(
    ("text", "margin"),
    [
        ("2%", Margin(2, "%")),
        (" 10px ", Margin(10, "px")),
        ("2.5 %", Margin(2.5, "%")),
        ("-1%", Margin(-1, "%")),
        ("0", Margin(0, "px")),
        ("0%", Margin(0, "px")),
        ("+.5PX", Margin(0.5, "px")),
    ],
)
def test_margin_is_parsed(text, margin):
    assert Margin.parse(text) == margin


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["px", "%"]))
def test_margin_survives_being_written(amount, unit):
    margin = Margin.parse(f"{amount!r}{unit}")
    assert margin.amount == amount
    assert Margin.parse(str(margin)) == margin


@pytest.mark.parametrize("text", ["", "px", "two%", "1e999px", "10pxx", "nan%", "1,5%", "10cm"])
def test_margin_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match=re.escape(repr(text)) + ".*2%"):
        Margin.parse(text)


def test_margin_without_a_unit_asks_for_it():
    with pytest.raises(UsageError, match="10px or 10%"):
        Margin.parse("10")


def test_margin_in_pixels_is_the_width_of_a_kernel():
    mask = np.zeros((80, 80), bool)
    mask[10:70, 10:70] = True
    recipe = cv2.erode(mask.astype(np.uint8), np.ones((10, 10)), borderValue=0).astype(bool)
    ours = masks.erode(mask, Margin.parse("10px").radius(mask))
    assert masks.bounding_box(ours) == (15, 15, 65, 65)
    # An even kernel cannot be symmetric: the recipe takes 5 pixels on one side, 4 on the other.
    assert masks.bounding_box(recipe) == (15, 15, 66, 66)


def test_margin_as_a_plain_distance():
    mask = np.ones((50, 50), bool)
    assert Margin.parse("10px").distance(mask) == 10
    assert Margin.parse("2%").distance(mask) == Margin.parse("2%").radius(mask) == 1


@pytest.mark.parametrize("size", [48, 96, 384, 1536])
def test_margin_in_percent_keeps_the_same_share_of_small_and_large_faces(size):
    mask = anatomy.fill([anatomy.ellipse(0, 0.38, 0.5) * size + size / 2], size, size)
    eroded = masks.erode(mask, Margin.parse("2%").radius(mask))
    assert eroded.sum() / mask.sum() == pytest.approx(0.93, abs=0.02)


# ------------------------------------------------------------------ erode and feather


@given(small_masks, radii)
def test_erosion_is_that_of_a_euclidean_disc_and_takes_from_the_image_border(mask, radius):
    np.testing.assert_array_equal(masks.erode(mask, radius), far_from_others(mask, radius))


@given(small_masks, radii, radii)
def test_erosion_takes_more_the_larger_it_is(mask, a, b):
    little, much = masks.erode(mask, min(a, b)), masks.erode(mask, max(a, b))
    assert not (much & ~little).any()
    assert not (little & ~mask).any()


@given(small_masks, radii)
def test_dilation_is_the_erosion_of_what_lies_outside(mask, radius):
    reach = math.ceil(radius) + 1
    around = np.pad(~mask, reach, constant_values=True)
    # Wide enough that the border of the padded image is never within reach of the mask.
    eroded = masks.erode(np.pad(around, reach, constant_values=True), radius)
    inner = slice(2 * reach, -2 * reach)
    np.testing.assert_array_equal(masks.erode(mask, -radius), ~eroded[inner, inner])


def test_erosion_leaves_its_argument_alone():
    mask = disc(21, 8)
    before = mask.copy()
    for radius in (-2, 0, 2):
        result = masks.erode(mask, radius)
        assert not np.shares_memory(result, mask)
    np.testing.assert_array_equal(mask, before)


@given(small_masks, st.floats(0, 12, allow_subnormal=False))
def test_feather_rises_inwards_and_never_leaves_the_mask(mask, radius):
    weights = masks.feather(mask, radius)
    np.testing.assert_array_equal(weights > 0, mask)
    core = masks.erode(mask, radius)
    assert (weights[core] == 255).all()
    edge = mask & ~masks.erode(mask, 1)
    assert (weights[edge] >= min(255, 127 / max(radius, 0.5))).all()
    assert (weights[mask & ~core] < 255).all() or radius < 1


def test_feather_is_linear_and_hard_at_zero():
    stripe = np.zeros((9, 30), bool)
    stripe[1:-1, 5:25] = True
    row = masks.feather(np.repeat(stripe, 9, axis=0), 4)[40]
    assert row[:11].tolist() == [0, 0, 0, 0, 0, 32, 96, 160, 224, 255, 255]
    assert set(np.unique(masks.feather(stripe, 0))) == {0, 255}


def test_feather_with_a_negative_radius_is_a_bug():
    with pytest.raises(ValueError, match="negative"):
        masks.feather(disc(5, 2), -1)


# ------------------------------------------------------------------ clean


@given(small_masks, st.floats(0, 0.5), st.floats(0, 0.5))
def test_cleaning_twice_changes_nothing_more(mask, hole, speck):
    once = masks.clean(mask, max_hole=hole, max_speck=speck)
    np.testing.assert_array_equal(masks.clean(once, max_hole=hole, max_speck=speck), once)
    assert once.any() == mask.any()


@given(small_masks)
def test_cleaning_to_the_full_leaves_one_part_without_holes(mask):
    cleaned = masks.clean(mask, max_hole=1, max_speck=1)
    if not mask.any():
        assert not cleaned.any()
        return
    around = np.pad(~cleaned, 1, constant_values=True)
    assert cv2.connectedComponents(around.view(np.uint8), connectivity=4)[0] == 2
    assert masks.components(cleaned) == 1 or len(set(part_sizes(cleaned))) == 1


def test_small_holes_and_specks_go_and_large_ones_stay():
    mask = disc(200, 80)
    small_hole, gap = disc(200, 5, (80, 100)), disc(200, 30, (130, 100))
    speck, island = np.zeros_like(mask), np.zeros_like(mask)
    speck[2:6, 2:6] = True
    island[160:198, 165:198] = True
    dirty = (mask & ~small_hole & ~gap) | speck | island
    np.testing.assert_array_equal(masks.clean(dirty), (mask & ~gap) | island)


def test_what_touches_the_image_border_is_no_hole():
    mask = np.ones((40, 40), bool)
    mask[0:2, 20] = False
    mask[20, 20] = False
    cleaned = masks.clean(mask)
    assert cleaned[20, 20]
    assert not cleaned[0:2, 20].any()


# ------------------------------------------------------------------ measures


@given(small_masks)
def test_overlap_with_itself_and_with_the_opposite(mask):
    assert masks.iou(mask, mask) == 1
    assert masks.iou(mask, ~mask) == 0
    np.testing.assert_array_equal(masks.union([mask, ~mask]), np.ones_like(mask))
    np.testing.assert_array_equal(masks.union([mask]), mask)
    assert masks.coverage(mask) == pytest.approx(mask.mean())
    assert masks.coverage(masks.feather(mask, 0)) == pytest.approx(mask.mean())


def test_coverage_counts_weights():
    assert masks.coverage(np.full((4, 4), 51, np.uint8)) == pytest.approx(0.2)


def test_union_of_nothing_is_a_bug_and_changes_no_argument():
    first = disc(5, 1)
    before = first.copy()
    masks.union([first, ~first])
    np.testing.assert_array_equal(first, before)
    with pytest.raises(ValueError, match="no masks"):
        masks.union([])


@given(small_masks)
def test_bounding_box_is_the_smallest(mask):
    box = masks.bounding_box(mask)
    if box is None:
        assert not mask.any()
        return
    x0, y0, x1, y1 = box
    inside = mask[y0:y1, x0:x1]
    assert inside.sum() == mask.sum()
    assert inside[0].any()
    assert inside[-1].any()
    assert inside[:, 0].any()
    assert inside[:, -1].any()


def test_parts_that_touch_at_a_corner_are_one():
    assert masks.components(np.eye(4, dtype=bool)) == 1
    assert masks.components(np.zeros((3, 3), bool)) == 0
    assert masks.components(np.array([[True, False, True]])) == 2


# ------------------------------------------------------------------ agreement with a face


@pytest.mark.parametrize("landmarks", [True, False])
def test_of_nested_masks_the_one_asked_for_is_chosen(landmarks):
    right = 0
    for seed in range(12):
        person = draw_portrait(seed, size=(256, 256), people=1).people[0]
        face = person.face if landmarks else Face(person.face.box, 1.0)
        candidates = [person.person_mask, person.face_mask, person.head_mask]
        wanted = {Region.PERSON: 0, Region.FACE: 1, Region.HEAD: 2}
        right += sum(
            masks.choose(candidates, [0.9, 0.8, 0.85], face, region) == index
            for region, index in wanted.items()
        )
    assert right >= 34, "of 36"


def test_agreement_needs_the_landmarks_inside():
    person = draw_portrait(3, size=(256, 256), people=1).people[0]
    face, mask = person.face, person.face_mask
    assert masks.agreement(mask, face, Region.FACE) > 0.7
    assert face.landmarks
    without_mouth = mask.copy()
    without_mouth[int(min(y for _, y in face.landmarks[3:])) - 2 :] = False
    overlap = masks.agreement(without_mouth, Face(face.box, 1.0), Region.FACE)
    assert masks.agreement(without_mouth, face, Region.FACE) == pytest.approx(
        0.6 * overlap, rel=0.05
    )
    assert masks.agreement(np.zeros_like(mask), face, Region.FACE) == 0


def test_agreement_is_the_same_at_another_scale():
    person = draw_portrait(3, size=(300, 200), people=1, scale=(0.5, 0.6)).people[0]
    squashed = cv2.resize(person.head_mask.view(np.uint8) * 255, (128, 128)) > 127
    scale = (128 / 200, 128 / 300)
    assert masks.agreement(squashed, person.face, Region.HEAD, scale=scale) == pytest.approx(
        masks.agreement(person.head_mask, person.face, Region.HEAD), abs=0.02
    )


def test_where_nothing_agrees_the_score_decides():
    nothing = np.zeros((50, 50), bool)
    face = Face((10, 10, 40, 40), 1.0)
    assert masks.choose([nothing, nothing, nothing], [0.1, 0.7, 0.7], face, Region.FACE) == 1


# ------------------------------------------------------------------ overlay


def test_overlay_keeps_the_masked_part_and_greys_the_rest():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 300, 3), np.uint8)
    mask = np.zeros((300, 300), np.uint8)
    mask[100:200, 100:200] = 255
    picture = masks.overlay(image, mask)
    np.testing.assert_array_equal(picture[110:190, 110:190], image[110:190, 110:190])
    outside = picture[:80].astype(int)
    assert (outside.max(axis=2) == outside.min(axis=2)).all(), "grey"
    assert outside.mean() < 0.6 * image[:80].mean()
    edge = picture[150, 96:106].astype(int)
    assert (edge[:, 1] - edge[:, 0]).max() > 150, "a green line"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 300), (64, 48), (900, 1200)])
def test_overlay_at_any_size_with_faces_beyond_the_border(height, width):
    image = np.full((height, width, 3), 90, np.uint8)
    points = tuple((width * k, height * k) for k in (-0.5, 0.2, 0.5, 0.9, 3.0))
    face = Face((-width, -5.5, width * 2, height * 0.8), 0.9, points)
    before = image.copy()
    picture = masks.overlay(image, np.full((height, width), 128, np.uint8), [face])
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
