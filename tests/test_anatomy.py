import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_prep.anatomy import FACE, Frame, fill, outlines, region_box
from lora_prep.types import Face, Region
from sample_data.portraits import draw_portrait

coordinates = st.floats(-300, 500)


def leaning(roll: float, half_width: float, half_height: float) -> Face:
    """The detector's box around an ellipse at (100, 120) that is turned by `roll` radians."""
    across = math.hypot(half_width * math.cos(roll), half_height * math.sin(roll))
    down = math.hypot(half_width * math.sin(roll), half_height * math.cos(roll))
    eye = 20 * math.cos(roll), 20 * math.sin(roll)
    points = ((100 - eye[0], 120 - eye[1]), (100 + eye[0], 120 + eye[1]), *[(100.0, 120.0)] * 3)
    return Face((100 - across, 120 - down, 100 + across, 120 + down), 1.0, points)


@given(st.floats(-math.pi, math.pi), st.floats(0.62, 0.98))
def test_the_ellipse_is_found_again_in_the_box_around_it(roll, ratio):
    frame = Frame.of(leaning(roll, 50 * ratio, 50))
    assert math.cos(frame.roll - roll) == pytest.approx(1)
    near_45 = abs(math.cos(2 * roll)) < 0.05
    assert frame.half_height == pytest.approx(50, rel=0.2 if near_45 else 1e-3)
    assert frame.half_width == pytest.approx(50 * ratio, rel=0.35 if near_45 else 1e-3)


def test_without_landmarks_the_face_is_upright():
    frame = Frame.of(Face((10, 20, 50, 80), 1.0))
    assert frame == Frame(30, 50, 20, 30, 0)
    assert frame.place(FACE)[:, 1].max() == pytest.approx(80, abs=0.1)


@given(coordinates, coordinates, st.floats(0, 400), st.floats(0, 400), st.sampled_from(Region))
def test_the_prompt_s_box_lies_in_the_image_and_is_never_empty(x, y, width, height, region):
    x0, y0, x1, y1 = region_box(Face((x, y, x + width, y + height), 1.0), region, 120, 200)
    assert 0 <= x0 < x1 <= 200
    assert 0 <= y0 < y1 <= 120


def test_the_face_s_box_is_the_detector_s_and_the_others_reach_further():
    face = Face((80.4, 60.0, 119.2, 110.0), 1.0)
    assert region_box(face, Region.FACE, 400, 300) == (80, 60, 120, 110)
    left, top, right, bottom = region_box(face, Region.HEAD, 400, 300)
    assert left < 80
    assert top < 50
    assert right > 120
    assert bottom <= 115
    left, top, right, bottom = region_box(face, Region.PERSON, 400, 300)
    assert (top, bottom) == (region_box(face, Region.HEAD, 400, 300)[1], 400)
    assert right - left > 2 * face.width


@pytest.mark.parametrize(("region", "least"), [("face", 0.95), ("head", 0.6), ("person", 0.8)])
def test_prompts_hold_most_of_painted_people(region, least):
    shares = []
    for seed in range(10):
        person = draw_portrait(seed, size=(256, 256), people=1).people[0]
        mask = getattr(person, f"{region}_mask")
        x0, y0, x1, y1 = region_box(person.face, Region(region), 256, 256)
        shares.append(mask[y0:y1, x0:x1].sum() / mask.sum())
    assert min(shares) > least, "long hair reaches below a head's box"
    assert np.mean(shares) > 0.9


def test_the_head_leans_and_the_body_hangs():
    head, body = outlines(leaning(0.5, 40, 50), Region.PERSON)
    crown = head[head[:, 1].argmin()]
    assert crown[0] > 110, "a head that leans to the right has its top there"
    assert body[:, 0].mean() == pytest.approx(100)
    _, upside_down = outlines(leaning(math.pi, 40, 50), Region.PERSON)
    assert upside_down[:, 1].min() < 0


def test_filling_with_an_origin_and_a_scale():
    square = np.array([(10.5, 10.5), (29.5, 10.5), (29.5, 49.5), (10.5, 49.5)])
    whole = fill([square], 60, 40)
    assert whole.sum() == 20 * 40
    np.testing.assert_array_equal(fill([square], 50, 35, origin=(5.0, 10.0)), whole[10:, 5:])
    half = fill([square], 30, 20, scale=(0.5, 0.5))
    assert abs(int(half.sum()) - 200) <= 31
    assert not fill([], 5, 5).any()
