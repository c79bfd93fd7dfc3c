"""What each loss of the reference trainer does, on a toy: the table of the README.

FLUX.2 Klein's real classes with a third of a million weights, which know four class images by
heart; four pictures of 64 × 64 pixels with the left half masked. Every run starts from the same
weights and sees the same batches; only `[losses]` differs. Measured on the training pictures and
class images at fixed noise:

    in, out        mean squared error inside and outside of the mask
    drift          outside of the mask: distance of the predictions to the base model's
    class drift    the same for class images with the class prompt

And of a slider that is trained on pairs, bright and dark, from -1 to 1: how far its predictions lie
towards the bright pictures (half the way from one to the other is the most that is asked of it).

    python -m benchmarks.learning [--steps N] [--json]
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import record
from lora_prep import imageio
from lora_prep.training.trainer import config as run_config
from lora_prep.training.trainer import families, loop
from lora_prep.training.trainer.plan import plan
from lora_prep.types import Image

SIDE, PICTURES = 64, 4
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Of the slider, over the range that it is trained for."""
TAUGHT = 60
"""Steps in which the base model learns the class images."""
CAPTION, CLASS_PROMPT = "sks person", "a person"
MASKED: dict[str, Any] = {"masked": {}}
FULL: dict[str, Any] = {"diffusion": {}}
INVERTED: dict[str, Any] = {"inverted_mask_prior": {"weight": 1.0}}
PRIOR: dict[str, Any] = {"prior_preservation": {}}
DOP: dict[str, Any] = {"output_preservation": {}}
RUNS: dict[str, tuple[dict[str, Any], bool]] = {
    "full": (FULL, False),
    "masked": (MASKED, False),
    "masked + inverted-mask prior": ({**MASKED, **INVERTED}, False),
    "full + class images": ({**FULL, **PRIOR}, True),
    "full + output preservation": ({**FULL, **DOP}, False),
    "masked + inverted + output preservation": ({**MASKED, **INVERTED, **DOP}, False),
}
"""Losses, and whether class images are trained on, by name."""


COMPARED = (
    ("masked", "base", "inside"),
    ("masked + inverted-mask prior", "masked", "drift"),
    ("full + class images", "full", "class_drift"),
    ("full + output preservation", "full", "class_drift"),
)
"""Runs, what they are compared with, and in which figure."""


@dataclass(frozen=True)
class Measured:
    """A model on the toy's pictures."""

    inside: float
    outside: float
    drift: float
    class_drift: float
    seconds: float = 0.0
    """Of a step."""


def main() -> None:
    """Train and measure all runs, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # more of them only wait for each other on so small a model
    torch.set_flush_denormal(True)  # what is learned by heart has tiny gradients
    with tempfile.TemporaryDirectory() as folder:
        toy = Toy(Path(folder))
        rows = {"base": toy.measure(None)}
        for name, (losses, priors) in RUNS.items():
            rows[name] = toy.train(losses, steps=arguments.steps, priors=priors)
            print(f"{name}: done", file=sys.stderr)
        slides = {"untrained": toy.slide(None), "pairs": toy.slide(toy.slider(arguments.steps))}
    for name, peer, figure in COMPARED:
        mine, theirs = (getattr(rows[run], figure) for run in (name, peer))
        what = f"{name}: {figure.replace('_', ' ')} after {arguments.steps} steps"
        record("what losses do", what, "squared error, less is better", mine, peer, theirs)
    width = slides["pairs"][-1] - slides["pairs"][0]
    what = f"slider from pairs: way from -1 to 1 after {arguments.steps} steps"
    record("what losses do", what, "of the pairs' distance", width, "asked for", 1.0)
    if arguments.json:
        print(json.dumps({**{name: vars(row) for name, row in rows.items()}, "slider": slides}))
        return
    print(f"{'run':42}{'in':>7}{'out':>7}{'drift':>8}{'class drift':>13}{'ms/step':>9}")
    for name, row in rows.items():
        print(
            f"{name:42}{row.inside:7.2f}{row.outside:7.2f}{row.drift:8.3f}"
            f"{row.class_drift:13.3f}{row.seconds * 1e3:9.0f}"
        )
    print(f"\n{'slider at':42}" + "".join(f"{strength:+8.1f}" for strength in STRENGTHS))
    for name, slide in slides.items():
        print(f"{name:42}" + "".join(f"{amount:8.3f}" for amount in slide))


class Toy:
    """The pictures and the model, in a folder."""

    def __init__(self, folder: Path) -> None:
        from tests.fakes import tiny_pipelines

        self.folder, self.base = folder, folder / "klein"
        for kind in ("faces", "masks", "priors", "pairs/positive", "pairs/negative"):
            (folder / "data" / kind).mkdir(parents=True)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[:, : SIDE // 2] = 255
        for i in range(PICTURES):
            save(folder / f"data/faces/{i}.png", picture(i))
            (folder / f"data/faces/{i}.txt").write_text(CAPTION)
            (folder / f"data/masks/{i}.png").write_bytes(imageio.encode_mask(mask))
            save(folder / f"data/priors/{i}.png", picture(100 + i))
            for side, light in (("positive", 1.4), ("negative", 0.6)):
                lit = cv2.convertScaleAbs(picture(i), alpha=light)
                save(folder / f"data/pairs/{side}/{i}.png", np.asarray(lit, np.uint8))
        for pairs, sides in (("swapped", ("negative", "positive")), ("equal", ("positive",) * 2)):
            (folder / "data" / pairs).mkdir()
            for side, seen in zip(("positive", "negative"), sides, strict=True):
                (folder / "data" / pairs / side).symlink_to(folder / "data/pairs" / seen)
        pipeline = tiny_pipelines.build("flux2-klein")
        pipeline.vae.bn.running_var.fill_(0.01)  # what is in a picture then outweighs the noise
        family = families.wrap(pipeline, self._settings)
        self._teach_class(family)
        pipeline.save_pretrained(self.base)

    _settings = run_config.ModelConfig(base="klein", text_tokens=16)

    def _teach_class(self, family: families.Family) -> None:
        """The base model knows the class images by heart."""
        torch.manual_seed(0)
        text = family.encode_text(CLASS_PROMPT)
        model, objective = family.pipeline.transformer, families.objective_of(family)
        x0 = self._latents(family, "priors", 2)
        wide = {
            key: value.detach().expand(len(x0), *value.shape[1:]) for key, value in text.items()
        }
        sizes = torch.zeros(len(x0), 6)
        optimizer = torch.optim.Adam(model.requires_grad_(True).parameters(), 3e-3)
        for _ in range(TAUGHT):
            noise, t = torch.randn(x0.shape), objective.sample_t(len(x0))
            pred = family.predict(objective.add_noise(x0, noise, t), t, wide, sizes)
            optimizer.zero_grad()
            loss = (pred - objective.target(x0, noise, t)).square().mean()
            torch.autograd.backward(loss)
            optimizer.step()
        model.requires_grad_(False)

    def _latents(self, family: families.Family, name: str, times: int) -> Tensor:
        images = []
        for path in sorted((self.folder / "data" / name).glob("*.png")):
            pixels = imageio.decode_image(path.read_bytes()).astype(np.float32)
            images.append(torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1)
        moments = family.encode(torch.stack(images).repeat(times, 1, 1, 1))
        return family.latents(moments, torch.Generator().manual_seed(7))

    def values(
        self, losses: Mapping[str, Any], *, steps: int, priors: bool, **more: Any
    ) -> dict[str, Any]:
        """The configuration of a run."""
        data: dict[str, Any] = {"images": "data", "resolution": SIDE, "bucket_step": SIDE}
        if priors:
            data |= {"priors": "data/priors", "prior_caption": CLASS_PROMPT}
        values: dict[str, Any] = {
            "model": {"base": "klein", "text_tokens": 16},
            "data": data,
            "lora": {"rank": 8, "targets": "all"},
            # As many training pictures in a step with class images as without.
            "train": {"steps": steps, "batch_size": 8 if priors else 4, "learning_rate": 1e-2},
            "losses": dict(losses),
            "save": {"out": "out"},
        }
        if "output_preservation" in losses:
            values["preserve"] = {"prompt": CLASS_PROMPT}
        for name, table in more.items():
            values[name] = {**values.get(name, {}), **table}
        return values

    def train(
        self, losses: Mapping[str, Any], *, steps: int, priors: bool = False, **more: Any
    ) -> Measured:
        """A run with these losses, measured."""
        values = self.values(losses, steps=steps, priors=priors, **more)
        config = run_config.from_dict(values, "toy", self.folder)
        began = time.process_time()
        done = loop.train(plan(config, self.base), restart=True, say=lambda _: None)
        if done.interrupted:
            raise KeyboardInterrupt
        seconds = (time.process_time() - began) / steps
        return self.measure(done.files[0], seconds)

    def slider(self, steps: int, pairs: str = "pairs") -> Path:
        """A LoRA that slides from dark to bright; of `swapped` pairs from bright to dark, and of
        `equal` ones nowhere."""
        values = self.values(
            {"paired_slider": {}},
            steps=steps,
            priors=False,
            data={"caption": CAPTION},
            slider={"pairs": f"data/{pairs}"},
        )
        config = run_config.from_dict(values, "toy", self.folder)
        return loop.train(plan(config, self.base), restart=True, say=lambda _: None).files[0]

    @torch.no_grad()
    def slide(self, file: Path | None) -> list[float]:
        """How far the predicted pictures lie towards the bright ones, at each of the strengths."""
        family = families.load(self.base, self._settings, torch.device("cpu"), torch.float32)
        text = family.encode_text(CAPTION)
        high, low = (self._latents(family, f"pairs/{side}", 1) for side in ("positive", "negative"))
        noise = torch.randn(high.shape, generator=torch.Generator().manual_seed(7))
        objective, sigmas = families.objective_of(family), torch.full((PICTURES,), 0.7)
        noisy = objective.add_noise((high + low) / 2, noise, sigmas)
        wide = {key: value.expand(PICTURES, *value.shape[1:]) for key, value in text.items()}
        if file is not None:
            family.pipeline.load_lora_weights(str(file), adapter_name="slider")
        seen = []
        for strength in STRENGTHS:
            if file is not None:
                family.pipeline.set_adapters(["slider"], [strength])
            pred = family.predict(noisy, sigmas, wide, torch.zeros(PICTURES, 6))
            seen.append(objective.x0(noisy, pred, sigmas))
        way = high - low
        neutral = seen[len(seen) // 2]
        return [float(((x0 - neutral) * way).sum() / way.square().sum()) for x0 in seen]

    @torch.no_grad()
    def measure(self, file: Path | None, seconds: float = 0.0) -> Measured:
        """The model with a LoRA, against the base, at fixed noise and noise levels."""
        family = families.load(self.base, self._settings, torch.device("cpu"), torch.float32)
        texts = [family.encode_text(p) for p in (CAPTION, CLASS_PROMPT)]
        batches = [
            self._noised(family, name, text)
            for name, text in zip(("faces", "priors"), texts, strict=True)
        ]
        before = [family.predict(x, t, text, sizes) for x, t, text, sizes, _ in batches]
        after = before
        if file is not None:
            family.pipeline.load_lora_weights(str(file))
            after = [family.predict(x, t, text, sizes) for x, t, text, sizes, _ in batches]
        half = SIDE // 16
        error = (after[0] - batches[0][4]).square()
        moved = [(a - b).square() for a, b in zip(after, before, strict=True)]
        return Measured(
            inside=float(error[..., :half].mean()),
            outside=float(error[..., half:].mean()),
            drift=float(moved[0][..., half:].mean()),
            class_drift=float(moved[1].mean()),
            seconds=seconds,
        )

    def _noised(
        self, family: families.Family, name: str, text: families.Text
    ) -> tuple[Tensor, Tensor, families.Text, Tensor, Tensor]:
        """x_t, σ, text, sizes and the target of each picture at four noise levels."""
        generator = torch.Generator().manual_seed(7)
        objective = families.objective_of(family)
        x0 = self._latents(family, name, 4)
        noise = torch.randn(x0.shape, generator=generator)
        sigmas = torch.linspace(0.2, 0.8, 4).repeat_interleave(PICTURES)
        count = len(x0)
        wide = {key: value.expand(count, *value.shape[1:]) for key, value in text.items()}
        noisy = objective.add_noise(x0, noise, sigmas)
        return noisy, sigmas, wide, torch.zeros(count, 6), objective.target(x0, noise, sigmas)


def picture(seed: int) -> Image:
    """Something to learn by heart: a few shapes."""
    draw = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), draw.integers(40, 216, 3), np.uint8)
    for _ in range(6):
        centre = tuple(int(v) for v in draw.integers(0, SIDE, 2))
        colour = tuple(int(v) for v in draw.integers(0, 256, 3))
        cv2.circle(image, centre, int(draw.integers(4, 14)), colour, -1)
    return image


def save(path: Path, image: Image) -> None:
    """As PNG."""
    path.write_bytes(imageio.encode_image(image, "png"))


if __name__ == "__main__":
    main()
