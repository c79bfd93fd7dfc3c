"""What an identity loss costs in a training step, beside the usual recipe's.

A UNet on 64×64 latents (512 px), TAESD's network as the decoder, IResNet-50 as the recogniser;
weights are random, only times count. "naive" is the recipe: decode x0, detect, and run ONNX Runtime
on the generated and on the real image at every step; it has no gradient at all. Gated steps: t is
uniform and the term is on below a quarter of the timesteps, so a step in four; "every 4th" makes
that one in sixteen. Times are medians of interleaved steps: on the CPU of the processor's time,
with one thread in torch and in ONNX Runtime, so that other work on the machine matters little.

    python -m benchmarks.identity [--device cuda] [--repeats N] [--widths N ...] [--json]

What the term adds to a step does not depend on the denoiser, so its part of a step is the smaller
the larger the denoiser is: by default two are measured, of 13 and 29 million weights. Both are far
smaller than any that people train.

Also: the same counted in multiplications for models of real size, and what decoding only the
latents around the face changes in the pixels, by margin.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rows import record
from lora_prep.training import Diffusion, LossBatch, LossSum, Objective
from lora_prep.training.identity import (
    IdentityInputs,
    IdentityTerm,
    align_faces,
    diffusers_decoder,
    load_recogniser,
)
from lora_prep.training.identity.align import TEMPLATE
from lora_prep.training.identity.decode import decode_faces, window

DETECTOR = Path(__file__).parents[1] / "tests" / "assets" / "tiny_faces" / "det_tiny.onnx"
LAYERS = {18: (2, 2, 2, 2), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
MARGINS = (0, 2, 4, 6, 8, 12)
TARGET = 1.15
"""Of a gated step, in steps without the term."""


class Block(nn.Module):
    """IResNet's residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))
            if stride == 2
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H/stride, W/stride)."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


def iresnet(depth: int, width: int = 64) -> nn.Module:
    """insightface's IResNet with random weights: (B, 3, 112, 112) to (B, 512)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.PReLU(width),
    ]
    before = width
    for stage, count in enumerate(LAYERS[depth]):
        after = width * 2**stage
        for i in range(count):
            layers.append(Block(before, after, 1 if i else 2))
            before = after
    layers += [nn.BatchNorm2d(before), nn.Dropout(0.0), nn.Flatten()]
    layers += [nn.Linear(before * 49, 512), nn.BatchNorm1d(512)]
    return nn.Sequential(*layers)


def export(net: nn.Module, path: Path) -> Path:
    """Write a recogniser as insightface's packs have it."""
    with warnings.catch_warnings(action="ignore"):  # that the exporter is the old one
        torch.onnx.export(
            net.eval(),
            (torch.zeros(1, 3, 112, 112),),
            str(path),
            input_names=["input"],
            output_names=["embedding"],
            dynamic_axes={"input": {0: "batch"}, "embedding": {0: "batch"}},
            opset_version=13,
            dynamo=False,
        )
    return path


def unet(width: int) -> nn.Module:
    """Without text; 29 million weights for a width of 144, 13 million for 96."""
    from diffusers import UNet2DModel

    net: nn.Module = UNet2DModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(width, width * 5 // 3, width * 8 // 3),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
    )
    return net


def naive(model: Path, device: str) -> Callable[[Tensor, Tensor], None]:
    """The recipe's: a detector and ONNX Runtime, on two images, without gradient."""
    import onnxruntime
    from insightface.model_zoo import model_zoo

    alone = onnxruntime.SessionOptions()
    alone.intra_op_num_threads = 1
    providers = ["CUDAExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
    detector = model_zoo.get_model(str(DETECTOR), providers=providers, sess_options=alone)
    recogniser = model_zoo.get_model(str(model), providers=providers, sess_options=alone)
    detector.prepare(0 if device == "cuda" else -1, input_size=(640, 640), det_thresh=0.5)

    def run(pixels: Tensor, landmarks: Tensor) -> None:
        from insightface.utils.face_align import norm_crop

        image = (
            ((pixels[0].detach().clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).byte().cpu().numpy()
        )
        for picture in (image, image[:, ::-1].copy()):  # the generated one, the real one
            detector.detect(picture)
            with warnings.catch_warnings(action="ignore"):  # scikit-image's, of insightface
                crop = norm_crop(picture, landmarks[0].numpy())
            recogniser.get_feat(crop)

    return run


def margins(vae: Any, landmarks: Tensor, device: str) -> dict[str, float]:
    """RMS difference of the aligned crop to that of a whole decoding, part of its deviation."""
    latents = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(3)).to(device)
    decode = diffusers_decoder(vae)
    found = {}
    with torch.no_grad():
        whole = align_faces(*decode_faces(latents, landmarks, decode, factor=8, margin=None))
        for margin in MARGINS:
            crop = align_faces(*decode_faces(latents, landmarks, decode, factor=8, margin=margin))
            found[str(margin)] = float((crop - whole).square().mean().sqrt() / whole.std())
    return found


def multiplications(recogniser: nn.Module, latents: int) -> dict[str, float]:
    """A LoRA step with an active identity term, × one without: counted, not measured.

    Forward, and backward to the inputs only, since neither the recogniser's nor most of the model's
    weights have gradients. The decoder sees `latents`² around the face.
    """
    from diffusers import AutoencoderTiny, UNet2DConditionModel

    def forward(net: nn.Module, *inputs: Tensor) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(*inputs)
        return float(counter.get_total_flops()) / 2e9

    meta = torch.device("meta")
    with meta:
        decoder = AutoencoderTiny().decoder
        sd15 = UNet2DConditionModel(cross_attention_dim=768)
        sdxl = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
        )
        t, words = torch.zeros(1), torch.zeros(1, 77, 1)
        ours = forward(decoder, torch.zeros(1, 4, latents, latents))
        ours += forward(recogniser.eval(), torch.zeros(1, 3, 112, 112))
        steps = {
            "SD 1.5 at 512 px": forward(
                sd15, torch.zeros(1, 4, 64, 64), t, words.expand(1, 77, 768)
            ),
            "SDXL at 1024 px": forward(
                sdxl, torch.zeros(1, 4, 128, 128), t, words.expand(1, 77, 2048)
            ),
        }
    return {name: 1 + ours / value for name, value in steps.items()}


def measure(device: str, repeats: int, width: int, folder: Path) -> dict[str, Any]:
    """Median seconds of each kind of step."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    network = iresnet(50)
    path = export(network, folder / "r50.onnx")
    recogniser = load_recogniser(path, device=device)
    vae = AutoencoderTiny().eval().requires_grad_(False).to(device)
    model = unet(width).to(device)
    objective = Objective("epsilon", torch.linspace(0.999, 0.005, 1000, device=device))
    landmarks = (torch.tensor(TEMPLATE) * 1.2 + 180)[None]  # a face of 130 px
    x0, noise = torch.randn(2, 1, 4, 64, 64, device=device).unbind()
    term = IdentityTerm(recogniser, diffusers_decoder(vae))
    base = LossSum({"diffusion": (1.0, Diffusion())})
    ours = LossSum({"diffusion": (1.0, Diffusion()), "identity": (0.1, term)})
    whole = LossSum(
        {"diffusion": (1.0, Diffusion()), "identity": (0.1, replace(term, margin=None))}
    )
    recipe = naive(path, device)

    def step(losses: LossSum, time_step: int, *, with_recipe: bool = False) -> float:
        begin = _now(device)
        host = torch.tensor([time_step])
        t = host.to(device)
        noisy = objective.add_noise(x0, noise, t)
        pred = model(noisy, t).sample
        inputs = IdentityInputs(landmarks, torch.ones(512), t=host)
        batch = LossBatch(
            pred, noise, objective=objective, timesteps=t, noisy=noisy, identity=inputs
        )
        if with_recipe:
            with torch.no_grad():
                recipe(vae.decode(objective.x0(noisy, pred, t)).sample, landmarks)
        losses(batch).total.backward()  # type: ignore[no-untyped-call]
        model.zero_grad()
        return _now(device) - begin

    kinds = {
        "base": lambda: step(base, 100),
        "naive": lambda: step(base, 100, with_recipe=True),
        "whole": lambda: step(whole, 100),
        "active": lambda: step(ours, 100),
        "idle": lambda: step(ours, 600),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for run in range(repeats + 1):
        for name, kind in kinds.items():
            seconds = kind()  # type: ignore[no-untyped-call]
            if run:  # the first warms up
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    active, idle, one = median["active"], median["idle"], median["base"]
    return {
        "device": device,
        "parameters": sum(p.numel() for p in model.parameters()),
        "base_seconds": one,
        "added_seconds": {"naive": median["naive"] - one, "ours": active - one},
        "relative": {
            "naive, detector and ONNX, no gradient": median["naive"] / one,
            "ours, the whole image decoded, ungated": median["whole"] / one,
            "ours, ungated": active / one,
            "ours, gated at T/4": (active + 3 * idle) / 4 / one,
            "ours, gated, every 4th": (active + 15 * idle) / 16 / one,
        },
        # Of models of real size, and of the crop: the same for each denoiser.
        "counted": multiplications(network.to("meta"), _latents(landmarks, term)),
        "margin": margins(vae, landmarks, device),
    }


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[96, 144], help="of denoisers, divisible by 48"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for width in arguments.widths:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(arguments.device, arguments.repeats, width, Path(folder))
        results.append(found)
        millions = f"{found['parameters'] / 1e6:.0f} M denoiser"
        naive_step, *steps = found["relative"].items()
        for name, value in steps:
            target = f"≤ {TARGET}" if "gated at" in name or "every" in name else ""
            unit = "× step without it"
            record(f"identity, {millions}", name, unit, value, naive_step[0], naive_step[1], target)
        if not arguments.json:
            show(found, millions)
    if arguments.json:
        print(json.dumps(results))
        return
    print("counted: an active step of a LoRA on")
    for name, value in found["counted"].items():
        print(f"{name:42} {value:5.3f} × base")
    print("\nmargin in latents: RMS difference to decoding everything, of the crop's deviation")
    for name, value in found["margin"].items():
        print(f"{name:>6} {value:8.4f}")


def show(found: dict[str, Any], title: str) -> None:
    """Print what was measured beside one denoiser."""
    base = found["base_seconds"] * 1000
    print(f"{title} on {found['device']}: a step without identity takes {base:.0f} ms")
    for name, value in found["added_seconds"].items():
        print(f"{name + ' adds, where it is computed':42} {value * 1000:5.0f} ms")
    for name, value in found["relative"].items():
        print(f"{name:42} {value:5.2f} × base")
    print()


def _latents(landmarks: Tensor, term: IdentityTerm) -> int:
    assert term.margin is not None
    return max(window(landmarks, 64, 64, factor=term.factor, margin=term.margin)[1])


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    main()
