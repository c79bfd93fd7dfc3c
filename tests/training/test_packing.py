"""Packing against diffusers' FLUX pipelines."""

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline

from lora_prep.training import (
    ShapeError,
    pack,
    pack_mask,
    patchify,
    to_tokens,
    unpack,
    unpatchify,
)


def latents(channels: int = 16) -> torch.Tensor:
    return torch.randn(2, channels, 6, 8, generator=torch.Generator().manual_seed(0))


def test_flux_1_tokens_are_those_of_its_pipeline():
    x = latents()
    tokens = pack(x)
    assert torch.equal(tokens, FluxPipeline._pack_latents(x, 2, 16, 6, 8))
    assert torch.equal(unpack(tokens, 6, 8), x)
    assert torch.equal(FluxPipeline._unpack_latents(tokens, 48, 64, 8), x)


def test_flux_2_tokens_are_those_of_its_pipeline():
    x = latents(32)
    patches = patchify(x)
    assert torch.equal(patches, Flux2KleinPipeline._patchify_latents(x))
    assert torch.equal(to_tokens(patches), Flux2KleinPipeline._pack_latents(patches))
    assert torch.equal(to_tokens(patches), pack(x))
    assert torch.equal(unpatchify(patches), x)


def test_a_packed_mask_lies_where_its_pixels_are():
    mask = torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(1))
    packed = pack_mask(mask, 16)
    assert packed.shape == (2, 12, 64)
    assert torch.equal(unpack(packed, 6, 8), mask.expand(2, 16, 6, 8))


def test_what_cannot_be_packed_is_said():
    with pytest.raises(ShapeError, match="2×16×5×8: packing needs an even height"):
        pack(latents()[:, :, :5])
    with pytest.raises(ShapeError, match="no 6×6 latents"):
        unpack(pack(latents()), 6, 6)
    with pytest.raises(ShapeError, match="no 3×16 latents"):
        unpack(pack(latents()), 3, 16)
    with pytest.raises(ShapeError, match="divide by 4"):
        unpatchify(latents()[:, :3])
