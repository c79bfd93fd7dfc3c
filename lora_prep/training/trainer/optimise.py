"""The optimiser, and the learning rate of each step."""

import math
from typing import Any

import torch

from lora_prep.training.trainer.config import TrainConfig


def optimiser(parameters: list[torch.nn.Parameter], config: TrainConfig) -> Any:
    """The optimiser that the configuration names; bitsandbytes was checked for by `plan`."""
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, rate, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay)
    import bitsandbytes  # type: ignore[import-not-found, unused-ignore]

    kinds = {
        "adamw8bit": bitsandbytes.optim.AdamW8bit,
        "paged-adamw8bit": bitsandbytes.optim.PagedAdamW8bit,
        "lion8bit": bitsandbytes.optim.Lion8bit,
    }
    return kinds[config.optimizer](parameters, lr=rate, weight_decay=decay)


def factor(step: int, config: TrainConfig) -> float:
    """What the learning rate is multiplied with in a step, counted from 0."""
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    match config.decay:
        case "linear":
            return 1 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def set_rate(optimizer: Any, step: int, config: TrainConfig) -> float:
    """Give the optimiser the rate of a step; returns it."""
    rate = config.learning_rate * factor(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate
