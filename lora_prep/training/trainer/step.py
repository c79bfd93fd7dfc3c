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

from lora_prep.training.batch import LossBatch, PairInputs, SliderInputs
from lora_prep.training.dataset import Batch
from lora_prep.training.identity import IdentityInputs
from lora_prep.training.objectives import Objective
from lora_prep.training.resize import resize_mask
from lora_prep.training.total import LossResult, LossSum
from lora_prep.training.trainer import families, lora
from lora_prep.training.trainer.config import Config
from lora_prep.training.trainer.data import Texts, sizes_of
from lora_prep.training.trainer.families import Family, Text

Encode = Callable[[Batch], Tensor]
"""Images of a batch to the moments of their latents."""

SLIDER_SIZE = 1
"""Samples of a textual slider without images."""


@dataclass(frozen=True, eq=False)
class Part:
    """A micro-batch, ready for the model."""

    batch: LossBatch
    """`pred` is the target until the model has run."""
    text: Text
    sizes: Tensor
    captions: tuple[str, ...]
    seed: int
    low: LossBatch | None = None
    """The other side of a pair."""


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
            return self._from_noise(seed, generator, step)
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
        low = None
        if len(batches) > 1:
            other = self._latents(batches[1].to(self.device), generator)
            low = LossBatch(**self._noised(other, noise, t), step=step)
        sizes = sizes_of(batch).to(self.device)
        return Part(part, self._text(captions), sizes, captions, seed, low)

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

    def _text(self, captions: tuple[str, ...]) -> Text:
        text = families.stack([self.texts[caption] for caption in captions])
        return {key: value.to(self.device) for key, value in text.items()}

    def _identity(self, batch: Batch, t: Tensor) -> IdentityInputs | None:
        """Of the batch as it came from the loader, on the CPU: it decides what is computed."""
        if "identity" not in self.config.terms().values():
            return None
        valid = batch.has_face & ~batch.is_prior
        return IdentityInputs(batch.landmarks, batch.reference.to(self.device), valid, t)

    # -------------------------------------------------------------- the model
    def needs(self, step: int) -> set[str]:
        """The inputs that the terms with a weight at this step require."""
        active = [term for schedule, term in self.losses.terms.values() if schedule.at(step) > 0]
        return {field for term in active for field in term.requires}

    def run(self, part: Part, counts: Mapping[str, Tensor]) -> list[LossResult]:
        """Forwards and backwards of a part; the gradients add up to those of the whole step.

        `counts` are those of the whole step, over all parts and processes. More than one result
        where a slider has two sides, each with its own backward: with gradient checkpointing the
        adapter's scale has to be the same in both.
        """
        torch.manual_seed(part.seed)  # dropout
        needs = self.needs(part.batch.step)
        batch = part.batch
        if "base_pred" in needs:
            with lora.off(self.model):
                batch = replace(batch, base_pred=self._predict(batch, part.text, part.sizes))
        if "slider" in needs:
            return self._slide(replace(part, batch=batch), counts)
        if "pair" in needs:
            return self._slide_pair(replace(part, batch=batch), counts)
        if "preserved_pred" in needs:
            class_text = self._text(tuple(self._preserved(c) for c in part.captions))
            with lora.off(self.model):
                base = self._predict(batch, class_text, part.sizes)
            kept = self._predict(batch, class_text, part.sizes)
            batch = replace(batch, preserved_pred=kept, preserved_base=base)
        pred = self._predict(batch, part.text, part.sizes)
        return [self._finish(replace(batch, pred=pred), counts)]

    def _predict(self, batch: LossBatch, text: Text, sizes: Tensor) -> Tensor:
        assert batch.noisy is not None
        assert batch.t is not None
        with self.autocast():
            return self.family.predict(batch.noisy, batch.t, text, sizes)

    def _finish(
        self, batch: LossBatch, counts: Mapping[str, Tensor], scale: float = 1.0
    ) -> LossResult:
        result = self.losses(batch, counts=counts, scale=scale)
        self.backward(result.total)
        return result

    def _preserved(self, caption: str) -> str:
        preserve = self.config.preserve
        assert preserve is not None
        if preserve.trigger and preserve.trigger in caption:
            return caption.replace(preserve.trigger, preserve.prompt)
        return preserve.prompt

    # -------------------------------------------------------------- sliders
    def _slide(self, part: Part, counts: Mapping[str, Tensor]) -> list[LossResult]:
        """Both directions of a textual slider; the loss is their mean."""
        slider = self.config.slider
        assert slider is not None
        count = len(part.batch.pred)
        with lora.off(self.model):
            neutral, positive, negative = (
                self._predict(part.batch, self._text((prompt,) * count), part.sizes)
                for prompt in (slider.target, slider.positive, slider.negative)
            )
        text = self._text((slider.target,) * count)
        results = []
        for direction in (1.0, -1.0):
            with lora.at(self.model, direction):
                pred = self._predict(part.batch, text, part.sizes)
                sides = SliderInputs(neutral, positive, negative, direction)
                batch = replace(part.batch, pred=pred, slider=sides)
                results.append(self._finish(batch, counts, 0.5))
        return results

    def _slide_pair(self, part: Part, counts: Mapping[str, Tensor]) -> list[LossResult]:
        """Both images of each pair: in each half the other side is at its target, and adds 0."""
        high, low = part.batch, part.low
        assert low is not None
        results = []
        with lora.at(self.model, 1.0):
            pred = self._predict(high, part.text, part.sizes)
            batch = replace(high, pred=pred, pair=PairInputs(low.target, low.target))
            results.append(self._finish(batch, counts))
        with lora.at(self.model, -1.0):
            pred = self._predict(low, part.text, part.sizes)
            batch = replace(high, pred=high.target, pair=PairInputs(pred, low.target))
            results.append(self._finish(batch, counts))
        return results

    def _from_noise(self, seed: int, generator: torch.Generator, step: int) -> Part:
        """x_t for a textual slider without images: so far denoised by the model itself, slider on.

        Source: Concept Sliders (Gandikota 2023, arXiv 2311.12092), the official training script.
        """
        slider = self.config.slider
        assert slider is not None
        count = self.config.train.batch_size
        side = self.config.data.resolution // 16 * 2
        pixels = torch.zeros(1, 3, 8 * side, 8 * side, device=self.device)
        channels = self.family.encode(pixels[..., :64, :64]).shape[1] // 2
        x = torch.randn(count, channels, side, side, generator=generator).to(self.device)
        levels = _levels(self.objective, slider.denoise_steps)
        until = random.Random(seed).randrange(len(levels))
        text = self._text((slider.target,) * count)
        edge = float(8 * side)
        sizes = torch.tensor([[edge, edge, 0.0, 0.0, edge, edge]] * count, device=self.device)
        with torch.no_grad():
            for now, then in zip(levels[:until], levels[1:], strict=False):
                batch = LossBatch(**self._at_level(x, now.expand(count)))
                pred = self._predict(batch, text, sizes).float()
                t, after = (level.expand(count).to(self.device) for level in (now, then))
                x0, noise = self.objective.x0(x, pred, t), self.objective.noise(x, pred, t)
                x = self.objective.add_noise(x0, noise, after)
        part = LossBatch(**self._at_level(x, levels[until].expand(count)), step=step)
        return Part(part, text, sizes, (slider.target,) * count, seed)

    def _at_level(self, x: Tensor, t: Tensor) -> dict[str, Any]:
        times = {"sigmas" if self.objective.is_flow else "timesteps": t.to(self.device)}
        return {"pred": x, "target": x, "objective": self.objective, "noisy": x, **times}


def _levels(objective: Objective, steps: int) -> Tensor:
    """Noise levels from nearly all to nearly none, (steps,)."""
    if objective.is_flow:
        return torch.linspace(1, 1 / steps, steps)
    assert objective.alphas_cumprod is not None
    last = len(objective.alphas_cumprod) - 1
    return torch.linspace(last, last / steps, steps).round().long()


def _seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def numbers(step: int, accumulate: int, process: int, processes: int) -> Iterator[int]:
    """The numbers of the batches that a process has in a step."""
    for i in range(accumulate):
        yield (step * accumulate + i) * processes + process
