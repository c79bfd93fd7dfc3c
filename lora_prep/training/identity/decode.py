"""Only the face's part of the latents is decoded: decoding is what an identity loss costs."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.identity.align import covered

Decode: TypeAlias = Callable[[Tensor], Tensor]
"""Latents (N,C,h,w), scaled as in training, to RGB pixels (N,3,f·h,f·w) from -1 to 1."""

MULTIPLE = 4
"""Crops are as many latents wide and high, so that few different shapes occur."""


def window(
    landmarks: Float[Tensor, "N 5 2"], height: int, width: int, *, factor: int, margin: int
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """The latents around each face: ((top, left) of each, (height, width) of all).

    `landmarks` in pixels, on the CPU; `height` and `width` of the latents; `factor` pixels a
    latent; `margin` latents around what the aligned crop shows. The windows have one size, that of
    the largest face, and lie inside the latents.
    """
    box = covered(landmarks)
    # Pixel q covers q − ½ .. q + ½, and bilinear sampling reaches one pixel further.
    low = ((box[:, :2] - 0.5) / factor).floor() - margin
    high = ((box[:, 2:] + 1.5) / factor).ceil() + margin
    spans = (high - low).amax(0).tolist()
    size = [
        min(limit, MULTIPLE * math.ceil(span / MULTIPLE))
        for limit, span in zip((height, width), reversed(spans), strict=True)
    ]
    centres = ((low + high) / 2).tolist()
    corners = [(_start(y, size[0], height), _start(x, size[1], width)) for x, y in centres]
    return corners, (size[0], size[1])


def decode_faces(
    latents: Float[Tensor, "N C h w"],
    landmarks: Float[Tensor, "N 5 2"],
    decode: Decode,
    *,
    factor: int,
    margin: int | None,
) -> tuple[Float[Tensor, "N 3 H W"], Float[Tensor, "N 5 2"]]:
    """Pixels around each face, from 0 to 255, and its landmarks in them.

    `margin=None` decodes everything. Values beyond what an 8-bit image can hold are not cut off:
    that would cut their gradients off. Raises UsageError where `decode` gives another shape.
    """
    moved = landmarks.double()
    if margin is not None:
        height, width = latents.shape[-2:]
        corners, (h, w) = window(landmarks, height, width, factor=factor, margin=margin)
        latents = torch.stack(
            [z[:, y : y + h, x : x + w] for z, (y, x) in zip(latents, corners, strict=True)]
        )
        origin = [(x * factor, y * factor) for y, x in corners]
        moved = moved - torch.tensor(origin, dtype=moved.dtype).reshape(-1, 1, 2)
    pixels = decode(latents)
    wanted = (len(latents), 3, factor * latents.shape[-2], factor * latents.shape[-1])
    if pixels.shape != wanted:
        raise UsageError(
            f"decode gave {tuple(pixels.shape)} for latents of {tuple(latents.shape)}: with "
            f"factor={factor} it has to give {wanted}. Set factor to the pixels a latent"
        )
    pixels = pixels if pixels.dtype == torch.float64 else pixels.float()
    return (pixels + 1) * 127.5, moved


def diffusers_decoder(vae: Any) -> Decode:
    """`decode` for diffusers' AutoencoderKL or AutoencoderTiny, frozen.

    Takes back what training did to the latents: z / scaling_factor + shift_factor. An
    AutoencoderTiny decodes scaled latents as they are. FLUX.2's VAE normalises with batch-norm
    statistics instead: write its three lines yourself.

    Raises UsageError for a VAE without `decode` and `config`, or whose weights are being trained.
    """
    if not (hasattr(vae, "decode") and hasattr(vae, "config")):
        raise UsageError(
            f"{type(vae).__name__} is no diffusers autoencoder: give your own function"
        )
    if any(weight.requires_grad for weight in vae.parameters()):
        raise UsageError("the decoder's weights would be trained too: vae.requires_grad_(False)")
    scaling = vae.config.get("scaling_factor") or 1.0
    shift = vae.config.get("shift_factor") or 0.0

    def decode(latents: Tensor) -> Tensor:
        z = latents.to(next(vae.parameters()).dtype)
        pixels: Tensor = vae.decode(z / scaling + shift, return_dict=False)[0]
        return pixels

    return decode


def _start(centre: float, size: int, limit: int) -> int:
    return min(max(round(centre - size / 2), 0), limit - size)
