"""The adapter against a stand-in with the interface of musubi-tuner's NetworkTrainer (2026-06)."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training import diffusion_loss, inverted_mask_prior_loss, masked_loss, resize_mask
from lora_prep.training.extensions.musubi import KEY, sigma_of, with_losses


@dataclass
class DiTOutput:
    pred: Tensor
    target: Tensor
    extra: dict[str, Any] = field(default_factory=dict)


class Network(torch.nn.Module):
    """A LoRA network as kohya's and musubi's: its share is switched by `set_multiplier`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, 1, 1))
        self.multiplier = 1.0
        self.multipliers: list[float] = []

    def set_multiplier(self, multiplier: float) -> None:
        self.multiplier = multiplier
        self.multipliers.append(multiplier)


class NetworkTrainer:
    """The hooks that musubi's loop calls, in its order."""

    started = False

    def on_train_start(
        self, args: Any, accelerator: Any, network: Any, transformer: Any, optimizer: Any
    ) -> None:
        self.started = True

    def call_dit(
        self, args, accelerator, transformer, latents, batch, noise, noisy_model_input, timesteps,
        network_dtype, **kwargs,
    ) -> DiTOutput:  # fmt: skip
        return DiTOutput(transformer(noisy_model_input), noise - latents)

    def compute_loss(self, *args: Any) -> Any:
        raise AssertionError("the trainer's own loss was asked for")

    def step(self, batch: dict[str, Any], **options: Any) -> tuple[Tensor, dict[str, float]]:
        """One step of its loop, up to the loss."""
        torch.manual_seed(0)
        self.latents, self.noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        sigma = torch.tensor([0.25, 0.75]).view(-1, 1, 1, 1)
        self.noisy = (1 - sigma) * self.latents + sigma * self.noise
        args = SimpleNamespace(**{"weighting_scheme": "none", **options})
        self.network = Network()
        unwrapped = SimpleNamespace(unwrap_model=lambda model: model)
        self.on_train_start(args, unwrapped, self.network, None, None)

        def transformer(x: Tensor) -> Tensor:
            return 0.5 * x + self.network.multiplier * self.network.weight

        t = sigma.flatten() * 1000 + 1
        output = self.call_dit(
            args, unwrapped, transformer, self.latents, batch, self.noise, self.noisy, t,
            torch.float32,
        )  # fmt: skip
        return self.compute_loss(args, output, t, None, torch.float32, torch.float32, 0)


def test_the_loss_is_lora_preps_and_has_its_gradient(tmp_path: Path) -> None:
    file = tmp_path / "losses.toml"
    file.write_text("[losses.masked]\n")
    trainer: Any = with_losses(NetworkTrainer, file)()
    mask = (torch.rand(2, 1, 64, 64) > 0.3).float()
    loss, log = trainer.step({"mask": mask})
    loss.backward()
    weight = torch.ones(4, 1, 1, requires_grad=True)
    small = resize_mask(mask, (8, 8))
    expected = masked_loss(
        0.5 * trainer.noisy + weight, trainer.noise - trainer.latents, small
    ).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(trainer.network.weight.grad, weight.grad)
    assert log == {"loss/masked": pytest.approx(expected.item())}
    assert trainer.started
    assert trainer.network.multipliers == []  # no forward too many


def test_the_inverted_mask_prior_compares_with_the_network_off() -> None:
    trainer: Any = with_losses(NetworkTrainer, {"diffusion": {}, "inverted_mask_prior": {}})()
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    loss, log = trainer.step({"mask": mask})
    base, on = 0.5 * trainer.noisy, 0.5 * trainer.noisy + 1
    target = trainer.noise - trainer.latents
    drift = inverted_mask_prior_loss(on, base, mask).mean()
    assert drift == 1
    torch.testing.assert_close(loss.detach(), diffusion_loss(on, target).mean() + drift)
    assert log["loss/inverted_mask_prior"] == 1
    assert trainer.network.multipliers == [0.0, 1.0]


def test_sigma_is_found_whatever_the_timesteps_are_called() -> None:
    latents, noise = torch.randn(3, 4, 2, 8, 8), torch.randn(3, 4, 2, 8, 8)
    sigma = torch.tensor([0.0, 0.3, 1.0])
    noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1, 1))
    torch.testing.assert_close(sigma_of(latents, noise, noisy), sigma)


def test_what_is_missing_or_would_do_nothing() -> None:
    with pytest.raises(UsageError, match="caches no masks"):
        with_losses(NetworkTrainer, {"masked": {}})().step({})  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="musubi-tuner has no such thing"):
        with_losses(NetworkTrainer, {"slider": {}})().step({})  # type: ignore[attr-defined]
    plain: Any = with_losses(NetworkTrainer, {"diffusion": {}})
    with pytest.raises(UsageError, match="--weighting_scheme cosmap"):
        plain().step({}, weighting_scheme="cosmap")
    one, kind = torch.ones(1), torch.float32
    with pytest.raises(UsageError, match=r"super\(\)\.call_dit"):
        plain().compute_loss(SimpleNamespace(), DiTOutput(one, one), one, None, kind, kind, 0)
    with pytest.raises(UsageError, match=r"musubi-tuner: .*masked"):
        with_losses(NetworkTrainer, {"maksed": {}})
    with pytest.raises(UsageError, match="object has no call_dit"):
        with_losses(object, {"diffusion": {}})


def test_a_network_that_cannot_be_switched_off() -> None:
    trainer: Any = with_losses(NetworkTrainer, {"diffusion": {}, "inverted_mask_prior": {}})()
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(UsageError, match="inverted_mask_prior needs the model without its LoRA"):
        trainer.call_dit(None, None, None, x, {}, x, x, torch.ones(1), torch.float32)


def test_the_outputs_own_extra_is_kept() -> None:
    class Own(NetworkTrainer):
        def call_dit(self, *args: Any, **kwargs: Any) -> DiTOutput:
            output = super().call_dit(*args, **kwargs)
            output.extra["own"] = 1
            return output

        def compute_loss(self, *args: Any) -> Any:
            return super().compute_loss(*args)

    trainer: Any = with_losses(Own, {"diffusion": {}})()
    seen: list[Any] = []
    original = trainer.compute_loss
    trainer.compute_loss = lambda args, output, *more: (
        seen.append(output),
        original(args, output, *more),
    )[1]
    trainer.step({})
    assert set(seen[0].extra) == {"own", KEY}
