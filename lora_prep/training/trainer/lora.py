"""The adapter on the model: added, switched off, scaled, averaged."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.sliders import peft_scale
from lora_prep.training.targets import Selection
from lora_prep.training.trainer.config import LoraConfig

ADAPTER = "default"


def add(model: Any, config: LoraConfig, selection: Selection, seed: int) -> None:
    """Put a LoRA on the selected modules: float32, the only weights that are trained.

    A is drawn from the seed, the same on every device; B is 0. Raises UsageError where PEFT adapts
    other modules than those selected.
    """
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(
            peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.rank if config.alpha is None else config.alpha,
                lora_dropout=config.dropout,
                target_modules=selection.peft_regex(),
                init_lora_weights="gaussian",
            ),
            adapter_name=ADAPTER,
        )
    for weight in weights(model).values():
        weight.data = weight.data.float()
    found = {name for name, _ in layers(model)}
    if found != set(selection.modules):
        wrong = sorted(found ^ set(selection.modules))
        raise UsageError(f"PEFT adapts other modules than those selected, such as {wrong[0]}")


def layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The adapted modules by name."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def weights(model: Any) -> dict[str, torch.nn.Parameter]:
    """The trained weights by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def state(model: Any) -> dict[str, Tensor]:
    """The adapter as PEFT names it: `<module>.lora_A.weight`, `<module>.lora_B.weight`."""
    import peft

    found = peft.get_peft_model_state_dict(model, adapter_name=ADAPTER)
    return {name: tensor.detach() for name, tensor in found.items()}


@contextlib.contextmanager
def off(model: Any) -> Iterator[None]:
    """The base model, without gradient."""
    model.disable_adapters()
    try:
        with torch.no_grad():
            yield
    finally:
        model.enable_adapters()


@contextlib.contextmanager
def at(model: Any, strength: float) -> Iterator[None]:
    """The adapter at another strength."""
    set_scale = peft_scale(model, ADAPTER)
    set_scale(strength)
    try:
        yield
    finally:
        set_scale(1.0)


class Average:
    """An exponential moving average of the trained weights, in float32."""

    def __init__(self, model: Any, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: w.detach().clone() for name, w in weights(model).items()}

    @torch.no_grad()
    def update(self, model: Any, step: int) -> None:
        """After the optimiser's `step`, counted from 0. At first it follows faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in weights(model).items():
            self.shadow[name].lerp_(weight, 1 - decay)

    def load(self, shadow: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        for name, tensor in self.shadow.items():
            tensor.copy_(shadow[name])

    @contextlib.contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """The model with the average in place of its weights."""
        kept = {name: w.detach().clone() for name, w in weights(model).items()}
        try:
            _copy(self.shadow, model)
            yield
        finally:
            _copy(kept, model)


def restore(model: Any, values: Mapping[str, Tensor]) -> None:
    """The trained weights from a checkpoint, by the names of `weights`."""
    _copy(values, model)


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], model: Any) -> None:
    for name, weight in weights(model).items():
        weight.copy_(values[name])
