"""One batch to its gradients: the forwards that the terms ask for, and no others.

All randomness of a batch comes from (seed, number of the batch): going on after an interruption,
and sharing batches among processes, change nothing.
"""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lora_prep.training.batch import LossBatch
from lora_prep.training.dataset import Batch
from lora_prep.training.identity import IdentityInputs
from lora_prep.training.objectives import Objective
from lora_prep.training.resize import resize_mask
from lora_prep.training.total import LossResult, LossSum
from lora_prep.training.trainer import families, lora, slide
from lora_prep.training.trainer.config import Config
from lora_prep.training.trainer.data import Texts, sizes_of
from lora_prep.training.trainer.families import Family, Text

Encode = Callable[[Batch], Tensor]
"""Images of a batch to the moments of their latents."""


@dataclass(frozen=True, eq=False)
class Part:
    """A micro-batch, ready for the model."""

    batch: LossBatch
    """`pred` is the target until the model has run."""
    text: Text
    sizes: Tensor
    captions: tuple[str, ...]
    seed: int
    pair: tuple[Tensor, Tensor, Tensor] | None = None
    """Of a slider of pairs: both sides' x0, and their noise."""


@dataclass(frozen=True, eq=False)
class Stepper:
    """A model, its losses, and everything that stays the same from step to step."""

    family: Family
    losses: LossSum
    objective: Objective
    texts: Texts
    config: Config
    encode: Encode
    device: torch.device
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    backward: Callable[[Tensor], None]

    @property
    def model(self) -> Any:
        """What is trained."""
        return getattr(self.family.pipeline, self.family.part)

    # -------------------------------------------------------------- before the model
    def prepare(self, batches: tuple[Batch, ...], number: int, step: int) -> Part:
        """Latents, noise and noise levels of the run's batch `number`, in the optimiser's `step`.

        `batches`: one, or the two sides of a pair; none for a textual slider without images.
        """
        seed = _seed(self.config.train.seed, number)
        generator = torch.Generator().manual_seed(seed)
        if not batches:
            return slide.from_noise(self, seed, generator, step)
        batch = batches[0].to(self.device)
        x0 = self._latents(batch, generator)
        t = self._times(len(batch), x0, generator)
        noise = torch.randn(x0.shape, generator=generator).to(self.device)
        captions = self._captions(batch, seed)
        size = (x0.shape[-2], x0.shape[-1])
        part = LossBatch(
            **self._noised(x0, noise, t),
            mask=resize_mask(batch.mask, size),
            face_mask=resize_mask(batch.face_mask, size),
            is_prior=batch.is_prior,
            step=step,
            identity=self._identity(batches[0], t),
        )
        pair = None
        if len(batches) > 1:
            pair = (x0, self._latents(batches[1].to(self.device), generator), noise)
        sizes = sizes_of(batch).to(self.device)
        return Part(part, self.text(captions), sizes, captions, seed, pair)

    def _latents(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.family.latents(self.encode(batch), generator)

    def _times(self, count: int, x0: Tensor, generator: torch.Generator) -> Tensor:
        """On the CPU."""
        train = self.config.train
        density = train.density
        if density == "auto":
            density = "logit_normal" if self.objective.is_flow else "uniform"
        shift = train.shift or self.family.shift(x0.shape[-2], x0.shape[-1])
        return self.objective.sample_t(count, density=density, shift=shift, generator=generator)

    def _noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> dict[str, Any]:
        on_device = t.to(self.device)
        target = self.objective.target(x0, noise, on_device)
        times = {"sigmas": on_device} if self.objective.is_flow else {"timesteps": on_device}
        return {
            "pred": target,
            "target": target,
            "objective": self.objective,
            "noisy": self.objective.add_noise(x0, noise, on_device),
            **times,
        }

    def _captions(self, batch: Batch, seed: int) -> tuple[str, ...]:
        draw = random.Random(seed)
        drop = self.config.train.caption_dropout
        return tuple("" if draw.random() < drop else caption for caption in batch.captions)

    def text(self, captions: tuple[str, ...]) -> Text:
        """A prompt for each sample, on the device."""
        text = families.stack([self.texts[caption] for caption in captions])
        return {key: value.to(self.device) for key, value in text.items()}

    def _identity(self, batch: Batch, t: Tensor) -> IdentityInputs | None:
        """Of the batch as it came from the loader, on the CPU: it decides what is computed."""
        if "identity" not in self.config.terms().values():
            return None
        valid = batch.has_face & ~batch.is_prior
        return IdentityInputs(batch.landmarks, batch.reference.to(self.device), valid, t)

    # -------------------------------------------------------------- the model
    def run(self, part: Part, counts: Mapping[str, Tensor]) -> LossResult:
        """Forwards and backward of a part; the gradients add up to those of the whole step.

        `counts` are those of the whole step, over all parts and processes.
        """
        torch.manual_seed(part.seed)  # dropout
        needs = self.losses.needs(part.batch.step).keys()
        batch = part.batch
        if needs & {"slider", "pair"}:
            return slide.run(self, part, counts)
        if "base_pred" in needs:
            with lora.off(self.model):
                batch = replace(batch, base_pred=self._of(batch, part.text, part.sizes))
        if "preserved_pred" in needs:
            class_text = self.text(tuple(self._preserved(c) for c in part.captions))
            with lora.off(self.model):
                base = self._of(batch, class_text, part.sizes)
            kept = self._of(batch, class_text, part.sizes)
            batch = replace(batch, preserved_pred=kept, preserved_base=base)
        pred = self._of(batch, part.text, part.sizes)
        result = self.losses(replace(batch, pred=pred), counts=counts)
        self.backward(result.total)
        return result

    def predict(self, noisy: Tensor, t: Tensor, text: Text, sizes: Tensor) -> Tensor:
        """The model's output for x_t."""
        with self.autocast():
            return self.family.predict(noisy, t, text, sizes)

    def _of(self, batch: LossBatch, text: Text, sizes: Tensor) -> Tensor:
        assert batch.noisy is not None
        assert batch.t is not None
        return self.predict(batch.noisy, batch.t, text, sizes)

    def _preserved(self, caption: str) -> str:
        preserve = self.config.preserve
        assert preserve is not None
        if preserve.trigger and preserve.trigger in caption:
            return caption.replace(preserve.trigger, preserve.prompt)
        return preserve.prompt


def _seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def numbers(step: int, accumulate: int, process: int, processes: int) -> Iterator[int]:
    """The numbers of the batches that a process has in a step."""
    for i in range(accumulate):
        yield (step * accumulate + i) * processes + process
