"""Decoders of diffusers, built in code, as the identity loss uses them."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.identity import decode_faces, diffusers_decoder
from lora_prep.training.identity.align import TEMPLATE

LANDMARKS = (torch.tensor(TEMPLATE) * 0.3 + 12)[None]


def kl(shift: float | None) -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2,
              "up_block_types": ("UpDecoderBlock2D",) * 2}  # fmt: skip
    return AutoencoderKL(
        **blocks, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        scaling_factor=0.36, shift_factor=shift,
    ).eval().requires_grad_(False)  # fmt: skip


def tiny() -> AutoencoderTiny:
    torch.manual_seed(0)
    blocks, widths = (1, 1, 1, 1), (8, 8, 8, 8)
    return AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        num_encoder_blocks=blocks, num_decoder_blocks=blocks,
    ).eval().requires_grad_(False)  # fmt: skip


def latents() -> Tensor:
    return torch.randn(1, 4, 16, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shift", [None, 0.12])
def test_scaling_and_shift_of_the_training_are_taken_back(shift: float | None) -> None:
    """A trainer's latents are (z − shift)·scaling."""
    vae, z = kl(shift), latents()
    as_trained = (z - (shift or 0.0)) * 0.36
    torch.testing.assert_close(diffusers_decoder(vae)(as_trained), vae.decode(z).sample)


def test_a_tiny_decoder_takes_latents_as_they_are() -> None:
    vae, z = tiny(), latents()
    torch.testing.assert_close(diffusers_decoder(vae)(z), vae.decode(z).sample)


@pytest.mark.parametrize(("make", "factor"), [(lambda: kl(0.1), 2), (tiny, 8)], ids=["KL", "tiny"])
def test_gradient_reaches_the_latents_around_the_face_and_no_weight(make, factor) -> None:
    vae, z = make(), latents().requires_grad_()
    pixels, landmarks = decode_faces(
        z, LANDMARKS * factor / 8, diffusers_decoder(vae), factor=factor, margin=1
    )
    assert pixels.shape[-1] < factor * 12
    assert landmarks.shape == (1, 5, 2)
    pixels.sum().backward()
    assert z.grad is not None
    reached = z.grad[0].abs().sum(0) > 0
    assert reached.any()
    assert not reached.all()
    assert all(weight.grad is None for weight in vae.parameters())


def test_a_decoder_in_half_precision_gives_pixels_in_single() -> None:
    vae = tiny()
    whole, _ = decode_faces(latents(), LANDMARKS, diffusers_decoder(vae), factor=8, margin=None)
    decode = diffusers_decoder(vae.to(torch.bfloat16))
    half, _ = decode_faces(latents(), LANDMARKS, decode, factor=8, margin=None)
    assert half.dtype == torch.float32
    assert float((half - whole).abs().max()) < 0.05 * float(whole.std()) + 2


def test_what_is_no_frozen_autoencoder_is_refused() -> None:
    with pytest.raises(UsageError, match="Linear is no diffusers autoencoder"):
        diffusers_decoder(torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="would be trained too"):
        diffusers_decoder(tiny().requires_grad_(True))
