"""Latents as the token sequences that FLUX models read, and masks in the same order.

A token is a 2×2 patch of the latent, its values ordered (channel, row, column): FLUX.1 packs
16 channels to tokens of 64. FLUX.2 patchifies 32 channels to 128, normalises those by its VAE's
batch-norm statistics, and makes one token of each position: `patchify`, then your normalisation,
then `to_tokens`. Loss masks are packed by `pack_mask` for both.
"""

from jaxtyping import Float
from torch import Tensor

from lora_prep.training.shapes import ShapeError, shape


def patchify(latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C4 H2 W2"]:
    """2×2 patches into channels, ordered (c, dy, dx): (B,C,H,W) → (B,4C,H/2,W/2).

    Raises ShapeError for odd sizes, and for anything but (B,C,H,W).
    """
    _dimensions(latents, "latents", "B×C×H×W")
    b, c, h, w = latents.shape
    if h % 2 or w % 2:
        raise ShapeError(f"latents are {shape(latents)}: packing needs an even height and width")
    cells = latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return cells.reshape(b, 4 * c, h // 2, w // 2)


def unpatchify(patches: Float[Tensor, "B C4 H2 W2"]) -> Float[Tensor, "B C H W"]:
    """What `patchify` made of latents, back: (B,4C,h,w) → (B,C,2h,2w). Raises ShapeError."""
    _dimensions(patches, "patches", "B×4C×h×w")
    b, c, h, w = patches.shape
    if c % 4:
        raise ShapeError(f"patches are {shape(patches)}: the channels have to divide by 4")
    cells = patches.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return cells.reshape(b, c // 4, 2 * h, 2 * w)


def to_tokens(x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B N D"]:
    """One token a position, row by row: (B,D,h,w) → (B,h·w,D). Raises ShapeError."""
    _dimensions(x, "x", "B×D×h×w")
    return x.flatten(2).transpose(1, 2)


def pack(latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N C4"]:
    """Latents to tokens as FLUX.1 does: (B,C,H,W) → (B,H·W/4,4C)."""
    return to_tokens(patchify(latents))


def unpack(tokens: Float[Tensor, "B N C4"], height: int, width: int) -> Float[Tensor, "B C H W"]:
    """Tokens back to latents of `height` × `width`: (B,H·W/4,4C) → (B,C,H,W).

    Raises ShapeError for tokens that are not so many.
    """
    _dimensions(tokens, "tokens", "B×N×4C")
    b, n, d = tokens.shape
    if height % 2 or width % 2 or n != (height // 2) * (width // 2) or d % 4:
        raise ShapeError(f"tokens are {shape(tokens)} and are no {height}×{width} latents, packed")
    return unpatchify(tokens.transpose(1, 2).reshape(b, d, height // 2, width // 2))


def pack_mask(mask: Float[Tensor, "B 1 H W"], channels: int) -> Float[Tensor, "B N C4"]:
    """A mask of latent size in the order of `pack`, for latents with so many `channels`.

    (B,1,H,W) → (B,H·W/4,4·channels); every channel of a token has the same four weights.
    FLUX.1 has 16 channels, FLUX.2 has 32. Raises ShapeError for anything but (B,1,H,W), and for odd
    sizes.
    """
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ShapeError(f"mask is {shape(mask)}: give B×1×H×W, of latent size")
    return pack(mask).repeat(1, 1, channels)


def _dimensions(x: Tensor, name: str, wanted: str) -> None:
    if x.ndim != wanted.count("×") + 1:
        raise ShapeError(f"{name} is {shape(x)}: packing takes {wanted}")
