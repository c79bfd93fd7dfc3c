"""A toy training run: does the identity loss do what it says?"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_prep.training import Diffusion, LossBatch, LossSum, Objective, WarmUp
from lora_prep.training.identity import (
    IdentityInputs,
    IdentityTerm,
    Recogniser,
    align_faces,
    embed_faces,
    load_recogniser,
)
from lora_prep.training.identity.align import TEMPLATE
from sample_data.portraits import draw_portrait

RECOGNISER = Path("tests/assets/tiny_faces/rec_tiny.onnx")
SIDE, BATCH, STEPS = 64, 4, 60
SUBJECT = 7
LANDMARKS = (torch.tensor(TEMPLATE) + 0.5) * (SIDE / 112) - 0.5
"""The same in each picture: all are aligned."""
FLOW = Objective("flow_matching")


class Denoiser(nn.Module):
    """x_t and σ to a velocity; what is where it learns by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1, 16, SIDE // 2, SIDE // 2))
        self.first = nn.Conv2d(12 + 16 + 1, 48, 3, padding=1)
        self.second = nn.Conv2d(48, 48, 3, padding=1)
        self.last = nn.Conv2d(48, 12, 3, padding=1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        place = self.place.expand(len(x), -1, -1, -1)
        level = sigma.reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        h = F.silu(self.first(torch.cat([x, place, level], 1)))
        return self.last(h + F.silu(self.second(h)))


def decode(latents: Tensor) -> Tensor:
    return F.pixel_shuffle(latents, 2)


def faces(seeds: range, identity: int | None) -> Tensor:
    """Aligned portraits, (n, 3, 64, 64) from -1 to 1."""
    images, points = [], []
    for seed in seeds:
        portrait = draw_portrait(
            seed, size=(160, 160), people=1, identity=identity, scale=(0.5, 0.6), max_tilt=10.0
        )
        images.append(torch.from_numpy(np.array(portrait.image)).permute(2, 0, 1).float())
        points.append(torch.tensor(portrait.people[0].face.landmarks) - 0.5)
    crops = align_faces(torch.stack(images), torch.stack(points))
    return F.interpolate(crops, (SIDE, SIDE), mode="area") / 127.5 - 1


def generate(model: Denoiser, noise: Tensor) -> Tensor:
    """Images from noise by eight Euler steps."""
    x = noise
    sigmas = torch.linspace(1, 0, 9)
    with torch.no_grad():
        for now, then in pairwise(sigmas):
            x = x + (then - now) * model(x, now.expand(len(x)))
    return decode(x)


def similarity(recogniser: Recogniser, images: Tensor, reference: Tensor) -> float:
    with torch.no_grad():
        found = embed_faces(
            recogniser, (images.clamp(-1, 1) + 1) * 127.5, LANDMARKS.expand(len(images), -1, -1)
        )
    return float((found @ reference).mean())


def train(
    model: Denoiser, losses: LossSum, data: Tensor, reference: Tensor, steps: int, *, rate: float
) -> None:
    optimiser = torch.optim.Adam(model.parameters(), rate)
    g = torch.Generator().manual_seed(1)
    for step in range(steps):
        x0 = F.pixel_unshuffle(data[torch.randint(len(data), (BATCH,), generator=g)], 2)
        noise = torch.randn(x0.shape, generator=g)
        sigmas = torch.rand(BATCH, generator=g)
        noisy = FLOW.add_noise(x0, noise, sigmas)
        batch = LossBatch(
            model(noisy, sigmas),
            FLOW.target(x0, noise, sigmas),
            objective=FLOW,
            sigmas=sigmas,
            noisy=noisy,
            step=step,
            identity=IdentityInputs(LANDMARKS.expand(BATCH, -1, -1), reference),
        )
        optimiser.zero_grad()
        losses(batch).total.backward()
        optimiser.step()


def test_with_the_loss_generated_faces_come_nearer_to_the_subject_without_it_they_do_not() -> None:
    recogniser = load_recogniser(RECOGNISER, check=False)
    subject = faces(range(100, 106), SUBJECT)
    with torch.no_grad():
        vectors = embed_faces(
            recogniser, (subject + 1) * 127.5, LANDMARKS.expand(len(subject), -1, -1)
        )
    reference = F.normalize(vectors.mean(0), dim=0)
    strangers = faces(range(12), None)
    torch.manual_seed(0)
    start = Denoiser()
    base = LossSum({"diffusion": (1.0, Diffusion())})
    train(start, base, strangers, reference, 100, rate=3e-3)
    held_out = torch.randn(8, 12, 32, 32, generator=torch.Generator().manual_seed(99))
    before = similarity(recogniser, generate(start, held_out), reference)
    term = IdentityTerm(recogniser, decode, factor=2, margin=0, max_sigma=0.5)
    with_identity = LossSum({"diffusion": (1.0, Diffusion()), "identity": (WarmUp(0.5, 10), term)})
    after = {}
    for name, losses in (("without", base), ("with", with_identity)):
        model = Denoiser()
        model.load_state_dict(start.state_dict())
        train(model, losses, strangers, reference, STEPS, rate=1e-3)
        after[name] = similarity(recogniser, generate(model, held_out), reference)
    assert after["with"] > before + 0.3
    assert after["without"] < before + 0.1
    assert after["with"] > after["without"] + 0.3
