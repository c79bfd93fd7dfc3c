"""Make variants of each image: image, mask and faces moved alike, colours changed in the image."""

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from lora_prep import augmentation, imageio, masks
from lora_prep.augmentation import MIRROR, PRESETS, Pipeline, Points
from lora_prep.dataset import CAPTION_SUFFIX, Dataset, Sample
from lora_prep.errors import DatasetError, ItemError, UsageError
from lora_prep.faces import FaceRecord, faces_path
from lora_prep.journal import Journal
from lora_prep.shards import journal_path
from lora_prep.stage import Item, Saved
from lora_prep.types import Face, Image, Json, Mask

log = logging.getLogger(__name__)

Value = TypeVar("Value")

FormatName = Literal["png", "jpeg"]
SUFFIXES = {"png": ".png", "jpeg": ".jpg"}

NO_FLIP = (
    "no variant is mirrored: faces are not symmetric, and a mirrored parting, mole or smile is "
    "another person's (--flip mirrors half of them)"
)
FLIP = (
    "variants are mirrored: partings, moles and lettering change sides, which blurs an identity; "
    "good for objects and styles"
)


@dataclass(frozen=True)
class AugmentImages:
    """Images, masks and captions to `count` variants of each, in a data set of their own."""

    dataset: Dataset
    out: Path
    """Gets `images` and `masks`."""
    count: int = 1
    pipeline: Pipeline = field(default_factory=lambda: PRESETS["standard"])
    """With the mirroring, where it is wanted: see `with_flip`."""
    seed: int = 0
    with_masks: bool = True
    format: FormatName = "png"
    quality: int = 95
    """Of JPEG, 1 to 100."""
    min_kept: float = 0.7
    """A variant with a smaller share of the mask, or one that has lost a landmark, is drawn again;
    0 takes every one."""
    tries: int = 10
    """How many draws a variant gets."""
    batch_size: int = 1

    def __post_init__(self) -> None:
        images, out = Path(os.path.realpath(self.dataset.images)), Path(os.path.realpath(self.out))
        sources = (images, Path(os.path.realpath(self.dataset.masks)))
        for source in sources:
            if out == source or source in out.parents:
                raise UsageError(
                    f"--out lies in {source}, whose pictures are augmented: choose a folder "
                    "beside it"
                )
            for target in (out / "images", out / "masks"):
                if target == source or target in source.parents:
                    raise UsageError(
                        f"--out {self.out} would mix the variants with the originals in {source}: "
                        "choose another folder"
                    )

    @property
    def name(self) -> str:
        """`augment`, or `augment-<folder>` for another folder than `augmented`."""
        return "augment" if self.out.name == "augmented" else f"augment-{self.out.name}"

    @cached_property
    def made(self) -> Dataset:
        """The data set of the variants."""
        return Dataset(self.out / "images", self.out / "masks", self.out, self.dataset.recursive)

    def settings(self) -> dict[str, Json]:
        """All that changes a variant. Their number does not: more can be asked for later."""
        return {
            "stage": "augment/1",
            "pipeline": [dict(table) for table in self.pipeline],
            "seed": self.seed,
            "masks": self.with_masks,
            "format": self.format,
            "quality": self.quality if self.format == "jpeg" else None,
            "min_kept": self.min_kept,
            "tries": self.tries,
        }

    def __len__(self) -> int:
        return len(self.dataset) * self.count

    def items(self) -> Iterator[Item]:
        """One item a variant; those of an image follow each other."""
        for sample in self.dataset:
            inputs = [sample.image]
            if self.with_masks:
                inputs.append(sample.mask)
            if sample.caption.is_file():
                inputs.append(sample.caption)
            problem = self._problem(sample)
            for variant in range(self.count):
                copy = self.made.sample(self._copy_name(sample, variant))
                outputs = [copy.image]
                others = set(SUFFIXES.values()) - {copy.image.suffix}
                former = [copy.image.with_suffix(suffix) for suffix in others]
                (outputs if self.with_masks else former).append(copy.mask)
                (outputs if inputs[-1] == sample.caption else former).append(copy.caption)
                key = f"{self.dataset.key(sample.image)}#{variant}"
                yield Item(key, tuple(inputs), tuple(outputs), problem, former=tuple(former))

    def surplus(self) -> list[str]:
        """Names of variants that an earlier, larger `count` made and that are still there."""
        path = journal_path(self.dataset.root, self.name)
        if not path.exists():
            return []
        images, root = map(os.path.abspath, (self.made.images, self.dataset.root))
        with Journal(path, read_only=True) as journal:
            entries = [e for e in journal if int(e.key.rpartition("#")[2]) >= self.count]
        outputs = [Path(os.path.normpath(Path(root, p))) for e in entries for p in e.outputs]
        found = (p for p in outputs if p.is_relative_to(images) and p.is_file())
        return sorted(p.relative_to(images).as_posix() for p in found if p.suffix != CAPTION_SUFFIX)

    def open(self) -> "Augmenting":
        """Import albumentations."""
        from lora_prep.backends.albumentations import Augmenter

        log.info("albumentations 2.0.8, seed %d, %s", self.seed, self.format)
        log.info(FLIP if _flips(self.pipeline) else NO_FLIP)
        return Augmenting(self, lambda: Augmenter(self.pipeline))

    def _problem(self, sample: Sample) -> ItemError | None:
        others = self.dataset.sharers(sample)
        if others:
            return ItemError(
                f"{sample.name} and {', '.join(others)} would share a mask and the names of their "
                "variants: rename or remove all but one of them",
                code="shared-stem",
            )
        if self.with_masks and not sample.mask.is_file():
            return ItemError(
                f"it has no mask {sample.mask.name}: make it (`lora-prep masks`), or augment "
                "without masks (--no-masks)",
                code="no-mask",
            )
        return None

    def _copy_name(self, sample: Sample, variant: int) -> str:
        return f"{sample.stem}-a{variant:03}{SUFFIXES[self.format]}"

    def source_of(self, item: Item) -> Sample:
        """The sample that an item is a variant of."""
        return self.dataset.sample(item.inputs[0].relative_to(self.dataset.images).as_posix())

    def copy_of(self, item: Item) -> Sample:
        """The variant's own sample."""
        return self.made.sample(item.outputs[0].relative_to(self.made.images).as_posix())


def with_flip(pipeline: Pipeline) -> Pipeline:
    """The pipeline with mirroring of every other variant, where it has none of its own."""
    return pipeline if _flips(pipeline) else [MIRROR, *pipeline]


def _flips(pipeline: Pipeline) -> bool:
    return any(
        str(table.get("transform", "")).endswith("Flip") or _flips(table.get("transforms", ()))
        for table in pipeline
    )


@dataclass(frozen=True, slots=True)
class Source:
    """An image with all that moves with it, decoded once for all its variants."""

    image: Image
    mask: Mask | None
    soft: bool
    """The mask has weights between 0 and 255."""
    weight: float
    """Sum of the mask."""
    record: FaceRecord | None
    probe: Points
    """Corners of the box around the mask, or of the image."""
    watched: tuple[int, ...]
    """The landmarks that must stay in the picture, by their place in `points`."""

    @property
    def faces(self) -> tuple[Face, ...]:
        """The faces that are known."""
        return self.record.faces if self.record else ()

    @property
    def points(self) -> Points:
        """Everything that is sent through the transform: the probe first."""
        return np.concatenate([self.probe, augmentation.face_points(self.faces)])


@dataclass(frozen=True, slots=True)
class Augmenting:
    """Variants being made. The work is done in `save`, which threads share."""

    stage: AugmentImages
    new_augmenter: Callable[[], Any]
    own: threading.local = field(default_factory=threading.local)
    """Each thread's augmenter: it holds random state."""
    sources: "Shared[Source]" = field(default_factory=lambda: Shared(3))

    def load(self, item: Item, inputs: Sequence[bytes]) -> tuple[Source, bytes]:
        """Decode, where no other variant of the image did; the caption as it is."""
        pictures = tuple(inputs[:2] if self.stage.with_masks else inputs[:1])
        caption = inputs[-1] if item.inputs[-1].suffix == CAPTION_SUFFIX else b""
        key = (item.inputs[0], hash(pictures))
        return self.sources.get(key, lambda: self._decode(item, pictures)), caption

    def compute(self, batch: Sequence[tuple[Source, bytes]]) -> list[tuple[Source, bytes]]:
        """Nothing: there is no model that only one may use."""
        return list(batch)

    def save(self, item: Item, loaded: tuple[Source, bytes]) -> Saved:
        """Draw until the face is there, encode, and keep the faces for later commands."""
        source, caption = loaded
        name, variant = self.stage.source_of(item).name, int(item.key.rpartition("#")[2])
        augmenter, best = self._augmenter(), 0.0
        points = source.points
        for attempt in range(self.stage.tries):
            seed = augmentation.draw_seed(self.stage.seed, name, variant, attempt)
            made = augmenter.draw(source.image, source.mask, points, seed, soft=source.soft)
            kept = share_kept(source, made.image, made.mask, made.points)
            if kept >= self.stage.min_kept:
                break
            best = max(best, kept)
        else:
            raise ItemError(
                f"none of {self.stage.tries} draws kept the face with its landmarks: at best "
                f"{best:.0%} of the mask, and --min-kept is {self.stage.min_kept:.0%}. Use a "
                "gentler preset, or more --tries",
                code="face-lost",
            )
        moved = made.points[: len(source.probe)]
        mirrored = augmentation.signed_area(moved) < 0
        size = made.image.shape[1], made.image.shape[0]
        faces = augmentation.move_faces(
            source.faces, made.points[len(moved) :], size, mirrored=mirrored
        )
        files = {
            item.outputs[0]: imageio.encode_image(
                made.image, self.stage.format, quality=self.stage.quality
            )
        }
        if made.mask is not None:
            files[item.outputs[1]] = imageio.encode_mask(made.mask)
        if item.outputs[-1].suffix == CAPTION_SUFFIX:
            files[item.outputs[-1]] = caption
        if source.record:
            self._remember(item, files[item.outputs[0]], source.record.detector, size, faces)
        info = {
            "parent": self.stage.dataset.key(item.inputs[0]),
            "variant": variant,
            "attempt": attempt,
            "kept": round(kept, 4),
            "mirrored": mirrored,
            "matrix": augmentation.affine(source.probe, moved),
            "faces": len(faces),
        }
        empty = source.mask is not None and not source.weight
        return Saved(files, info, ("its mask is empty: nothing is trained on",) if empty else ())

    def _augmenter(self) -> Any:
        if not hasattr(self.own, "augmenter"):
            self.own.augmenter = self.new_augmenter()
        return self.own.augmenter

    def _decode(self, item: Item, pictures: Sequence[bytes]) -> Source:
        image = imageio.decode_image(pictures[0])
        height, width = image.shape[:2]
        mask = None
        if self.stage.with_masks:
            mask = imageio.decode_mask(pictures[1])
            if mask.shape != (height, width):
                raise ItemError(
                    f"the image is {width}×{height} and its mask {mask.shape[1]}×{mask.shape[0]}: "
                    "make the mask again (`lora-prep masks --force`), or see `lora-prep validate`",
                    code="size-mismatch",
                )
        box = (0, 0, width, height) if mask is None else masks.bounding_box(mask > 0)
        probe = augmentation.frame_points(box or (0, 0, width, height))
        record = self._known_faces(item, pictures[0])
        return Source(
            image,
            mask,
            soft=mask is not None and not augmentation.is_binary(mask),
            weight=0.0 if mask is None else augmentation.weight(mask),
            record=record,
            probe=probe,
            watched=tuple(_watched(record.faces if record else (), mask, (width, height))),
        )

    def _known_faces(self, item: Item, image: bytes) -> FaceRecord | None:
        """What any detector has found in this very image."""
        path = faces_path(self.stage.dataset, self.stage.source_of(item))
        try:
            record = FaceRecord.from_bytes(path.read_bytes())
        except (OSError, KeyError, TypeError, ValueError):
            return None
        return record if record.sha256 == hashlib.sha256(image).hexdigest() else None

    def _remember(
        self, item: Item, image: bytes, detector: str, size: tuple[int, int], faces: Sequence[Face]
    ) -> None:
        """Write the variant's faces, as if they had been detected."""
        sha256 = hashlib.sha256(image).hexdigest()
        path = faces_path(self.stage.made, self.stage.copy_of(item))
        with suppress(DatasetError):  # only a later command would save time by it
            imageio.make_folder(path.parent)
            _sweep(path.parent)
            imageio.replace(path, FaceRecord(detector, sha256, *size, tuple(faces)).to_bytes())


def share_kept(source: Source, image: Image, mask: Mask | None, points: Points) -> float:
    """Which share of what is to be trained on is still in a variant, 0 to 1.

    That of the mask, with the change of scale taken out; 0 where a landmark left the picture. 1
    where there is nothing to lose: no mask or an empty one, and no landmarks.
    """
    size = image.shape[1], image.shape[0]
    if source.watched and not augmentation.landmarks_inside(points[list(source.watched)], size):
        return 0.0
    if mask is None or not source.weight:
        return 1.0
    probe = points[: len(source.probe)]
    zoom = abs(augmentation.signed_area(probe) / augmentation.signed_area(source.probe))
    expected = source.weight * zoom if np.isfinite(zoom) else source.weight
    return min(1.0, augmentation.weight(mask) / expected) if expected else 0.0


def _watched(faces: Sequence[Face], mask: Mask | None, size: tuple[int, int]) -> Iterator[int]:
    """Places in `Source.points` of the landmarks of faces that are trained on, if all are there."""
    start = 4
    for face in faces:
        end = start + len(augmentation.face_points([face]))
        points = augmentation.landmark_points(face)
        first, start = end - len(points), end
        if len(points) and augmentation.landmarks_inside(points, size):
            x, y = np.minimum(points.astype(int), np.array(size) - 1).T
            if mask is None or mask[y, x].any():
                yield from range(first, end)


class Shared(Generic[Value]):
    """Values that threads need at the same time, each made once; the last few are kept."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._futures: OrderedDict[Any, Future[Value]] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Value]) -> Value:
        """The value, made by this call or awaited where another thread makes it.

        Raises what `make` raised, to each who asks.
        """
        with self._lock:
            future = self._futures.get(key)
            mine = future is None
            if future is None:
                future = self._futures[key] = Future()
                while len(self._futures) > self._size:
                    self._futures.popitem(last=False)
        if mine:
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
        return future.result()


@cache
def _sweep(folder: Path) -> None:
    """Once a folder and process, delete what killed runs left."""
    imageio.sweep(folder)
