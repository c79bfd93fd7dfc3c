"""Masks at latent size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_prep.errors import UsageError
from lora_prep.training import ShapeError, resize_mask

SIDE = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(height=SIDE, width=SIDE, h=SIDE, w=SIDE, seed=st.integers(0, 99))
def test_coverage_and_range_stay_at_any_size(height, width, h, w, seed):
    mask = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed))
    small = resize_mask(mask, (h, w))
    assert small.shape == (2, 1, h, w)
    torch.testing.assert_close(small.mean((1, 2, 3)), mask.mean((1, 2, 3)))
    assert small.min() >= mask.min() - 1e-6
    assert small.max() <= mask.max() + 1e-6


def test_area_is_that_of_torch_where_the_sizes_divide():
    mask = torch.rand(2, 1, 64, 48)
    expected = F.interpolate(mask, size=(8, 6), mode="area")
    torch.testing.assert_close(resize_mask(mask, (8, 6)), expected)


def test_both_ways_agree():
    """128 to 24 by rectangles, and 128 to 384 by repetition to 24 by averages."""
    mask = torch.rand(128, 128, dtype=torch.float64)
    large = mask.repeat_interleave(3, 0).repeat_interleave(3, 1)
    torch.testing.assert_close(resize_mask(mask, (24, 24)), resize_mask(large, (24, 24)))


def test_a_thin_line_is_not_lost():
    mask = torch.zeros(512, 512)
    mask[:, 100:103] = 1
    assert float(resize_mask(mask, (64, 64)).mean()) == pytest.approx(float(mask.mean()), rel=1e-6)
    assert F.interpolate(mask[None, None], size=(64, 64), mode="nearest").mean() != mask.mean()


def test_8_bit_and_bool_become_weights():
    grey = torch.tensor([[0, 51], [255, 255]], dtype=torch.uint8)
    assert resize_mask(grey, (2, 2)).tolist() == [[0, pytest.approx(0.2)], [1, 1]]
    assert resize_mask(grey > 100, (1, 1)).tolist() == [[0.5]]
    assert resize_mask(grey, (2, 2)).dtype == torch.float32


def test_autocast_does_not_lose_bits():
    mask = torch.rand(1, 1, 37, 53)
    with torch.autocast("cpu", torch.bfloat16):
        inside = resize_mask(mask, (9, 7))
    assert torch.equal(inside, resize_mask(mask, (9, 7)))


def test_no_value_is_looked_at():
    for size in ((8, 8), (7, 9)):
        assert resize_mask(torch.ones(2, 1, 64, 64, device="meta"), size).shape[-2:] == size


def test_what_cannot_be_resized_is_said():
    for mask, size in (
        (torch.ones(4), (2, 2)),
        (torch.ones(0, 4), (2, 2)),
        (torch.ones(4, 4), (0, 2)),
    ):
        with pytest.raises(ShapeError, match="cannot resize"):
            resize_mask(mask, size)
    for kind in (torch.int64, torch.int32):
        with pytest.raises(UsageError, match="give uint8, bool or floating point"):
            resize_mask(torch.full((4, 4), 255, dtype=kind), (2, 2))
