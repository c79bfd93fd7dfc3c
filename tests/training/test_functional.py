"""What holds for every loss, and each against its formula."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training import (
    ShapeError,
    diffusion_loss,
    face_weighted_loss,
    identity_loss,
    inverted_mask_prior_loss,
    masked_loss,
    output_preservation_loss,
    pack,
    pack_mask,
    paired_slider_loss,
    prior_preservation_loss,
    slider_loss,
    slider_targets,
)

SHAPE = (4, 3, 4, 6)
IS_PRIOR = torch.tensor([False, True, False, False])
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "diffusion": lambda p, t, _: diffusion_loss(p, t),
    "masked by sample": lambda p, t, m: masked_loss(p, t, m),
    "masked by batch": lambda p, t, m: masked_loss(p, t, m, normalize="batch"),
    "masked": lambda p, t, m: masked_loss(p, t, m, normalize="none"),
    "masked with floor": lambda p, t, m: masked_loss(p, t, m, floor=0.2),
    "face": lambda p, t, m: face_weighted_loss(p, t, m, weight=2.0),
    "face, normalised": lambda p, t, m: face_weighted_loss(p, t, m, weight=2.0, normalize=True),
    "inverted prior": inverted_mask_prior_loss,
    "inverted prior by batch": lambda p, b, m: inverted_mask_prior_loss(p, b, m, normalize="batch"),
    "inverted prior, plain": lambda p, b, m: inverted_mask_prior_loss(p, b, m, normalize="none"),
    "prior": lambda p, t, _: prior_preservation_loss(p, t, IS_PRIOR, weight=0.7),
    "output preservation": lambda p, t, _: output_preservation_loss(p, t),
    "slider": lambda p, t, _: slider_loss(p, t, t.flip(1), t.flip(2)),
    "slider, renormalised": lambda p, t, _: slider_loss(
        p, t, t.flip(1), t.flip(2), direction=-1, renormalize=True
    ),
    "paired slider": lambda p, t, _: paired_slider_loss(p, p.flip(1), t, t.flip(2)),
    "identity": lambda p, t, _: identity_loss(p.flatten(1), t.flatten(1)),
}
EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def tensors(seed: int = 0, shape=SHAPE, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and a mask that is 0 in places."""
    g = torch.Generator().manual_seed(seed)
    pred, target = (torch.randn(shape, generator=g, dtype=dtype) for _ in range(2))
    mask = torch.rand(shape[0], 1, *shape[2:], generator=g, dtype=dtype)
    return pred, target, (mask - 0.3).clamp_min(0)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@EVERY
def test_one_value_a_sample_in_single_precision(loss):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pred, target, mask = (x.to(dtype) for x in tensors())
        result = loss(pred, target, mask)
        assert (result.shape, result.dtype) == ((4,), torch.float32)
        single = loss(pred.float(), target.float(), mask.float())
        torch.testing.assert_close(result, single, rtol=0, atol=0)


@EVERY
def test_large_errors_of_half_precision_do_not_overflow(loss):
    pred, target, mask = (x.half() for x in tensors())
    assert loss(pred + 1000, target - 1000, mask).isfinite().all()


@EVERY
def test_gradients_are_right(loss):
    pred, target, mask = tensors(shape=(4, 2, 2, 3), dtype=torch.float64)
    pred.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(p, target, mask), (pred,))


@EVERY
def test_nothing_is_changed_in_place(loss):
    inputs = tensors()
    copies = [x.clone() for x in inputs]
    inputs[0].requires_grad_()
    loss(*inputs).sum().backward()
    for given_, copy in zip(inputs, copies, strict=True):
        assert torch.equal(given_, copy)
        assert given_._version == 0


@EVERY
def test_no_value_is_ever_looked_at(loss):
    """Tensors without data: whatever would wait for a device cannot work on them."""
    pred, target, mask = (x.to("meta") for x in tensors())
    global IS_PRIOR
    kept, IS_PRIOR = IS_PRIOR, IS_PRIOR.to("meta")
    try:
        result = loss(pred.requires_grad_(), target, mask)
        result.sum().backward()
    finally:
        IS_PRIOR = kept
    assert result.shape == (4,)
    assert pred.grad.shape == SHAPE


@EVERY
def test_permuted_samples_give_permuted_losses(loss):
    pred, target, mask = tensors()
    order = torch.tensor([2, 1, 3, 0])  # the class image stays in its place
    torch.testing.assert_close(
        loss(pred[order], target[order], mask[order]), loss(pred, target, mask)[order]
    )


@EVERY
def test_a_perfect_prediction_of_a_frozen_model_has_a_finite_gradient(loss):
    _, target, mask = tensors()
    pred = target.clone().requires_grad_()
    loss(pred, target, mask).sum().backward()
    assert pred.grad.isfinite().all()


MASKED = {name: loss for name, loss in LOSSES.items() if name.startswith("masked")}


@pytest.mark.parametrize("loss", MASKED.values(), ids=MASKED.keys())
def test_a_white_mask_is_the_base_loss(loss):
    pred, target, mask = tensors()
    torch.testing.assert_close(
        loss(pred, target, torch.ones_like(mask)), diffusion_loss(pred, target)
    )


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-6, 1.4), seed=st.integers(0, 1000))
def test_the_scale_of_a_mask_does_not_matter_when_normalised(scale, seed):
    pred, target, mask = tensors(seed)
    for how in ("sample", "batch"):
        torch.testing.assert_close(
            masked_loss(pred, target, mask * scale, normalize=how),
            masked_loss(pred, target, mask, normalize=how),
        )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), how=st.sampled_from(["sample", "batch", "none"]))
def test_the_gradient_is_zero_exactly_where_the_weight_is(seed, how):
    pred, target, mask = tensors(seed)
    pred.requires_grad_()
    masked_loss(pred, target, mask, normalize=how).sum().backward()
    assert torch.equal(pred.grad == 0, (mask == 0).expand_as(pred))


def test_outside_the_inverted_prior_the_gradient_is_zero_exactly():
    pred, base, mask = tensors()
    hard = (mask > 0.2).float()
    pred.requires_grad_()
    base.requires_grad_()
    inverted_mask_prior_loss(pred, base, hard).sum().backward()
    assert torch.equal(pred.grad == 0, (hard == 1).expand_as(pred))
    assert base.grad is None


def test_the_trainers_priors_outside_the_mask():
    """ai-toolkit's and OneTrainer's formulae (without the multiplier, LossSum's weight)."""
    pred, base, mask = tensors()
    mask = mask / mask.max()
    d = (pred - base) ** 2
    ours = inverted_mask_prior_loss(pred, base, mask, normalize="batch").mean()
    torch.testing.assert_close(ours, (d * (1 - mask) / (1 - mask).mean()).mean())
    clamped = mask.clamp(0.1, 1)
    ours = inverted_mask_prior_loss(pred, base, mask.clamp_min(0.1), normalize="none").mean()
    torch.testing.assert_close(ours, ((1 - clamped) * d).mean())


def test_a_small_face_weighs_as_much_as_a_large_one():
    """Coverage 5 % and 100 %, the same error."""
    pred, target = torch.ones(2, 4, 10, 10), torch.zeros(2, 4, 10, 10)
    mask = torch.zeros(2, 1, 10, 10)
    mask[0, 0, 0, :5] = 1
    mask[1] = 1
    assert masked_loss(pred, target, mask).tolist() == pytest.approx([1, 1])
    assert masked_loss(pred, target, mask, normalize="none").tolist() == pytest.approx([0.05, 1])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), floor=st.sampled_from([0.0, 0.1, 0.5]))
def test_each_trainer_is_reproduced(seed, floor):
    """The trainers' formulae, from their sources, on masks in [0, 1]."""
    pred, target, mask = tensors(seed)
    mask = mask / mask.max()
    e = (pred - target) ** 2
    per_sample = torch.stack([(e[b] * mask[b]).mean() for b in range(4)])

    torch.testing.assert_close(masked_loss(pred, target, mask, like="kohya"), per_sample)
    w = torch.tensor([1.0, 0.5, 2.0, 0.0])
    kohya = ((e * mask).mean([1, 2, 3]) * w).mean()
    torch.testing.assert_close((masked_loss(pred, target, mask, like="kohya") * w).mean(), kohya)

    for name in ("diffusion-pipe", "simpletuner"):
        ours = masked_loss(pred, target, mask, like=name).mean()
        torch.testing.assert_close(ours, (e * mask).mean())

    multiplier = floor + (1 - floor) * mask
    expanded = multiplier.expand_as(e) / multiplier.expand_as(e).mean()
    ours = masked_loss(pred, target, mask, like="ai-toolkit", floor=floor).mean()
    torch.testing.assert_close(ours, (e * expanded).mean())

    clamped = mask.clamp(0.1, 1)
    ours = masked_loss(pred, target, mask, like="onetrainer").mean()
    torch.testing.assert_close(ours, (e * clamped).mean())
    divided = (e * clamped).mean([1, 2, 3]) / clamped.mean([1, 2, 3])
    ours = masked_loss(pred, target, mask, like="onetrainer", normalize="sample")
    torch.testing.assert_close(ours, divided)


@pytest.mark.parametrize("how", ["sample", "batch", "none"])
def test_black_masks_give_zero_not_nan(how):
    pred, target, mask = tensors()
    for black in (torch.zeros_like(mask), mask * torch.tensor([0, 1, 1, 1]).reshape(4, 1, 1, 1)):
        p = pred.clone().requires_grad_()
        loss = masked_loss(p, target, black, normalize=how)
        loss.sum().backward()
        assert loss[0] == 0
        assert not p.grad[0].any()
        assert p.grad.isfinite().all()
    white = torch.ones_like(mask)
    assert not inverted_mask_prior_loss(pred, target, white).any()


def test_the_scale_of_a_tiny_mask_is_no_division_by_zero():
    pred, target, mask = tensors()
    torch.testing.assert_close(
        masked_loss(pred, target, mask * 1e-30), masked_loss(pred, target, mask)
    )


def test_a_mask_can_be_learned():
    pred, target, mask = tensors(dtype=torch.float64, shape=(2, 2, 2, 3))
    mask = (mask + 0.1).requires_grad_()
    for how in ("sample", "batch", "none"):
        assert torch.autograd.gradcheck(
            lambda m, how=how: masked_loss(pred[:2], target[:2], m, normalize=how), (mask,)
        )


FITTING = [
    (SHAPE, (4, 1, 4, 6), lambda m: m),
    (SHAPE, (4, 3, 4, 6), lambda m: m),
    (SHAPE, (4, 4, 6), lambda m: m[:, None]),
    (SHAPE, (4, 6), lambda m: m[None, None]),
    (SHAPE, (1, 1, 4, 6), lambda m: m),
    (SHAPE, (4, 1, 1, 1), lambda m: m),
    ((2, 3, 5, 4, 6), (2, 1, 4, 6), lambda m: m[:, :, None]),
    ((2, 3, 5, 4, 6), (2, 4, 6), lambda m: m[:, None, None]),
    ((2, 3, 5, 4, 6), (4, 6), lambda m: m[None, None, None]),
    ((2, 3, 5, 4, 6), (2, 1, 5, 4, 6), lambda m: m),
    ((2, 24, 8), (2, 24), lambda m: m[..., None]),
    ((2, 24, 8), (2, 24, 1), lambda m: m),
]


@pytest.mark.parametrize(("shape", "mask_shape", "expand"), FITTING)
def test_masks_are_broadcast(shape, mask_shape, expand):
    g = torch.Generator().manual_seed(0)
    pred, target = (torch.randn(shape, generator=g) for _ in range(2))
    mask = torch.rand(mask_shape, generator=g)
    whole = expand(mask).expand(shape)
    for loss in (*MASKED.values(), LOSSES["face"], LOSSES["inverted prior"]):
        torch.testing.assert_close(loss(pred, target, mask), loss(pred, target, whole))
    boolean = mask > 0.5
    torch.testing.assert_close(
        masked_loss(pred, target, boolean), masked_loss(pred, target, boolean.float())
    )


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(4, 1, 32, 48), r"mask is 4×1×32×48 .* pred, 4×3×4×6: .* resize_mask"),
        (torch.ones(2, 1, 4, 6), "mask is 2×1×4×6"),
        (torch.ones(4, 2, 4, 6), "mask is 4×2×4×6"),
        (torch.ones(4, 1, 1, 4, 6), "mask is 4×1×1×4×6"),
        (torch.ones(6), "mask is 6 "),
        (torch.tensor(1.0), "mask is a scalar"),
    ],
)
def test_masks_that_do_not_fit_are_named(mask, message):
    pred, target, _ = tensors()
    with pytest.raises(ShapeError, match=message) as caught:
        masked_loss(pred, target, mask)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, UsageError)


def test_a_video_mask_with_a_dimension_for_what_is_not_said_is_refused():
    """(B,T,h,w) for as many frames as channels is not one weight a channel."""
    video = torch.zeros(2, 3, 3, 4, 6)
    with pytest.raises(ShapeError, match=r"mask is 2×3×4×6 .*\(B,1,T,h,w\) by frame"):
        masked_loss(video, video, torch.ones(2, 3, 4, 6))
    assert masked_loss(video, video, torch.ones(2, 1, 3, 4, 6)).shape == (2,)


@pytest.mark.parametrize("value", [255.0, -0.5, float("nan"), 1.1])
@pytest.mark.parametrize("name", ["masked", "face", "inverted prior"])
def test_a_mask_that_is_not_from_0_to_1_is_refused(name, value):
    pred, target, mask = tensors()
    mask[0, 0, 0, 0] = value
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        with pytest.raises(UsageError, match=r"mask goes from .* not from 0 to 1: divide"):
            LOSSES[name](pred, target, mask.to(dtype))


def test_rounding_beyond_1_is_no_mistake():
    pred, target, mask = tensors()
    assert masked_loss(pred, target, torch.ones_like(mask) + 1e-6).isfinite().all()
    assert masked_loss(pred[:0], target[:0], mask[:0]).shape == (0,)


def test_shapes_that_differ_are_never_broadcast():
    pred, target, _ = tensors()
    for loss in (diffusion_loss, output_preservation_loss):
        with pytest.raises(ShapeError, match=r"pred is 4×3×4×6, but \w+ is 4×1×4×6"):
            loss(pred, target[:, :1])
    with pytest.raises(ShapeError, match="is_prior is 3: give one value a sample"):
        prior_preservation_loss(pred, target, IS_PRIOR[:3], weight=1.0)
    with pytest.raises(ShapeError, match="batch and at least one more"):
        diffusion_loss(pred[0, 0, 0], target[0, 0, 0])
    with pytest.raises(ShapeError, match="one reference of D for all"):
        identity_loss(pred.flatten(1), target.flatten(1)[:2])
    with pytest.raises(ShapeError, match="pred_low is 2×3"):
        paired_slider_loss(pred, pred[:2], target)


def test_options_that_cannot_be_are_refused():
    pred, target, mask = tensors()
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="floor="):
            masked_loss(pred, target, mask, floor=wrong)
    with pytest.raises(UsageError, match="weight=-1"):
        face_weighted_loss(pred, target, mask, weight=-1.0)
    with pytest.raises(UsageError, match="weight=nan"):
        prior_preservation_loss(pred, target, IS_PRIOR, weight=float("nan"))
    with pytest.raises(UsageError, match="scale is"):
        slider_loss(pred, target, target, target, direction=0.5)


def test_packed_tokens_have_the_loss_of_their_image():
    pred, target, mask = tensors(shape=(4, 16, 4, 6))
    tokens = pack(pred), pack(target), pack_mask(mask, 16)
    for name, loss in LOSSES.items():
        if "slider" not in name and name != "identity":
            torch.testing.assert_close(loss(*tokens), loss(pred, target, mask), msg=name)


def test_face_weights_are_those_of_the_recipe():
    pred, target, mask = tensors()
    expected = ((pred - target) ** 2 * (1 + 1.5 * mask)).mean()
    ours = face_weighted_loss(pred, target, mask, weight=1.5)
    torch.testing.assert_close(ours.mean(), expected)
    same = face_weighted_loss(pred, target, torch.ones_like(mask), weight=9.0, normalize=True)
    torch.testing.assert_close(same, diffusion_loss(pred, target))


@pytest.mark.parametrize("priors", [0, 1, 2, 4])
def test_the_prior_is_that_of_diffusers(priors):
    pred, target, _ = tensors()
    flags = torch.arange(4) >= 4 - priors
    e = ((pred - target) ** 2).mean((1, 2, 3))
    instance = e[: 4 - priors].mean() if priors < 4 else 0
    expected = instance + (0.3 * e[4 - priors :].mean() if priors else 0)
    ours = prior_preservation_loss(pred, target, flags, weight=0.3).mean()
    torch.testing.assert_close(ours, torch.as_tensor(expected))


def test_the_base_model_gets_no_gradient():
    pred, base, _ = (x.requires_grad_() for x in tensors())
    output_preservation_loss(pred, base).sum().backward()
    slider_loss(pred, base, base, base).sum().backward()
    assert base.grad is None
    assert pred.grad.any()


def test_identity_is_one_minus_the_cosine():
    same = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    other = torch.tensor([[6.0, 8.0], [-4.0, 3.0], [-0.3, -0.4]])
    assert identity_loss(same, other).tolist() == pytest.approx([0, 1, 2])
    assert identity_loss(other, same[0]).tolist() == pytest.approx([0, 1, 2])
    nothing = torch.zeros(2, 4, requires_grad=True)
    identity_loss(nothing, torch.ones(2, 4)).sum().backward()
    assert nothing.grad.isfinite().all()


def test_slider_targets_are_those_of_the_paper():
    n, p, q = (normal(s, 2, 3, 4, 4) for s in range(3))
    plus, minus = slider_targets(n, p, q, strength=4.0)
    torch.testing.assert_close(plus, n + 4 * (p - q))
    torch.testing.assert_close(minus, n - 4 * (p - q))
    torch.testing.assert_close(
        slider_loss(n, n, p, q, direction=-1), (16 * (p - q) ** 2).mean((1, 2, 3))
    )


def test_renormalised_slider_targets_keep_the_statistics():
    n, p, q = (normal(s, 1, 3, 8, 8) for s in range(3))
    for side, sign in zip(
        slider_targets(n, p, q, strength=3.0, renormalize=True), (1, -1), strict=True
    ):
        t = n + sign * 3 * (p - q)
        torch.testing.assert_close(side, (t - t.mean()) / t.std() * n.std() + n.mean())


def test_paired_sliders_add_both_sides():
    a, b, n = (normal(s, 2, 3, 4, 4) for s in range(3))
    expected = ((a - n) ** 2).mean((1, 2, 3)) + ((b - n) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(paired_slider_loss(a, b, n), expected)
    torch.testing.assert_close(paired_slider_loss(a, b, n, n), expected)


def test_integer_masks_are_not_guessed():
    from lora_prep.training.shapes import fit_mask

    for dtype in (torch.uint8, torch.int64):
        with pytest.raises(UsageError, match=r"resize_mask makes them of 8-bit"):
            fit_mask(torch.ones(4, 1, 4, 6, dtype=dtype), torch.ones(SHAPE))
