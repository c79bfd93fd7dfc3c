"""Sliders trained on tiny pipelines: monotone over their range, right gradients, clear errors."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training import Objective, ShapeError, paired_slider_loss, slider_loss
from lora_prep.training.sliders import (
    SliderModel,
    SliderRecord,
    SliderTexts,
    denoise_levels,
    partly_denoised,
    peft_scale,
    textual_step,
    visual_step,
)
from lora_prep.training.targets import adapter
from tests.fakes import tiny_pipelines

RANK = 4


@pytest.fixture(scope="module")
def sd15() -> Any:
    return tiny_pipelines.build("sd15")


@pytest.fixture(scope="module")
def klein() -> Any:
    return tiny_pipelines.build("flux2-klein")


def unet_slider(pipeline: Any, seed: int = 0) -> tuple[Any, SliderModel]:
    """A copy of the U-Net with a LoRA on its attention, as a slider's step wants it."""
    unet = copy.deepcopy(pipeline.unet).requires_grad_(False)
    return unet, with_lora(
        unet,
        ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"],
        lambda x, t, text: unet(x, t, encoder_hidden_states=text).sample,
        Objective.from_scheduler(pipeline.scheduler),
        seed,
    )


def transformer_slider(pipeline: Any) -> tuple[Any, SliderModel]:
    """The same for FLUX.2: packed tokens of 4 × 4 patches."""
    transformer = copy.deepcopy(pipeline.transformer).requires_grad_(False)
    places = torch.cartesian_prod(*(torch.arange(n) for n in (1, 4, 4, 1)))

    def predict(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        words = torch.zeros(text.shape[1], 4, dtype=torch.long)
        return transformer(
            x, timestep=t, encoder_hidden_states=text, img_ids=places, txt_ids=words
        ).sample

    targets = ["to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", "proj_out"]
    return transformer, with_lora(transformer, targets, predict, Objective("flow_matching"), 0)


def with_lora(
    module: Any, targets: list[str], predict: Callable[..., Tensor], objective: Objective, seed: int
) -> SliderModel:
    torch.manual_seed(seed)
    module.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    return SliderModel(predict, peft_scale(module), objective)


def trained(module: Any) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def stirred(module: Any) -> None:
    """Both halves of the LoRA away from zero, so that its strength matters."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trained(module):
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))


def gradients(module: Any) -> Tensor:
    found = [p.grad for p in trained(module)]
    assert all(g is not None for g in found)
    return torch.cat([g.flatten() for g in found if g is not None])


def prompts(pipeline: Any, batch: int) -> SliderTexts:
    def encode(prompt: str) -> Tensor:
        tokens = pipeline.tokenizer(
            prompt, padding="max_length", max_length=16, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            return pipeline.text_encoder(tokens)[0].expand(batch, -1, -1)

    return SliderTexts(encode("a face"), encode("an old wrinkled face"), encode("smooth"))


# ------------------------------------------------------------------ monotone over the range
def slides(amounts: list[float]) -> bool:
    """What is asked for is 4 at either end."""
    return amounts == sorted(amounts) and amounts[0] < -1 and amounts[-1] > 1


def textual(pipeline: Any, texts: SliderTexts, record: SliderRecord) -> tuple[Any, list[float]]:
    """A U-Net with the LoRA that was trained for 30 steps, and the loss at each."""
    unet, model = unet_slider(pipeline)
    levels = denoise_levels(model.objective, 20)
    optimizer = torch.optim.Adam(trained(unet), lr=2e-2)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(30):
        noise = torch.randn(2, 4, 8, 8, generator=generator)
        until = int(torch.randint(1, 4, (), generator=generator))
        x, t = partly_denoised(model, noise, texts.target, until=until, levels=levels)
        step = textual_step(model, texts, x, t, record=record, strength=4.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(step.total.item())
    return unet, losses


@pytest.mark.parametrize("way", [1, -1], ids=["as asked for", "prompts swapped"])
def test_a_textual_slider_is_monotone_over_its_recorded_range(
    way: int, sd15: Any, tmp_path: Path
) -> None:
    """Trained, saved, read back, loaded by diffusers, and swept over what the file says.

    With the prompts swapped the same training slides the other way: the claim can fail.
    """
    record = SliderRecord(-2.0, 2.0, "textual", positive="old", negative="smooth")
    texts = prompts(sd15, 2)
    swapped = SliderTexts(texts.target, texts.negative, texts.positive)
    unet, losses = textual(sd15, texts if way > 0 else swapped, record)
    file = tmp_path / "old.safetensors"
    state = {f"unet.{k}": v for k, v in get_peft_model_state_dict(unet).items()}
    adapter.write(file, state, record.to_metadata())
    known = SliderRecord.from_metadata(adapter.read(file).metadata)
    assert known == record
    fresh = tiny_pipelines.build("sd15")
    fresh.load_lora_weights(file.parent, weight_name=file.name, adapter_name="old")

    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    t = denoise_levels(Objective.from_scheduler(sd15.scheduler), 20)[2].expand(2)
    with torch.no_grad():
        away = sd15.unet(x, t, texts.positive).sample - sd15.unet(x, t, texts.negative).sample
        at = []
        for weight in torch.linspace(known.low, known.high, 5).tolist():
            fresh.set_adapters(["old"], [weight])
            at.append(fresh.unet(x, t, texts.target).sample)
    slide = [float(((p - at[2]) * away).sum() / away.square().sum()) for p in at]
    print(
        "textual",
        [f"{v:+.2f}" for v in slide],
        f"loss {sum(losses[:10]):.4f} -> {sum(losses[-10:]):.4f}",
    )
    assert slides(slide[::way])
    assert not slides(slide[::-way])
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


def test_a_visual_slider_is_monotone_over_its_range(klein: Any) -> None:
    """Pairs that differ by a pattern: more strength, more of the pattern in what is predicted."""
    record = SliderRecord(-1.0, 1.0, "visual")
    transformer, model = transformer_slider(klein)
    generator = torch.Generator().manual_seed(1)
    pattern = torch.randn(1, 1, 32, generator=generator)
    text = torch.randn(1, 6, 96, generator=generator).expand(4, -1, -1)
    pictures = torch.randn(4, 16, 32, generator=generator)
    high, low = pictures + pattern, pictures - pattern
    optimizer = torch.optim.Adam(trained(transformer), lr=1e-2)
    losses = []
    for _ in range(60):
        noise = torch.randn(4, 16, 32, generator=generator)
        t = torch.rand(4, generator=generator) * 0.6 + 0.3
        losses.append(visual_step(model, text, high, low, noise, t, record=record).total.item())
        optimizer.step()
        optimizer.zero_grad()

    noise, t = torch.randn(4, 16, 32, generator=generator), torch.full((4,), 0.8)
    x = model.objective.add_noise(pictures, noise, t)
    amount = []
    with torch.no_grad():
        for weight in torch.linspace(record.low, record.high, 5).tolist():
            with model.at(weight):
                x0 = model.objective.x0(x, model.predict(x, t, text), t)
            amount.append(float((x0 * pattern).mean() / pattern.square().mean()))
    print("visual", [f"{v:+.2f}" for v in amount], f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert amount == sorted(amount)
    assert amount[-1] - amount[0] > 0.2
    assert losses[-1] < losses[0]


# ------------------------------------------------------------------ the trap
def both_at_once(model: SliderModel, text: Tensor, sides: list[Tensor], noise: Tensor) -> None:
    """The wrong way: flip the strength between the forwards, then one backward for both."""
    t, preds, targets = torch.tensor([500]), [], []
    for scale, x0 in zip((1.0, -1.0), sides, strict=True):
        model.set_scale(scale)
        preds.append(model.predict(model.objective.add_noise(x0, noise, t), t, text))
        targets.append(model.objective.target(x0, noise, t))
    paired_slider_loss(*preds, *targets).mean().backward()


def test_gradient_checkpointing_changes_nothing_but_the_wrong_order_does(sd15: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    text = prompts(sd15, 1).target
    sides = [torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2)]
    noise, t = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([500])

    def gradient(*, checkpointing: bool, right: bool) -> Tensor:
        unet, model = unet_slider(sd15)
        stirred(unet)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet.train()
        if right:
            visual_step(model, text, sides[0], sides[1], noise, t)
        else:
            both_at_once(model, text, sides, noise)
        return gradients(unet)

    true = gradient(checkpointing=False, right=False)  # without checkpointing any order will do
    right = gradient(checkpointing=True, right=True)
    wrong = gradient(checkpointing=True, right=False)
    off = float((wrong - true).norm() / true.norm())
    print(f"gradient off by {off:.0%} where the strength is flipped before backward")
    torch.testing.assert_close(right, true, rtol=1e-4, atol=1e-6)
    assert off > 0.1


def test_a_textual_step_has_the_gradient_of_its_two_losses(sd15: Any) -> None:
    unet, model = unet_slider(sd15)
    stirred(unet)
    texts, x, t = prompts(sd15, 1), torch.randn(1, 4, 8, 8), torch.tensor([400])
    with torch.no_grad():
        base = [sd15.unet(x, t, e).sample for e in (texts.target, texts.positive, texts.negative)]
    losses = []
    for direction in (1.0, -1.0):
        model.set_scale(2 * direction)
        pred = model.predict(x, t, texts.target)
        losses.append(slider_loss(pred, *base, direction=direction, strength=3.0))
    loss = (losses[0] + losses[1]).mean() / 2
    loss.backward()
    expected = gradients(unet)
    unet.zero_grad()

    unet.enable_gradient_checkpointing()
    unet.train()
    step = textual_step(model, texts, x, t, record=SliderRecord(-2.0, 2.0), strength=3.0)
    torch.testing.assert_close(gradients(unet), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(step.total, loss.detach())
    torch.testing.assert_close(step.low, losses[1].detach())


# ------------------------------------------------------------------ small ones
def linear(weight: Tensor) -> tuple[SliderModel, list[float]]:
    """A model that predicts strength·weight (plus the text); and all strengths that were set."""
    scales = [1.0]
    model = SliderModel(
        lambda x, _t, text: torch.zeros_like(x) + scales[-1] * weight + text,
        scales.append,
        Objective("flow_matching"),
    )
    return model, scales


def test_one_sided_and_lopsided_ranges() -> None:
    x, t, texts = torch.zeros(2, 3), torch.full((2,), 0.5), SliderTexts(0.0, 1.0, 0.0)
    # The ends are 2·1 and its share of the other side; a weight of 1 hits both exactly.
    weight = torch.ones(3, requires_grad=True)
    model, scales = linear(weight)
    step = textual_step(model, texts, x, t, record=SliderRecord(-1.0, 2.0), strength=2.0)
    assert step.total == 0
    assert [s for s in scales if s not in (0, 1)] == [2.0, -1.0]
    assert scales[-1] == 1.0
    one_sided = textual_step(model, texts, x, t, record=SliderRecord(0.0, 2.0), strength=4.0)
    assert torch.equal(one_sided.low, torch.zeros(2))
    assert one_sided.total == 4.0  # (2·1 − 4)²


def test_the_strength_is_back_at_one_after_an_error() -> None:
    model, scales = linear(torch.ones(3, requires_grad=True))

    def fails(loss: Tensor) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        visual_step(
            model, 0.0, torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2) / 2,
            backward=fails,
        )  # fmt: skip
    assert scales[-1] == 1.0


def test_partial_denoising_follows_the_levels() -> None:
    """A model that knows the noise: x_t stays what add_noise makes of x0, at every level."""
    x0, noise = torch.randn(2, 3), torch.randn(2, 3)
    for objective in (
        Objective("flow_matching", shift=3.0),
        Objective("epsilon", torch.linspace(0.99, 0.01, 100)),
    ):
        target = noise - x0 if objective.is_flow else noise
        model = SliderModel(lambda _x, _t, _text, p=target: p, lambda _: None, objective)
        levels = denoise_levels(objective, 10)
        start = objective.add_noise(x0, noise, levels[:1].expand(2))
        x, t = partly_denoised(model, start, None, until=7, levels=levels)
        assert torch.equal(t, levels[7].expand(2))
        torch.testing.assert_close(x, objective.add_noise(x0, noise, t))


def test_guidance_pushes_away_from_the_unconditional_text() -> None:
    model, _ = linear(torch.zeros(3))
    levels = denoise_levels(model.objective, 2)
    x, _ = partly_denoised(
        model, torch.zeros(1, 3), 1.0, until=1, levels=levels, guidance=3.0, unconditional=0.0
    )
    assert torch.equal(x, torch.full((1, 3), -1.5))  # Euler: −0.5 · (0 + 3·(1 − 0))
    with pytest.raises(UsageError, match="unconditional"):
        partly_denoised(model, torch.zeros(1, 3), 1.0, until=1, levels=levels, guidance=3.0)
    with pytest.raises(UsageError, match="2 levels"):
        partly_denoised(model, torch.zeros(1, 3), 1.0, until=2, levels=levels)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (SliderRecord(2.0, 4.0), "train it for 0 to 4"),
        (SliderRecord(-4.0, -2.0), "train it for -4 to 4"),
    ],
)
def test_a_range_without_zero_cannot_be_trained(record: SliderRecord, words: str) -> None:
    model, _ = linear(torch.ones(3, requires_grad=True))
    x, t = torch.zeros(2, 3), torch.full((2,), 0.5)
    with pytest.raises(UsageError, match=words):
        textual_step(model, SliderTexts(0.0, 1.0, 0.0), x, t, record=record)


def test_wrong_input_is_refused() -> None:
    model, _ = linear(torch.ones(3, requires_grad=True))
    x, t, texts = torch.zeros(2, 3), torch.full((2,), 0.5), SliderTexts(0.0, 1.0, 0.0)
    with pytest.raises(UsageError, match="strength=0"):
        textual_step(model, texts, x, t, strength=0.0)
    with pytest.raises(ShapeError, match="t is"):
        textual_step(model, texts, x, torch.ones(3))
    with pytest.raises(ShapeError, match="latents_low"):
        visual_step(model, 0.0, x, torch.zeros(2, 4), x, t)
    with pytest.raises(UsageError, match="two sides"):
        visual_step(model, 0.0, x, x, x, t, record=SliderRecord(0.0, 1.0))
    with pytest.raises(UsageError, match="no LoRA named"):
        peft_scale(torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="no more than 9"):
        denoise_levels(Objective("epsilon", torch.linspace(0.9, 0.1, 10)), 10)
