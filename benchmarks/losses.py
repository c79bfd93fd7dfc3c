"""What the losses cost: `python -m benchmarks.losses` (`--device cuda` on a GPU).

For one batch of latents, forward and forward with backward: our functions, eager and compiled,
beside straightforward re-derivations of what the trainers do, and beside the memory bound: the
time that reading and writing each tensor once takes at the bandwidth of a copy measured in the
same run. The bound counts prediction and target read, and for backward the gradient written as
well (the prediction and the target read again).

On CUDA all of it, the objectives, drawing noise levels, resizing and packing masks, counting, the
noising by a schedule that lies on the CPU, and the identity term with a reference there are run
once under `torch.cuda.set_sync_debug_mode("error")` before: what would wait for the device fails
there.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rows import record
from lora_prep.training import (
    InvertedMaskPrior,
    LossBatch,
    LossSum,
    Masked,
    Objective,
    PriorPreservation,
    diffusion_loss,
    face_weighted_loss,
    inverted_mask_prior_loss,
    masked_loss,
    pack,
    pack_mask,
    prior_preservation_loss,
    resize_mask,
)

RECOGNISER = Path(__file__).parents[1] / "tests" / "assets" / "tiny_faces" / "rec_tiny.onnx"

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Inputs:
    """One batch."""

    target: Tensor
    mask: Tensor
    is_prior: Tensor
    base: Tensor


def trainers(i: Inputs) -> dict[str, Step]:
    """The trainers' formulae, as one would write them down."""

    def plain(pred: Tensor) -> Tensor:
        return F.mse_loss(pred.float(), i.target.float())

    def kohya(pred: Tensor) -> Tensor:
        loss = F.mse_loss(pred.float(), i.target.float(), reduction="none")
        return (loss * i.mask).mean([1, 2, 3]).mean()

    def diffusion_pipe(pred: Tensor) -> Tensor:
        return ((pred.float() - i.target.float()) ** 2 * i.mask).mean()

    def ai_toolkit(pred: Tensor) -> Tensor:
        weights = i.mask.expand(pred.shape)
        weights = weights / weights.mean()
        return (F.mse_loss(pred.float(), i.target.float(), reduction="none") * weights).mean()

    def onetrainer(pred: Tensor) -> Tensor:
        clamped = i.mask.clamp(0.1, 1)
        loss = F.mse_loss(pred.float(), i.target.float(), reduction="none") * clamped
        return (loss.mean([1, 2, 3]) / clamped.mean([1, 2, 3])).mean()

    return {
        "mse_loss": plain,
        "kohya": kohya,
        "diffusion-pipe": diffusion_pipe,
        "ai-toolkit": ai_toolkit,
        "onetrainer, normalised": onetrainer,
    }


def ours(i: Inputs) -> dict[str, Step]:
    """Ours; the number of tensors as large as the prediction that each reads is `READS`."""
    losses = LossSum(
        {
            "masked": (1.0, Masked()),
            "outside": (0.5, InvertedMaskPrior()),
            "prior": (1.0, PriorPreservation()),
        }
    )

    def total(pred: Tensor) -> Tensor:
        batch = LossBatch(pred, i.target, mask=i.mask, is_prior=i.is_prior, base_pred=i.base)
        return losses(batch).total

    return {
        "diffusion_loss": lambda p: diffusion_loss(p, i.target).mean(),
        "masked_loss": lambda p: masked_loss(p, i.target, i.mask).mean(),
        "masked_loss like kohya": lambda p: masked_loss(p, i.target, i.mask, like="kohya").mean(),
        "masked_loss like ai-toolkit": lambda p: masked_loss(
            p, i.target, i.mask, like="ai-toolkit"
        ).mean(),
        "face_weighted_loss": lambda p: face_weighted_loss(p, i.target, i.mask, weight=1.0).mean(),
        "inverted_mask_prior_loss": lambda p: inverted_mask_prior_loss(p, i.base, i.mask).mean(),
        "prior_preservation_loss": lambda p: prior_preservation_loss(
            p, i.target, i.is_prior, weight=1.0
        ).mean(),
        "LossSum of masked, outside, prior": total,
    }


BOUND = "memory bound of a copy"
PEERS = {
    "masked_loss like kohya": "kohya",
    "masked_loss like ai-toolkit": "ai-toolkit",
    "diffusion_loss": "mse_loss",
}
"""Which of the trainers' formulae does the same work."""

READS = {"LossSum of masked, outside, prior": 3}
"""Tensors of the prediction's size that are read; 2 where not named."""


def seconds(work: Callable[[], object], device: torch.device, enough: float) -> float:
    """The shortest of at least five runs, within about so many seconds.

    On the CPU of the processor's time, so that other work on the machine matters little.
    """
    cuda, threads = device.type == "cuda", torch.get_num_threads()
    for _ in range(3):
        work()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < enough:
        if cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        else:
            before = time.process_time()
            work()
            times.append((time.process_time() - before) / threads)
    return statistics.median(times) if cuda else min(times)


def both(step: Step, pred: Tensor, device: torch.device, enough: float) -> tuple[float, float]:
    """Seconds for forward, and for forward with backward."""
    learned = pred.clone().requires_grad_()

    def backward() -> None:
        learned.grad = None
        step(learned).backward()  # type: ignore[no-untyped-call]

    def forward() -> None:
        with torch.no_grad():
            step(pred)

    return seconds(forward, device, enough), seconds(backward, device, enough)


def bandwidth(like: Tensor, enough: float) -> float:
    """Bytes a second, read and written, of a copy of a tensor as large."""
    copy = torch.empty_like(like)
    return 2 * like.nbytes / seconds(lambda: copy.copy_(like), like.device, enough)


def prove_no_sync(steps: dict[str, Step], pred: Tensor) -> None:
    """Run everything with waiting for the device forbidden."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in steps.values():
            learned = pred.clone().requires_grad_()
            step(learned).backward()  # type: ignore[no-untyped-call]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def beside(device: torch.device) -> dict[str, Step]:
    """What a loop runs around the losses; `Objective` and the identity term copy from the CPU."""
    from lora_prep.training.identity import IdentityInputs, IdentityTerm, load_recogniser
    from lora_prep.training.identity.align import TEMPLATE

    recogniser = load_recogniser(RECOGNISER, check=False, device=device)
    objective = Objective("epsilon", torch.linspace(0.99, 0.01, 1000))
    term = IdentityTerm(recogniser, lambda z: F.pixel_shuffle(z, 2), factor=2)
    losses = LossSum({"identity": (1.0, term)})
    host, reference = torch.full((8,), 100), torch.randn(128)
    t, size = host.to(device), (8, 12, 64, 64)
    x0, noise = torch.randn(2, *size).to(device)
    landmarks = torch.tensor(TEMPLATE).expand(8, -1, -1)

    def step(_: Tensor) -> Tensor:
        noisy = objective.add_noise(x0, noise, t)
        pred = noise.clone().requires_grad_()
        inputs = IdentityInputs(landmarks, reference, t=host)
        batch = LossBatch(
            pred, noise, objective=objective, timesteps=t, noisy=noisy, identity=inputs
        )
        return losses(batch).total

    def around(_: Tensor) -> Tensor:
        levels = Objective("flow_matching").sample_t(8, density="logit_normal", device=device)
        of_timesteps = [
            Objective(kind, objective.alphas_cumprod)
            for kind in ("epsilon", "v_prediction", "sample")
        ]
        pred = noise.clone().requires_grad_()
        found = []
        for kind, times in [(Objective("flow_matching"), levels), *((o, t) for o in of_timesteps)]:
            noisy, target = kind.add_noise(x0, noise, times), kind.target(x0, noise, times)
            estimates = kind.x0(noisy, pred, times) - kind.noise(noisy, pred, times)
            mask = resize_mask(torch.ones(8, 1, 500, 512, device=device), (64, 64))
            batch = LossBatch(
                pack(estimates), pack(target), kind, times, levels, mask=pack_mask(mask, 12)
            )
            masked = LossSum({"masked": (1.0, Masked(min_snr=5.0))})
            found.append(masked(batch, counts=masked.counts([batch])).total)
        return torch.stack(found).sum()

    return {"noising and identity": step, "objectives, masks, tokens, counts": around}


def row(what: str, how: str, times: tuple[float, float], bounds: tuple[float, float]) -> str:
    cells = [f"{1e3 * t:.3f} ms | {t / b:.1f}" for t, b in zip(times, bounds, strict=True)]
    return f"| {what} | {how} | {' | '.join(cells)} |"


@click.command(help=__doc__)
@click.option("--device", default="cpu", show_default=True)
@click.option("--shape", default="8,16,128,128", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option("--threads", default=1, show_default=True, help="Of the CPU.")
@click.option("--enough", default=0.15, show_default=True, help="Seconds a measurement.")
def main(device: str, shape: str, dtype: str, threads: int, enough: float) -> None:
    torch.set_num_threads(threads)
    where = torch.device(device)
    size = tuple(int(n) for n in shape.split(","))
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    torch.manual_seed(0)
    pred, target, base = (torch.randn(size).to(where, kind) for _ in range(3))
    mask = (torch.rand(size[0], 1, *size[2:]) > 0.7).float().to(where)
    is_prior = (torch.arange(size[0]) >= size[0] // 2).to(where)
    inputs = Inputs(target, mask, is_prior, base)
    peers, mine = trainers(inputs), ours(inputs)
    cuda = where.type == "cuda"
    name = torch.cuda.get_device_name(where) if cuda else platform.machine()
    print(
        f"{name}, torch {torch.__version__}, {shape} {dtype}, {pred.nbytes / 1e6:.1f} MB a tensor"
    )
    if cuda:
        prove_no_sync({**mine, **beside(where)}, pred)
        print('no host synchronisation: ran under torch.cuda.set_sync_debug_mode("error")')
    else:
        print(f"{threads} thread(s), load average before: {os.getloadavg()[0]:.1f}")
    speed = bandwidth(pred, enough)
    print(f"copy: {speed / 1e9:.1f} GB/s read and written\n")
    print(
        "| what | how | forward | × bound | forward and backward | × bound |\n" + "|---" * 6 + "|"
    )
    one = pred.nbytes / speed
    eager: dict[str, tuple[float, float]] = {}
    for what, step in {**peers, **mine}.items():
        reads = READS.get(what, 2)
        bounds = (reads * one, (2 * reads + 1) * one)
        eager[what] = both(step, pred, where, enough)
        print(row(what, "eager", eager[what], bounds))
        compiled = torch.compile(step, fullgraph=True, dynamic=False)
        if what in mine or what == "mse_loss":
            times = both(compiled, pred, where, enough)
            print(row(what, "compiled", times, bounds))
            record("losses", f"{what}, compiled", "ms", 1e3 * times[1], BOUND, 1e3 * bounds[1])
    for what, peer in PEERS.items():
        unit, mine_ms, theirs_ms = "ms", 1e3 * eager[what][1], 1e3 * eager[peer][1]
        record("losses", f"{what}, eager", unit, mine_ms, f"re-derived {peer}", theirs_ms)
    print(f"\nload average after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
