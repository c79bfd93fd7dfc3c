"""A real SAM2, small and with random weights: real shapes and code paths, meaningless masks."""

from pathlib import Path

import torch
import yaml

IMAGE_SIZE = 256


def tiny_config() -> dict[str, object]:
    """A configuration in sam2's format: Hiera of 16 channels, images of 256 pixels."""
    modeling = "sam2.modeling."

    def position(features: int) -> dict[str, object]:
        return {
            "_target_": modeling + "position_encoding.PositionEmbeddingSine",
            "num_pos_feats": features,
            "normalize": True,
            "scale": None,
            "temperature": 10000,
        }

    def attention(**more: object) -> dict[str, object]:
        return {
            "_target_": modeling + "sam.transformer.RoPEAttention",
            "rope_theta": 10000.0,
            "feat_sizes": [16, 16],
            "embedding_dim": 32,
            "num_heads": 1,
            "downsample_rate": 1,
            "dropout": 0.1,
            **more,
        }

    model = {
        "_target_": modeling + "sam2_base.SAM2Base",
        "image_encoder": {
            "_target_": modeling + "backbones.image_encoder.ImageEncoder",
            "scalp": 1,
            "trunk": {
                "_target_": modeling + "backbones.hieradet.Hiera",
                "embed_dim": 16,
                "num_heads": 1,
                "stages": [1, 1, 2, 1],
                "global_att_blocks": [3],
                "window_spec": [8, 4, 8, 4],
                "window_pos_embed_bkg_spatial_size": [7, 7],
            },
            "neck": {
                "_target_": modeling + "backbones.image_encoder.FpnNeck",
                "position_encoding": position(32),
                "d_model": 32,
                "backbone_channel_list": [128, 64, 32, 16],
                "fpn_top_down_levels": [2, 3],
                "fpn_interp_model": "nearest",
            },
        },
        "memory_attention": {
            "_target_": modeling + "memory_attention.MemoryAttention",
            "d_model": 32,
            "pos_enc_at_input": True,
            "layer": {
                "_target_": modeling + "memory_attention.MemoryAttentionLayer",
                "activation": "relu",
                "dim_feedforward": 64,
                "dropout": 0.1,
                "pos_enc_at_attn": False,
                "self_attention": attention(),
                "d_model": 32,
                "pos_enc_at_cross_attn_keys": True,
                "pos_enc_at_cross_attn_queries": False,
                "cross_attention": attention(rope_k_repeat=True, kv_in_dim=16),
            },
            "num_layers": 1,
        },
        "memory_encoder": {
            "_target_": modeling + "memory_encoder.MemoryEncoder",
            "out_dim": 16,
            "in_dim": 32,
            "position_encoding": position(16),
            "mask_downsampler": {
                "_target_": modeling + "memory_encoder.MaskDownSampler",
                "embed_dim": 32,
                "kernel_size": 3,
                "stride": 2,
                "padding": 1,
            },
            "fuser": {
                "_target_": modeling + "memory_encoder.Fuser",
                "layer": {
                    "_target_": modeling + "memory_encoder.CXBlock",
                    "dim": 32,
                    "kernel_size": 7,
                    "padding": 3,
                    "layer_scale_init_value": 1e-6,
                    "use_dwconv": True,
                },
                "num_layers": 1,
            },
        },
        "num_maskmem": 1,
        "image_size": IMAGE_SIZE,
        "sigmoid_scale_for_mem_enc": 20.0,
        "sigmoid_bias_for_mem_enc": -10.0,
        "use_mask_input_as_output_without_sam": True,
        "directly_add_no_mem_embed": True,
        "use_high_res_features_in_sam": True,
        "multimask_output_in_sam": True,
        "iou_prediction_use_sigmoid": True,
        "pred_obj_scores": True,
        "pred_obj_scores_mlp": True,
        "compile_image_encoder": False,
    }
    return {"model": model}


def write_tiny_sam2(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write `tiny.pt` and `tiny.yaml` into `folder`; their paths."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    folder.mkdir(parents=True, exist_ok=True)
    config, checkpoint = folder / "tiny.yaml", folder / "tiny.pt"
    config.write_text("# @package _global_\n" + yaml.safe_dump(tiny_config()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = instantiate(OmegaConf.create(tiny_config())["model"])
    torch.save({"model": model.state_dict()}, checkpoint)
    return checkpoint, config
