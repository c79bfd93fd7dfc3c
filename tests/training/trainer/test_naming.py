"""One LoRA in three namings, and back."""

import pytest
import torch

from lora_prep.training import targets
from lora_prep.training.trainer import naming

MODELS = {
    "sd15": ("sd15", "all.attn"),
    "sdxl": ("sdxl", "all"),
    "flux1-dev": ("flux1", "all"),
    "klein-4b": ("flux2-klein", "all"),
}


def lora(model: str, expression: str, rank: int = 2) -> tuple[dict, dict]:
    """Random matrices for a selection, an eighth of the width, and the widths of all layers."""
    found = targets.resolve(model)
    g = torch.Generator().manual_seed(0)
    widths = {layer.name: layer.outputs // 8 for layer in found.layers}
    pairs = {
        layer.name: (
            torch.randn(rank, layer.inputs // 8, generator=g),
            torch.randn(widths[layer.name], rank, generator=g),
        )
        for layer in targets.select(found, expression).layers
    }
    return pairs, widths


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True)
    )


@pytest.mark.parametrize("style", ["diffusers", "comfyui", "kohya"])
@pytest.mark.parametrize("model", MODELS)
def test_there_and_back_without_a_changed_bit(model: str, style: str) -> None:
    family, expression = MODELS[model]
    pairs, widths = lora(model, expression)
    tensors, metadata = naming.to_keys(pairs, family, style, 0.5, widths)
    assert same(naming.from_keys(tensors, metadata, family, widths), pairs)
    if style != "diffusers":
        start = ("lora_unet_",) if style == "kohya" or model.startswith("sd") else ("diffusion_",)
        assert all(key.startswith(start) for key in tensors)


@pytest.mark.parametrize("style", ["comfyui", "kohya"])
@pytest.mark.parametrize(
    "expression", ["double.0.attn.to_q", "double.0.attn.to_k,double.0.attn.to_v"]
)
def test_parts_of_a_fused_matrix(expression: str, style: str) -> None:
    pairs, widths = lora("flux1-dev", expression)
    tensors, metadata = naming.to_keys(pairs, "flux1", style, 1.0, widths)
    assert same(naming.from_keys(tensors, metadata, "flux1", widths), pairs)


def test_a_fused_matrix_does_what_its_parts_do() -> None:
    pairs, widths = lora("flux1-dev", "single.0")
    fused, _ = naming.fuse(pairs, "flux1", widths)
    down, up = fused["single_blocks.0.linear1"]
    parts = [
        f"single_transformer_blocks.0.{p}"
        for p in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    wanted = torch.cat([pairs[name][1] @ pairs[name][0] for name in parts])
    assert torch.allclose(up @ down, wanted, atol=1e-5)


def test_a_lora_trained_on_the_fused_matrix_is_shared_by_its_parts() -> None:
    widths = {f"transformer_blocks.0.attn.{n}": 6 for n in ("to_q", "to_k", "to_v")}
    down, up = torch.randn(3, 5), torch.randn(18, 3)
    split = naming.unfuse({"double_blocks.0.img_attn.qkv": (down, up)}, "flux2-klein", {}, widths)
    product = torch.cat([split[name][1] @ split[name][0] for name in widths])
    assert torch.allclose(product, up @ down, atol=1e-6)
