"""The training: steps, logs, validation images, checkpoints, and the LoRA at the end."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.dataset import Batch
from lora_prep.training.latents import LatentCache
from lora_prep.training.total import LossResult, sum_over_processes
from lora_prep.training.trainer import (
    checkpoint,
    existing,
    families,
    logs,
    lora,
    losses,
    optimise,
    plots,
    save,
    validation,
)
from lora_prep.training.trainer.data import Data, Texts, identity_of, stream
from lora_prep.training.trainer.plan import Plan
from lora_prep.training.trainer.step import Part, Stepper, numbers

Say = Callable[[str], None]


@dataclass(frozen=True)
class Done:
    """How a training ended."""

    step: int
    files: tuple[Path, ...] = ()
    """The LoRA; none where it was interrupted."""
    checkpoint: Path | None = None
    interrupted: bool = False
    signal: int = signal.SIGINT
    """Which signal it was."""


def train(plan: Plan, *, restart: bool = False, say: Say = print) -> Done:
    """Train to the last step, or go on where a checkpoint left off.

    Under `accelerate launch` in each of the processes: all train, the main one writes.
    """
    from accelerate import Accelerator

    config = plan.config
    cuda = torch.cuda.is_available()
    bf16 = config.model.dtype == "bfloat16" or (config.model.dtype == "auto" and cuda)
    accelerator = Accelerator(mixed_precision="no")  # autocast is the run's own, see _Run
    out = config.save.out
    say = say if accelerator.is_main_process else _quiet
    say(f"hashing {plan.base}")
    setting = checkpoint.Setting(
        config.fingerprint(),
        identity_of(plan.base),
        plan.data.digest() if plan.data else "",
        accelerator.num_processes,
    )
    found = None if restart else checkpoint.latest(out, setting)
    if found and checkpoint.describe(found)[0] > config.train.steps:
        raise UsageError(
            f"{found} is beyond train.steps = {config.train.steps}: raise it, or give --restart"
        )
    if not restart:
        existing.check(config, fresh=found is None)
    dtype = torch.bfloat16 if bf16 else torch.float32
    run = _Run(plan, accelerator, dtype, say, setting)
    if restart and accelerator.is_main_process:  # only now: what could fail has not
        checkpoint.remove(out)
    accelerator.wait_for_everyone()
    start = run.resume(found) if found else 0
    return run.steps(start)


def _quiet(_: str) -> None:
    pass


class _Run:
    """What lives as long as the training."""

    def __init__(
        self,
        plan: Plan,
        accelerator: Any,
        dtype: torch.dtype,
        say: Say,
        setting: checkpoint.Setting,
    ) -> None:
        config = plan.config
        self.setting = setting
        self.plan, self.config, self.accelerator, self.say = plan, config, accelerator, say
        device = accelerator.device
        say(f"loading {plan.base} on {device} in {str(dtype).removeprefix('torch.')}")
        self.family = families.load(plan.base, config.model, device, dtype)
        texts = self._texts(plan.data)
        self.model = getattr(self.family.pipeline, self.family.part)
        lora.add(self.model, config.lora, plan.selection, config.train.seed)
        if config.train.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        self.model.train()
        self.weights = lora.weights(self.model)
        self.optimizer = optimise.optimiser(list(self.weights.values()), config.train)
        self.average = lora.Average(self.model, config.train.ema) if config.train.ema else None
        self.stepper = Stepper(
            family=self.family,
            losses=losses.build(config, plan.data, self.family, device),
            objective=families.objective_of(self.family),
            texts=texts,
            config=config,
            encode=self._encoder(plan.data),
            device=device,
            autocast=lambda: torch.autocast(device.type, dtype, dtype == torch.bfloat16),
            backward=accelerator.backward,
        )

    def _texts(self, data: Data | None) -> Texts:
        """Every prompt of the run, encoded; then the text encoders are given up."""
        config = self.config
        prompts = [""]
        if data:
            prompts += data.captions
        if config.preserve:
            p = config.preserve
            prompts += [p.prompt, *(c.replace(p.trigger, p.prompt) for c in prompts if p.trigger)]
        if config.slider:
            prompts += [config.slider.target, config.slider.positive, config.slider.negative]
        prompts += [*config.validation.prompts, config.validation.negative_prompt]
        folder = data.cache / "texts" if data and data.cache else None
        extra = f"{config.model.text_tokens} {next(self._dtypes())} {families.ENCODING}"
        texts = Texts(self.family, folder, f"{self.setting.model} {extra}")
        texts.prepare(prompts)
        texts.release()
        return texts

    def _dtypes(self) -> Iterator[str]:
        part = getattr(self.family.pipeline, self.family.part)
        yield str(part.dtype)

    def _encoder(self, data: Data | None) -> Callable[[Any], Tensor]:
        """Batches to moments, through the cache where there is one."""
        family = self.family

        def encode(batch: Any) -> Tensor:
            return family.encode(batch.images if isinstance(batch, Batch) else batch)

        if data is None or data.cache is None or self.config.data.crop == "random":
            return encode
        vae = identity_of(self.plan.base / "vae")
        identity = f"{vae} {family.pipeline.vae.dtype} {families.ENCODING}"
        return LatentCache(data.cache / "latents", identity, family.encode)

    # -------------------------------------------------------------- going on
    def resume(self, folder: Path) -> int:
        """Take over a checkpoint; returns the steps that were done."""
        kept = checkpoint.read(folder, self.accelerator.device)
        lora.restore(self.model, kept.adapter)
        self.optimizer.load_state_dict(kept.optimizer)
        if self.average and kept.average:
            self.average.load(kept.average)
        self.say(f"going on after step {kept.step} of {self.config.train.steps} ({folder})")
        return kept.step

    def keep(self, step: int) -> Path | None:
        """Write a checkpoint and the plot; the main process alone."""
        if not self.accelerator.is_main_process:
            return None
        plots.write(self.config.save.out / plots.FILE, logs.read(self.config.save.out))
        return checkpoint.write(
            self.config.save.out,
            step,
            self.setting,
            adapter=self.weights,
            average=self.average.shadow if self.average else None,
            optimizer=self.optimizer,
            keep=self.config.save.keep,
        )

    # -------------------------------------------------------------- steps
    def steps(self, start: int) -> Done:
        """From `start` to the last step."""
        config, train, main = self.config, self.config.train, self.accelerator.is_main_process
        log = None
        if main:
            log = logs.Log(
                config.save.out, config.log.every, start, tensorboard=config.log.tensorboard
            )
        with _interrupts() as interrupted:
            batches = self._batches(start)
            for step in range(start, train.steps):
                began = time.perf_counter()
                values, norm, stop = self._step(step, batches, interrupted)
                done = step + 1
                if log:
                    rate = self.optimizer.param_groups[0]["lr"]
                    values = {**values, "grad_norm": norm}
                    log.add(done, values, lr=rate, seconds=round(time.perf_counter() - began, 4))
                    if done % config.log.every == 0:
                        self._progress(done, list(log.recent))
                last = done == train.steps
                if stop and not last:
                    if log:
                        log.flush()
                    number = interrupted[0] if interrupted else signal.SIGINT
                    kept = self.keep(done)
                    return Done(done, checkpoint=kept, interrupted=True, signal=number)
                self._validate(done, last)
                if last or (config.save.every and done % config.save.every == 0):
                    if log:
                        log.flush()
                    kept = self.keep(done)
                    if kept:
                        self.say(f"checkpoint {kept}")
        self.accelerator.wait_for_everyone()
        return Done(train.steps, self._finish() if main else ())

    def _step(
        self, step: int, batches: Iterator[tuple[Batch, ...]], interrupted: list[int]
    ) -> tuple[dict[str, Tensor], Tensor, bool]:
        """One optimiser step: each term's value, the gradient's norm, whether to stop."""
        train, accelerator = self.config.train, self.accelerator
        optimise.set_rate(self.optimizer, step, train)
        parts = [
            self.stepper.prepare(next(batches), number, step)
            for number in numbers(
                step, train.accumulate, accelerator.process_index, accelerator.num_processes
            )
        ]
        counts = self._counts(parts)
        results = [self.stepper.run(part, counts) for part in parts]
        stop = self._share_gradients(bool(interrupted))
        norm = torch.nn.utils.clip_grad_norm_(
            self.weights.values(), train.clip or float("inf"), error_if_nonfinite=False
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model, step)
        return self._values(results), norm, stop

    def _counts(self, parts: list[Part]) -> dict[str, Tensor]:
        """How much counts in the whole step, for every term: over all parts and processes."""
        return sum_over_processes(self.stepper.losses.counts([part.batch for part in parts]))

    def _share_gradients(self, stop: bool) -> bool:
        """Add up the gradients of all processes, in one message; any process may ask to stop.

        A LoRA's gradients are a few megabytes, and each process has divided by the whole step's
        counts. DistributedDataParallel would want one forward a backward, and terms need several.
        """
        if self.accelerator.num_processes == 1:
            return stop
        weights = list(self.weights.values())
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        flag = torch.tensor([float(stop)], device=self.accelerator.device)
        flat = torch.cat([*(g.flatten() for g in gradients), flag])
        flat = self.accelerator.reduce(flat, reduction="sum")
        sizes = [g.numel() for g in gradients]
        for weight, part in zip(weights, flat[:-1].split(sizes), strict=True):
            weight.grad = part.view_as(weight).clone()
        return bool(flat[-1] > 0)

    def _values(self, results: list[LossResult]) -> dict[str, Tensor]:
        """Each term over the whole step, and their weighted sum as `loss`."""
        names = list(results[0].sums)
        table = torch.zeros(len(names), 2, device=self.accelerator.device)
        for result in results:
            table += torch.stack(
                [torch.stack([result.sums[n].float(), result.counts[n].float()]) for n in names]
            )
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table, reduction="sum")
        values = {
            name: row[0] / torch.where(row[1] > 0, row[1], 1)
            for name, row in zip(names, table, strict=True)
        }
        weights = results[0].weights
        zero = torch.zeros((), device=self.accelerator.device)
        total = sum((weights[name] * values[name] for name in names), zero)
        return {"loss": total, **values}

    def _batches(self, start: int) -> Iterator[tuple[Batch, ...]]:
        if self.plan.data is None:
            return iter(lambda: (), None)
        a = self.accelerator
        first = start * self.config.train.accumulate * a.num_processes + a.process_index
        pin = a.device.type == "cuda"
        return stream(self.plan.data, self.config, first, a.num_processes, pin=pin)

    # -------------------------------------------------------------- what people see
    def _progress(self, done: int, recent: list[dict[str, Any]]) -> None:
        if recent:
            loss = sum(float(line["loss"]) for line in recent) / len(recent)
            pace = sum(float(line["seconds"]) for line in recent) / len(recent)
            self.say(f"step {done}/{self.config.train.steps}  loss {loss:.4f}  {pace:.2f} s/step")

    def _validate(self, done: int, last: bool) -> None:
        wanted = self.config.validation
        due = last or done % wanted.every == 0
        if wanted.prompts and due and self.accelerator.is_main_process:
            with self._averaged():
                paths = validation.draw(self.family, self.stepper.texts, self.config, done)
            self.say(f"drew {paths[0]}" + (f" and {len(paths) - 1} more" if paths[1:] else ""))

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.average.applied(self.model) if self.average else contextlib.nullcontext()

    def _finish(self) -> tuple[Path, ...]:
        with self._averaged():
            digest = self.setting.data
            return tuple(save.write(self.model, self.plan, self.config.train.steps, digest))


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM ask to stop after the step; a second one stops at once."""
    asked: list[int] = []

    def note(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
