"""Which files of a saved pipeline are loaded, and what tells them from another's.

Folders of pipelines hold more than that: the same weights in other precisions and formats, a single
file of everything, notes. Facts from diffusers' and transformers' `from_pretrained`: a model is its
config.json and the first of `_CHOICES` that is there.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_prep import digests
from lora_prep.errors import BackendError
from lora_prep.types import Json

INDEX = "model_index.json"

_OF_DIFFUSERS = (
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
)

_OF_TRANSFORMERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_WEIGHTS = (".safetensors", ".bin")

_TEXTS = (".json", ".txt", ".model", ".jinja")
"""What tokenizers, schedulers and processors consist of."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a pipeline, in a sub-folder of its own."""

    folder: Path
    library: str
    kind: str
    """Its class."""

    @property
    def is_model(self) -> bool:
        """Whether it has weights."""
        return not re.search(r"Tokenizer|Scheduler|Processor|FeatureExtractor", self.kind)

    @property
    def has_weights(self) -> bool:
        """Whether some are there, whichever."""
        return any(p.suffix in _WEIGHTS and p.exists() for p in self.folder.glob("*"))

    def files(self) -> Iterator[Path]:
        """The files that `from_pretrained` reads. Raises OSError and ValueError."""
        if not self.is_model:
            yield from (p for p in sorted(self.folder.glob("*")) if p.suffix in _TEXTS)
            return
        config = self.folder / "config.json"
        if config.is_file():
            yield config
        first, second = _OF_TRANSFORMERS, _OF_DIFFUSERS
        choices = (*second, *first) if self.library == "diffusers" else (*first, *second)
        chosen = next((p for p in map(self.folder.joinpath, choices) if p.is_file()), None)
        if chosen is None:
            yield from (p for p in sorted(self.folder.glob("*")) if p.suffix in _WEIGHTS)
        else:
            yield chosen
            if chosen.suffix == ".json":
                yield from shards(chosen)


def read_json(path: Path) -> dict[str, Json]:
    """An object in a JSON file. Raises OSError, and ValueError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def parts(folder: Path) -> list[Part]:
    """The parts that a pipeline is loaded from. Raises OSError and ValueError."""
    return [
        Part(folder / name, str(value[0]), value[1])
        for name, value in read_json(folder / INDEX).items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
    ]


def shards(listing: Path) -> list[Path]:
    """The files that weights were split into, from their index. Raises OSError and ValueError."""
    names = read_json(listing).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise ValueError(f"{listing} lists no weights")
    return [listing.parent / name for name in sorted(set(names.values()))]


def is_whole(folder: Path) -> bool:
    """Whether all is there that the index and its parts speak of."""
    try:
        found = parts(folder)
        listed = [s for p in found for i in p.folder.glob("*.index.json") for s in shards(i)]
    except (OSError, ValueError):
        return False
    filled = all(any(part.folder.glob("*")) for part in found)
    weighty = all(part.has_weights for part in found if part.is_model)
    return filled and weighty and all(path.exists() for path in listed)


def identity(folder: Path) -> str:
    """Changes with what is loaded, and stays when the folder is moved or something else put in.

    Of each file the name and every byte: with a LoRA merged in, only the middle of a file is
    another. Raises BackendError.
    """
    try:
        paths = [folder / INDEX, *(file for part in parts(folder) for file in part.files())]
        return digests.sha256_of_files(folder, paths)
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from error


def damaged(folder: Path, error: Exception) -> BackendError:
    """What to say of a pipeline that cannot be read."""
    return BackendError(
        f"the pipeline in {folder} cannot be read: {error}. If a download or a copy of it broke "
        "off, fetch it again"
    )
