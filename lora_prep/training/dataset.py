"""A prepared folder as a torch data set: image, mask, caption, landmarks, reference, prior or not.

    folder = PreparedFolder.at(Path("data"), resolution=512)
    loader = DataLoader(folder, batch_sampler=BucketBatches(folder, 4), collate_fn=collate)
    for batch in loader: ...

Image, mask and landmarks go through one crop and one flip. Whatever is random comes from
(seed, epoch, image): workers, their number and the order of batches change nothing.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from lora_prep import anatomy, imageio
from lora_prep.captions import Fault, read
from lora_prep.dataset import Dataset, Sample
from lora_prep.decisions import rejected
from lora_prep.errors import DatasetError, UsageError
from lora_prep.training.buckets import Bucket, Crop, buckets, nearest
from lora_prep.training.files import decoded, image_size, read_bytes
from lora_prep.training.subject import Subject
from lora_prep.types import Face, Mask, Region

CropPolicy = Literal["center", "random", "face"]
MissingMask = Literal["error", "ones"]


@dataclass(frozen=True, slots=True)
class Key:
    """What a batch sampler asks for: an image, in a bucket, in an epoch."""

    index: int
    bucket: Bucket | None = None
    """None: the nearest one."""
    epoch: int = 0


@dataclass(frozen=True, eq=False)
class Example:
    """One image as trained on. h, w are its bucket's; tensors are float32."""

    name: str
    image: Float[Tensor, "3 h w"]
    """-1 to 1."""
    mask: Float[Tensor, "1 h w"]
    """0 = ignore, 1 = train. Ones for prior images."""
    face_mask: Float[Tensor, "1 h w"]
    """1 on the subject's face (the detector's ellipse), as far as the crop shows it, else 0."""
    caption: str
    landmarks: Float[Tensor, "5 2"]
    """x, y in pixels of `image`; zeros where there is no whole face."""
    has_face: bool
    """Whether all five landmarks of the subject's face lie inside the crop."""
    reference: Float[Tensor, " d"]
    """The subject's embedding, unit length; empty (d = 0) without `embeddings.safetensors`."""
    is_prior: bool
    crop: Crop
    """Where in the file it comes from."""
    sha256: str
    """Of the image file."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one bucket; `pin_memory` and `to` are what DataLoader and Accelerate call."""

    names: tuple[str, ...]
    images: Float[Tensor, "B 3 h w"]
    mask: Float[Tensor, "B 1 h w"]
    face_mask: Float[Tensor, "B 1 h w"]
    captions: tuple[str, ...]
    landmarks: Float[Tensor, "B 5 2"]
    has_face: Bool[Tensor, " B"]
    reference: Float[Tensor, "B d"]
    is_prior: Bool[Tensor, " B"]
    examples: tuple[Example, ...] = field(repr=False, default=())
    """The same one by one, on the host."""

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.names)

    def to(self, device: "torch.device | str | int", non_blocking: bool = False) -> "Batch":
        """The batch with its tensors on another device."""
        moved = {n: t.to(device, non_blocking=non_blocking) for n, t in self._tensors()}
        return self._with(moved)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for copies that do not block."""
        return self._with({name: t.pin_memory() for name, t in self._tensors()})

    def _with(self, tensors: dict[str, Any]) -> "Batch":
        return replace(self, **tensors)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                yield each.name, value


@dataclass(frozen=True, eq=False)
class Source:
    """An image of the folder, before anything was decoded."""

    sample: Sample
    caption: str
    is_prior: bool
    size: tuple[int, int]
    """Width and height of the upright image."""
    face: Face | None = None


@dataclass(frozen=True, eq=False)
class PreparedFolder(TorchDataset[Example]):
    """Images with what `lora-prep` made for them, and class images (see `at`)."""

    sources: tuple[Source, ...]
    sizes: tuple[Bucket, ...]
    subject: Subject
    crop: CropPolicy = "center"
    flip: bool = False
    """Mirror every other image at random. Off: faces are not symmetric, and identity is learned."""
    missing_mask: MissingMask = "error"
    seed: int = 0

    @classmethod
    def at(
        cls,
        path: Path,
        *,
        resolution: int = 512,
        step: int = 64,
        masks: Path | None = None,
        priors: Path | None = None,
        prior_caption: str = "",
        caption: str = "",
        crop: CropPolicy = "center",
        flip: bool = False,
        missing_mask: MissingMask = "error",
        recursive: bool = False,
        seed: int = 0,
    ) -> "PreparedFolder":
        """The data set at `path` (its image folder or its root) and the class images in `priors`.

        Images that `lora-prep review` rejected are left out. Headers are read, no pixels.
        Captions are the `.txt` files; `caption` stands in for missing
        and empty ones, `prior_caption` is that of all class images. With `embeddings.safetensors`
        at the root, each image's face is the one most like the subject, unless it is somebody
        else's (below the file's `min_similarity`), and `reference` the mean of those faces'
        embeddings.

        Raises DatasetError for a folder without images, an unreadable image, an image without a
        mask (unless `missing_mask` is "ones"), embeddings of another folder; UsageError for
        settings that make no sense.
        """
        dataset = Dataset.at(path, masks=masks, recursive=recursive)
        subject = Subject.of(dataset)
        left_out = rejected(dataset)
        samples = [sample for sample in dataset if sample.name not in left_out]
        sources = [
            Source(
                sample,
                _caption(sample, caption),
                False,
                image_size(sample.image),
                subject.faces.get(sample.name),
            )
            for sample in samples
        ]
        if missing_mask == "error":
            _require_masks(dataset, samples)
        if priors is not None:
            class_images = Dataset.at(priors, masks=priors.parent / ".no-masks")
            sources += [
                Source(
                    sample, prior_caption or _caption(sample, ""), True, image_size(sample.image)
                )
                for sample in class_images
            ]
        return cls(
            tuple(sources),
            buckets(resolution, step=step),
            subject,
            crop,
            flip,
            missing_mask,
            seed,
        )

    def __len__(self) -> int:
        """Number of images, class images included."""
        return len(self.sources)

    def __getitem__(self, key: "Key | int") -> Example:
        """One image in its bucket.

        Raises DatasetError naming the file that cannot be read, or that is not the one whose face
        was embedded.
        """
        key = Key(key) if isinstance(key, int) else key
        source = self.sources[key.index]
        data = read_bytes(source.sample.image)
        sha256 = hashlib.sha256(data).hexdigest()
        if not source.is_prior:
            self.subject.check(source.sample.name, source.sample.image, sha256)
        image = decoded(source.sample.image, data, imageio.decode_image)
        height, width = image.shape[:2]
        bucket = key.bucket or nearest(self.sizes, width, height)
        crop = self._crop(source, key, (width, height), bucket)
        mask = self._mask(source, (height, width))
        pixels = torch.from_numpy(crop.image(image)).permute(2, 0, 1).contiguous()
        landmarks, face_mask = _face(source.face, crop)
        return Example(
            name=source.sample.name,
            image=pixels.to(torch.float32).div_(127.5).sub_(1.0),
            mask=torch.from_numpy(crop.mask(mask))[None],
            face_mask=torch.from_numpy(face_mask)[None],
            caption=source.caption,
            landmarks=torch.from_numpy(landmarks),
            has_face=bool(landmarks.any()),
            reference=torch.from_numpy(self.reference),
            is_prior=source.is_prior,
            crop=crop,
            sha256=sha256,
        )

    @property
    def reference(self) -> Float[np.ndarray, " d"]:
        """The subject's embedding."""
        return self.subject.reference

    def bucket(self, index: int) -> Bucket:
        """The bucket of an image."""
        return nearest(self.sizes, *self.sources[index].size)

    def _crop(self, source: Source, key: Key, size: tuple[int, int], bucket: Bucket) -> Crop:
        text = f"{self.seed}/{key.epoch}/{source.is_prior}/{source.sample.name}".encode(
            errors="surrogateescape"
        )
        draw = np.random.default_rng(list(hashlib.sha256(text).digest()))
        x, y, coin = draw.random(3).tolist()
        at = (x, y) if self.crop == "random" else (0.5, 0.5)
        centre = source.face.centre if self.crop == "face" and source.face else None
        return Crop.of(*size, bucket, at=at, centre=centre, flip=self.flip and coin < 0.5)

    def _mask(self, source: Source, shape: tuple[int, int]) -> Mask:
        path = source.sample.mask
        if source.is_prior or (self.missing_mask == "ones" and not path.exists()):
            return np.full(shape, 255, np.uint8)
        mask: Mask = decoded(path, read_bytes(path), imageio.decode_mask)
        if mask.shape != shape:
            raise DatasetError(
                f"{path} is {mask.shape[1]} × {mask.shape[0]} pixels and its image {shape[1]} × "
                f"{shape[0]}: run lora-prep validate"
            )
        return mask


class BucketBatches(Sampler[list[Key]]):
    """Batches of one bucket each, in an order of their own for each epoch. All are full.

    A bucket with too few images for its last batch is filled up from its own images, since a
    partial batch in the middle breaks the even split over processes that Accelerate makes.
    """

    drop_last = False

    def __init__(
        self, folder: PreparedFolder, batch_size: int, *, pair_priors: bool = False, seed: int = 0
    ) -> None:
        """`pair_priors` makes DreamBooth batches: first half instance images, second half priors.

        Class images are then cut to the bucket of the instance images that they go with, and an
        epoch ends with the instance images. Raises UsageError where that cannot be.
        """
        if batch_size < 1:
            raise UsageError(f"a batch size of {batch_size} makes no sense")
        self.folder = folder
        self.batch_size = batch_size
        self.pair_priors = pair_priors
        self.seed = seed
        self.epoch = 0
        self._priors = [i for i, s in enumerate(folder.sources) if s.is_prior]
        if pair_priors and (batch_size % 2 or not self._priors):
            raise UsageError(
                "pair_priors wants class images and an even batch size; there are "
                f"{len(self._priors)} class images, and the batch size is {batch_size}"
            )

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next. Without it, every epoch is the same."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(-(-len(group) // self._share) for group in self._groups.values())

    def __iter__(self) -> Iterator[list[Key]]:
        """The batches of this epoch."""
        draw = np.random.default_rng([self.seed, self.epoch])
        batches = []
        for bucket, group in self._groups.items():
            order = [group[i] for i in draw.permutation(len(group))]
            order += [order[i % len(group)] for i in range(-len(group) % self._share)]
            for start in range(0, len(order), self._share):
                batches.append((bucket, order[start : start + self._share]))
        priors = self._prior_stream(draw)
        for i in draw.permutation(len(batches)):
            bucket, chosen = batches[i]
            if self.pair_priors:
                chosen = chosen + [next(priors) for _ in chosen]
            yield [Key(index, bucket, self.epoch) for index in chosen]

    @property
    def _share(self) -> int:
        return self.batch_size // 2 if self.pair_priors else self.batch_size

    @cached_property
    def _groups(self) -> dict[Bucket, list[int]]:
        groups: dict[Bucket, list[int]] = defaultdict(list)
        for index, source in enumerate(self.folder.sources):
            if not (self.pair_priors and source.is_prior):
                groups[self.folder.bucket(index)].append(index)
        return dict(sorted(groups.items()))

    def _prior_stream(self, draw: np.random.Generator) -> Iterator[int]:
        while self._priors:
            for i in draw.permutation(len(self._priors)):
                yield self._priors[i]


def collate(examples: Sequence[Example]) -> Batch:
    """Examples of one bucket as a batch. Raises UsageError where their sizes differ."""
    sizes = {tuple(e.image.shape) for e in examples}
    if len(sizes) > 1:
        raise UsageError(
            "the images of a batch have to be of one size: give the DataLoader a "
            "batch_sampler=BucketBatches(...) or a batch size of 1"
        )
    return Batch(
        names=tuple(e.name for e in examples),
        images=torch.stack([e.image for e in examples]),
        mask=torch.stack([e.mask for e in examples]),
        face_mask=torch.stack([e.face_mask for e in examples]),
        captions=tuple(e.caption for e in examples),
        landmarks=torch.stack([e.landmarks for e in examples]),
        has_face=torch.tensor([e.has_face for e in examples]),
        reference=torch.stack([e.reference for e in examples]),
        is_prior=torch.tensor([e.is_prior for e in examples]),
        examples=tuple(examples),
    )


def _face(
    face: Face | None, crop: Crop
) -> tuple[Float[np.ndarray, "5 2"], Float[np.ndarray, "h w"]]:
    """The landmarks, zeros unless all lie inside the crop; the face's ellipse in it. float32."""
    height, width = crop.bucket.height, crop.bucket.width
    if face is None or face.landmarks is None:
        return np.zeros((5, 2), np.float32), np.zeros((height, width), np.float32)
    landmarks = crop.landmarks(np.array(face.landmarks, np.float64)).astype(np.float32)
    if not ((landmarks >= -0.5) & (landmarks <= (width - 0.5, height - 0.5))).all():
        landmarks = np.zeros((5, 2), np.float32)  # such a face cannot be aligned
    shapes = [crop.points(shape - 0.5) + 0.5 for shape in anatomy.outlines(face, Region.FACE)]
    return landmarks, anatomy.fill(shapes, height, width).astype(np.float32)


def _caption(sample: Sample, otherwise: str) -> str:
    text = read(sample)
    if isinstance(text, Fault):
        if text in (Fault.MISSING, Fault.EMPTY):
            return otherwise
        raise DatasetError(f"the caption {sample.caption} is {text}: see lora-prep captions")
    return text


def _require_masks(dataset: Dataset, samples: Sequence[Sample]) -> None:
    missing = [sample.name for sample in samples if not sample.mask.is_file()]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(samples)} images have no mask in {dataset.masks}, the first "
            f'is {missing[0]}: run lora-prep masks, or give missing_mask="ones"'
        )
