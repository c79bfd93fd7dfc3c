"""Image features on disk, so that a later command need not run the encoder again.

One safetensors file an image, float16, named after what it was made from: the pixels that the
encoder saw, the model, and its precision. So a file is right or unused, and none has to be asked
whether it is out of date. At SAM2's 1024 pixels a file takes 8.4 MB, whatever the image's size.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float16
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lora_prep import imageio
from lora_prep.types import Image

Level: TypeAlias = Float16[np.ndarray, "_ _ _"]
"""Image features of one resolution: channels, height, width."""

LEVELS = ("high_res_0", "high_res_1", "image_embed")
"""What SAM2 calls them: a quarter, an eighth and a sixteenth of the model's input in size."""


@dataclass(frozen=True, slots=True)
class EmbeddingCache:
    """A folder of image features. Its methods are safe to call in threads."""

    folder: Path
    encoder: str
    """Names the model down to its weights, and its precision."""

    def __post_init__(self) -> None:
        """Tidy up what killed runs left."""
        imageio.sweep(self.folder)

    def key(self, square: Image) -> str:
        """Names the features of an image that was resized to the model's input."""
        digest = hashlib.sha256(f"{self.encoder}\0{square.shape}\0".encode())
        digest.update(np.ascontiguousarray(square).data)
        return digest.hexdigest()

    def path(self, key: str) -> Path:
        """Where they are kept."""
        return self.folder / f"{key}.safetensors"

    def read(self, key: str) -> list[Level] | None:
        """The features; None where there are none, or the file is damaged or somebody else's."""
        try:
            with safe_open(self.path(key), framework="numpy") as file:
                levels: list[Level] = [file.get_tensor(name) for name in LEVELS]
                known = file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        if known.get("key") != key or known.get("sha256") != _checksum(levels):
            return None
        return levels

    def write(self, key: str, levels: Sequence[Level]) -> None:
        """Keep the features. Raises DatasetError where they cannot be written."""
        imageio.make_folder(self.folder)
        arrays = [np.ascontiguousarray(level, np.float16) for level in levels]
        metadata = {"key": key, "encoder": self.encoder, "sha256": _checksum(arrays)}
        data = save(dict(zip(LEVELS, arrays, strict=True)), metadata)
        imageio.replace(self.path(key), data)


def _checksum(levels: Sequence[Level]) -> str:
    digest = hashlib.sha256()
    for level in levels:
        digest.update(np.ascontiguousarray(level).data)
    return digest.hexdigest()
