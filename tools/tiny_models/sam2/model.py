"""The model: building it, running its image path as SAM2ImagePredictor does, saving and loading."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CONFIG = Path(__file__).parent / "tiny_sam2.yaml"
SIZE = 256
"""Side of the model's square input in pixels."""

STRIDES = (4, 8, 16)
"""Of the three feature maps that the decoder takes."""


def build() -> Any:
    """A `SAM2Base` as in `CONFIG`, with random weights from torch's global generator."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    return instantiate(OmegaConf.load(CONFIG)["model"])


def encode(model: Any, images: Float[Tensor, "b 3 size size"]) -> list[Tensor]:
    """Feature maps of normalised images at strides 4, 8 and 16, as the decoder takes them."""
    fine, middle, coarse = model.forward_image(images)["backbone_fpn"]
    return [fine, middle, coarse + model.no_mem_embed.reshape(1, -1, 1, 1)]


def set_size(model: Any, size: int) -> None:
    """Make the model take images of `size` × `size` pixels, a multiple of 32."""
    model.sam_prompt_encoder.input_image_size = (size, size)
    model.sam_prompt_encoder.image_embedding_size = (size // STRIDES[-1],) * 2


def decode(
    model: Any,
    features: list[Tensor],
    points: Float[Tensor, "b p 2"],
    labels: Int[Tensor, "b p"],
) -> tuple[Float[Tensor, "b 4 size/4 size/4"], Float[Tensor, "b 4"]]:
    """Logits and predicted IoUs of all four mask tokens for one prompt an image.

    A box is two points with the labels 2 and 3, before the others. Token 0 is the single mask, the
    others are the three that SAM2 gives with `multimask_output`.
    """
    fine, middle, coarse = features
    sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
    logits, scores, _, _ = model.sam_mask_decoder.predict_masks(
        image_embeddings=coarse,
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=[fine, middle],
    )
    return logits, scores


def save(weights: dict[str, Tensor], folder: Path) -> None:
    """Write `tiny_sam2.pt` (half precision) and `tiny_sam2.yaml` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.half().contiguous().clone() for name, tensor in weights.items()}
    torch.save({"model": half}, folder / "tiny_sam2.pt")
    (folder / "tiny_sam2.yaml").write_bytes(CONFIG.read_bytes())


def load_predictor(folder: Path) -> Any:
    """A `SAM2ImagePredictor` on the CPU with the model in `folder`."""
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    # Hydra takes a path with two slashes in front for one outside sam2's package.
    config = "/" + (folder / "tiny_sam2.yaml").resolve().as_posix()
    model = build_sam2(config, str(folder / "tiny_sam2.pt"), device="cpu")
    predictor = SAM2ImagePredictor(model)
    # The predictor's own values fit images of 1024 pixels only.
    predictor._bb_feat_sizes = [(SIZE // stride,) * 2 for stride in STRIDES]
    return predictor
