"""What a selection says is what PEFT adapts: on all models without weights, on small ones with."""

import re
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists

from lora_prep.training.targets import PRESETS, meta, resolve, select
from tests.training.targets.tiny_models import tiny

INJECTED = {
    "flux1-dev": "double.1.attn,single.1",
    "flux2-dev": "double.1,single.1,single.10",
    "klein-4b": "double.1.ff,single.11",
    "klein-9b": "double.1.attn.to_q,single[0:2]",
    "sd3": "block.1,block.23.attn",
    "sd35-medium": "double[0:2].attn2",
    "sd35-large": "double[1,11].ff",
    "qwen-image": "double.1.attn,double.5.mod",
    "wan21-1.3b": "block.1,block.11.attn",
    "wan21-14b": "block[2:4].ff",
    "sd15": "up.1.attentions.1,mid.attn",
    "sdxl": "down.1.attentions.0,up.0.attentions[0:2].attn1.to_q",
}
"""For each model, what is really put into it."""

MATCHED = {
    "flux1-dev": ("double[1:3]", "single.1,single.10", "single[30:].attn", "double.18.mod", "all"),
    "flux2-dev": ("double[0:8]", "single[1:2]", "all.attn"),
    "klein-9b": ("double[0:8]", "single[0:12]", "all"),
    "sd3": ("block.1,block.10",),
    "qwen-image": ("double[1:3].attn", "all.ff"),
    "wan21-14b": ("all.attn",),
    "sd15": ("down.0", "all"),
    "sdxl": ("up.0.attentions.1", "mid", "all.attn", "up[0:2].ff", "all"),
}
"""More, asked of PEFT's own matching."""


def adapt(module: Any, target: str) -> set[str]:
    """The modules that PEFT puts a LoRA on."""
    module.requires_grad_(False)
    module.add_adapter(LoraConfig(r=2, target_modules=target, init_lora_weights=False))
    return {name for name, child in module.named_modules() if isinstance(child, LoraLayer)}


@pytest.mark.parametrize("model", INJECTED)
def test_peft_adapts_what_is_listed_on_the_meta_device(model: str) -> None:
    module = meta.build(meta.public_config(model), model)
    selection = select(resolve(model), INJECTED[model])
    assert adapt(module, selection.peft_regex()) == set(selection.modules)


@pytest.mark.parametrize("model", MATCHED)
def test_peft_matches_what_is_listed(model: str) -> None:
    known = resolve(model)
    everything = [name for name, _ in meta.build(meta.public_config(model), model).named_modules()]
    presets = [preset.name for preset in PRESETS.values() if preset.fits(known)]
    for expression in (*MATCHED[model], *presets):
        selection = select(known, expression)
        config = LoraConfig(target_modules=selection.peft_regex())
        found = {name for name in everything if check_target_module_exists(config, name)}
        assert found == set(selection.modules), expression


LEARNING = [
    ("sd15", "up.1.attentions.1"),
    ("sd15", "mid,down.0.attn"),
    ("sdxl", "sdxl:b-lora-content"),
    ("sdxl", "sdxl:b-lora-style"),
    ("flux1-dev", "flux1:splitflux-content"),
    ("flux1-dev", "flux1:splitflux-style"),
    ("flux1-dev", "double[1:3].attn,single.11"),
    ("klein-9b", "klein-9b:recipe-style"),
    ("klein-9b", "klein-9b:recipe-content"),
    ("klein-9b", "double.1.ff,single.1"),
    ("klein-4b", "double.1.attn,single.11"),
    ("flux2-dev", "double.1.ff,single.10,single.1"),
    ("sd3", "block.1,block.10"),
    ("sd35-medium", "block[0:2].attn2,block.11"),
    ("sd35-large", "block.1,block.11.ff"),
    ("qwen-image", "block.1,block.10.attn"),
    ("wan21-1.3b", "block.1,block.11.attn"),
    ("wan21-14b", "block.3.ff,block.30"),
]


@pytest.mark.parametrize(("model", "expression"), LEARNING)
def test_only_the_selected_modules_learn(model: str, expression: str) -> None:
    module, inputs = tiny(model)
    selection = select(meta.from_module(module, model), expression)
    assert selection.blocks == select(resolve(model), expression).blocks
    adapt(module, selection.peft_regex())
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    (output,) = module(**inputs, return_dict=False)
    loss = output.square().mean() * 1e3
    loss.backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    torch.optim.AdamW(trained, lr=0.1).step()
    learned = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    sides = ("lora_A", "lora_B")
    wanted = {f"{name}.{side}.default.weight" for name in selection.modules for side in sides}
    assert learned == wanted
    assert changed == wanted


def test_the_expression_hits_nothing_by_a_part_of_its_name() -> None:
    """`transformer_blocks.1` is a part of `single_transformer_blocks.11`, to a plain search."""
    selection = select(resolve("flux1-dev"), "double.1")
    everything = [layer.name for layer in selection.model.layers]
    found = [name for name in everything if re.search(selection.peft_regex(), name)]
    assert found == list(selection.modules)
