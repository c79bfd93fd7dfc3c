"""Batches in an order that is known from the first to the last, and what is computed of them once.

Batch n of a run is a function of the seed alone. Process p of P takes every P-th; going on at a
step is starting the count there. Nothing of it has to be kept in a checkpoint.
"""

import functools
import hashlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.utils.data import DataLoader

from lora_prep import imageio
from lora_prep.dataset import STATE_FOLDER, Dataset
from lora_prep.digests import sha256_of_files
from lora_prep.training.dataset import Batch, BucketBatches, Key, PreparedFolder, collate
from lora_prep.training.trainer.config import Config
from lora_prep.training.trainer.families import Family, Text

WEIGHTS = (".safetensors", ".bin")
TEXTS = (".json", ".txt", ".model", ".jinja")
"""Files of a saved model: its weights; its configurations, tokenizers and chat template."""
IN_MEMORY = 256
"""Texts that are kept in memory beside those on disk."""


@dataclass(frozen=True, eq=False)
class Data:
    """The images of a run: one folder, or two with equal names for a slider of pairs."""

    folders: tuple[PreparedFolder, ...]
    cache: Path | None
    """Where latents and texts are kept."""

    @property
    def main(self) -> PreparedFolder:
        """The images; of pairs, those with more of the attribute."""
        return self.folders[0]

    @property
    def captions(self) -> list[str]:
        """All captions, once each."""
        return sorted({source.caption for source in self.main.sources})

    def digest(self) -> str:
        """SHA-256 over names, captions, bytes of images and masks, and the faces."""
        total = hashlib.sha256()
        for folder in self.folders:
            total.update(folder.reference.tobytes())
            for source in folder.sources:
                known = (source.sample.name, source.caption, source.is_prior, source.face)
                total.update("\0".join(map(str, known)).encode(errors="surrogateescape"))
                paths = [source.sample.image]
                if not source.is_prior and source.sample.mask.is_file():
                    paths.append(source.sample.mask)
                for path in paths:
                    total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()


def open_data(config: Config) -> Data | None:
    """The run's images, headers read; None for a slider without any.

    Raises DatasetError and UsageError, as `PreparedFolder.at` does.
    """
    data = config.data
    if config.slider and config.slider.pairs:
        places = [config.slider.pairs / side for side in ("positive", "negative")]
        masks: Path | None = config.slider.pairs / ".no-masks"
    elif data.images:
        places, masks = [data.images], data.masks
    else:
        return None
    needs_mask = {"masked", "inverted_mask_prior"} & set(config.terms().values())
    folders = tuple(
        PreparedFolder.at(
            place,
            resolution=data.resolution,
            step=data.bucket_step,
            masks=masks,
            priors=data.priors,
            prior_caption=data.prior_caption,
            caption=data.caption,
            crop=data.crop,
            flip=data.flip,
            missing_mask=data.missing_mask if needs_mask else "ones",
            recursive=data.recursive,
            seed=config.train.seed,
        )
        for place in places
    )
    if len(places) > 1:
        state = places[0].parent / STATE_FOLDER
    else:
        state = Dataset.at(places[0], masks=masks, recursive=data.recursive).state
    return Data(folders, state if data.cache else None)


class Order:
    """The keys of this process's batches from one on, without end: a batch sampler."""

    def __init__(self, data: Data, config: Config, start: int, stride: int) -> None:
        pair = data.main.sources[-1].is_prior  # class images come last
        self.batches = BucketBatches(
            data.main, config.train.batch_size, pair_priors=pair, seed=config.train.seed
        )
        self.start, self.stride = start, stride

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, skip = divmod(self.start, len(self.batches))
        while True:
            self.batches.set_epoch(epoch)
            for keys in self.batches:
                if skip == 0:
                    yield keys
                    skip = self.stride
                skip -= 1
            epoch += 1


def leave_interrupts(_: int) -> None:
    """In a worker: Ctrl-C and a scheduler's SIGTERM go to the whole group of processes, and the
    main one deals with them; a worker that died of one would break the step that is to be kept."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def stream(
    data: Data, config: Config, start: int, stride: int, *, pin: bool = False
) -> Iterator[tuple[Batch, ...]]:
    """Batches `start`, `start + stride`, ...: one of each folder, of the same names and crops."""
    loaders = [
        iter(
            DataLoader(
                folder,
                batch_sampler=Order(data, config, start, stride),
                collate_fn=collate,
                num_workers=config.data.workers,
                worker_init_fn=leave_interrupts,
                pin_memory=pin,
            )
        )
        for folder in data.folders
    ]
    return zip(*loaders, strict=True)


class Texts:
    """Encoded prompts: on the CPU, from disk where they were encoded before."""

    def __init__(self, family: Family, folder: Path | None, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self._family: Family | None = family
        self._kept: dict[str, Text] = {}
        self._read = functools.lru_cache(IN_MEMORY)(self._from_disk)

    def prepare(self, prompts: list[str]) -> None:
        """Encode those that are not kept yet."""
        for prompt in dict.fromkeys(prompts):
            if prompt in self._kept or self._read(prompt) is not None:
                continue
            assert self._family is not None, "the text encoders were given up"
            with torch.no_grad():
                encoded = self._family.encode_text(prompt)
            text = {key: value.detach().cpu().contiguous() for key, value in encoded.items()}
            if self.folder is None:
                self._kept[prompt] = text
                continue
            path = self._path(prompt)
            imageio.make_folder(path.parent)
            imageio.replace(path, save_tensors(text))
            self._read.cache_clear()

    def __getitem__(self, prompt: str) -> Text:
        found = self._kept.get(prompt) or self._read(prompt)
        if found is None:
            self.prepare([prompt])
            found = self._kept.get(prompt) or self._read(prompt)
        assert found is not None
        return found

    def release(self) -> None:
        """Give up the text encoders: everything that is needed was prepared."""
        assert self._family is not None
        pipeline, self._family = self._family.pipeline, None
        for name in pipeline.components:
            if name.startswith("text_encoder"):
                setattr(pipeline, name, None)

    def _path(self, prompt: str) -> Path:
        assert self.folder is not None
        name = hashlib.sha256(f"{self.identity}\n{prompt}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _from_disk(self, prompt: str) -> Text | None:
        if self.folder is None:
            return None
        try:
            found: dict[str, Tensor] = load_tensors(self._path(prompt).read_bytes())
        except (OSError, ValueError, SafetensorError):
            return None
        return found


def sizes_of(batch: Batch) -> Tensor:
    """SDXL's time_ids, (B,6): height and width of the file, top and left of the crop, the bucket's
    height and width; sizes as scaled, as SDXL's authors trained it."""
    rows = [
        [
            e.crop.source[1],
            e.crop.source[0],
            e.crop.top,
            e.crop.left,
            e.crop.bucket.height,
            e.crop.bucket.width,
        ]
        for e in batch.examples
    ]
    return torch.tensor(rows, dtype=torch.float32)


def identity_of(folder: Path) -> str:
    """Changes with a saved model's weights and configuration, not with its place.

    Every byte counts, and is read once a process: a model with a LoRA merged into its attention
    differs in the middle of a file alone. Weights beside a pipeline's index are the same ones once
    more, in one file; nobody loads them.
    """
    whole = (folder / "model_index.json").is_file()
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in TEXTS
        or (path.suffix in WEIGHTS and not (whole and path.parent == folder))
    ]
    return sha256_of_files(folder, (path for path in paths if path.is_file()))
