"""Images drawn during the training, through the family's own pipeline."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from lora_prep import imageio
from lora_prep.training.trainer import lora
from lora_prep.training.trainer.config import Config
from lora_prep.training.trainer.data import Texts
from lora_prep.training.trainer.families import Family

FOLDER = "samples"


def draw(family: Family, texts: Texts, config: Config, step: int) -> list[Path]:
    """An image for each prompt; the strengths of the LoRA side by side. Returns the files.

    The noise depends on the seed and the prompt's number alone: images of two steps compare.
    """
    validation, pipeline = config.validation, family.pipeline
    model = getattr(pipeline, family.part)
    folder = config.save.out / FOLDER
    imageio.make_folder(folder)
    side = config.data.resolution // 16 * 16
    guidance = {} if validation.guidance is None else {"guidance_scale": validation.guidance}
    training = model.training
    model.eval()
    paths = []
    for number, prompt in enumerate(validation.prompts):
        call = family.call(texts[prompt], texts[validation.negative_prompt])
        arguments = {key: value.to(model.device, model.dtype) for key, value in call.items()}
        shots = []
        for strength in validation.strengths:
            generator = torch.Generator().manual_seed(validation.seed + number)
            with torch.no_grad(), lora.at(model, strength), _one_dtype(family):
                image = pipeline(
                    **arguments,
                    **guidance,
                    num_inference_steps=validation.steps,
                    height=side,
                    width=side,
                    generator=generator,
                    output_type="np",
                ).images[0]
            shots.append(np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8))
        path = folder / f"step-{step:06}-{number}.png"
        imageio.replace(path, imageio.encode_image(np.concatenate(shots, 1), "png"))
        paths.append(path)
    model.train(training)
    return paths


@contextlib.contextmanager
def _one_dtype(family: Family) -> Iterator[None]:
    """A copy of the VAE in the model's dtype meanwhile: pipelines do not convert between the two.

    A copy, since the training encodes with the VAE as its file has it, and bfloat16 rounds.
    """
    pipeline = family.pipeline
    vae, dtype = pipeline.vae, getattr(pipeline, family.part).dtype
    if vae.dtype == dtype:
        yield
        return
    pipeline.vae = copy.deepcopy(vae).to(dtype)
    try:
        yield
    finally:
        pipeline.vae = vae
