"""A face recogniser in ArcFace's format: network, training, export.

Format: input (batch, 3, 112, 112) RGB as (value − 127.5) / 127.5, a face aligned to insightface's
template; output (batch, 128) embeddings, to be compared by their cosine. The layers are those of
the real packs' IResNet: convolution, PReLU, batch norm, addition, flatten, one linear layer.
"""

import time
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lora_prep.types import Image
from tools.tiny_models.faces.data import (
    FIRST_TRAINING_IDENTITY,
    FIRST_TRAINING_SEED,
    Floats,
    draw_picture,
    in_processes,
)
from tools.tiny_models.faces.optimiser import Optimiser

FILE_NAME = "rec_tiny.onnx"
SIDE = 112
EMBEDDING = 128
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
     [70.7299, 92.2041]], np.float32,
)  # fmt: skip
"""Where the five landmarks are in an aligned crop: insightface's."""

IDENTITIES = 800
PORTRAITS = 8
"""Of each identity."""
VARIANTS = 3
"""Crops of each portrait, with landmarks as wrong as a detector's."""
STEPS = 1500
BATCH = 64
SCALE, MARGIN = 24.0, 0.35
"""Of the loss, CosFace's (Wang et al. 2018)."""


class Block(nn.Module):
    """IResNet's residual block, at half the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, 2, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H/2, W/2)."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


class Recogniser(nn.Module):
    """A small IResNet with a depthwise convolution in place of the large linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 24, 40, 64)
        self.layers = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.PReLU(widths[0]),
            *(Block(before, after) for before, after in pairwise(widths)),
            nn.BatchNorm2d(widths[-1]),
            nn.Conv2d(widths[-1], 2 * widths[-1], 7, groups=widths[-1], bias=False),
            nn.BatchNorm2d(2 * widths[-1]),
            nn.Flatten(),
            nn.Linear(2 * widths[-1], EMBEDDING),
            nn.BatchNorm1d(EMBEDDING),
        )

    def forward(self, crops: Tensor) -> Tensor:
        """(B, 3, 112, 112) normalised crops to (B, 128) embeddings."""
        out: Tensor = self.layers(crops)
        return out


# Training ---------------------------------------------------------------------------------------


def align(image: Image, landmarks: Floats) -> Image:
    """The face turned, scaled and moved to insightface's template: (112, 112, 3).

    The closed form of the least-squares similarity (Umeyama 1991, in two dimensions).
    """
    from_mean, to_mean = landmarks.mean(0), TEMPLATE.mean(0)
    s, d = landmarks - from_mean, TEMPLATE - to_mean
    power = (s**2).sum()
    a = (s * d).sum() / power
    b = (s[:, 0] * d[:, 1] - s[:, 1] * d[:, 0]).sum() / power
    turn = np.array([[a, -b], [b, a]])
    matrix = np.column_stack([turn, to_mean - turn @ from_mean])
    return np.asarray(cv2.warpAffine(image, matrix, (SIDE, SIDE), borderValue=0.0), np.uint8)


def draw_training_crop(index: int) -> NDArray[np.uint8]:
    """Crops (VARIANTS, 112, 112, 3) of one of the training portraits."""
    rng = np.random.default_rng([FIRST_TRAINING_SEED, index])
    side = int(rng.choice([192, 256, 352]))
    picture = draw_picture(
        FIRST_TRAINING_SEED + index,
        (side, side),
        people=1,
        identity=FIRST_TRAINING_IDENTITY + index // PORTRAITS,
        scale=(0.16, 0.7),
    )
    true = picture.landmarks[0]
    eyes = np.linalg.norm(true[1] - true[0])
    wrong = rng.normal(0, 0.08, (VARIANTS, 5, 2)) + rng.normal(0, 0.03, (VARIANTS, 1, 2))
    wrong[0] *= 0.3
    return np.stack([align(picture.image, points) for points in true + eyes * wrong])


def draw_training_crops(
    identities: int, workers: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Crops (N, 112, 112, 3) of the first training identities, and whose they are (N,)."""
    jobs = range(identities * PORTRAITS)
    drawn = list(in_processes(draw_training_crop, jobs, workers, "recogniser: portraits"))
    return np.concatenate(drawn), np.arange(len(jobs)).repeat(VARIANTS) // PORTRAITS


def train(
    crops: NDArray[np.uint8], identities: NDArray[np.int64], *, seed: int, steps: int
) -> Recogniser:
    """A recogniser trained on the crops; equal arguments give equal weights on one machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Recogniser()
        classes = nn.Parameter(torch.randn(int(identities.max()) + 1, EMBEDDING))
    optimiser = Optimiser([*net.parameters(), classes], steps)
    rng = np.random.default_rng([seed])
    start = time.process_time()
    for step in range(steps):
        chosen = rng.choice(len(crops), BATCH, replace=len(crops) < BATCH)
        blob = torch.from_numpy(crops[chosen]).permute(0, 3, 1, 2).float().sub(127.5).div(127.5)
        truth = torch.from_numpy(identities[chosen])
        cosines = F.normalize(net(blob.contiguous())) @ F.normalize(classes).T
        # The margin grows: from the start, it would keep the network from learning at all.
        margin = MARGIN * min(1.0, 2 * step / steps)
        loss = F.cross_entropy(SCALE * (cosines - margin * F.one_hot(truth, len(classes))), truth)
        optimiser.step(loss)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            right = (cosines.argmax(1) == truth).float().mean()
            print(
                f"recogniser: step {step + 1}/{steps}  loss {float(loss.detach()):.3f}  "
                f"right {float(right):.2f}  {time.process_time() - start:.0f} CPU-s",
                flush=True,
            )
    return net.eval()


# Export -----------------------------------------------------------------------------------------


def export(net: Recogniser, path: Path) -> None:
    """Write the recogniser as ONNX, in the format that the module's docstring gives."""
    torch.onnx.export(
        net.eval(),
        (torch.zeros(1, 3, SIDE, SIDE),),
        str(path),
        input_names=["input"],
        output_names=["embedding"],
        dynamic_axes={"input": {0: "batch"}, "embedding": {0: "batch"}},
        opset_version=13,
        dynamo=False,
    )
