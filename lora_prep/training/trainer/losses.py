"""The sum of terms that a run is trained with, checked against what the run has."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_prep.dataset import EMBEDDINGS, Dataset
from lora_prep.embeddings import read_embeddings
from lora_prep.errors import UsageError
from lora_prep.training.config import from_config
from lora_prep.training.identity import Recogniser, diffusers_decoder, load_recogniser
from lora_prep.training.identity.reference import check_model
from lora_prep.training.sliders.steps import check_range
from lora_prep.training.total import LossSum
from lora_prep.training.trainer import slide
from lora_prep.training.trainer.config import Config, IdentityConfig
from lora_prep.training.trainer.data import Data
from lora_prep.training.trainer.families import Family

MANY = 50
"""Images from which on class images may not be needed: a heuristic without a controlled study."""


def check(config: Config, data: Data | None) -> tuple[LossSum, list[str]]:
    """The losses as far as they can be made without a model, and what to tell the user.

    Raises UsageError where a term lacks what it needs: all of it is known before anything is
    loaded.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = from_config(config.losses, _given(config, _stand_in(), lambda x: x, None))
    notes = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    kinds = set(config.terms().values())
    _need(config, kinds, "identity", config.identity, "[identity] with the path of a recogniser")
    _need(config, kinds, "output_preservation", config.preserve, "[preserve] with a prompt")
    _need(config, kinds, "slider", config.slider, "[slider] with positive and negative prompts")
    pairs = config.slider and config.slider.pairs
    _need(config, kinds, "paired_slider", pairs, "[slider] with pairs, a folder")
    if "slider" in kinds and config.slider and not config.slider.positive:
        raise UsageError("losses.slider needs a positive prompt in [slider]")
    if config.slider and not kinds & {"slider", "paired_slider"}:
        raise UsageError("[slider] is there, but neither losses.slider nor losses.paired_slider")
    if config.slider and pairs and "slider" in kinds:
        raise UsageError("[slider] pairs are for losses.paired_slider, not for losses.slider")
    if kinds & {"slider", "paired_slider"} and len(config.losses) > 1:
        raise UsageError("a slider is trained with its own term alone: take the other losses out")
    if config.slider:
        check_range(slide.record(config.slider))
    if config.preserve and "output_preservation" not in kinds:
        notes.append("[preserve] is not used: there is no losses.output_preservation")
    if config.identity:
        _check_identity(config.identity, kinds, notes)
    if data is None:
        if "slider" not in kinds:
            raise UsageError("[data] images is missing: the folder of the images")
        images_only = {"masked", "face_weighted", "inverted_mask_prior", "identity"} & kinds
        if images_only:
            raise UsageError(f"{', '.join(sorted(images_only))} needs [data] images")
        return losses, notes
    _check_priors(config, data, kinds, notes)
    faces = sum(s.face is not None for s in data.main.sources if not s.is_prior)
    for kind in {"identity", "face_weighted"} & kinds:
        if not faces:
            raise UsageError(
                f"losses: {kind} needs to know where the faces are: run lora-prep embed, which "
                f"writes {EMBEDDINGS} beside the image folder"
            )
    return losses, notes


def build(config: Config, data: Data | None, family: Family, device: torch.device) -> LossSum:
    """The losses with their networks, on the device."""
    if config.identity is None or "identity" not in config.terms().values():
        return _quiet(config.losses, None)
    recogniser = load_recogniser(config.identity.recogniser, device=device)
    _same_model(config, data, recogniser)
    decode, unpack = _decoder(config.identity.decoder, family, device)
    return _quiet(config.losses, _given(config, recogniser, decode, unpack))


def _quiet(losses: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]] | None) -> LossSum:
    """Without the advice that `check` has passed on already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return from_config(losses, given)


def _given(
    config: Config, recogniser: Any, decode: Any, unpack: Any
) -> dict[str, Mapping[str, Any]]:
    """What a file cannot hold, for each identity term."""
    objects = {"recogniser": recogniser, "decode": decode, "unpack": unpack}
    return {name: objects for name, kind in config.terms().items() if kind == "identity"}


def _stand_in() -> Recogniser:
    """A recogniser that nobody calls, to check the term's options with."""
    empty = Recogniser.__new__(Recogniser)
    nn.Module.__init__(empty)
    return empty


def _need(config: Config, kinds: set[str], kind: str, what: Any, wanted: str) -> None:
    if kind in kinds and not what:
        name = next(n for n, k in config.terms().items() if k == kind)
        raise UsageError(f"losses.{name} needs a table {wanted}; `lora-prep train --example`")


def _check_identity(identity: IdentityConfig, kinds: set[str], notes: list[str]) -> None:
    if "identity" not in kinds:
        notes.append("[identity] is not used: there is no losses.identity")
    if not identity.recogniser.is_file():
        raise UsageError(
            f"[identity] recogniser: there is no file {identity.recogniser}. `lora-prep models` "
            "tells where the recognisers are and how to get them"
        )
    if identity.decoder and not (identity.decoder / "config.json").is_file():
        raise UsageError(
            f"[identity] decoder: {identity.decoder} is no autoencoder that diffusers saved"
        )


def _check_priors(config: Config, data: Data, kinds: set[str], notes: list[str]) -> None:
    priors = sum(source.is_prior for source in data.main.sources)
    images = len(data.main.sources) - priors
    if "prior_preservation" in kinds and not priors:
        raise UsageError(
            "losses.prior_preservation needs class images: run lora-prep priors, and give the "
            "folder as priors in [data]; or take output_preservation, which needs none"
        )
    if priors and "prior_preservation" not in kinds:
        notes.append(
            "class images are trained as any other: add [losses.prior_preservation] to weigh them"
        )
    if priors and config.train.batch_size % 2:
        raise UsageError(
            f"train.batch_size is {config.train.batch_size}: with class images it has to be even, "
            "since half of each batch is class images"
        )
    if "prior_preservation" in kinds and images >= MANY:
        notes.append(
            f"{images} images: class images may not be needed from about {MANY} on (a heuristic; "
            "for faces they can help all the same). output_preservation needs no images"
        )


def _same_model(config: Config, data: Data | None, recogniser: Recogniser) -> None:
    """Raise DatasetError unless the references were made with this recogniser."""
    assert data is not None
    assert config.data.images is not None
    path = Dataset.at(
        config.data.images, masks=config.data.masks, recursive=config.data.recursive
    ).embeddings
    check_model(read_embeddings(path), recogniser, path)


def _decoder(
    folder: Path | None, family: Family, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]:
    """The function that decodes crops, and the one that unscales latents before they are cut."""
    if folder is not None:
        from diffusers import AutoencoderTiny

        try:
            tiny = AutoencoderTiny.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UsageError(f"[identity] decoder: {folder} cannot be loaded: {error}") from error
        return diffusers_decoder(tiny.to(device).requires_grad_(False).eval()), None
    vae = family.pipeline.vae

    def decode(latents: Tensor) -> Tensor:
        pixels: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return pixels

    return decode, family.unscaled
