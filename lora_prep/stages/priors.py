"""Class images: drawn with a text-to-image model, or taken over from a folder."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from lora_prep import backends, imageio, priors
from lora_prep.backends import DetectorSpec, FaceDetector
from lora_prep.backends.diffusers_pipeline import (
    Description,
    DiffusersPainter,
    Painter,
    PipelineSpec,
    Request,
    Sampling,
)
from lora_prep.dataset import STATE_FOLDER, image_names
from lora_prep.errors import DatasetError, ItemError, OutOfMemory, UsageError
from lora_prep.journal import Journal, Stamp, exclusive
from lora_prep.stage import Item, Saved
from lora_prep.types import Image, Json

TRIES = 6
"""How often an image is drawn before it is given up."""

Format: TypeAlias = Literal["png", "jpg"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DrawPriors:
    """`priors/17-<SHA-1>.png`: one item an index, its seed from (seed, index) alone."""

    out: Path
    root: Path
    """Of the data set: the journal lies below it, never in `out`."""
    pipeline: PipelineSpec
    sampling: Sampling
    prompts: tuple[str, ...]
    count: int = 200
    """Class images wanted in the folder, those of others included."""
    seed: int = 0
    format: Format = "png"
    require_face: DetectorSpec | None = None
    batch_size: int = 1
    painter: Callable[[PipelineSpec, Sampling, int], Painter] = DiffusersPainter

    @property
    def name(self) -> str:
        """`priors`, or `priors-<folder>` where they go to another folder."""
        return stage_name(self.out)

    def settings(self) -> dict[str, Json]:
        """All that changes an image; not the device and the batch size, nor how many there are."""
        detector = self.require_face and backends.detector_identity(self.require_face)
        sampling, folder = self.sampling, self.pipeline.folder
        known = self.pipeline.here
        return {
            "stage": "priors/1",
            "model": Description(folder).identity() if known else f"{folder} is not here",
            "dtype": self.pipeline.dtype,
            "scheduler": self.pipeline.scheduler,
            "prompts": list(self.prompts),
            "size": [sampling.width, sampling.height],
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "negative_prompt": sampling.negative_prompt,
            "seed": self.seed,
            "format": self.format,
            "require_face": detector,
        }

    @cached_property
    def foreign(self) -> int:
        """Images in the folder that this stage did not make: they count, and are left alone."""
        return len(names_in(self.out)) - len(self.present)

    @cached_property
    def present(self) -> dict[str, str]:
        """Keys of the images that were drawn and are in the folder, by their names there."""
        return {name: key for name, (key, _) in self._drawn().items()}

    def _drawn(self) -> dict[str, tuple[str, Stamp]]:
        """Key of its item and stamp of each image that was drawn and is in the folder, by name."""
        path = self.root / STATE_FOLDER / f"{self.name}.jsonl"
        drawn: dict[str, tuple[str, Stamp]] = {}
        if path.exists():
            with Journal(path, read_only=True) as journal:
                for entry in journal:
                    for output, stamp in entry.outputs.items():
                        drawn[os.path.normpath(self.root / output)] = entry.key, stamp
        paths = {name: os.path.normpath(self.out / name) for name in names_in(self.out)}
        return {name: drawn[path] for name, path in paths.items() if path in drawn}

    def remove_repeated(self) -> list[str]:
        """Delete what was drawn here and is the same as an image of a lower index; their names.

        Workers of several processes do not see each other's images. Deletes only what is as it was
        written. Raises DatasetError where the data set is in use.
        """
        names = names_in(self.out)
        seen, removed = priors.Seen.of(names), []
        with exclusive(self.root / STATE_FOLDER):
            for name, (_, stamp) in self._drawn().items():
                parsed = priors.parse_name(name)
                path = self.out / name
                if parsed and seen.repeated(*parsed) is not None and stamp.matches(path):
                    path.unlink()
                    removed.append(name)
        return sorted(removed)

    def __len__(self) -> int:
        return max(0, self.count - self.foreign)

    def items(self) -> Iterator[Item]:
        """One item for each image to have."""
        place = Path(os.path.relpath(self.out, self.root)).as_posix()
        for index in range(len(self)):
            yield Item(f"{place}/{index}", (), (), folder=self.out)

    def open(self) -> "Drawing":
        """Load the pipeline, and the detector where faces are required."""
        painter = self.painter(self.pipeline, self.sampling, self.batch_size)
        log.info("class images: %s", painter.describe())
        detector = backends.detector(self.require_face) if self.require_face else None
        return Drawing(self, painter, detector, priors.Seen.of(names_in(self.out)))


@dataclass(frozen=True, slots=True)
class Drawn:
    """An image that is fit."""

    index: int
    image: Image
    digest: str
    prompt: str
    seed: int
    tries: int


@dataclass
class Drawing:
    """Class images being drawn."""

    stage: DrawPriors
    painter: Painter
    detector: FaceDetector | None
    seen: priors.Seen
    fits: int = field(init=False)
    """How many are drawn at once: halved where memory runs out, and then left so: all are of one
    size, and short batches are filled up, so that no single image can have been the cause."""

    def __post_init__(self) -> None:
        self.fits = self.stage.batch_size

    def load(self, item: Item, inputs: Sequence[bytes]) -> int:
        """The index; there is nothing to read."""
        return int(item.key.rpartition("/")[2])

    def compute(self, batch: Sequence[int]) -> list[Drawn | ItemError]:
        """Draw, and draw again what is unfit. In order, since repetitions are judged in order."""
        first = self._draw([self._request(index, 0) for index in batch])
        return [self._settled(index, picture) for index, picture in zip(batch, first, strict=True)]

    def save(self, item: Item, drawn: Drawn) -> Saved:
        """Encode; the name holds the pixels' hash."""
        suffix = f".{self.stage.format}"
        assert item.folder
        path = item.folder / priors.file_name(drawn.index, drawn.digest, suffix)
        kind: Literal["png", "jpeg"] = "png" if self.stage.format == "png" else "jpeg"
        info = {"prompt": drawn.prompt, "seed": drawn.seed, "tries": drawn.tries}
        return Saved({path: imageio.encode_image(drawn.image, kind)}, info)

    def _request(self, index: int, attempt: int) -> Request:
        stage = self.stage
        prompt = stage.prompts[index % len(stage.prompts)]
        return Request(prompt, priors.seed_of(stage.seed, index, attempt))

    def _draw(self, requests: Sequence[Request]) -> list[Image | str]:
        """Draw in batches that fit. Raises OutOfMemory where not even one does."""
        drawn: list[Image | str] = []
        while len(drawn) < len(requests):
            try:
                drawn += self.painter.draw(requests[len(drawn) : len(drawn) + self.fits])
            except OutOfMemory:
                if self.fits == 1:
                    raise
                self.fits //= 2
                log.warning("out of memory: going on with a batch size of %d", self.fits)
        return drawn

    def _settled(self, index: int, picture: Image | str) -> Drawn | ItemError:
        reasons = []
        for attempt in range(TRIES):
            request = self._request(index, attempt)
            if attempt:
                (picture,) = self._draw([request])
            reason = picture if isinstance(picture, str) else self._unfit(index, picture)
            if not reason and not isinstance(picture, str):
                digest = priors.pixel_hash(picture)
                self.seen.add(index, digest)
                tries = attempt + 1
                return Drawn(index, picture, digest, request.prompt, request.seed, tries)
            reasons.append(reason)
        counted = ", ".join(f"{n} x {reason}" for reason, n in Counter(reasons).most_common())
        return ItemError(
            f"given up after {TRIES} tries ({counted}): see whether the model works with this "
            "prompt, size and precision; another --seed, or more --steps, may help",
            code="rejected",
        )

    def _unfit(self, index: int, picture: Image) -> str:
        reason = priors.flaw(picture)
        if reason:
            return reason
        if self.seen.repeated(index, priors.pixel_hash(picture)) is not None:
            return "another image is the same"
        if self.detector and not self.detector.detect(picture):
            return "there is no face in it"
        return ""


@dataclass(frozen=True)
class AdoptPriors:
    """Class images from a folder of the user's, under the right names. The folder is only read."""

    out: Path
    root: Path
    source: Path
    require_face: DetectorSpec | None = None
    class_name: str = ""
    """What they show, for captions; empty: not known."""
    batch_size: int = 1

    @property
    def name(self) -> str:
        """The drawn ones have a journal of their own."""
        return f"{stage_name(self.out)}-from"

    def settings(self) -> dict[str, Json]:
        """All that changes what becomes of an image."""
        detector = self.require_face and backends.detector_identity(self.require_face)
        shown = {"class": self.class_name} if self.class_name else {}
        return {"stage": "priors-from/1", "require_face": detector, **shown}

    @cached_property
    def sources(self) -> list[str]:
        """Names of the images to take over. Raises DatasetError where there is none."""
        names = sorted(image_names(self.source))
        if not names:
            raise DatasetError(f"there is no image in {self.source}")
        return names

    def __len__(self) -> int:
        return len(self.sources)

    def items(self) -> Iterator[Item]:
        """One item an image of theirs."""
        for name in self.sources:
            path = self.source / name
            key = Path(os.path.relpath(path, self.root)).as_posix()
            yield Item(key, (path,), (), folder=self.out)

    def open(self) -> "Adopting":
        """Load the detector where faces are required."""
        detector = backends.detector(self.require_face) if self.require_face else None
        indices = {name: index for index, name in enumerate(self.sources)}
        seen = priors.Seen.of(names_in(self.out))
        return Adopting(detector, indices, seen, self.class_name)


@dataclass(frozen=True, slots=True)
class Adoptable:
    """An image of theirs."""

    index: int
    image: Image
    digest: str
    data: bytes
    suffix: str
    again: bool
    """Taken over before: the picture that is there already is this one."""


@dataclass
class Adopting:
    """Class images being taken over."""

    detector: FaceDetector | None
    indices: dict[str, int]
    seen: priors.Seen
    class_name: str = ""

    def load(self, item: Item, inputs: Sequence[bytes]) -> Adoptable:
        """Decode, and turn upright what is not. Raises ItemError for what is no picture."""
        (path,), (data,) = item.inputs, inputs
        suffix = imageio.normalized_suffix(path.suffix).lower()
        copied = imageio.normalized(data, suffix)
        image = imageio.decode_image(copied)
        reason = priors.flaw(image)
        if reason:
            raise ItemError(f"no class image: {reason}", code="blank")
        digest = priors.pixel_hash(image)
        again = any(digest in output.name for output in item.outputs)
        return Adoptable(self.indices[path.name], image, digest, copied, suffix, again)

    def compute(self, batch: Sequence[Adoptable]) -> list[Adoptable | str | ItemError]:
        """In order: the first of several alike is taken, of the others the reason is given."""
        return [self._judged(one) for one in batch]

    def save(self, item: Item, judged: Adoptable | str) -> Saved:
        """The file's bytes, without its metadata."""
        if isinstance(judged, str):
            return Saved(skipped=judged)
        assert item.folder
        name = priors.file_name(judged.index, judged.digest, judged.suffix)
        shown = {"prompt": self.class_name} if self.class_name else {}
        return Saved({item.folder / name: judged.data}, {"name": name, **shown})

    def _judged(self, one: Adoptable) -> Adoptable | str | ItemError:
        if one.digest in self.seen.indices and not one.again:
            return "the same picture is there already"
        if self.detector:
            try:
                if not self.detector.detect(one.image):
                    return ItemError("there is no face in it", code="no-face")
            except ItemError as error:
                return error
        self.seen.add(one.index, one.digest)
        return one


def stage_name(out: Path) -> str:
    """Names the journal of a folder of class images."""
    return "priors" if out.name == "priors" else f"priors-{out.name}"


def names_in(out: Path) -> list[str]:
    """Names of the images in a folder that need not exist."""
    return list(image_names(out)) if out.is_dir() else []


def check_places(out: Path, root: Path, images: Path | None, source: Path | None) -> None:
    """Raise UsageError where class images would mix with what is not of them."""
    real = Path(os.path.realpath(out))
    if real == Path(os.path.realpath(root)):
        raise UsageError(f"--out {out} is the data set's own folder: choose a folder in it")
    for other, what in ((images, "the images of the subject"), (source, "the images of --from")):
        theirs = other and Path(os.path.realpath(other))
        if theirs and (real == theirs or theirs in real.parents or real in theirs.parents):
            raise UsageError(f"--out {out} would mix class images with {what} ({other})")
