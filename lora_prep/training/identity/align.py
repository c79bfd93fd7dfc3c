"""Faces aligned to insightface's template, differentiable with respect to the image.

Landmarks are in pixels as detectors give them: (0, 0) is the *centre* of the upper left pixel.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lora_prep.errors import UsageError

TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
"""Where the landmarks lie in a crop of 112×112 pixels: insightface's `arcface_dst`."""

SIDE = 112

ANTIALIAS_BELOW = 0.5
"""Crops that shrink the face more than this are averaged over the pixels they cover."""

MOST_SAMPLES = 16
"""A crop's pixel takes at most so many samples in each direction."""


def similarity(landmarks: Float[Tensor, "N 5 2"], side: int = SIDE) -> Float[Tensor, "N 2 3"]:
    """Turn, scale and shift [[a, −b, tx], [b, a, ty]] from the image's pixels to the crop's.

    The closed form of the least-squares similarity (Umeyama 1991, in two dimensions): with the
    centred points s → d, a = Σs·d / Σ|s|² and b = Σ(s_x·d_y − s_y·d_x) / Σ|s|². Landmarks that all
    lie in one point give infinities.
    """
    to = landmarks.new_tensor(TEMPLATE) * (side / SIDE)
    from_mean, to_mean = landmarks.mean(1), to.mean(0)
    s, d = landmarks - from_mean[:, None], to - to_mean
    power = s.square().sum((1, 2))
    a = (s * d).sum((1, 2)) / power
    b = (s[..., 0] * d[:, 1] - s[..., 1] * d[:, 0]).sum(1) / power
    x, y = from_mean.unbind(1)
    rows = [a, -b, to_mean[0] - a * x + b * y, b, a, to_mean[1] - b * x - a * y]
    return torch.stack(rows, 1).reshape(-1, 2, 3)


def scales(landmarks: Float[Tensor, "N 5 2"], side: int = SIDE) -> Float[Tensor, " N"]:
    """Crop pixels to one pixel of the image: below 1 the face is larger than the crop."""
    size: Tensor = similarity(landmarks, side)[:, :, 0].norm(dim=1)
    return size


def align_faces(
    images: Float[Tensor, "B C H W"],
    landmarks: Float[Tensor, "N 5 2"],
    index: Int[Tensor, " N"] | None = None,
    *,
    side: int = SIDE,
    antialias: bool = True,
) -> Float[Tensor, "N C side side"]:
    """The faces, each in side×side pixels; what lies outside of the image is 0.

    Without `antialias` it is insightface's `norm_crop` up to the rounding of its uint8. With it, a
    crop of a face more than twice as large is the mean of k×k samples for each pixel, so that
    every pixel of the face counts and gets gradient.

    Args:
        images: any value range; black has to be 0.
        landmarks: in pixels. On the CPU, as a data loader gives them: then nothing waits for the
            device. They may lie outside of the image.
        index: the image of each face; None where face i is in image i.
        side: of the crops, in pixels.
        antialias: see above.

    Raises UsageError where faces and images do not match, or a face's landmarks are not finite or
    all lie in one point.
    """
    count = len(landmarks)
    if index is None and count != len(images):
        raise UsageError(
            f"{count} faces in {len(images)} images: give `index`, the image of each face"
        )
    points = landmarks.detach().double().cpu()
    matrices = similarity(points, side)
    if not bool(torch.isfinite(matrices).all()):
        raise UsageError("a face cannot be aligned: its landmarks are not finite or in one point")
    owners = list(range(count)) if index is None else index.tolist()
    strangers = [i for i in owners if not 0 <= i < len(images)]
    if strangers:
        raise UsageError(f"index names image {strangers[0]}, and there are {len(images)}")
    samples = [_samples(s) if antialias else 1 for s in matrices[:, :, 0].norm(dim=1).tolist()]
    crops: list[Tensor] = [images.new_empty(0)] * count
    for k in sorted(set(samples)):
        rows = [i for i in range(count) if samples[i] == k]
        grid = _grid(matrices[rows], images.shape[-2], images.shape[-1], side, k)
        grid = grid.to(images.dtype).to(images.device, non_blocking=True)
        own = torch.stack([images[owners[i]] for i in rows])
        crop = F.grid_sample(own, grid, "bilinear", "zeros", align_corners=False)
        crop = crop if k == 1 else F.avg_pool2d(crop, k)
        for place, i in enumerate(rows):
            crops[i] = crop[place]
    return torch.stack(crops) if crops else images.new_empty((0, images.shape[1], side, side))


def covered(landmarks: Float[Tensor, "N 5 2"], side: int = SIDE) -> Float[Tensor, "N 4"]:
    """x0, y0, x1, y1 of what the crops show, in the image's pixels; pixel centres."""
    inverse = _inverse(similarity(landmarks.double(), side))
    end = side - 1.0
    corners = inverse.new_tensor([[0, 0, 1], [end, 0, 1], [0, end, 1], [end, end, 1]])
    points = corners @ inverse.transpose(1, 2)
    return torch.cat([points.amin(1), points.amax(1)], 1)


def visible(landmarks: Float[Tensor, "N 5 2"], height: int, width: int) -> Float[Tensor, " N"]:
    """The part of what each crop shows that an image of this size holds, from 0 to 1.

    NaN for landmarks that are not finite or all lie in one point.
    """
    box = covered(landmarks)
    end = box.new_tensor([width - 1, height - 1])
    low, high = box[:, :2].clamp_min(0), torch.minimum(box[:, 2:], end)
    return (high - low).clamp_min(0).prod(1) / (box[:, 2:] - box[:, :2]).prod(1)


def _samples(scale: float) -> int:
    return 1 if scale >= ANTIALIAS_BELOW else min(math.ceil(1 / scale), MOST_SAMPLES)


def _inverse(matrices: Tensor) -> Tensor:
    """From the crop's pixels to the image's, (N,2,3)."""
    a, b = matrices[:, 0, 0], matrices[:, 1, 0]
    power = a.square() + b.square()
    turn = torch.stack([a, b, -b, a], 1).reshape(-1, 2, 2) / power[:, None, None]
    return torch.cat([turn, -turn @ matrices[:, :, 2:]], 2)


def _grid(matrices: Tensor, height: int, width: int, side: int, k: int) -> Tensor:
    """Where to sample, (N, k·side, k·side, 2), in grid_sample's units for align_corners=False."""
    steps = (torch.arange(k * side, dtype=matrices.dtype) + 0.5) / k - 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    inverse = _inverse(matrices)
    points = torch.stack([x, y, torch.ones_like(x)], -1) @ inverse[:, None].transpose(2, 3)
    # The centre of pixel q is at (2q + 1) / W − 1: forgetting the half is a shift of half a pixel.
    return (2 * points + 1) / points.new_tensor([width, height]) - 1
