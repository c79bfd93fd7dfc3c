"""Masks with SAM2, prompted by faces.

What `SAM2ImagePredictor` does, in three steps, so that only the model itself runs on the device's
thread: `prepare` resizes (threads, ahead), `segment` runs encoder and decoder once a batch, and
`finish` enlarges the logits to the image's size (threads, behind). Tests hold features, logits and
masks against the predictor's own.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from lora_prep import digests
from lora_prep.backends import DtypeName, SegmenterSpec, device, sam2_model
from lora_prep.backends.embedding_cache import EmbeddingCache, Level
from lora_prep.backends.sam2_prompts import Candidates, Logits, Prompt, Scores, prompt_for
from lora_prep.errors import BackendError, OutOfMemory
from lora_prep.types import BoolMask, Face, Image, Region

if TYPE_CHECKING:
    import torch

POLICY = 2
"""Raise it when prompts, precision or the choice among masks change: masks are then made again."""

MAX_PROMPTS = 16
"""Faces in one call of the decoder. Each takes some 50 MB meanwhile."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue, 0 to 1: what SAM2 normalises by."""

Features: TypeAlias = "list[torch.Tensor]"
"""Image features, (images, channels, h, w): a quarter, an eighth and a sixteenth of the input."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image as the model takes it."""

    square: Image
    """Resized to the model's square input."""
    height: int
    """Of the original, in pixels."""
    width: int
    key: str = ""
    """Names its features in the cache; empty without one."""
    known: list[Level] | None = None
    """Its features, where the cache has them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says about an image."""

    logits: list[Logits]
    """One a face."""
    new: list[Level] | None = None
    """Features for the cache."""


def identity(spec: SegmenterSpec) -> str:
    """The hashes of checkpoint and configuration, and the version of how they are used.

    A checkpoint that is not there yet is downloaded; no model is loaded. Precision (see
    `uses_bfloat16`) and the cache's float16 only move edges by a pixel, so masks that were made
    on another device count as up to date.
    Raises BackendError where checkpoint or configuration are not to be had.
    """
    return f"sam2 {_files_identity(sam2_model.find(spec))} policy={POLICY}"


def _files_identity(files: sam2_model.Files) -> str:
    return (
        f"{files.checkpoint.name} sha256={digests.sha256(files.checkpoint)} "
        f"config={digests.sha256(files.config)[:16]}"
    )


def uses_bfloat16(dtype: DtypeName, torch_device: str) -> bool:
    """Whether the image encoder runs under bfloat16 autocast.

    `auto` does where the hardware has instructions for it: CUDA devices since Ampere, CPUs with
    AVX512-BF16 or AMX. There Hiera-T at 1024 pixels took 2.3 s of CPU time instead of 4.3
    (torch 2.15, AMD EPYC of family 26, one thread). Elsewhere bfloat16 is emulated, and slow.
    The decoder stays in float32: it takes little time, and bfloat16 in it moves masks more than
    in the encoder.
    """
    if dtype != "auto":
        return dtype == "bfloat16"
    import torch

    if torch_device.startswith("cuda"):
        return torch.cuda.get_device_capability(torch_device) >= (8, 0)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch may rename them
    return torch_device == "cpu" and any(
        bool(getattr(torch.cpu, check, lambda: False)()) for check in checks
    )


class Sam2Segmenter:
    """SAM2: one mask a face, prompted by its box and landmarks."""

    def __init__(self, spec: SegmenterSpec, embeddings: Path | None = None) -> None:
        """Load the model onto the device.

        `embeddings` is the folder to keep image features in, so that they are computed once.
        Raises UsageError for a wrong device, and BackendError where device, checkpoint or
        configuration are not to be had, do not fit together, or are not safe to load.
        """
        import torch

        self._device = device.torch_device(spec.device)
        self._on_cuda = self._device.startswith("cuda")
        self._bfloat16 = uses_bfloat16(spec.dtype, self._device)
        files = sam2_model.find(spec)
        self._model = sam2_model.load_model(files, self._device)
        self._compiled = spec.compile
        if spec.compile:
            encoder = self._model.image_encoder
            encoder.forward = torch.compile(encoder.forward)
        self._name = spec.model if spec.model in sam2_model.HUB else files.checkpoint.name
        self._size: int = self._model.image_size
        self._cache: EmbeddingCache | None = None
        if embeddings is not None:
            self._cache = EmbeddingCache(embeddings, f"{_files_identity(files)} {self._precision}")

    @property
    def _precision(self) -> str:
        return "bfloat16" if self._bfloat16 else "float32"

    def describe(self) -> str:
        """Model, size of its input, device and precision."""
        compiled = ", compiled" if self._compiled else ""
        return (
            f"sam2 {self._name} at {self._size}×{self._size} on {self._device}, "
            f"{self._precision}{compiled}"
        )

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
        if self._cache is None:
            return Prepared(square, height, width)
        key = self._cache.key(square)
        return Prepared(square, height, width, key, self._cache.read(key))

    def segment(
        self, prepared: Sequence[Prepared], faces: Sequence[Sequence[Face]], region: Region
    ) -> list[Answer]:
        """For each image, the logits of one mask for each of its faces.

        All images with faces go through the encoder in one batch (those whose features are known
        do not), all their faces through the decoder together. Raises OutOfMemory where the batch
        was too large for the device.
        """
        answers = [Answer([]) for _ in prepared]
        wanted = [i for i, of_image in enumerate(faces) if of_image]
        if not wanted:
            return answers
        prompts = [
            prompt_for(face, region, prepared[i].height, prepared[i].width)
            for i in wanted
            for face in faces[i]
        ]
        owners = [row for row, i in enumerate(wanted) for _ in faces[i]]
        with self._running():
            features, new = self._features([prepared[i] for i in wanted])
            for row, i in enumerate(wanted):
                answers[i] = Answer([], new[row])
            found = self._decode(features, prompts, owners)
            for prompt, owner, (logits, scores) in zip(prompts, owners, found, strict=True):
                # A copy: a view would keep the logits of the whole batch in memory.
                best = logits[prompt.choose(logits, scores, region)].copy()
                answers[wanted[owner]].logits.append(best)
        return answers

    def finish(self, prepared: Prepared, answer: Answer) -> Iterator[BoolMask]:
        """One mask a face, as large as the original image; safe to call in threads.

        Keeps the image's features, where there is a cache. Raises DatasetError where that fails.
        """
        if self._cache is not None and answer.new is not None:
            self._cache.write(prepared.key, answer.new)
        size = (prepared.width, prepared.height)
        for logits in answer.logits:
            # Interpolating logits before the threshold gives smoother edges than the reverse.
            yield cv2.resize(logits, size, interpolation=cv2.INTER_LINEAR) > 0

    def _features(self, prepared: list[Prepared]) -> tuple[Features, list[list[Level] | None]]:
        """The features of all images, and for each image those that the cache lacks.

        With a cache, new features are rounded to its float16 as well: masks are then the same
        bytes whether the features came from the disk or not.
        """
        import torch

        new: list[list[Level] | None] = [None] * len(prepared)
        unknown = [i for i, image in enumerate(prepared) if image.known is None]
        encoded = self._encode([prepared[i].square for i in unknown]) if unknown else []
        if self._cache is None:
            return encoded, new
        rounded = [level.half().cpu().numpy() for level in encoded]
        for k, i in enumerate(unknown):
            new[i] = [level[k].copy() for level in rounded]
        rows = [image.known or new[i] or [] for i, image in enumerate(prepared)]
        stacked = [np.stack(level) for level in zip(*rows, strict=True)]
        return [torch.from_numpy(level).to(self._device).float() for level in stacked], new

    def _encode(self, squares: Sequence[Image]) -> Features:
        """What `SAM2ImagePredictor.set_image_batch` computes, for images of the model's size.

        Bytes go to the device, a quarter of what floats would be, and become floats there.
        """
        import torch

        model, size = self._model, self._size
        shape = (len(squares), size, size, 3)
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self._on_cuda)
        np.stack(squares, out=batch.numpy())
        pixels = batch.to(self._device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        mean, std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (MEAN, STD))
        normal = pixels.float().div_(255).sub_(mean).div_(std)
        kind = "cuda" if self._on_cuda else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=self._bfloat16):
            levels = model.forward_image(normal)["backbone_fpn"]
        features = [level.float() for level in levels[-model.num_feature_levels :]]
        if model.directly_add_no_mem_embed:
            features[-1] = features[-1] + model.no_mem_embed.view(1, -1, 1, 1)
        return features

    def _decode(
        self, features: Features, prompts: Sequence[Prompt], owners: Sequence[int]
    ) -> Iterator[tuple[Candidates, Scores]]:
        """For each prompt its candidates; `owners` are the prompts' rows in the features.

        What `SAM2ImagePredictor.predict_batch` computes image by image, once for a single mask and
        once for three, at the first go for all.
        """
        import torch

        decoder, encoder = self._model.sam_mask_decoder, self._model.sam_prompt_encoder
        for start in range(0, len(prompts), MAX_PROMPTS):
            some = prompts[start : start + MAX_PROMPTS]
            rows = torch.tensor(owners[start : start + MAX_PROMPTS], device=self._device)
            points = np.stack([p.points for p in some]) * self._size
            labels = np.stack([p.labels for p in some])
            sparse, dense = encoder(
                points=(
                    torch.tensor(points, dtype=torch.float32, device=self._device),
                    torch.tensor(labels, dtype=torch.int32, device=self._device),
                ),
                boxes=None,
                masks=None,
            )
            *fine, coarse = (level[rows] for level in features)
            logits, scores, _, _ = decoder.predict_masks(
                image_embeddings=coarse,
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                repeat_image=False,
                high_res_features=fine,
            )
            if decoder.dynamic_multimask_via_stability:
                single = decoder._dynamic_multimask_via_stability(logits, scores)
                logits = torch.cat([single[0], logits[:, 1:]], dim=1)
                scores = torch.cat([single[1], scores[:, 1:]], dim=1)
            # One copy from the device for all prompts: each copy waits for the device.
            yield from zip(
                logits.clamp(-32, 32).float().cpu().numpy(),
                scores.float().cpu().numpy(),
                strict=True,
            )

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Inference mode; names a lack of memory, and of a compiler."""
        import torch

        try:
            with torch.inference_mode():
                yield
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise OutOfMemory(f"{self._device} ran out of memory in SAM2: {error}") from error
            if self._compiled and isinstance(error, torch._dynamo.exc.TorchDynamoException):
                reason = str(error).strip().splitlines()[0]
                raise BackendError(
                    f"torch cannot compile SAM2's encoder here: {reason}. It needs a C++ compiler, "
                    "and Triton on CUDA; or leave --compile out"
                ) from error
            raise


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that the device, or the CPU's allocator, has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "not enough memory" in text or "allocate memory" in text
