import warnings

import numpy as np
import pytest
import torch

from lora_prep.errors import UsageError
from lora_prep.training.identity import align_faces, similarity
from lora_prep.training.identity.align import TEMPLATE
from sample_data.portraits import Portrait


def tensors(portrait: Portrait) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.from_numpy(np.array(portrait.image)).permute(2, 0, 1).float()
    return image, torch.tensor(portrait.people[0].face.landmarks)


def norm_crop(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    from insightface.utils import face_align

    with warnings.catch_warnings(action="ignore"):
        return np.asarray(face_align.norm_crop(image, landmarks.astype(np.float32)), np.float32)


@pytest.mark.parametrize("shift", [0.0, 70.0, -90.0])
def test_agrees_with_insightface_also_over_the_border(
    portraits: list[Portrait], shift: float
) -> None:
    for portrait in portraits[:3]:
        image, landmarks = tensors(portrait)
        landmarks = landmarks + shift
        found = align_faces(image[None], landmarks[None], antialias=False)[0].permute(1, 2, 0)
        off = np.abs(found.numpy() - norm_crop(portrait.image, landmarks.numpy()))
        assert off.mean() < 0.5
        assert off.max() <= 1.0


def test_landmarks_on_the_template_move_nothing() -> None:
    matrix = similarity(torch.tensor(TEMPLATE, dtype=torch.float64)[None])[0]
    torch.testing.assert_close(matrix, torch.eye(3, dtype=torch.float64)[:2], atol=1e-12, rtol=0)
    image = torch.rand(1, 3, 112, 112, dtype=torch.float64)
    crop = align_faces(image, torch.tensor(TEMPLATE)[None])
    torch.testing.assert_close(crop, image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [0.1, 0.6])
def test_gradients_are_right(size: float) -> None:
    torch.manual_seed(0)
    side = 8
    landmarks = torch.tensor(TEMPLATE, dtype=torch.float64)[None] * size
    image = torch.rand(1, 1, 7, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: align_faces(x, landmarks, side=side), image)


def test_a_large_face_is_averaged_so_that_every_pixel_gets_gradient() -> None:
    torch.manual_seed(0)
    side = 28  # a quarter of the face's size
    landmarks = torch.tensor(TEMPLATE)[None]
    image = torch.zeros(1, 1, 112, 112, requires_grad=True)
    reached = {}
    for antialias in (False, True):
        crop = align_faces(image, landmarks, side=side, antialias=antialias)
        (slope,) = torch.autograd.grad(crop.sum(), image)
        reached[antialias] = float((slope[..., 4:-4, 4:-4] > 0).float().mean())
    assert reached[True] == 1.0
    assert reached[False] < 0.3
    noise = 25 * torch.randn(1, 1, 112, 112)
    rms = [
        float(align_faces(noise, landmarks, side=side, antialias=a).std()) for a in (True, False)
    ]
    assert rms[0] < 0.5 * rms[1]


def test_many_faces_in_one_image_are_those_one_by_one(portraits: list[Portrait]) -> None:
    pairs = [tensors(p) for p in portraits[:2]]
    images = torch.stack([image for image, _ in pairs])
    sizes = [1.0, 3.0, 0.2]  # small, very large: other numbers of samples
    landmarks = torch.stack([pairs[i][1] * s for i, s in zip((1, 0, 1), sizes, strict=True)])
    index = torch.tensor([1, 0, 1])
    together = align_faces(images, landmarks, index)
    for i, owner in enumerate(index.tolist()):
        alone = align_faces(images[owner : owner + 1], landmarks[i : i + 1])[0]
        torch.testing.assert_close(together[i], alone)
    assert align_faces(images, torch.zeros(0, 5, 2), torch.zeros(0).long()).shape == (
        0,
        3,
        112,
        112,
    )


def test_what_cannot_be_aligned_is_refused() -> None:
    image, points = torch.zeros(1, 3, 8, 8), torch.tensor(TEMPLATE)[None]
    with pytest.raises(UsageError, match="in one point"):
        align_faces(image, torch.zeros(1, 5, 2))
    with pytest.raises(UsageError, match="not finite"):
        align_faces(image, points * float("nan"))
    with pytest.raises(UsageError, match="2 faces in 1 images"):
        align_faces(image, points.repeat(2, 1, 1))
    with pytest.raises(UsageError, match="names image 3"):
        align_faces(image, points, torch.tensor([3]))
