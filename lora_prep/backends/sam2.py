"""Masks with SAM2's image predictor, prompted by faces."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int

from lora_prep import masks
from lora_prep.backends import SegmenterSpec, device, sam2_model, weights
from lora_prep.errors import OutOfMemory
from lora_prep.types import BoolMask, Face, Image, Point, Region

POLICY = 1
"""Raise it when prompts, precision or the choice among masks change: masks are then made again."""

POOR_IOU = 0.8
"""A single mask whose predicted IoU is lower is compared with SAM2's three alternatives."""

POOR_AGREEMENT = 0.5
"""The same for `masks.agreement`. Hand-traced faces reach .62 to .8 against the ellipse."""

Logits: TypeAlias = Float32[np.ndarray, "h w"]
"""A quarter of the model's input in size; above 0 is inside the mask."""

Candidates: TypeAlias = Float32[np.ndarray, "candidates h w"]
"""The logits of several masks for one prompt."""

Scores: TypeAlias = Float32[np.ndarray, "candidates"]
"""The IoU that SAM2 predicts for each candidate, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image as the model takes it."""

    square: Image
    """Resized to the model's square input."""
    height: int
    """Of the original, in pixels."""
    width: int


def identity(spec: SegmenterSpec) -> str:
    """The hashes of checkpoint and configuration, and the version of how they are used.

    A checkpoint that is not there yet is downloaded; no model is loaded. Precision follows the
    device (bfloat16 on CUDA, else float32) and only moves edges, so masks that were made on
    another device count as up to date.
    Raises BackendError where checkpoint or configuration are not to be had.
    """
    files = sam2_model.find(spec)
    return (
        f"sam2 {files.checkpoint.name} sha256={weights.sha256(files.checkpoint)} "
        f"config={weights.sha256(files.config)[:16]} policy={POLICY}"
    )


class Sam2Segmenter:
    """SAM2 behind its `SAM2ImagePredictor`: one mask a face, prompted by its box and landmarks."""

    def __init__(self, spec: SegmenterSpec) -> None:
        """Load the model onto the device.

        Raises UsageError for a wrong device, and BackendError where device, checkpoint or
        configuration are not to be had, do not fit together, or are not safe to load.
        """
        self._device = device.torch_device(spec.device)
        files = sam2_model.find(spec)
        self._predictor = sam2_model.load(files, self._device)
        self._name = spec.model if spec.model in sam2_model.HUB else files.checkpoint.name
        self._size: int = self._predictor.model.image_size

    def describe(self) -> str:
        """Model, size of its input, device and precision."""
        precision = "bfloat16" if self._device.startswith("cuda") else "float32"
        return f"sam2 {self._name} at {self._size}×{self._size} on {self._device}, {precision}"

    def prepare(self, image: Image) -> Prepared:
        """The image resized to the model's square input; quick, and safe to call in threads.

        Averages areas where it shrinks and interpolates where it enlarges, in 8 bits. On
        photographs at 1024 pixels SAM2's own transform (antialiased bilinear, in floats) differs
        by at most .4 of 255 on average, and takes 3 to 100 times as long.
        """
        height, width = image.shape[:2]
        size = self._size
        small = (min(width, size), min(height, size))
        shrunk = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        square = cv2.resize(shrunk, (size, size), interpolation=cv2.INTER_LINEAR)
        return Prepared(square, height, width)

    def segment(
        self, prepared: Sequence[Prepared], faces: Sequence[Sequence[Face]], region: Region
    ) -> list[list[BoolMask]]:
        """For each image, one mask for each of its faces, as large as the original image.

        All images with faces go through the encoder in one batch, all faces of an image through
        the decoder at once. Raises OutOfMemory where the batch was too large for the device.
        """
        found: list[list[BoolMask]] = [[] for _ in prepared]
        wanted = [i for i, of_image in enumerate(faces) if of_image]
        if not wanted:
            return found
        prompts = [[_prompt(face, region, prepared[i]) for face in faces[i]] for i in wanted]
        with self._running():
            self._predictor.set_image_batch([prepared[i].square for i in wanted])
            chosen = self._choose(prompts, region)
        for i, of_image in zip(wanted, chosen, strict=True):
            size = (prepared[i].width, prepared[i].height)
            # Interpolating logits before the threshold gives smoother edges than the reverse.
            found[i] = [
                cv2.resize(logits, size, interpolation=cv2.INTER_LINEAR) > 0 for logits in of_image
            ]
        return found

    def _choose(self, prompts: "list[list[_Prompt]]", region: Region) -> list[list[Logits]]:
        """The logits of the best mask for each prompt of each image.

        SAM2's single mask is the best for a face with box and landmarks. Where it is doubtful, and
        for the larger regions, which a face's landmarks do not tell apart, the three alternatives
        are looked at as well: their order says nothing about which of them is meant.
        """
        chosen = []
        doubtful = []
        single = self._decode(prompts, multimask=False)
        for i, (row, candidates) in enumerate(zip(prompts, single, strict=True)):
            chosen.append([logits[0] for logits, _ in candidates])
            for k, (prompt, (logits, scores)) in enumerate(zip(row, candidates, strict=True)):
                if region is not Region.FACE or prompt.is_poor(logits[0], float(scores[0]), region):
                    doubtful.append((i, k))
        if doubtful:
            several = self._decode(prompts, multimask=True)
            for i, k in doubtful:
                logits, scores = (
                    np.concatenate(pair) for pair in zip(single[i][k], several[i][k], strict=True)
                )
                chosen[i][k] = logits[prompts[i][k].best(logits, scores, region)]
        return chosen

    def _decode(
        self, prompts: "list[list[_Prompt]]", *, multimask: bool
    ) -> list[list[tuple[Candidates, Scores]]]:
        """For each prompt of each image: three candidates with `multimask`, else one."""
        size = self._size
        _, scores, logits = self._predictor.predict_batch(
            point_coords_batch=[np.stack([p.points for p in row]) * size for row in prompts],
            point_labels_batch=[np.stack([p.labels for p in row]) for row in prompts],
            box_batch=[np.stack([p.box for p in row]) * size for row in prompts],
            multimask_output=multimask,
        )
        answers = []
        for row, of_logits, of_scores in zip(prompts, logits, scores, strict=True):
            # SAM2 leaves the axis of the prompts out where there is one.
            by_prompt = of_logits.reshape(len(row), -1, *of_logits.shape[-2:])
            answers.append(list(zip(by_prompt, of_scores.reshape(len(row), -1), strict=True)))
        return answers

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Inference mode and precision; names a lack of memory; drops the batch's features."""
        import torch

        on_cuda = self._device.startswith("cuda")
        try:
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=on_cuda):
                yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise OutOfMemory(f"{self._device} ran out of memory in SAM2: {error}") from error
        finally:
            self._predictor.reset_predictor()


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One face, and what SAM2 is told about it in shares of the image's size."""

    face: Face
    height: int
    """Of the image, in pixels."""
    width: int
    box: Float[np.ndarray, "4"]
    """x0, y0, x1, y1."""
    points: Float[np.ndarray, "points 2"]
    """x, y. Their number depends on the region only: an image's prompts go into one array."""
    labels: Int[np.ndarray, "points"]
    """1 = inside the mask, -1 = no point."""

    def is_poor(self, logits: Logits, score: float, region: Region) -> bool:
        """Whether the mask with these logits and predicted IoU is worth a second look."""
        if score < POOR_IOU:
            return True
        scale = self._scale(logits)
        return bool(masks.agreement(logits > 0, self.face, region, scale=scale) < POOR_AGREEMENT)

    def best(self, logits: Candidates, scores: Scores, region: Region) -> int:
        """Index of the best candidate."""
        return masks.choose(
            list(logits > 0), scores.tolist(), self.face, region, scale=self._scale(logits)
        )

    def _scale(self, logits: Logits | Candidates) -> tuple[float, float]:
        height, width = logits.shape[-2:]
        return width / self.width, height / self.height


def _prompt(face: Face, region: Region, image: Prepared) -> _Prompt:
    """The region's box, and positive points on the face.

    For face and head the points are the landmarks; for a person, the middle of the face alone, as
    five points on a face would be a strong hint at the face. Points outside the image do not count.
    """
    if region is Region.PERSON:
        points = [face.landmarks[2] if face.landmarks else face.centre]
    else:
        points = list(face.landmarks or _five_inside(face))
    shares = np.array(points) / (image.width, image.height)
    visible = ((shares >= 0) & (shares <= 1)).all(axis=1)
    box = masks.region_box(face, region, image.height, image.width)
    return _Prompt(
        face,
        image.height,
        image.width,
        np.array(box) / (image.width, image.height, image.width, image.height),
        shares,
        np.where(visible, 1, -1),
    )


def _five_inside(face: Face) -> list[Point]:
    """Five points well inside a face whose landmarks are not known."""
    x0, y0 = face.box[:2]
    shares = ((0.5, 0.55), (0.38, 0.45), (0.62, 0.45), (0.42, 0.7), (0.58, 0.7))
    return [(x0 + x * face.width, y0 + y * face.height) for x, y in shares]


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that the device, or the CPU's allocator, has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "not enough memory" in text or "allocate memory" in text
