"""Latents kept on disk, so that an image goes through the VAE once and not once an epoch."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lora_prep import imageio
from lora_prep.training.dataset import Batch, Example

Encode = Callable[[Float[Tensor, "1 3 h w"]], Float[Tensor, "1 c y x"]]


@dataclass(frozen=True)
class LatentCache:
    """Encodes each image once. What it keeps is named by the image's bytes, crop and `identity`.

    Use it with a crop policy that repeats itself (`center`, `face`); with `random` no crop comes
    twice.
    """

    folder: Path
    """Made when first needed; `.lora-prep/latents` of the data set is the place for it."""
    identity: str
    """Names the VAE and everything else that changes what `encode` returns."""
    encode: Encode
    """Images from -1 to 1 to what the training wants to have: the latents, or their moments where
    it samples from them."""

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Float[Tensor, "B c y x"]:
        """The latents of a batch, on the device and in the dtype of `batch.images`.

        Images that are not kept yet are encoded one at a time, so that what is kept does not depend
        on the batch. Raises DatasetError where the folder cannot be written.
        """
        images = batch.images
        latents = []
        for example, image in zip(batch.examples, images, strict=True):
            path = self.path(example)
            kept = _read(path)
            if kept is None:
                kept = self.encode(image[None])[0].contiguous().cpu()
                imageio.make_folder(path.parent)
                imageio.replace(path, save({"latents": kept}))
            latents.append(kept.to(images.device, images.dtype))
        return torch.stack(latents)

    def path(self, example: Example) -> Path:
        """Where the latents of an example are kept."""
        text = "\n".join([example.sha256, repr(example.crop), self.identity])
        name = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"


def _read(path: Path) -> Tensor | None:
    """The latents, unless there are none or the file is damaged: then they are made again."""
    try:
        return load(path.read_bytes())["latents"]
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
