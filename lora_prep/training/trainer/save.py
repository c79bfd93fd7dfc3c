"""The trained LoRA as files that diffusers, ComfyUI and kohya's tools read, and what is in them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_prep import __version__
from lora_prep.training.targets import adapter
from lora_prep.training.trainer import existing, lora, naming, slide
from lora_prep.training.trainer.config import Config, LoraConfig
from lora_prep.training.trainer.families import FamilyName
from lora_prep.training.trainer.plan import Plan

ARCHITECTURE = {
    "sd15": "stable-diffusion-v1/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "flux1": "flux-1-dev/lora",
    "flux2-klein": "flux-2-klein/lora",
}
"""`modelspec.architecture` (Stability's model metadata standard)."""

KOHYA_BASE = {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0", "flux1": "flux1", "flux2-klein": "flux2"}


def outputs(model: Any) -> dict[str, int]:
    """Rows of each linear layer of the model, by name."""
    found = {}
    for name, module in model.named_modules():
        plain = getattr(module, "base_layer", module)
        if isinstance(plain, torch.nn.Linear):
            found[name.removesuffix(".base_layer")] = plain.out_features
    return found


def write(model: Any, plan: Plan, step: int, digest: str) -> list[Path]:
    """Write the adapter in every naming that is asked for; returns the files.

    The first naming has the plain name, the others' is appended: `sks.safetensors`,
    `sks.kohya.safetensors`. Raises UsageError where they cannot be written.
    """
    config = plan.config
    dtype = getattr(torch, config.save.dtype)
    pairs = modules(lora.state(model), dtype)
    scale = 1.0 if config.lora.alpha is None else config.lora.alpha / config.lora.rank
    paths = []
    for style, path in existing.targets(config).items():
        tensors, extra = naming.to_keys(pairs, plan.family, style, scale, outputs(model))
        noted = {**metadata(plan, step, digest, style), **extra}
        adapter.write(path, tensors, noted, force=True)
        paths.append(path)
    return paths


def modules(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, naming.Pair]:
    """A and B of each module from PEFT's names, on the CPU."""
    kept = {name: t.detach().to("cpu", dtype).contiguous() for name, t in state.items()}
    stems = [name.removesuffix(".lora_A.weight") for name in kept if name.endswith("A.weight")]
    return {s: (kept[f"{s}.lora_A.weight"], kept[f"{s}.lora_B.weight"]) for s in stems}


def metadata(plan: Plan, step: int, digest: str, style: str) -> dict[str, str]:
    """What the file says about itself: strings by key, as safetensors wants them."""
    config, selection = plan.config, plan.selection
    alpha = config.lora.rank if config.lora.alpha is None else config.lora.alpha
    noted = {
        "format": "pt",
        "lora_prep.version": __version__,
        "lora_prep.config": json.dumps(config.as_json()),
        "lora_prep.base_model": config.model.base,
        "lora_prep.family": plan.family,
        "lora_prep.dataset": digest,
        "lora_prep.losses": json.dumps(_losses(config)),
        "lora_prep.targets": selection.expression,
        "lora_prep.blocks": json.dumps([block.label for block in selection.blocks]),
        "lora_prep.steps": str(step),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURE[plan.family],
        "modelspec.title": config.save.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.lora.rank),
        "ss_network_alpha": str(alpha),
        "ss_base_model_version": KOHYA_BASE[plan.family],
        "ss_output_name": config.save.name,
        "ss_steps": str(step),
    }
    if config.slider:
        noted.update(slide.record(config.slider).to_metadata())
    if style == "diffusers":
        # With it diffusers knows alpha; in the other namings alpha is in the tensors.
        noted[adapter.ADAPTER] = json.dumps(_peft(config.lora, plan.family, selection.modules))
    return noted


def _losses(config: Config) -> dict[str, Any]:
    terms = config.terms()
    return {name: {"term": terms[name], **dict(table)} for name, table in config.losses.items()}


def _peft(config: LoraConfig, family: FamilyName, modules: tuple[str, ...]) -> dict[str, Any]:
    part = "unet" if family in ("sd15", "sdxl") else "transformer"
    values = {
        "r": config.rank,
        "lora_alpha": config.rank if config.alpha is None else config.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(modules),
        "peft_type": "LORA",
        "bias": "none",
    }
    return {f"{part}.{key}": value for key, value in values.items()}
