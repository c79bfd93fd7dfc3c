"""What differs between the families: text, latents, and one forward of the model.

Everywhere else in the trainer latents are (B,C,h,w), eight pixels to one, scaled as the model
wants them: FLUX's packing happens in `predict` alone, so that masks are resized and nothing else.
"""

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lora_prep.errors import BackendError, UsageError
from lora_prep.training.objectives import Objective, flux_shift
from lora_prep.training.packing import pack, patchify, to_tokens, unpack, unpatchify
from lora_prep.training.trainer.config import ModelConfig

FamilyName: TypeAlias = Literal["sd15", "sdxl", "flux1", "flux2-klein"]
Text: TypeAlias = dict[str, Tensor]
"""What the model is told, by the name that the pipeline's call gives it; (B, ...) each."""

ENCODING = 2
"""Raise it when `encode` or `encode_text` gives something else for the same weights and input:
what is kept on disk is then made again. 2: the VAE is read in float32."""
PIPELINES: dict[str, FamilyName] = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "FluxPipeline": "flux1",
    "Flux2KleinPipeline": "flux2-klein",
}


@runtime_checkable
class Family(Protocol):
    """A pipeline, as a training step sees it. All tensors are on the pipeline's device."""

    pipeline: Any
    part: str
    """What is trained, `unet` or `transformer`: diffusers' prefix in LoRA files."""

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C2 h w"]:
        """Images from -1 to 1 to means and standard deviations of their latents, side by side."""
        ...

    def latents(
        self, moments: Float[Tensor, "B C2 h w"], generator: torch.Generator
    ) -> Float[Tensor, "B C h w"]:
        """Latents drawn from the moments, float32, scaled for the model."""
        ...

    def unscaled(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Latents as the VAE decodes them."""
        ...

    def encode_text(self, prompt: str) -> Text:
        """One prompt, B = 1."""
        ...

    def predict(
        self,
        noisy: Float[Tensor, "B C h w"],
        t: Tensor,
        text: Text,
        sizes: Float[Tensor, "B 6"],
    ) -> Float[Tensor, "B C h w"]:
        """The model's output for x_t, shaped as x_t. `sizes` as SDXL wants them (`time_ids`)."""
        ...

    def shift(self, height: int, width: int) -> float | None:
        """The shift of noise levels for latents of this size; None where that does not exist."""
        ...

    def call(self, text: Text, empty: Text) -> dict[str, Any]:
        """Arguments of the pipeline's call for these texts; `empty` is the negative prompt."""
        ...


def family_of(folder: Path) -> FamilyName:
    """The family of a saved pipeline, from its model_index.json. Loads nothing.

    Raises UsageError for other families, BackendError where there is no such file.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackendError(f"{folder} is no pipeline of diffusers: {error}") from error
    name = str(index.get("_class_name"))
    found = PIPELINES.get(re.sub("Img2Img|Inpaint", "", name))
    if found is None:
        raise UsageError(
            f"{folder} is a {name}: `lora-prep train` trains SD 1.5, SDXL, FLUX.1 and FLUX.2 "
            "Klein. For other models write a configuration of their own trainer: lora-prep export"
        )
    return found


def load(folder: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Family:
    """The pipeline on a device, frozen. The VAE is in float32. Raises BackendError."""
    import diffusers

    name = family_of(folder)
    kind = getattr(diffusers, next(k for k, v in PIPELINES.items() if v == name))
    _hush()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch_dtype's newer name
            # A VAE that went through bfloat16 would encode to other latents than its file says.
            dtypes = {"vae": torch.float32, "default": dtype}
            pipeline = kind.from_pretrained(folder, torch_dtype=dtypes, local_files_only=True)
    except (OSError, ValueError, RuntimeError, AttributeError, ImportError, TypeError) as error:
        raise BackendError(f"the pipeline in {folder} cannot be loaded: {error}") from error
    try:
        pipeline.to(device)
        pipeline.vae.to(torch.float32)
    except torch.OutOfMemoryError as error:
        raise BackendError(f"{folder} does not fit on {device}: {error}") from error
    return wrap(pipeline, config)


def _hush() -> None:
    """No progress bars and no advice from the libraries: errors come as exceptions."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def wrap(pipeline: Any, config: ModelConfig) -> Family:
    """The family of a loaded pipeline; its parts are frozen."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    match PIPELINES[type(pipeline).__name__]:
        case "sd15":
            return StableDiffusion(pipeline)
        case "sdxl":
            return StableDiffusionXL(pipeline)
        case "flux1":
            return Flux1(pipeline, config.text_tokens, config.guidance)
        case "flux2-klein":
            return Flux2Klein(pipeline, config.text_tokens)


def objective_of(family: Family) -> Objective:
    """What the pipeline's model was trained to predict."""
    return Objective.from_scheduler(family.pipeline.scheduler)


def stack(texts: Sequence[Text]) -> Text:
    """Texts of one prompt each as those of a batch."""
    return {key: torch.cat([text[key] for text in texts]) for key in texts[0]}


# ------------------------------------------------------------------ KL autoencoders
@torch.no_grad()
def _moments(vae: Any, images: Tensor) -> Tensor:
    posterior = vae.encode(images.to(vae.dtype)).latent_dist
    return torch.cat([posterior.mean, posterior.std], 1).float()


def _draw(moments: Tensor, generator: torch.Generator) -> Tensor:
    mean, std = moments.float().chunk(2, 1)
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    return mean + std * noise


class _KL:
    """Latents are (z − shift)·scale."""

    pipeline: Any

    def encode(self, images: Tensor) -> Tensor:
        return _moments(self.pipeline.vae, images)

    def latents(self, moments: Tensor, generator: torch.Generator) -> Tensor:
        scale, shift = self._scaling()
        return (_draw(moments, generator) - shift) * scale

    def unscaled(self, latents: Tensor) -> Tensor:
        scale, shift = self._scaling()
        return latents / scale + shift

    def _scaling(self) -> tuple[float, float]:
        config = self.pipeline.vae.config
        return config.scaling_factor or 1.0, config.get("shift_factor") or 0.0


# ------------------------------------------------------------------ U-Nets
class StableDiffusion(_KL):
    """Stable Diffusion 1.5."""

    part = "unet"

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def encode_text(self, prompt: str) -> Text:
        """CLIP's last hidden states."""
        embeds, _ = self.pipeline.encode_prompt(prompt, self.pipeline.vae.device, 1, False)
        return {"prompt_embeds": embeds}

    def predict(self, noisy: Tensor, t: Tensor, text: Text, sizes: Tensor) -> Tensor:
        """One forward of the U-Net."""
        unet = self.pipeline.unet
        embeds = text["prompt_embeds"].to(unet.dtype)
        output: Tensor = unet(noisy.to(unet.dtype), t, embeds, return_dict=False)[0]
        return output

    def shift(self, height: int, width: int) -> float | None:
        """None."""
        return None

    def call(self, text: Text, empty: Text) -> dict[str, Any]:
        """Prompt and negative prompt."""
        return {**text, **{f"negative_{key}": value for key, value in empty.items()}}


class StableDiffusionXL(StableDiffusion):
    """SDXL: two text encoders, and the sizes of image and crop."""

    def encode_text(self, prompt: str) -> Text:
        """Both encoders' hidden states, and the second's pooled one."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt, device=self.pipeline.vae.device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, noisy: Tensor, t: Tensor, text: Text, sizes: Tensor) -> Tensor:
        """One forward of the U-Net."""
        unet = self.pipeline.unet
        embeds, pooled = (text[k].to(unet.dtype) for k in ("prompt_embeds", "pooled_prompt_embeds"))
        added = {"text_embeds": pooled, "time_ids": sizes.to(unet.dtype)}
        output: Tensor = unet(
            noisy.to(unet.dtype), t, embeds, added_cond_kwargs=added, return_dict=False
        )[0]
        return output


# ------------------------------------------------------------------ FLUX
class Flux1(_KL):
    """FLUX.1: 2×2 latents to a token, flow matching, distilled guidance in dev."""

    part = "transformer"

    def __init__(self, pipeline: Any, tokens: int, guidance: float) -> None:
        self.pipeline, self.tokens, self.guidance = pipeline, tokens, guidance

    def encode_text(self, prompt: str) -> Text:
        """T5's hidden states and CLIP's pooled one."""
        embeds, pooled, _ = self.pipeline.encode_prompt(
            prompt, device=self.pipeline.vae.device, max_sequence_length=self.tokens
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, noisy: Tensor, t: Tensor, text: Text, sizes: Tensor) -> Tensor:
        """One forward of the transformer."""
        model = self.pipeline.transformer
        b, _, h, w = noisy.shape
        embeds = text["prompt_embeds"].to(model.dtype)
        guidance = None
        if model.config.guidance_embeds:
            guidance = torch.full((b,), self.guidance, device=noisy.device)
        output = model(
            hidden_states=pack(noisy).to(model.dtype),
            timestep=t,
            guidance=guidance,
            pooled_projections=text["pooled_prompt_embeds"].to(model.dtype),
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=noisy.device),
            img_ids=self.pipeline._prepare_latent_image_ids(
                b, h // 2, w // 2, noisy.device, torch.float32
            ),
            return_dict=False,
        )[0]
        return unpack(output, h, w)

    def shift(self, height: int, width: int) -> float | None:
        """FLUX.1's own for so many tokens."""
        return flux_shift(height * width // 4)

    def call(self, text: Text, empty: Text) -> dict[str, Any]:
        """The prompt; the guidance is distilled."""
        return dict(text)


class Flux2Klein:
    """FLUX.2 Klein: latents are normalised by the VAE's statistics of their 2×2 patches."""

    part = "transformer"

    def __init__(self, pipeline: Any, tokens: int) -> None:
        self.pipeline, self.tokens = pipeline, tokens

    def encode(self, images: Tensor) -> Tensor:
        """The moments; only the means are used."""
        return _moments(self.pipeline.vae, images)

    def latents(self, moments: Tensor, generator: torch.Generator) -> Tensor:
        """The means, normalised: FLUX.2 takes no sample."""
        mean, std = self._statistics()
        means = moments.float().chunk(2, 1)[0]
        return unpatchify((patchify(means) - mean) / std)

    def unscaled(self, latents: Tensor) -> Tensor:
        """With the statistics taken back."""
        mean, std = self._statistics()
        return unpatchify(patchify(latents) * std + mean)

    def encode_text(self, prompt: str) -> Text:
        """Three of Qwen's hidden states, side by side."""
        embeds, _ = self.pipeline.encode_prompt(
            prompt, device=self.pipeline.vae.device, max_sequence_length=self.tokens
        )
        return {"prompt_embeds": embeds}

    def predict(self, noisy: Tensor, t: Tensor, text: Text, sizes: Tensor) -> Tensor:
        """One forward of the transformer."""
        model = self.pipeline.transformer
        h, w = noisy.shape[-2:]
        patches = patchify(noisy)
        embeds = text["prompt_embeds"].to(model.dtype)
        output = model(
            hidden_states=to_tokens(patches).to(model.dtype),
            timestep=t,
            guidance=None,
            encoder_hidden_states=embeds,
            txt_ids=self.pipeline._prepare_text_ids(embeds).to(noisy.device),
            img_ids=self.pipeline._prepare_latent_ids(patches).to(noisy.device),
            return_dict=False,
        )[0]
        return unpack(output, h, w)

    def shift(self, height: int, width: int) -> float | None:
        """None of its own: trained as diffusers' script does, without."""
        return 1.0

    def call(self, text: Text, empty: Text) -> dict[str, Any]:
        """Prompt and negative prompt, which only the undistilled model uses."""
        return {**text, "negative_prompt_embeds": empty["prompt_embeds"]}

    def _statistics(self) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        mean = vae.bn.running_mean.float().reshape(1, -1, 1, 1)
        variance = vae.bn.running_var.float().reshape(1, -1, 1, 1)
        return mean, (variance + vae.config.batch_norm_eps).sqrt()
