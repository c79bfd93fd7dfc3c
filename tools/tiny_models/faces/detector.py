"""A face detector in SCRFD's format: network, training, export.

Format: input (1, 3, height, width) RGB as (value − 127.5) / 128; nine outputs, scores, boxes and
landmarks at strides 8, 16 and 32, one row for each of two anchors a cell in the order (y, x,
anchor), an anchor's point at (x · stride, y · stride). Scores are after the sigmoid; boxes are
distances left, top, right, bottom and landmarks offsets x, y, all in strides.
"""

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_prep.types import Image
from tools.tiny_models.faces.data import (
    FIRST_TRAINING_SEED,
    Floats,
    Picture,
    draw_picture,
    in_processes,
)
from tools.tiny_models.faces.optimiser import Optimiser

FILE_NAME = "det_tiny.onnx"
STRIDES = (8, 16, 32)
ANCHORS = ((13.0, 21.0), (36.0, 62.0), (107.0, 185.0))
"""Side of the face, √area in pixels, that each anchor of a stride is for."""

PICTURES = 2400
STEPS = 4000
BOX_WEIGHT, LANDMARKS_WEIGHT = 3, 30
CANVASES = ((96, 72), (160, 26), (256, 10), (416, 4))
"""Side of a training image in pixels, and how many make a batch: about as much work each."""
CANVAS_WEIGHTS = (0.3, 0.3, 0.2, 0.2)

SMALLEST_FACE = 14.0
"""Lower faces, in pixels of the training image, are neither right nor wrong to find."""

MIRRORED = [1, 0, 2, 4, 3]
"""Order of the landmarks in a mirrored picture."""


def conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Shared(nn.Module):
    """Convolution that all strides share, then batch norm of each stride's own, then ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in STRIDES)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(B, C, H, W) of the stride with this index to the same shape."""
        return F.relu(self.norms[level](self.conv(x)))


class Residual(nn.Module):
    """x + conv(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        out: Tensor = x + self.conv(x)
        return out


class Detector(nn.Module):
    """A small convolutional backbone, a top-down pyramid, and a head that all strides share."""

    def __init__(self) -> None:
        super().__init__()
        widths, neck = (12, 24, 40, 48, 56), 32
        self.stem = nn.Sequential(conv(3, widths[0], 2), conv(widths[0], widths[1], 2))
        self.stages = nn.ModuleList(
            nn.Sequential(conv(before, after, 2), Residual(after))
            for before, after in pairwise(widths[1:])
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, neck, 1) for width in widths[2:])
        self.classify = Shared(neck)
        self.locate = nn.ModuleList([Shared(neck), Shared(neck)])
        self.score = nn.Conv2d(neck, 2, 1)
        self.box = nn.Conv2d(neck, 2 * 4, 1)
        self.landmarks = nn.Conv2d(neck, 2 * 10, 1)
        assert self.score.bias is not None
        nn.init.constant_(self.score.bias, -4.6)  # a face is rare: 1 %

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """(B, 3, H, W) normalised images to, for each stride, with A = 2 · cells:

        logits (B, A), distances to the box's sides in strides (B, A, 4), offsets of the landmarks
        in strides (B, A, 10).
        """
        x = self.stem(images)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        pyramid: list[Tensor] = []
        for lateral, level in reversed(list(zip(self.laterals, levels, strict=True))):
            x = lateral(level)
            if pyramid:
                x = x + F.interpolate(pyramid[-1], scale_factor=2.0, mode="nearest")
            pyramid.append(x)
        pyramid.reverse()
        scores, boxes, landmarks = [], [], []
        for i, (stride, sides) in enumerate(zip(STRIDES, ANCHORS, strict=True)):
            # One unit is half the anchor's side: raw outputs mean the same at every stride.
            half = images.new_tensor(sides).reshape(1, 1, 2, 1) / (2 * stride)
            score = self.score(self.classify(pyramid[i], i))
            x = self.locate[0](pyramid[i], i)
            x = x + self.locate[1](x, i)
            scores.append(_rows(score, 1).flatten(1))
            boxes.append((_rows(self.box(x), 4).exp() * half).flatten(1, 2))
            landmarks.append((_rows(self.landmarks(x), 10) * half).flatten(1, 2))
        return scores, boxes, landmarks


def _rows(maps: Tensor, values: int) -> Tensor:
    """(B, 2 · values, H, W) to (B, cells, 2, values)."""
    batch = maps.shape[0]
    return maps.permute(0, 2, 3, 1).reshape(batch, -1, 2, values)


# Training ---------------------------------------------------------------------------------------


def draw_training_picture(index: int) -> Picture:
    """One of the training portraits."""
    sizes = ((224, 288), (320, 320), (416, 352))
    return draw_picture(FIRST_TRAINING_SEED + index, sizes[index % len(sizes)])


def draw_training_pictures(count: int, workers: int) -> list[Picture]:
    """The first `count` training portraits."""
    return list(in_processes(draw_training_picture, range(count), workers, "detector: portraits"))


def train(pictures: Sequence[Picture], *, seed: int, steps: int) -> Detector:
    """A detector trained on the pictures; equal arguments give equal weights on one machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Detector()
    optimiser = Optimiser(list(net.parameters()), steps)
    start = time.process_time()
    recent: list[list[float]] = []
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        side, count = CANVASES[rng.choice(len(CANVASES), p=CANVAS_WEIGHTS)]
        images, boxes, landmarks, kinds = _batch(pictures, side, count, rng)
        terms = _losses(net, images, boxes, landmarks, kinds)
        optimiser.step(terms[0] + BOX_WEIGHT * terms[1] + LANDMARKS_WEIGHT * terms[2])
        recent.append([float(term.detach()) for term in terms])
        if (step + 1) % 100 == 0 or step + 1 == steps:
            score, box, landmark = np.mean(recent[-100:], axis=0)
            print(
                f"detector: step {step + 1}/{steps}  score {score:.4f}  box {box:.4f}  "
                f"landmarks {landmark:.4f}  {time.process_time() - start:.0f} CPU-s",
                flush=True,
            )
    return net.eval()


def _batch(
    pictures: Sequence[Picture], side: int, count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random views of random pictures: images (B, 3, side, side), boxes (B, 3, 4), landmarks
    (B, 3, 10), and kinds (B, 3): 1 a face, 0 none, −1 one that is neither right nor wrong to find.
    """
    images = np.empty((count, side, side, 3), np.uint8)
    boxes = np.zeros((count, 3, 4), np.float32)
    landmarks = np.zeros((count, 3, 10), np.float32)
    kinds = np.zeros((count, 3), np.int64)
    for i in range(count):
        picture = pictures[int(rng.integers(len(pictures)))]
        images[i], found, points = _view(picture, side, rng)
        n = len(found)
        boxes[i, :n], landmarks[i, :n] = found, points.reshape(n, 10)
        inside = np.clip(found, 0, side)
        size, seen = found[:, 2:] - found[:, :2], inside[:, 2:] - inside[:, :2]
        visible = seen.prod(1) / size.prod(1)
        clear = (visible > 0.6) & (size[:, 1] >= SMALLEST_FACE)
        kinds[i, :n] = np.where(clear, 1, np.where(visible > 0, -1, 0))
    blob = torch.from_numpy(images).permute(0, 3, 1, 2).float().sub(127.5).div(128).contiguous()
    return blob, torch.from_numpy(boxes), torch.from_numpy(landmarks), torch.from_numpy(kinds)


def _view(picture: Picture, side: int, rng: np.random.Generator) -> tuple[Image, Floats, Floats]:
    """The picture scaled, moved and perhaps mirrored, and its boxes and landmarks there."""
    face = picture.boxes[rng.integers(len(picture.boxes))]
    low = max(SMALLEST_FACE, side / 9)
    height = low * (0.9 * side / low) ** rng.uniform(0, 1)
    scale = float(np.clip(height / (face[3] - face[1]), 0.25, 2.5))
    if side > 128 and rng.random() < 0.25:  # all of it, at the top left, as FaceAnalysis does
        scale = side / max(picture.image.shape[:2])
        offset = np.zeros(2, np.float32)
    else:
        centre = (face[:2] + face[2:]) / 2 * scale
        offset = (rng.uniform(0.1 * side, 0.9 * side, 2) - centre).astype(np.float32)
    # OpenCV counts from the first pixel's centre, the boxes and landmarks from its corner.
    x, y = offset + (scale - 1) / 2
    matrix = np.array([[scale, 0, x], [0, scale, y]], np.float32)
    fill = [0, 0, 0] if rng.random() < 0.5 else rng.integers(0, 256, 3).tolist()
    view = cv2.warpAffine(picture.image, matrix, (side, side), borderValue=fill)
    boxes = picture.boxes * scale + np.tile(offset, 2)
    landmarks = picture.landmarks * scale + offset
    if rng.random() < 0.5:
        view = view[:, ::-1]
        boxes[:, [0, 2]] = side - boxes[:, [2, 0]]
        landmarks[..., 0] = side - landmarks[..., 0]
        landmarks = landmarks[:, MIRRORED]
    return view, boxes, landmarks


def _anchors(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points (A, 2), face sides (A,) and strides (A,) of the outputs' rows for a square image."""
    points, sides, strides = [], [], []
    for stride, wanted in zip(STRIDES, ANCHORS, strict=True):
        ticks = torch.arange(side // stride, dtype=torch.float32) * stride
        y, x = torch.meshgrid(ticks, ticks, indexing="ij")
        cells = torch.stack([x, y], -1).reshape(-1, 1, 2)
        points.append(cells.expand(-1, 2, -1).reshape(-1, 2))
        sides.append(torch.tensor(wanted).repeat(len(cells)))
        strides.append(torch.full((2 * len(cells),), float(stride)))
    return torch.cat(points), torch.cat(sides), torch.cat(strides)


def _assign(
    points: Tensor, sides: Tensor, strides: Tensor, boxes: Tensor, kinds: Tensor
) -> tuple[Tensor, Tensor]:
    """Which rows (A) are to find which of the faces (B, F).

    Gives state (B, A): 1 finds a face, 0 finds none, −1 does not matter; and the face (B, A).
    A row finds a face of about its anchor's size whose centre is near its point.
    """
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    extent = (high - low).clamp(min=1.0)  # (B, F, 1, 2)
    size = extent.prod(-1).sqrt()  # (B, F, 1)
    apart = (points - (low + high) / 2).abs().amax(-1)  # (B, F, A)
    near = apart <= torch.maximum(0.28 * size, 0.55 * strides)
    about = apart <= torch.maximum(0.55 * size, 1.1 * strides)
    octaves = (size / sides).log2().abs()
    nearest = octaves <= octaves.amin(-1, keepdim=True) + 1e-6
    fits = (octaves <= 0.8) | nearest
    real = (kinds == 1)[..., None]
    found = near & fits & real
    unsure = (about & (octaves <= 1.0) & real) | ((apart <= 0.7 * size) & (kinds == -1)[..., None])
    state = torch.where(found.any(1), 1, torch.where(unsure.any(1), -1, 0))
    face = torch.where(found, apart / size, torch.inf).argmin(1)
    return state, face


def _losses(
    net: Detector, images: Tensor, boxes: Tensor, landmarks: Tensor, kinds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Focal loss of the scores, 1 − GIoU of the boxes, distance of the landmarks in face sizes."""
    points, sides, strides = _anchors(images.shape[-1])
    state, face = _assign(points, sides, strides, boxes, kinds)
    logits, distances, offsets = (torch.cat(maps, 1) for maps in net(images))
    target = (state == 1).float()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    modulation = (target - logits.sigmoid()).abs().square()
    count = target.sum().clamp(min=1)
    score = (entropy * modulation * (state >= 0)).sum() / count

    image, row = torch.nonzero(state == 1, as_tuple=True)
    wanted = face[image, row]
    stride = strides[row, None]
    distance = distances[image, row] * stride
    box = torch.cat([points[row] - distance[:, :2], points[row] + distance[:, 2:]], 1)
    true_box = boxes[image, wanted]
    size = (true_box[:, 2:] - true_box[:, :2]).prod(1, keepdim=True).sqrt()
    guess = offsets[image, row] * stride + points[row].repeat(1, 5)
    error = (guess - landmarks[image, wanted]) / size
    away = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=0.01)
    return score, (1 - _giou(box, true_box)).sum() / count, away / count / 10


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of boxes (N, 4), Rezatofighi et al. 2019."""
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    shared = inter.prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    return shared / union - (hull - union) / hull


# Export -----------------------------------------------------------------------------------------


class _Scrfd(nn.Module):
    """The detector with SCRFD's nine outputs."""

    def __init__(self, net: Detector) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        scores, boxes, landmarks = self.net(image)
        return (
            *(score.sigmoid().reshape(-1, 1) for score in scores),
            *(box.reshape(-1, 4) for box in boxes),
            *(points.reshape(-1, 10) for points in landmarks),
        )


def export(net: Detector, path: Path) -> None:
    """Write the detector as ONNX, in the format that the module's docstring gives."""
    names = [f"{what}_{stride}" for what in ("score", "bbox", "kps") for stride in STRIDES]
    axes = {name: {0: f"{name}_rows"} for name in names}
    torch.onnx.export(
        _Scrfd(net).eval(),
        (torch.zeros(1, 3, 64, 96),),
        str(path),
        input_names=["input"],
        output_names=names,
        dynamic_axes={"input": {2: "height", 3: "width"}, **axes},
        opset_version=13,
        dynamo=False,
    )
