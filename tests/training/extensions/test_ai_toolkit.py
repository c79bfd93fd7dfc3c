"""The adapter against a stand-in with the interface of ai-toolkit's SDTrainer (2026-08)."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training import (
    LossBatch,
    LossSum,
    PerSample,
    diffusion_loss,
    face_weighted_loss,
    inverted_mask_prior_loss,
    masked_loss,
    resize_mask,
)
from lora_prep.training.extensions import ai_toolkit

ALPHAS = torch.linspace(0.99, 0.01, 1000)


class SDTrainer:
    """What ai-toolkit gives to `calculate_loss`, and how it reads a job's configuration."""

    def __init__(self, process: dict[str, Any], *, flow: bool = True, **train: Any) -> None:
        self.config = process
        self.train_config = SimpleNamespace(**{"loss_type": "mse", "snr_gamma": 0, **train})
        scheduler = SimpleNamespace(alphas_cumprod=ALPHAS)
        self.sd = SimpleNamespace(
            is_flow_matching=flow, prediction_type="epsilon", noise_scheduler=scheduler
        )
        self.step_num = 3

    def get_conf(self, key: str, default: Any = None) -> Any:
        return self.config.get(key, default)

    def calculate_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("the trainer's own loss was asked for")


class Batch:
    """The parts of ai-toolkit's DataLoaderBatchDTO that a loss looks at."""

    def __init__(self, latents: Tensor, mask: Tensor | None = None, *, reg: bool = False) -> None:
        self.latents = latents
        self.mask_tensor = mask
        self.loss_multiplier_list = [1.0] * len(latents)
        self.reg = [reg] * len(latents)

    def get_is_reg_list(self) -> list[bool]:
        return self.reg


def made(losses: Any, *, flow: bool = True, **train: Any) -> Any:
    process = {"type": ai_toolkit.UID, "lora_prep": {"losses": losses}}
    return ai_toolkit.trainer(SDTrainer)(process, flow=flow, **train)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    return {
        "x0": x0,
        "noise": noise,
        "pred": torch.randn(2, 4, 8, 8, requires_grad=True),
        "t": torch.tensor([250.0, 750.0]),
        "mask": (torch.rand(2, 3, 64, 64) > 0.5).float(),
    }


def call(trainer: Any, x: dict[str, Tensor], batch: Batch, **more: Any) -> Tensor:
    return trainer.calculate_loss(x["pred"], x["noise"], x["x0"], x["t"], batch, **more)


def test_the_loss_is_lora_preps_and_has_its_gradient(tensors: dict[str, Tensor]) -> None:
    trainer = made({"masked": {"normalize": "sample"}})
    batch = Batch(tensors["x0"], tensors["mask"])
    loss = call(trainer, tensors, batch)
    loss.backward()
    found = tensors["pred"].grad
    pred = tensors["pred"].detach().requires_grad_()
    mask = resize_mask(tensors["mask"][:, :1], (8, 8))
    expected = masked_loss(pred, tensors["noise"] - tensors["x0"], mask).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, pred.grad)
    assert float(trainer.lora_prep_result.values["masked"]) == pytest.approx(expected.item())


def test_epsilon_models_and_the_models_own_target(tensors: dict[str, Tensor]) -> None:
    trainer = made({"diffusion": {}}, flow=False)
    loss = call(trainer, tensors, Batch(tensors["x0"]))
    torch.testing.assert_close(loss, diffusion_loss(tensors["pred"], tensors["noise"]).mean())
    trainer.sd.get_loss_target = lambda *, noise, timesteps, **_: (
        noise + timesteps.view(-1, 1, 1, 1)
    )
    own = tensors["noise"] + tensors["t"].view(-1, 1, 1, 1)
    loss = call(trainer, tensors, Batch(tensors["x0"]))
    torch.testing.assert_close(loss, diffusion_loss(tensors["pred"], own).mean())


def test_what_a_term_is_given(tensors: dict[str, Tensor]) -> None:
    seen: list[LossBatch] = []

    class Spy:
        name, requires = "spy", ()

        def __call__(self, batch: LossBatch) -> Any:
            seen.append(batch)
            return PerSample(diffusion_loss(batch.pred, batch.target), torch.ones(2))

    trainer = made({})
    trainer.lora_prep_losses = LossSum({"spy": (1.0, Spy())})
    call(trainer, tensors, Batch(tensors["x0"], reg=True))
    assert seen[0].step == 3
    assert seen[0].is_prior is not None
    assert seen[0].is_prior.tolist() == [True, True]
    assert seen[0].sigmas is not None
    assert seen[0].sigmas.tolist() == [0.25, 0.75]


def test_the_inverted_mask_prior_uses_ai_toolkits_prediction(tensors: dict[str, Tensor]) -> None:
    losses = {"masked": {}, "inverted_mask_prior": {"weight": 0.5}}
    trainer = made(losses, inverted_mask_prior=True)
    base = torch.randn(2, 4, 8, 8)
    loss = call(trainer, tensors, Batch(tensors["x0"], tensors["mask"]), prior_pred=base)
    mask = resize_mask(tensors["mask"][:, :1], (8, 8))
    expected = (
        masked_loss(tensors["pred"], tensors["noise"] - tensors["x0"], mask).mean()
        + 0.5 * inverted_mask_prior_loss(tensors["pred"], base, mask).mean()
    )
    torch.testing.assert_close(loss, expected)


def test_a_face_mask_is_the_data_sets_mask(tensors: dict[str, Tensor]) -> None:
    trainer = made({"face_weighted": {"face_weight": 2.0}})
    loss = call(trainer, tensors, Batch(tensors["x0"], tensors["mask"]))
    mask = resize_mask(tensors["mask"][:, :1], (8, 8))
    target = tensors["noise"] - tensors["x0"]
    torch.testing.assert_close(
        loss, face_weighted_loss(tensors["pred"], target, mask, weight=2.0).mean()
    )


def test_a_prediction_to_be_matched_is_the_target(tensors: dict[str, Tensor]) -> None:
    """Without inverted_mask_prior, ai-toolkit gives prior_pred where it is what to learn."""
    taught = torch.randn(2, 4, 8, 8)
    loss = call(made({"diffusion": {}}), tensors, Batch(tensors["x0"]), prior_pred=taught)
    torch.testing.assert_close(loss, diffusion_loss(tensors["pred"], taught).mean())


@pytest.mark.parametrize(
    ("losses", "train", "words"),
    [
        ({"masked": {}}, {}, "needs mask: give mask_path"),
        ({"diffusion": {}, "inverted_mask_prior": {}}, {}, "inverted_mask_prior: true"),
        ({"slider": {}}, {}, "ai-toolkit has no such thing: take the term out"),
        ({"maksed": {}}, {}, "masked"),
        ({"diffusion": {}}, {"snr_gamma": 5.0}, "train.snr_gamma is 5.0"),
        ({"diffusion": {}}, {"loss_type": "mae"}, "train.loss_type is 'mae'"),
        ({"diffusion": {}}, {"timestep_type": "weighted"}, "timestep_type"),
        ({"diffusion": {}}, {"inverted_mask_prior": True}, "no loss uses it"),
    ],
)
def test_what_is_missing_or_would_do_nothing(
    losses: Any, train: dict[str, Any], words: str, tensors: dict[str, Tensor]
) -> None:
    batch = Batch(tensors["x0"], tensors["mask"] if "inverted_mask_prior" in losses else None)
    with pytest.raises(UsageError, match=words):
        call(made(losses, **train), tensors, batch)


def test_a_process_without_losses_and_data_sets_with_multipliers(
    tensors: dict[str, Tensor],
) -> None:
    with pytest.raises(UsageError, match="wants a table lora_prep"):
        call(ai_toolkit.trainer(SDTrainer)({}), tensors, Batch(tensors["x0"]))
    batch = Batch(tensors["x0"])
    batch.loss_multiplier_list = [1.0, 0.5]
    with pytest.raises(UsageError, match="loss_multiplier"):
        call(made({"diffusion": {}}), tensors, batch)


def test_the_extension_that_ai_toolkit_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, member in (
        ("toolkit.extension", type("Extension", (), {})),
        ("extensions_built_in.sd_trainer.SDTrainer", SDTrainer),
    ):
        for i in range(1, name.count(".") + 2):
            part = ".".join(name.split(".")[:i])
            monkeypatch.setitem(sys.modules, part, sys.modules.get(part) or ModuleType(part))
        setattr(sys.modules[name], member.__name__, member)
    found: Any = ai_toolkit.extension()
    assert found.uid == "lora_prep_trainer"
    assert found.name
    assert found.__base__.__name__ == "Extension"
    assert issubclass(found.get_process(), SDTrainer)
    assert issubclass(found.get_process(), ai_toolkit.CalculateLoss)


def test_without_ai_toolkit_or_with_another_class() -> None:
    with pytest.raises(UsageError, match=r"run its run\.py"):
        ai_toolkit.trainer()
    with pytest.raises(UsageError, match="object has no calculate_loss"):
        ai_toolkit.trainer(object)
