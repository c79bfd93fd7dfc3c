"""Everything that can be known of a run, and be wrong with it, before a model is loaded."""

import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_prep.errors import UsageError
from lora_prep.training import targets
from lora_prep.training.targets import Selection, names
from lora_prep.training.total import LossSum
from lora_prep.training.trainer import losses as run_losses
from lora_prep.training.trainer.config import Config
from lora_prep.training.trainer.data import Data, Order, open_data
from lora_prep.training.trainer.families import FamilyName, family_of


@dataclass(frozen=True)
class Plan:
    """A run that can start."""

    config: Config
    base: Path
    """Folder of the pipeline."""
    family: FamilyName
    selection: Selection
    data: Data | None
    losses: LossSum
    """Without networks: for weights and checks."""
    notes: tuple[str, ...]

    def lines(self, processes: int = 1) -> Iterator[str]:
        """What the run would do, for people."""
        config, train = self.config, self.config.train
        yield f"model      {self.base} ({self.family})"
        yield f"targets    {self.selection.expression}: {len(self.selection.modules)} modules"
        yield f"           in {names.labels(self.selection.blocks)}"
        size = self.selection.lora_parameters(config.lora.rank)
        if size is not None:
            mb = 4 * size / 1e6
            yield f"adapter    rank {config.lora.rank}: {size:,} parameters, {mb:.1f} MB in float32"
        if self.data is None:
            yield "images     none: x_t is denoised by the model itself"
        else:
            yield from self._data_lines(self.data)
        batch = train.batch_size * train.accumulate * processes
        yield f"steps      {train.steps} of {batch} images{self._epochs(processes)}"
        yield (
            f"optimizer  {train.optimizer}, learning rate {train.learning_rate:g}, {train.decay}, "
            f"warm-up {train.warmup}"
        )
        for name, kind in config.terms().items():
            schedule = self.losses.terms[name][0]
            first, last = schedule.at(0), schedule.at(train.steps - 1)
            weight = f"{first:g}" if first == last else f"{first:g} to {last:g}"
            extra = "" if kind == name else f" ({kind})"
            yield f"loss       {name}{extra}, weight {weight}"
        out = config.save.out / f"{config.save.name}.safetensors"
        yield f"output     {out} ({', '.join(config.save.namings)})"
        for note in self.notes:
            yield f"note: {note}"

    def as_json(self) -> dict[str, Any]:
        """The same for machines."""
        train = self.config.train
        return {
            "base": str(self.base),
            "family": self.family,
            "targets": self.selection.expression,
            "modules": list(self.selection.modules),
            "parameters": self.selection.lora_parameters(self.config.lora.rank),
            "images": 0 if self.data is None else len(self.data.main.sources),
            "steps": train.steps,
            "losses": {
                name: {"term": kind, "weight": self.losses.terms[name][0].at(0)}
                for name, kind in self.config.terms().items()
            },
            "notes": list(self.notes),
        }

    def _data_lines(self, data: Data) -> Iterator[str]:
        sources = data.main.sources
        priors = sum(source.is_prior for source in sources)
        pairs = " pairs" if len(data.folders) > 1 else ""
        yield f"images     {len(sources) - priors}{pairs}, {priors} class images"
        sizes = Counter(data.main.bucket(i) for i, s in enumerate(sources) if not s.is_prior)
        listed = ", ".join(f"{b.width}×{b.height}: {n}" for b, n in sizes.most_common())
        yield f"buckets    {listed}"

    def _epochs(self, processes: int) -> str:
        if self.data is None:
            return ""
        per_epoch = len(Order(self.data, self.config, 0, 1).batches)
        epochs = self.config.train.steps * self.config.train.accumulate * processes / per_epoch
        return f": {epochs:.1f} epochs of {per_epoch} batches"


def plan(config: Config, base: Path) -> Plan:
    """Check a run. Raises UsageError, DatasetError or BackendError; loads no weights."""
    require("peft", "diffusers", "transformers", "accelerate", extra="train")
    if config.train.optimizer in ("adamw8bit", "paged-adamw8bit", "lion8bit"):
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UsageError(
                f"train.optimizer is {config.train.optimizer}, which needs bitsandbytes: "
                'pip install bitsandbytes (it wants CUDA), or take optimizer = "adamw"'
            )
        if not torch.cuda.is_available():
            raise UsageError(
                f"train.optimizer is {config.train.optimizer}, which runs on CUDA only, and there "
                'is none: take optimizer = "adamw"'
            )
    if config.log.tensorboard:
        require("tensorboard", extra="")
    family = family_of(base)
    step = config.data.bucket_step
    wanted = 16 if family.startswith("flux") else 8
    if step % wanted:
        raise UsageError(f"data.bucket_step is {step}: {family} wants a multiple of {wanted}")
    model = targets.resolve(base.absolute())  # a folder may be called as a known model
    selection = targets.select(model, config.lora.targets)
    data = open_data(config)
    losses, notes = run_losses.check(config, data)
    if data is not None:
        Order(data, config, 0, 1)
        for other in data.folders[1:]:
            _same_names(data, other.sources)
    return Plan(config, base, family, selection, data, losses, (*selection.notes, *notes))


def require(*packages: str, extra: str) -> None:
    """Raise UsageError where a package is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        how = f"'lora-prep[{extra}]'" if extra else " ".join(missing)
        raise UsageError(f"{' and '.join(missing)} is not installed: pip install {how}")


def _same_names(data: Data, others: Any) -> None:
    mine, theirs = (
        [(s.sample.stem, s.size) for s in group] for group in (data.main.sources, others)
    )
    for one, other in zip(mine, theirs, strict=False):
        if one != other:
            raise UsageError(
                f"the pairs do not fit: positive has {one[0]} ({one[1][0]}×{one[1][1]}) where "
                f"negative has {other[0]} ({other[1][0]}×{other[1][1]}): run lora-prep pairs"
            )
    if len(mine) != len(theirs):
        raise UsageError(
            f"there are {len(mine)} images in positive and {len(theirs)} in negative: run "
            "lora-prep pairs"
        )
