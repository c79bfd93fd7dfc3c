"""The training loop: the same weights for the same seed, steps and number of threads."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lora_prep.types import Face
from tools.tiny_models.sam2 import model as tiny
from tools.tiny_models.sam2 import prompts
from tools.tiny_models.sam2.loss import total
from tools.tiny_models.sam2.portraits import Drawn, Sample, Zoom, sample
from tools.tiny_models.sam2.prompts import FACE, HEAD, PERSON, Prompt

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of sam2.utils.transforms."""

SMALL = (2, Zoom(share=0.8, most=2.5))
LARGE = (1, Zoom(share=0.4, most=1.8))
"""By how much pictures shrink, and how they are enlarged before; small ones show as much detail."""

VAGUE_KINDS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to train."""

    steps: int = 5000
    batch: int = 16
    small_share: float = 0.6
    """Of the steps: the first ones see pictures of half the size, at a third of the cost."""
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.02
    warm_up: int = 150
    weight_decay: float = 0.02
    averaging: float = 0.998
    """Of the moving average of the weights, which is what is kept."""
    seed: int = 0


def train(
    portraits: Drawn, plan: Plan, report: Callable[[str], object] = lambda _: None
) -> dict[str, Tensor]:
    """Train from random weights; the averaged state dict. `report` gets a line now and then."""
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    model = tiny.build().train()
    optimizers = _optimizers(model, plan)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan))
        for optimizer in optimizers
    ]
    averaged = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    order = np.empty(0, int)
    recent: list[float] = []
    started = time.process_time()
    for step in range(plan.steps):
        if len(order) < plan.batch:
            order = np.concatenate([order, rng.permutation(len(portraits.images))])
        chosen, order = order[: plan.batch], order[plan.batch :]
        shrink, zoom = SMALL if step < plan.steps * plan.small_share else LARGE
        tiny.set_size(model, tiny.SIZE // shrink)
        samples = [sample(portraits, int(i), zoom, rng) for i in chosen]
        loss = _loss(model, samples, shrink, step % VAGUE_KINDS, rng)
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        decay = min(plan.averaging, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            averaged[name].lerp_(tensor, 1 - decay)
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == plan.steps:
            seconds = time.process_time() - started
            report(f"step {step + 1:5} loss {np.mean(recent):.4f} CPU {seconds:.0f} s")
            recent.clear()
    return averaged


def to_stderr(line: str) -> None:
    """For `report`."""
    print(line, file=sys.stderr, flush=True)


def _optimizers(model: torch.nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the transformers' matrices, AdamW for all else."""
    inner: list[torch.nn.Parameter] = []
    outer: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        in_transformer = "blocks" in name or "transformer" in name
        (inner if parameter.ndim == 2 and in_transformer else outer).append(parameter)
    return [
        torch.optim.Muon(inner, lr=plan.muon_learning_rate, weight_decay=plan.weight_decay),
        torch.optim.AdamW(
            outer, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay
        ),
    ]


def _rate(step: int, plan: Plan) -> float:
    """Linear warm-up, then half a cosine down to nearly nothing."""
    if step < plan.warm_up:
        return (step + 1) / plan.warm_up
    done = (step - plan.warm_up) / max(1, plan.steps - plan.warm_up)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def _loss(
    model: torch.nn.Module,
    samples: list[Sample],
    shrink: int,
    vague: int,
    rng: np.random.Generator,
) -> Tensor:
    """Mean over the pictures and over their prompts; what is asked for a face counts double."""
    pixels = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    mean, std = torch.tensor(MEAN).reshape(3, 1, 1), torch.tensor(STD).reshape(3, 1, 1)
    images = (F.avg_pool2d(pixels.float(), shrink) / 255 - mean) / std
    features = tiny.encode(model, images.contiguous())
    level = torch.from_numpy(np.stack([s.level for s in samples]))
    regions = torch.stack([level >= 3, level >= 2, level >= 1], dim=1)
    targets = F.avg_pool2d(regions.float(), 2 * shrink)
    losses = []
    for of_kind in zip(*(_prompts(s, vague, rng) for s in samples), strict=True):
        points = torch.from_numpy(np.stack([p.points for p in of_kind])).float() / shrink
        labels = torch.from_numpy(np.stack([p.labels for p in of_kind]))
        logits, scores = tiny.decode(model, features, points, labels)
        wanted = torch.tensor([p.wanted for p in of_kind])
        meant = torch.from_numpy(np.stack([p.meant for p in of_kind])).float()
        losses.append(total(logits, scores, targets, wanted, meant).mean())
    return torch.stack([losses[0], *losses]).mean()


def _prompts(s: Sample, vague: int, rng: np.random.Generator) -> list[Prompt]:
    """What lora-prep asks for each region, and one of three vaguer kinds.

    All prompts of one kind have the same number of points.
    """

    def face() -> Face:
        return prompts.as_a_detector(s.face, rng)

    other = (
        lambda: prompts.box(face(), int(rng.choice(3, p=[0.6, 0.2, 0.2]))),
        lambda: prompts.landmarks(face()),
        lambda: prompts.point(s, face(), rng),
    )
    return [
        prompts.box_and_landmarks(face(), FACE),
        prompts.box_and_landmarks(face(), int(rng.choice([HEAD, PERSON], p=[0.75, 0.25]))),
        prompts.box_and_nose(face(), int(rng.choice(3, p=[0.1, 0.1, 0.8]))),
        other[vague](),
    ]
