"""The objectives against diffusers' own schedulers, and the identities between them."""

import itertools
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.training_utils import compute_snr

from lora_prep.errors import UsageError
from lora_prep.training import Objective, ShapeError, flux_shift, sample_levels, shift_sigmas

DISCRETE = ["epsilon", "v_prediction", "sample"]
T = torch.tensor([0, 100, 500, 999])


def ddpm(prediction: str, **settings) -> DDPMScheduler:
    return DDPMScheduler(
        1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        clip_sample=False,
        **settings,
    )


def flow() -> Objective:
    return Objective("flow_matching")


def every_objective() -> list[tuple[Objective, torch.Tensor]]:
    objectives = [Objective.from_scheduler(ddpm(p)) for p in DISCRETE]
    return [(o, T) for o in objectives] + [(flow(), torch.tensor([0.05, 0.3, 0.7, 1.0]))]


@pytest.fixture
def x0() -> torch.Tensor:
    return torch.randn(4, 3, 6, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(4, 3, 6, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("prediction", DISCRETE)
def test_noising_and_target_are_those_of_diffusers(prediction, x0, noise):
    scheduler = ddpm(prediction)
    objective = Objective.from_scheduler(scheduler)
    torch.testing.assert_close(objective.add_noise(x0, noise, T), scheduler.add_noise(x0, noise, T))
    expected = {
        "epsilon": noise,
        "v_prediction": scheduler.get_velocity(x0, noise, T),
        "sample": x0,
    }[prediction]
    torch.testing.assert_close(objective.target(x0, noise, T), expected)


@pytest.mark.parametrize("prediction", DISCRETE)
def test_x0_is_what_a_step_of_diffusers_estimates(prediction, x0, noise):
    scheduler = ddpm(prediction)
    objective = Objective.from_scheduler(scheduler)
    for t in (100, 500, 900):
        times = torch.full((4,), t)
        expected = scheduler.step(noise, t, x0).pred_original_sample  # x0 stands for x_t here
        torch.testing.assert_close(objective.x0(x0, noise, times), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", DISCRETE)
def test_noise_is_what_ddim_puts_back(prediction, x0, noise):
    base = ddpm(prediction)
    ddim = DDIMScheduler.from_config(base.config, set_alpha_to_one=False)
    ddim.set_timesteps(10)
    objective = Objective.from_scheduler(base)
    t, before = 500, 400
    step = ddim.step(noise, t, x0)
    a = base.alphas_cumprod[before]
    estimate = (step.prev_sample - a.sqrt() * step.pred_original_sample) / (1 - a).sqrt()
    ours = objective.noise(x0, noise, torch.full((4,), t))
    torch.testing.assert_close(ours, estimate, rtol=1e-4, atol=1e-4)


def test_flow_matching_is_that_of_diffusers(x0, noise):
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=3.0)
    objective = Objective.from_scheduler(scheduler)
    assert (objective.prediction, objective.shift) == ("flow_matching", 3.0)
    chosen = [0, 250, 600, 999]
    sigmas = scheduler.sigmas[chosen]
    noisy = objective.add_noise(x0, noise, sigmas)
    torch.testing.assert_close(noisy, scheduler.scale_noise(x0, scheduler.timesteps[chosen], noise))
    # A step with the true target from sigma to sigma' lands on the path, and at 0 on x0.
    scheduler.set_timesteps(5)
    target = objective.target(x0, noise, sigmas)
    now, after = scheduler.sigmas[2], scheduler.sigmas[3]
    at_now = objective.add_noise(x0, noise, now.expand(4))
    stepped = scheduler.step(target, scheduler.timesteps[2], at_now).prev_sample
    torch.testing.assert_close(stepped, objective.add_noise(x0, noise, after.expand(4)))


def test_sigmas_are_shifted_as_diffusers_does():
    plain = FlowMatchEulerDiscreteScheduler(1000, shift=1.0).sigmas
    shifted = FlowMatchEulerDiscreteScheduler(1000, shift=3.0).sigmas
    torch.testing.assert_close(shift_sigmas(plain, 3.0), shifted)


def test_the_flux_shift_is_that_of_its_pipeline():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    sigmas = torch.linspace(0.01, 1, 50)
    for tokens in (256, 1024, 4096):
        expected = scheduler.time_shift(calculate_shift(tokens), 1.0, sigmas)
        torch.testing.assert_close(shift_sigmas(sigmas, flux_shift(tokens)), expected)
    assert Objective.from_scheduler(scheduler).shift == 1.0


def test_a_solver_for_flows_is_flow_matching():
    solver = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    assert Objective.from_scheduler(solver).shift == 5.0
    assert Objective.from_scheduler(solver).is_flow


def test_a_scheduler_of_another_kind_is_refused():
    with pytest.raises(UsageError, match=r"EDMEulerScheduler .* none of the objectives"):
        Objective.from_scheduler(EDMEulerScheduler())


@pytest.mark.parametrize("index", range(4))
def test_estimates_from_the_true_target_are_the_truth(index, x0, noise):
    objective, t = every_objective()[index]
    noisy, target = objective.add_noise(x0, noise, t), objective.target(x0, noise, t)
    torch.testing.assert_close(objective.x0(noisy, target, t), x0, rtol=1e-3, atol=1e-4)
    if objective.prediction != "sample":  # at t=0 the noise is all but lost in x_t
        torch.testing.assert_close(objective.noise(noisy, target, t), noise)


def test_losses_of_one_error_are_related_as_published(x0, noise):
    """L_eps = SNR·L_x0, L_v = (SNR+1)·L_x0, and for flows L_x0 = σ²·L_v."""
    error = torch.randn(4, 3, 6, 8, generator=torch.Generator().manual_seed(3))
    for objective, t in every_objective():
        noisy, target = objective.add_noise(x0, noise, t), objective.target(x0, noise, t)
        of_pred = error.square().mean((1, 2, 3))
        moved = objective.x0(noisy.double(), (target + error).double(), t)
        of_x0 = (moved - objective.x0(noisy.double(), target.double(), t)).square().mean((1, 2, 3))
        snr = objective.snr(t)
        factor = {
            "epsilon": snr,
            "v_prediction": snr + 1,
            "sample": torch.ones(4),
            "flow_matching": 1 / t.float().square(),
        }[objective.prediction]
        torch.testing.assert_close(of_pred, (factor * of_x0).float(), rtol=1e-3, atol=0)


def test_snr_is_that_of_diffusers():
    scheduler = ddpm("epsilon")
    ours = Objective.from_scheduler(scheduler).snr(T)
    torch.testing.assert_close(ours, compute_snr(scheduler, T), rtol=1e-4, atol=0)


def test_min_snr_weights_are_those_of_the_diffusers_scripts():
    snr = compute_snr(ddpm("epsilon"), T)
    clipped = snr.clamp_max(5.0)
    expected = {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}
    for prediction, weights in expected.items():
        objective = Objective.from_scheduler(ddpm(prediction))
        torch.testing.assert_close(objective.min_snr_weight(T), weights, rtol=1e-4, atol=1e-6)


def test_min_snr_weighs_each_objective_alike():
    """Weighted, the loss of the same error of x0 is min(SNR, γ) whatever is predicted."""
    sigma = torch.tensor([0.05, 0.3, 0.7, 0.9])
    a, s = 1 - sigma, sigma
    torch.testing.assert_close(
        flow().min_snr_weight(sigma, 5.0) / s**2, (a / s).square().clamp_max(5.0)
    )


@pytest.mark.parametrize("prediction", DISCRETE)
def test_zero_terminal_snr_gives_no_nan(prediction, x0, noise):
    objective = Objective.from_scheduler(
        ddpm(prediction, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    )
    t = torch.full((4,), 999)
    assert float(objective.snr(t)[0]) == pytest.approx(0, abs=1e-9)
    expected = {"epsilon": 1.0, "v_prediction": 0.0, "sample": 0.0}[prediction]
    for alphas in (
        objective.alphas_cumprod,
        torch.cat([objective.alphas_cumprod[:-1], T[:1] * 0.0]),
    ):
        exact = Objective(prediction, alphas)
        weights = exact.min_snr_weight(t)
        torch.testing.assert_close(weights, torch.full((4,), expected), rtol=0, atol=1e-6)
    pred = noise.clone().requires_grad_()
    estimate = exact.x0(x0, pred, t)
    estimate.sum().backward()
    assert estimate.isfinite().all()
    assert pred.grad.isfinite().all()


def test_no_noise_at_all_gives_no_nan(x0, noise):
    zero = torch.zeros(4, dtype=torch.int64)
    for prediction in DISCRETE:
        objective = Objective(prediction, torch.tensor([1.0, 0.5]))
        assert objective.min_snr_weight(zero).isfinite().all()
        assert objective.noise(x0, noise, zero).isfinite().all()


def test_half_precision_is_computed_in_single(x0, noise):
    objective, t = every_objective()[1]
    half = objective.add_noise(x0.bfloat16(), noise.bfloat16(), t)
    assert half.dtype == torch.float32
    torch.testing.assert_close(
        half, objective.add_noise(x0.bfloat16().float(), noise.bfloat16().float(), t)
    )
    assert objective.target(x0.double(), noise.double(), t).dtype == torch.float64


def test_results_are_new_tensors(x0, noise):
    for objective, t in every_objective():
        objective.target(x0, noise, t).zero_()
        objective.x0(x0, noise, t).zero_()
        objective.noise(x0, noise, t).zero_()
    assert x0.abs().sum() > 0
    assert noise.abs().sum() > 0


def test_video_and_tokens_are_noised_as_images(x0, noise):
    for objective, t in every_objective():
        expected = objective.target(x0, noise, t)
        video = objective.target(x0[:, :, None], noise[:, :, None], t)[:, :, 0]
        tokens = objective.target(x0.flatten(2), noise.flatten(2), t).reshape(x0.shape)
        assert torch.equal(video, expected)
        assert torch.equal(tokens, expected)


def test_levels_follow_the_density_asked_for():
    generator = torch.Generator().manual_seed(0)
    uniform = sample_levels(20_000, generator=generator)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(uniform.std()) == pytest.approx(12**-0.5, abs=0.01)
    normal = sample_levels(20_000, density="logit_normal", mean=0.5, std=2.0, generator=generator)
    logits = torch.logit(normal.double())
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(logits.std()) == pytest.approx(2.0, abs=0.05)


def test_sampled_times_suit_the_objective():
    generator = torch.Generator().manual_seed(0)
    timesteps = Objective.from_scheduler(ddpm("epsilon")).sample_t(20_000, generator=generator)
    assert timesteps.dtype == torch.int64
    assert (int(timesteps.min()), int(timesteps.max())) == (0, 999)
    shifted = Objective("flow_matching", shift=3.0).sample_t(20_000, generator=generator)
    # P(σ' < x) = P(u < x / (3 − 2x)) = 1/4 at x = 1/2.
    assert float((shifted < 0.5).float().mean()) == pytest.approx(0.25, abs=0.01)
    again = Objective("flow_matching", shift=3.0)
    first, second = (
        again.sample_t(8, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_a_level_of_one_is_still_a_timestep():
    """sigmoid(30) rounds to 1, which would be timestep 1000 of 0..999."""
    objective = Objective.from_scheduler(ddpm("epsilon"))
    timesteps = objective.sample_t(64, density="logit_normal", mean=30.0)
    assert timesteps.tolist() == [999] * 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective("epsilon"), "epsilon needs alphas_cumprod"),
        (lambda: Objective("flow_matching", torch.ones(3)), "has no alphas_cumprod"),
        (lambda: Objective("flow_matching", shift=0.0), "shift is 0.0"),
        (lambda: Objective("flow_matching").snr(T), "sigmas from 0 to 1"),
        (lambda: Objective("epsilon", torch.ones(3)).snr(torch.rand(2)), "integer timesteps"),
        (lambda: Objective("epsilon", torch.ones(3)).min_snr_weight(T[:1], 0.0), "gamma is 0.0"),
        (lambda: Objective("epsilon", torch.ones(3)).sample_t(2, shift=2.0), "has no shift"),
        (lambda: sample_levels(2, density="logit_normal", std=0.0), "std is 0.0"),
        (lambda: shift_sigmas(torch.rand(2), float("nan")), "shift is nan"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("value", [250.0, -0.1, float("nan")])
def test_timesteps_are_no_sigmas(value, x0, noise):
    """Pipelines give flow-matching models timesteps up to 1000, in floating point."""
    t = torch.tensor([0.5, 0.5, 0.5, value])
    for method in (flow().add_noise, flow().target, flow().x0, flow().noise):
        with pytest.raises(UsageError, match=r"sigma goes from .* timestep / 1000"):
            method(x0, noise, t)
    assert flow().snr(torch.tensor([0.0, 1.0])).tolist() == [float("inf"), 0]
    assert flow().snr(t.to("meta")).is_meta  # a device is not waited for


class Copied(torch.Tensor):
    """Remembers how it was copied to other devices."""

    copies: list[dict] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to:
            cls.copies.append(dict(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_the_schedule_is_copied_to_a_device_once_and_not_waited_for():
    alphas = torch.linspace(0.99, 0.01, 1000).as_subclass(Copied)
    objective = Objective("epsilon", alphas)
    Copied.copies.clear()
    for _ in range(3):
        assert objective.coefficients(T.to("meta"))[0].is_meta
    assert Copied.copies == [{"non_blocking": True}]
    assert not objective.coefficients(T)[0].is_meta
    other = replace(objective, alphas_cumprod=alphas / 2)
    assert other.coefficients(T)[0][0] != objective.coefficients(T)[0][0]


def test_shapes_that_do_not_fit_are_named(x0, noise):
    objective = flow()
    with pytest.raises(ShapeError, match=r"pred is 4×3×6×8, but noise is 4×3×6×7"):
        objective.add_noise(x0, noise[..., :7], torch.rand(4))
    with pytest.raises(ShapeError, match="t is 3: give one value a sample"):
        objective.add_noise(x0, noise, torch.rand(3))
    with pytest.raises(ShapeError, match="t is 4×1"):
        objective.snr(torch.rand(4, 1))


def test_all_pairs_of_objectives_estimate_the_same_x0(x0, noise):
    """From exact predictions, epsilon, v and sample models agree at the same time."""
    estimates = []
    for objective, t in every_objective()[:3]:
        noisy, target = objective.add_noise(x0, noise, t), objective.target(x0, noise, t)
        estimates.append(objective.x0(noisy.double(), target.double(), t))
    for one, other in itertools.combinations(estimates, 2):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
