import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_data.painter.canvas import Canvas, Patch, noise
from sample_data.painter.curves import ellipse, smooth, smooth_open

SHAPE = (60, 80)


def blank() -> Canvas:
    return Canvas(np.zeros((*SHAPE, 3), np.float32))


@settings(max_examples=50, deadline=None)
@given(x=st.floats(-20, 100), y=st.floats(-20, 80), rx=st.floats(2, 30), ry=st.floats(2, 30))
def test_a_mask_has_the_pixels_whose_centres_lie_inside(
    x: float, y: float, rx: float, ry: float
) -> None:
    mask = blank().cover(ellipse((x, y), (rx, ry), 200)).mask(SHAPE)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    # A pixel's width to both sides of the ellipse is left open: there coverage decides.
    clearly_in = ((columns - x) / (rx - 1)) ** 2 + ((rows - y) / (ry - 1)) ** 2 < 1
    clearly_out = ((columns - x) / (rx + 1)) ** 2 + ((rows - y) / (ry + 1)) ** 2 > 1
    assert mask[clearly_in].all()
    assert not mask[clearly_out].any()


def test_coverage_counts_parts_of_pixels() -> None:
    box = np.array([(10.25, 20.0), (30.6, 20.0), (30.6, 40.75), (10.25, 40.75)])
    patch = blank().cover(box)
    assert patch.alpha.sum() == pytest.approx(20.35 * 20.75, rel=0.03)
    full = np.zeros(SHAPE, np.float32)
    full[patch.rows, patch.columns] = patch.alpha
    assert full[30, 20] == 1
    assert full[30, 10] == pytest.approx(0.75, abs=0.2)
    assert full[30, 30] == pytest.approx(0.6, abs=0.2)


def test_two_outlines_leave_a_hole() -> None:
    ring = blank().cover(ellipse((40, 30), (20, 20)), ellipse((40, 30), (10, 10))).mask(SHAPE)
    assert not ring[30, 40]
    assert ring[30, 25]


def test_a_soft_shape_keeps_its_area() -> None:
    outline = ellipse((40, 30), (12, 10), 64)
    soft = blank().cover(outline, soft=3.0)
    assert soft.alpha.sum() == pytest.approx(np.pi * 120, rel=0.08)
    assert 0.0 < soft.alpha.max() <= 1.0


def test_a_shape_beside_the_canvas_covers_nothing() -> None:
    canvas = blank()
    patch = canvas.cover(ellipse((-50, 30), (10, 10)))
    canvas.paint(patch, (1.0, 1.0, 1.0))
    assert patch.alpha.size == 0
    assert not canvas.pixels.any()


def test_within_is_the_product_where_both_are() -> None:
    a = Patch(2, 3, np.full((4, 5), 0.5, np.float32))
    b = Patch(4, 1, np.full((4, 9), 0.5, np.float32))
    both = a.within(b)
    assert (both.x, both.y, both.alpha.shape) == (4, 3, (2, 3))
    assert (both.alpha == 0.25).all()
    assert a.within(Patch(50, 50, np.ones((2, 2), np.float32))).alpha.size == 0


def test_curves_pass_through_their_points() -> None:
    points = np.array([(0.0, 0.0), (3.0, 1.0), (5.0, 4.0), (1.0, 6.0)])
    np.testing.assert_allclose(smooth(points, 6)[::6], points)
    line = smooth_open(points, 5)
    np.testing.assert_allclose(line[::5], points)


@pytest.mark.parametrize("kind", ["grain", "cloth", "clouds", "strands"])
def test_noise_has_mean_0_and_deviation_1(kind: str) -> None:
    field = noise(kind, (900, 900), np.random.default_rng(1))
    assert abs(field.mean()) < 0.1
    assert 0.85 < field.std() < 1.15
