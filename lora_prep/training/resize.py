"""Masks from image size to latent size."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.shapes import ShapeError, as_float, no_autocast, shape


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Float[Tensor, "*batch h w"]:
    """A mask averaged by area to `size` = (height, width), such as the latents'.

    (..., H, W) → (..., h, w), at least two dimensions, all leading ones kept. uint8 (0..255) is
    divided by 255, bool becomes 0 and 1, floating point stays as it is. Each output value is the
    exact mean over the rectangle it covers, also where the sizes do not divide, so the mask's
    mean (its coverage) stays what it was; nearest-neighbour loses thin lines. float32, or float64
    for float64.

    Raises ShapeError, and UsageError for other integers: 0..255 or 0..1 is not for us to guess.
    """
    if not (mask.is_floating_point() or mask.dtype in (torch.uint8, torch.bool)):
        raise UsageError(
            f"cannot resize a mask of {mask.dtype}: give uint8, bool or floating point"
        )
    if mask.ndim < 2 or 0 in mask.shape[-2:] or min(size) < 1:
        raise ShapeError(f"cannot resize a mask of {shape(mask)} to {size[0]}×{size[1]}")
    values = mask.float() / 255 if mask.dtype == torch.uint8 else as_float(mask)
    (height, width), (h, w) = mask.shape[-2:], size
    if height % h == 0 and width % w == 0:
        flat = values.reshape(-1, 1, height, width)
        return F.avg_pool2d(flat, (height // h, width // w)).reshape(*mask.shape[:-2], h, w)
    with no_autocast(mask.device):  # it would make bfloat16 of the products
        rows = _overlaps(height, h, values)
        columns = _overlaps(width, w, values)
        return rows @ values @ columns.T


def _overlaps(old: int, new: int, like: Tensor) -> Tensor:
    """Row i: which share of the new cell i each old cell covers, (new, old); rows sum to 1."""
    # In units of 1/(old·new), where all edges are whole numbers.
    start = torch.arange(new, device=like.device)[:, None] * old
    cell = torch.arange(old, device=like.device)[None] * new
    covered = torch.minimum(start + old, cell + new) - torch.maximum(start, cell)
    return covered.clamp_min(0).to(like.dtype) / old
