"""Models with the public configurations' blocks, names and numbers of them, a few units wide."""

from typing import Any

import torch

from lora_prep.training.targets import meta

KINDS = {
    "FluxTransformer2DModel": {"in_channels": 8, "pooled_projection_dim": 6},
    "Flux2Transformer2DModel": {"in_channels": 8, "timestep_guidance_channels": 8},
    "QwenImageTransformer2DModel": {"in_channels": 8, "out_channels": 2},
    "SD3Transformer2DModel": {
        "in_channels": 4,
        "out_channels": 4,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 6,
        "pos_embed_max_size": 16,
        "sample_size": 8,
    },
    "WanTransformer3DModel": {
        "in_channels": 4,
        "out_channels": 4,
        "ffn_dim": 16,
        "freq_dim": 8,
        "text_dim": 16,
    },
}
"""What is made narrow, by the class."""

AXES = {"FluxTransformer2DModel": (2, 2, 4), "Flux2Transformer2DModel": (2, 2, 2, 2)}


def tiny(model: str) -> tuple[Any, dict[str, Any]]:
    """A small model of that name, and inputs for it."""
    torch.manual_seed(0)
    config = meta.public_config(model)
    kind = config["_class_name"]
    if kind == "UNet2DConditionModel":
        return _unet(model, config)
    import diffusers

    values = {name: value for name, value in config.items() if not name.startswith("_")}
    values |= {"num_attention_heads": 2, "attention_head_dim": 8, **KINDS[kind]}
    if "axes_dims_rope" in values or kind in AXES:
        values["axes_dims_rope"] = AXES.get(kind, (2, 2, 4))
    if "joint_attention_dim" in values:
        values["joint_attention_dim"] = 16
    if kind.startswith("Wan"):
        values["attention_head_dim"] = 12
    return getattr(diffusers, kind)(**values), _inputs(kind, guided=values.get("guidance_embeds"))


def _inputs(kind: str, *, guided: Any) -> dict[str, Any]:
    text, steps = torch.randn(1, 3, 16), torch.tensor([0.5])
    packed = {"hidden_states": torch.randn(1, 4, 8), "encoder_hidden_states": text}
    packed["timestep"] = steps
    if guided:
        packed["guidance"] = torch.tensor([3.5])
    match kind:
        case "FluxTransformer2DModel":
            ids = {"img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3)}
            return packed | ids | {"pooled_projections": torch.randn(1, 6)}
        case "Flux2Transformer2DModel":
            return packed | {"img_ids": torch.zeros(4, 4), "txt_ids": torch.zeros(3, 4)}
        case "QwenImageTransformer2DModel":
            mask = torch.ones(1, 3, dtype=torch.bool)
            return packed | {"encoder_hidden_states_mask": mask, "img_shapes": [[(1, 2, 2)]]}
        case "SD3Transformer2DModel":
            image = {"hidden_states": torch.randn(1, 4, 8, 8), "encoder_hidden_states": text}
            return image | {
                "pooled_projections": torch.randn(1, 6),
                "timestep": torch.tensor([500]),
            }
        case "WanTransformer3DModel":
            video = {"hidden_states": torch.randn(1, 4, 1, 4, 4), "encoder_hidden_states": text}
            return video | {"timestep": torch.tensor([500])}
    raise ValueError(kind)


def _unet(model: str, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from diffusers import UNet2DConditionModel

    narrow = {
        "sample_size": 16,
        "norm_num_groups": 4,
        "layers_per_block": 2,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
    }
    inputs: dict[str, Any] = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([1]),
        "encoder_hidden_states": torch.randn(1, 3, 16),
    }
    if model == "sd15":
        return UNet2DConditionModel(**narrow, block_out_channels=(8, 8, 8, 8)), inputs
    kept = ("down_block_types", "up_block_types", "addition_embed_type", "use_linear_projection")
    module = UNet2DConditionModel(
        **narrow,
        **{name: config[name] for name in kept},
        block_out_channels=(8, 8, 8),
        transformer_layers_per_block=(1, 2, 10),
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    added = {"text_embeds": torch.randn(1, 16), "time_ids": torch.zeros(1, 6)}
    return module, inputs | {"added_cond_kwargs": added}
