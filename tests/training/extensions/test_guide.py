"""The lines that docs/extensions.md gives for diffusers' scripts do what it says."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from lora_prep.errors import UsageError
from lora_prep.training import diffusion_loss, masked_loss, resize_mask

PAGE = (Path(__file__).parents[3] / "docs" / "extensions.md").read_text(encoding="utf-8")


def blocks(title: str) -> list[str]:
    """The Python in one section of the page."""
    section = re.split(r"^## ", PAGE, flags=re.M)
    (found,) = (text for text in section if text.startswith(title))
    return re.findall(r"^```python\n(.*?)^```", found, re.DOTALL | re.M)


def script(tmp_path: Path, monkeypatch: Any, losses: str, *, flow: bool, **names: Any) -> Any:
    """The variables of an example script at the place of its loss, after our lines."""
    monkeypatch.chdir(tmp_path)
    Path("losses.toml").write_text(losses)
    torch.manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler() if flow else DDPMScheduler()
    latents, noise = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    variables = {
        "torch": torch,
        "noise_scheduler": scheduler,
        "model_pred": torch.randn(4, 4, 8, 8, requires_grad=True),
        "target": noise - latents if flow else noise,
        "noisy_model_input": latents,
        "timesteps": torch.tensor([10, 300, 600, 900]),
        "sigmas": torch.rand(4, 1, 1, 1),
        "batch": {},
        "global_step": 7,
        "args": SimpleNamespace(with_prior_preservation=False),
        **names,
    }
    setup, loss, _ = blocks("diffusers")
    exec(setup, variables)
    exec(loss, variables)
    return SimpleNamespace(**variables)


@pytest.mark.parametrize("flow", [True, False])
def test_masked_in_a_diffusers_script(tmp_path: Path, monkeypatch: Any, flow: bool) -> None:
    mask = (torch.rand(4, 1, 64, 64) > 0.5).float()
    done = script(tmp_path, monkeypatch, "[losses.masked]\n", flow=flow, batch={"mask": mask})
    expected = masked_loss(done.model_pred, done.target, resize_mask(mask, (8, 8))).mean()
    torch.testing.assert_close(done.loss, expected)
    done.loss.backward()
    assert done.model_pred.grad.abs().sum() > 0


def test_prior_preservation_in_a_diffusers_script(tmp_path: Path, monkeypatch: Any) -> None:
    """Equal to what the scripts compute: chunk(2), then L + λ·L_prior."""
    losses = "[losses.diffusion]\n[losses.prior_preservation]\nweight = 0.7\n"
    done = script(
        tmp_path, monkeypatch, losses, flow=False,
        args=SimpleNamespace(with_prior_preservation=True),
    )  # fmt: skip
    each = diffusion_loss(done.model_pred, done.target)
    torch.testing.assert_close(done.loss, each[:2].mean() + 0.7 * each[2:].mean())


def test_a_missing_mask_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UsageError, match=r"masked .* needs batch\.mask"):
        script(tmp_path, monkeypatch, "[losses.masked]\n", flow=True)


def test_the_python_of_the_page_compiles() -> None:
    found = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.M)
    assert len(found) >= 7
    for block in found:
        compile(block, "docs/extensions.md", "exec")
