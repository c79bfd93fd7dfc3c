"""The sum of terms: split or whole, it is the same loss."""

import itertools
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from lora_prep.errors import UsageError
from lora_prep.training import (
    Diffusion,
    FaceWeighted,
    InvertedMaskPrior,
    LossBatch,
    LossSum,
    Masked,
    Objective,
    OutputPreservation,
    PairedSlider,
    PairInputs,
    PerSample,
    PriorPreservation,
    Slider,
    SliderInputs,
    Steps,
    WarmUp,
    combine,
    diffusion_loss,
    face_weighted_loss,
    inverted_mask_prior_loss,
    masked_loss,
    output_preservation_loss,
    paired_slider_loss,
    prior_preservation_loss,
    slider_loss,
    sum_over_processes,
)
from lora_prep.training.shapes import ShapeError

SIZE = 7


def whole_step() -> LossBatch:
    """Seven samples: two class images, a black mask, a white one."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, 3, 4, 4, generator=g)
    mask = (torch.rand(SIZE, 1, 4, 4, generator=g) > 0.5).float()
    mask[0], mask[5] = 0, 1
    return LossBatch(
        pred=x,
        target=torch.randn(SIZE, 3, 4, 4, generator=g),
        objective=Objective("flow_matching"),
        sigmas=torch.rand(SIZE, generator=g),
        noisy=x,
        mask=mask,
        face_mask=mask.roll(1, 0),
        is_prior=torch.tensor([False, False, True, False, False, True, False]),
        base_pred=torch.randn(SIZE, 3, 4, 4, generator=g),
        preserved_base=torch.randn(SIZE, 3, 4, 4, generator=g),
    )


def part(batch: LossBatch, start: int, stop: int) -> LossBatch:
    """Some samples of a batch."""
    names = [
        "pred",
        "target",
        "sigmas",
        "noisy",
        "mask",
        "face_mask",
        "is_prior",
        "base_pred",
        "preserved_base",
    ]
    return replace(batch, **{n: getattr(batch, n)[start:stop] for n in names})


def forward(model: nn.Module, batch: LossBatch) -> LossBatch:
    pred = model(batch.noisy)
    return replace(batch, pred=pred, preserved_pred=pred * 2)


def new_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(3, 3, 3, padding=1)


def gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


SUMS = {
    "masked, inverted, prior": {
        "masked": (1.0, Masked()),
        "outside": (0.5, InvertedMaskPrior()),
        "prior": (0.8, PriorPreservation(min_snr=5.0)),
    },
    "by batch, min-SNR": {"masked": (1.0, Masked(normalize="batch", min_snr=5.0))},
    "floor": {"masked": (1.0, Masked(floor=0.1)), "prior": (1.0, PriorPreservation())},
    "ai-toolkit": {"masked": (1.0, Masked(like="ai-toolkit"))},
    "ai-toolkit's prior": {"outside": (0.5, InvertedMaskPrior(normalize="batch"))},
    "OneTrainer's prior": {"outside": (0.5, InvertedMaskPrior(normalize="none"))},
    "kohya, output": {"masked": (2.0, Masked(like="kohya")), "keep": (0.3, OutputPreservation())},
    "face, prior": {"face": (1.0, FaceWeighted(1.5)), "prior": (0.5, PriorPreservation())},
    "diffusion": {"base": (1.0, Diffusion(min_snr=3.0))},
}


@pytest.mark.parametrize("terms", SUMS.values(), ids=SUMS.keys())
@pytest.mark.parametrize("cuts", [(0, 1, 7), (0, 2, 3, 6, 7), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_micro_batches_add_up_to_the_batch(terms, cuts):
    losses, step = LossSum(terms), whole_step()
    model = new_model()
    whole = losses(forward(model, step))
    whole.total.backward()
    expected = gradient(model)
    assert expected.any()

    model = new_model()
    parts = [part(step, a, b) for a, b in itertools.pairwise(cuts)]
    counts = losses.counts(parts)
    results = [losses(forward(model, p), counts=counts) for p in parts]
    for result in results:
        result.total.backward()
    torch.testing.assert_close(gradient(model), expected)
    torch.testing.assert_close(sum(r.total for r in results), whole.total)
    torch.testing.assert_close(combine(results), whole.values)


def test_the_mean_of_micro_batches_would_be_something_else():
    """Why `counts` is there."""
    losses, step = LossSum(SUMS["masked, inverted, prior"]), whole_step()
    model = new_model()
    whole = losses(forward(model, step)).total
    halves = [losses(forward(model, part(step, a, b))).total for a, b in ((0, 2), (2, 7))]
    assert abs(float((sum(halves) / 2 - whole).detach())) > 0.05


def test_scale_takes_an_average_back():
    losses, step = LossSum(SUMS["masked, inverted, prior"]), whole_step()
    one, three = losses(step), losses(step, scale=3.0)
    torch.testing.assert_close(three.total, 3 * one.total)
    torch.testing.assert_close(three.values, one.values)


def in_two_processes(rank: int, folder: str) -> None:
    """Two processes with 5 and 2 samples, in micro-batches of 1+4 and 1+1, are as one batch."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        step = whole_step()
        cuts = [[(0, 1), (1, 5)], [(5, 6), (6, 7)]][rank]
        for terms in SUMS.values():
            losses, model, alone = LossSum(terms), new_model(), new_model()
            parts = [part(step, a, b) for a, b in cuts]
            counts = sum_over_processes(losses.counts(parts))
            for p in parts:
                losses(forward(model, p), counts=counts, scale=2).total.backward()
            shared = gradient(model)
            distributed.all_reduce(shared)
            shared /= 2  # DDP and FSDP average
            losses(forward(alone, step)).total.backward()
            torch.testing.assert_close(shared, gradient(alone))
    finally:
        distributed.destroy_process_group()


def test_two_processes_with_uneven_batches_are_as_one(tmp_path):
    here, folder = str(Path(__file__).parent), str(tmp_path)
    script = f"import sys; sys.path.insert(0, {here!r}); import test_total as t"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{script}; t.in_two_processes(1, {folder!r})"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        in_two_processes(0, folder)
        _, err = other.communicate(timeout=60)
        assert other.returncode == 0, err
    finally:
        other.kill()
        other.wait()


def test_one_process_needs_no_group():
    counts = {"a": torch.tensor(3.0)}
    assert sum_over_processes(counts) == counts


def test_each_term_is_its_function():
    b = forward(new_model(), whole_step())
    side = SliderInputs(b.target, b.base_pred, b.noisy, -1.0)
    b = replace(b, slider=side, pair=PairInputs(b.base_pred, b.noisy))
    instances = ~b.is_prior
    counted = instances & (torch.arange(SIZE) != 0)  # the first mask is black
    outside = torch.arange(SIZE) != 5  # that mask is white
    expected = {
        Diffusion(): diffusion_loss(b.pred, b.target)[instances].mean(),
        Masked(): masked_loss(b.pred, b.target, b.mask)[counted].mean(),
        Masked(like="onetrainer"): masked_loss(b.pred, b.target, b.mask, like="onetrainer")[
            instances
        ].mean(),
        FaceWeighted(2.0): face_weighted_loss(b.pred, b.target, b.face_mask, weight=2.0)[
            instances
        ].mean(),
        InvertedMaskPrior(): inverted_mask_prior_loss(b.pred, b.base_pred, b.mask)[outside].mean(),
        InvertedMaskPrior("batch"): inverted_mask_prior_loss(
            b.pred, b.base_pred, b.mask, normalize="batch"
        ).mean(),
        InvertedMaskPrior("none"): inverted_mask_prior_loss(
            b.pred, b.base_pred, b.mask, normalize="none"
        ).mean(),
        OutputPreservation(): output_preservation_loss(b.preserved_pred, b.preserved_base).mean(),
        Slider(3.0): slider_loss(
            b.pred, b.target, b.base_pred, b.noisy, direction=-1, strength=3.0
        ).mean(),
        PairedSlider(): paired_slider_loss(b.pred, b.base_pred, b.target, b.noisy).mean(),
    }
    for term, value in expected.items():
        with_prior = LossSum({"x": (1.0, term), "prior": (0.0, PriorPreservation())})
        torch.testing.assert_close(with_prior(b).values["x"], value.detach(), msg=str(term))


def test_base_and_prior_are_the_loss_of_dreambooth():
    b = whole_step()
    losses = LossSum({"base": (1.0, Diffusion()), "prior": (0.8, PriorPreservation())})
    expected = prior_preservation_loss(b.pred, b.target, b.is_prior, weight=0.8).mean()
    torch.testing.assert_close(losses(b).total, expected)


def test_class_images_are_ordinary_while_no_term_takes_them_apart():
    b = whole_step()
    losses = LossSum({"base": (1.0, Diffusion())})
    torch.testing.assert_close(losses(b).total, diffusion_loss(b.pred, b.target).mean())
    assert losses.counts([b])["base"] == SIZE


def test_by_batch_is_the_masked_loss_by_batch():
    b = replace(whole_step(), is_prior=None)
    expected = masked_loss(b.pred, b.target, b.mask, like="ai-toolkit").mean()
    torch.testing.assert_close(LossSum(SUMS["ai-toolkit"])(b).total, expected)


def test_nothing_that_counts_is_a_loss_of_zero_with_a_graph():
    b = whole_step()
    model = new_model()
    b = replace(b, pred=model(b.noisy), mask=torch.zeros(SIZE, 1, 4, 4))
    result = LossSum({"masked": (1.0, Masked())})(b)
    result.total.backward()
    assert result.log() == {"masked": 0, "total": 0}
    assert not gradient(model).any()


@pytest.mark.parametrize("half", [False, True])
def test_a_step_where_no_term_has_a_weight_has_a_graph(half):
    model = new_model()
    pred = model(whole_step().noisy)
    b = replace(whole_step(), pred=pred.bfloat16() if half else pred)
    total = LossSum({"base": (WarmUp(1.0, 10), Diffusion())})(replace(b, step=0)).total
    total.backward()
    assert (total.item(), total.dtype) == (0, torch.float32)
    assert not gradient(model).any()


@dataclass(frozen=True)
class Broken:
    """A term that is NaN where it does not count."""

    name = "broken"
    requires = ()

    def __call__(self, batch: LossBatch) -> PerSample:
        loss = torch.full((SIZE,), float("nan"))
        loss[1] = 2.0
        return PerSample(loss, torch.eye(SIZE)[1])


def test_a_loss_that_does_not_count_may_be_anything():
    assert float(LossSum({"x": (1.0, Broken())})(whole_step()).total) == 2


def test_a_term_that_cannot_count_says_so():
    with pytest.raises(UsageError, match=r"term x cannot count .* weights\(batch\)"):
        LossSum({"x": (1.0, Broken())}).counts([whole_step()])


def test_a_missing_input_names_the_term():
    losses = LossSum({"base": (1.0, Diffusion()), "stay": (0.5, InvertedMaskPrior())})
    b = replace(whole_step(), base_pred=None, mask=None)
    with pytest.raises(
        UsageError, match=r"term stay \(InvertedMaskPrior\) needs batch.mask and batch.base_pred"
    ):
        losses(b)
    timed = LossSum({"base": (1.0, Diffusion(min_snr=5.0))})
    b = replace(whole_step(), sigmas=None, timesteps=torch.arange(SIZE))
    for objective, wanted in (
        (b.objective, r"batch.sigmas \(from 0 to 1, for flow_matching\), which"),
        (None, r"batch.objective, which"),
    ):
        with pytest.raises(UsageError, match=r"term base \(Diffusion\) needs " + wanted):
            timed(replace(b, objective=objective))
    steps = replace(
        b, objective=Objective("epsilon", torch.linspace(0.99, 0.01, 9)), timesteps=None
    )
    with pytest.raises(UsageError, match=r"needs batch.timesteps \(for epsilon\), which"):
        timed(steps)
    with pytest.raises(UsageError, match=r"needs .* and batch.timesteps or batch.sigmas, which"):
        timed(replace(steps, objective=None))
    with pytest.raises(UsageError, match="counts has nothing for stay"):
        losses(whole_step(), counts={"base": torch.tensor(1.0)})


@pytest.mark.parametrize("other", [Masked(), FaceWeighted(1.0), Slider(), PairedSlider()])
def test_the_base_is_never_counted_twice(other):
    with pytest.raises(UsageError, match="base and other each hold the diffusion loss"):
        LossSum({"base": (1.0, Diffusion()), "other": (0.5, other)})


def test_more_than_two_auxiliary_terms_get_a_warning():
    terms = {
        "masked": (1.0, Masked()),
        "outside": (1.0, InvertedMaskPrior()),
        "prior": (1.0, PriorPreservation()),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LossSum(terms)
    with pytest.warns(UserWarning, match=r"3 terms beside the base loss \(outside, prior, keep\)"):
        LossSum({**terms, "keep": (1.0, OutputPreservation())})


def test_no_terms_are_no_sum():
    with pytest.raises(UsageError, match="no terms"):
        LossSum({})


def test_a_term_without_weight_is_left_out():
    """Before its warm-up a term is not computed and needs no inputs."""
    losses = LossSum(
        {"base": (1.0, Diffusion()), "stay": (WarmUp(0.4, 10, after=5), InvertedMaskPrior())}
    )
    b = replace(whole_step(), base_pred=None, is_prior=None, step=1)
    assert set(losses(b).values) == {"base"}
    assert set(losses.counts([b])) == {"base"}
    later = replace(whole_step(), step=10)
    assert losses(later).weights == {"base": 1.0, "stay": pytest.approx(0.2)}
    for step in (0, 10):  # at the first step it is said what will be missing
        with pytest.raises(UsageError, match=r"term stay .* needs batch.base_pred"):
            losses(replace(b, step=step))
    assert losses.needs(0) == losses.needs(10) == {"mask": {"stay"}, "base_pred": {"stay"}}
    assert losses.needs(1) == {}
    assert set(losses(replace(whole_step(), step=0)).values) == {"base"}
    assert set(losses.counts([replace(b, step=0)])) == {"base"}  # before the forward
    for never in (0.0, Steps(((3, 0.0),)), WarmUp(0.0, 10)):
        off = LossSum({"base": (1.0, Diffusion()), "stay": (never, InvertedMaskPrior())})
        assert set(off(replace(b, step=0)).values) == set(off(replace(b, step=None)).values)


@pytest.mark.parametrize("weight", [WarmUp(0.1, 500), Steps(((5, 1.0),)), Steps(((0, 1), (9, 2)))])
def test_a_weight_that_changes_needs_the_step(weight):
    losses = LossSum({"base": (1.0, Diffusion()), "stay": (weight, InvertedMaskPrior())})
    message = r"weight of the term stay \(InvertedMaskPrior\) changes .* LossBatch\(step=\.\.\.\)"
    for call in (losses, lambda b: losses.counts([b])):
        with pytest.raises(UsageError, match=message):
            call(whole_step())


@pytest.mark.parametrize("weight", [0.4, Steps(((0, 0.4),)), WarmUp(0.4, 9, start=0.4)])
def test_a_constant_weight_needs_no_step(weight):
    assert LossSum({"base": (weight, Diffusion())})(whole_step()).weights == {"base": 0.4}


def test_a_sum_shows_what_it_is_made_of():
    terms = {
        "masked": (1.0, Masked(like="kohya")),
        "prior": (WarmUp(0.5, 100), PriorPreservation()),
    }
    assert repr(LossSum(terms)) == (
        "LossSum({'masked': (1.0, Masked(like='kohya')), "
        "'prior': (WarmUp(weight=0.5, steps=100), PriorPreservation())})"
    )


def test_weights_by_step():
    warm = WarmUp(1.0, 4, start=0.2)
    assert [warm.at(s) for s in (0, 1, 2, 4, 99)] == pytest.approx([0.2, 0.4, 0.6, 1.0, 1.0])
    by_step = Steps(((2, 0.5), (5, 0.0)))
    assert [by_step.at(s) for s in (0, 1, 2, 4, 5, 99)] == [0, 0, 0.5, 0.5, 0, 0]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), True])
def test_weights_that_cannot_be_are_refused(weight):
    with pytest.raises(UsageError, match="a term's weight is"):
        LossSum({"base": (weight, Diffusion())})


def test_schedules_that_cannot_be_are_refused():
    for make in (
        lambda: WarmUp(1.0, 0),
        lambda: WarmUp(1.0, 5, after=-1),
        lambda: Steps(()),
        lambda: Steps(((5, 1.0), (2, 1.0))),
        lambda: Steps(((0, -1.0),)),
    ):
        with pytest.raises(UsageError):
            make()


def test_terms_that_cannot_be_are_refused():
    for make, message in (
        (lambda: Diffusion(min_snr=0.0), "min_snr=0.0"),
        (lambda: Masked(floor=2.0), "floor=2.0"),
        (lambda: FaceWeighted(-1.0), "face_weight is -1.0"),
    ):
        with pytest.raises(UsageError, match=message):
            make()


def test_no_value_is_looked_at_in_a_step():
    """Terms, counts and sum on tensors without data."""
    b = whole_step()
    moved = {k: v.to("meta") for k, v in vars(b).items() if isinstance(v, torch.Tensor)}
    b = replace(b, **moved, preserved_pred=moved["preserved_base"])
    for terms in SUMS.values():
        losses = LossSum(terms)
        assert losses(b, counts=losses.counts([b])).total.shape == ()


def test_a_target_is_not_broadcast() -> None:
    batch = LossBatch(torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8))
    with pytest.raises(ShapeError, match=r"target is 2×1×8×8"):
        LossSum({"base": (1.0, Diffusion())})(batch)
