"""What the adapters share: the sum of terms from a configuration, and errors that say more."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_prep.errors import UsageError
from lora_prep.training.batch import LossBatch
from lora_prep.training.config import from_config
from lora_prep.training.total import LossSum

Losses = LossSum | Mapping[str, Any] | str | Path
"""A sum of terms, the table of its terms by name, or a TOML file with `[losses.<name>]` tables."""


def as_sum(losses: Losses, trainer: str) -> LossSum:
    """The sum of terms. Raises UsageError where the configuration is not understood."""
    if isinstance(losses, LossSum):
        return losses
    try:
        return from_config(losses)
    except UsageError as error:
        raise UsageError(f"{trainer}: {error}") from error


def refuse_missing(losses: LossSum, batch: LossBatch, how: Mapping[str, str], trainer: str) -> None:
    """Raise UsageError for an input that a term needs and the trainer did not give.

    `how` says by field how to get it; fields that are not in it cannot be had from this trainer.
    """
    for field, names in losses.needs(batch.step).items():
        if getattr(batch, field, None) is None:
            hint = how.get(field, f"{trainer} has no such thing: take the term out")
            raise UsageError(f"the loss {' and '.join(sorted(names))} needs {field}: {hint}")


def refuse_ignored(options: Any, inert: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for options of the trainer's own loss that would silently do nothing."""
    for name, off in inert.items():
        value = getattr(options, name, off)
        if value not in (off, None, False):
            raise UsageError(
                f"{where}.{name} is {value!r}, which belongs to the trainer's own loss and does "
                "nothing with lora-prep's: take it out"
            )
