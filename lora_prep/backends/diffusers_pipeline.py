"""Text-to-image pipelines of diffusers: found, described without loading, and drawn from.

The noise of an image comes from a CPU generator with the image's own seed, so it is the same on
every device, in every batch and at every place in it. Matrix products of other sizes round
differently, though (some 3e-6 of the white level). So on the CPU, where batches save no time,
images are drawn one by one; on CUDA short batches are filled up, so that all have one size.
"""

import inspect
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from lora_prep.backends import device, download, pipeline_files, weights
from lora_prep.backends.pipeline_files import INDEX
from lora_prep.errors import BackendError, OutOfMemory, UsageError
from lora_prep.types import Image

DEFAULT_MODEL = "stabilityai/stable-diffusion-xl-base-1.0"

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}

ADVICE = (
    "Download it where there is a network (`hf download {model}`, with `hf auth login` first if "
    "its licence has to be accepted) and take over the hub's cache (HF_HOME); or give a folder "
    "that a pipeline was saved into: {option}"
)

OPTION = "--model DIR; or take over class images that you have: --from DIR"
"""How `lora-prep priors` is given a folder."""

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """Which pipeline, and how it is run."""

    folder: Path
    """As `save_pretrained` writes it."""
    device: str = "auto"
    dtype: Dtype = "auto"
    scheduler: str | None = None
    """One of SCHEDULERS; None = the model's own."""
    offload: bool = False
    """Keep only the part on the device that is at work."""
    here: bool = True
    """False in a dry run whose model is not on this machine: then `folder` is its hub id."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How images are drawn."""

    width: int
    height: int
    steps: int
    guidance: float | None = None
    """None = the pipeline's default."""
    negative_prompt: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """An image to draw."""

    prompt: str
    seed: int


@runtime_checkable
class Painter(Protocol):
    """Draws images."""

    def describe(self) -> str:
        """Model, device and precision, in a line."""
        ...

    def draw(self, requests: Sequence[Request]) -> list[Image | str]:
        """An image (or what is wrong with it) for each request. Raises OutOfMemory."""
        ...


# ---------------------------------------------------------------------------- finding one
def find(model: str, option: str = OPTION) -> Path:
    """The folder of a pipeline, given by folder or hub id; downloaded where it is missing.

    `option` is how the user says another folder, for the messages.
    Raises BackendError where it is not to be had, within seconds if the hub cannot be reached;
    in a dry run NotHere, since that downloads nothing (`weights.no_downloads`).
    """
    given = Path(model).expanduser()
    if given.is_dir():
        if not (given / INDEX).is_file():
            raise BackendError(
                f"{given} is no pipeline: there is no {INDEX} in it. Give the folder that "
                "diffusers' save_pretrained wrote, or a hub id"
            )
        return given
    if given.suffix in (".safetensors", ".ckpt", ".pt", ".bin", ".gguf"):
        raise BackendError(
            f"{model} is a single file. What a pipeline consists of (text encoders, tokenizers, "
            "scheduler) is only partly in such a file, and guessed where it is not, and the images "
            "would not be the base model's. Convert it once with the pipeline's "
            f"from_single_file(...).save_pretrained(DIR), then give {option.split(';')[0]}"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise BackendError(f"there is no folder {model}, and it is no hub id (owner/name) either")
    return _cached(model) or _downloaded(model, option)


def require_diffusers() -> None:
    """Raise BackendError where diffusers or transformers is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("diffusers", "transformers") if find_spec(name) is None]
    if missing:
        raise BackendError(
            f"{' and '.join(missing)} missing, which class images are drawn with: "
            "pip install 'lora-prep[priors]'"
        )


def _cached(model: str) -> Path | None:
    """The hub's copy on this machine, if it is whole."""
    index = weights.cached_hub_file(model, INDEX)
    if index is None:
        return None
    return index.parent if pipeline_files.is_whole(index.parent) else None


def _downloaded(model: str, option: str) -> Path:
    import huggingface_hub
    from huggingface_hub import constants

    advice = ADVICE.format(model=model, option=option)
    missing = f"the model {model} is not (or not wholly) in {constants.HF_HUB_CACHE}"
    weights.refuse_in_a_plan(model, missing)
    if constants.HF_HUB_OFFLINE:
        raise BackendError(f"{missing}, and HF_HUB_OFFLINE forbids to download it. {advice}")
    url = huggingface_hub.hf_hub_url(model, INDEX)
    limit = download.ANSWER_SECONDS
    try:
        # The hub's client retries an unreachable server for long: one quick question comes first.
        download.within(limit, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=limit))
        log.warning("downloading %s: it can be many gigabytes", model)
        from diffusers import DiffusionPipeline

        return Path(DiffusionPipeline.download(model))
    except Exception as error:
        raise BackendError(
            f"{missing}, and {constants.ENDPOINT} does not give it: {download.reason(error)}. "
            f"{advice}"
        ) from error


# ---------------------------------------------------------------------------- about one, unloaded
@dataclass(frozen=True)
class Description:
    """What is known of a pipeline before it is loaded."""

    folder: Path

    @cached_property
    def index(self) -> dict[str, Any]:
        """model_index.json. Raises BackendError."""
        try:
            return pipeline_files.read_json(self.folder / INDEX)
        except (OSError, ValueError) as error:
            raise pipeline_files.damaged(self.folder, error) from error

    @cached_property
    def kind(self) -> Any:
        """The pipeline's class, that for text to image. Raises BackendError.

        What AutoPipelineForText2Image finds; but that imports every pipeline that there is, which
        takes many seconds.
        """
        import diffusers

        name = str(self.index.get("_class_name"))
        kind = getattr(diffusers, re.sub("Img2Img|Inpaint", "", name), None)
        if kind is None:
            raise BackendError(
                f"{self.folder}: the installed diffusers {diffusers.__version__} has no {name}. "
                "Update it, or choose another model"
            )
        arguments = inspect.signature(kind.__call__).parameters
        image = arguments.get("image")
        if "prompt" not in arguments or (image and image.default is inspect.Parameter.empty):
            raise BackendError(f"{self.folder}: {name} does not make images from text")
        return kind

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline's call and their defaults. Raises BackendError."""
        return {n: p.default for n, p in inspect.signature(self.kind.__call__).parameters.items()}

    @property
    def steps(self) -> int:
        """Denoising steps where none are asked for."""
        default = self.arguments.get("num_inference_steps")
        return default if isinstance(default, int) else 50

    @property
    def size(self) -> int:
        """Width and height that the model was made for: 1024 where it does not say.

        Raises BackendError.
        """
        config = self.folder / "unet" / "config.json"
        if not config.is_file():
            return 1024
        try:
            sample = pipeline_files.read_json(config).get("sample_size")
        except (OSError, ValueError) as error:
            raise pipeline_files.damaged(self.folder, error) from error
        return sample * 8 if isinstance(sample, int) else 1024

    def identity(self) -> str:
        """Changes with the class, configurations and weights that are loaded. Raises BackendError.

        It stays when the folder is moved, or files are put into it that nobody loads.
        """
        return f"{self.index.get('_class_name')}:{pipeline_files.identity(self.folder)}"

    def check(self, sampling: Sampling) -> None:
        """Raise UsageError for what this pipeline cannot do."""
        name = self.index.get("_class_name")
        if sampling.width % 16 or sampling.height % 16:
            raise UsageError(
                f"--size {sampling.width}x{sampling.height}: both have to be multiples of 16"
            )
        if sampling.guidance is not None and "guidance_scale" not in self.arguments:
            raise UsageError(f"--guidance: {name} knows no guidance scale")
        if sampling.negative_prompt:
            extra = self.arguments.get("true_cfg_scale", 2.0)
            if "negative_prompt" not in self.arguments or extra <= 1:
                raise UsageError(f"--negative-prompt: {name} takes none (or passes over it)")


# ---------------------------------------------------------------------------- drawing
class DiffusersPainter:
    """A loaded pipeline."""

    def __init__(self, spec: PipelineSpec, sampling: Sampling, batch_size: int) -> None:
        """Load it. Raises BackendError."""
        require_diffusers()
        import torch

        kind = Description(spec.folder).kind
        self.sampling = sampling
        self.device = device.torch_device(spec.device)
        self.rows = 1 if self.device == "cpu" else batch_size
        self.dtype = dtype_for(spec.dtype, self.device)
        _hush()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of torch_dtype's newer name
                self.pipeline: Any = kind.from_pretrained(
                    spec.folder, torch_dtype=getattr(torch, self.dtype), local_files_only=True
                )
        except torch.OutOfMemoryError as error:
            raise BackendError(f"{spec.folder} does not fit into memory: {error}") from error
        except (OSError, ValueError, RuntimeError, AttributeError, ImportError, TypeError) as error:
            raise BackendError(
                f"the pipeline in {spec.folder} cannot be loaded: {download.reason(error)}. If a "
                "download or a copy of it broke off, fetch it again"
            ) from error
        self.pipeline.set_progress_bar_config(disable=True)
        if spec.scheduler:
            self._set_scheduler(spec.scheduler)
        try:
            if spec.offload and self.device != "cpu":
                self.pipeline.enable_model_cpu_offload(device=self.device)
            else:
                self.pipeline.to(self.device)
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"the model does not fit on {self.device}: use --offload, or --device cpu"
            ) from error
        self._arguments = inspect.signature(self.pipeline.__call__).parameters

    def describe(self) -> str:
        """Pipeline, device and precision."""
        parts = [type(self.pipeline).__name__, f"on {self.device} in {self.dtype}"]
        scheduler = type(self.pipeline.scheduler).__name__
        return f"{', '.join(parts)}, {scheduler}, {self.sampling.steps} steps"

    def draw(self, requests: Sequence[Request]) -> list[Image | str]:
        """An image, H×W×3 uint8, for each request, or what is wrong with it. Raises OutOfMemory."""
        drawn: list[Image | str] = []
        rows = self.rows if self.device == "cpu" else min(self.rows, len(requests))
        while len(drawn) < len(requests):
            some = list(requests[len(drawn) : len(drawn) + rows])
            filled = some + some[-1:] * (self.rows - len(some))
            drawn += self._batch(filled)[: len(some)]
        return drawn

    def _batch(self, requests: Sequence[Request]) -> list[Image | str]:
        import torch

        try:
            with torch.inference_mode():
                output = self.pipeline(**self._call(requests))
        except torch.OutOfMemoryError as error:
            if self.device != "cpu":
                torch.cuda.empty_cache()
            self.rows = max(1, self.rows // 2)
            raise OutOfMemory(f"{self.device} ran out of memory") from error
        blanked = getattr(output, "nsfw_content_detected", None) or [False] * len(requests)
        return [
            "the model's safety checker blanked it" if flag else to_image(pixels)
            for pixels, flag in zip(output.images, blanked, strict=True)
        ]

    def _call(self, requests: Sequence[Request]) -> dict[str, Any]:
        import torch

        sampling = self.sampling
        call: dict[str, Any] = {
            "prompt": [r.prompt for r in requests],
            "width": sampling.width,
            "height": sampling.height,
            "num_inference_steps": sampling.steps,
            "generator": [torch.Generator("cpu").manual_seed(r.seed) for r in requests],
            "output_type": "np",
        }
        if sampling.guidance is not None and "guidance_scale" in self._arguments:
            call["guidance_scale"] = sampling.guidance
        if sampling.negative_prompt and "negative_prompt" in self._arguments:
            call["negative_prompt"] = [sampling.negative_prompt] * len(requests)
        return call

    def _set_scheduler(self, name: str) -> None:
        import diffusers

        current = self.pipeline.scheduler
        kind = getattr(diffusers, SCHEDULERS[name])
        if kind not in [type(current), *getattr(current, "compatibles", [])]:
            raise UsageError(
                f"--scheduler {name}: {type(self.pipeline).__name__} works with "
                f"{type(current).__name__}, and {kind.__name__} does not take its place"
            )
        self.pipeline.scheduler = kind.from_config(current.config)


def to_image(pixels: np.ndarray) -> Image | str:
    """A pipeline's output, H×W×3 in 0 to 1, as an image; or what is wrong with it."""
    if not np.isfinite(pixels).all():
        return "the model gave NaN in place of colours (--dtype float32 may help)"
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)


def dtype_for(wanted: Dtype, device: str) -> str:
    """`auto`: float32 on the CPU; on CUDA bfloat16 where it is built in, else float16."""
    if wanted != "auto":
        return wanted
    if device == "cpu":
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def default_batch_size(name: str) -> int:
    """Where nothing is asked for: 1 on the CPU, else 8 (halved where it does not fit)."""
    return 1 if device.torch_device(name) == "cpu" else 8


def _hush() -> None:
    """Keep the libraries' progress bars of loading off the terminal."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for library in (of_diffusers, of_transformers):
        library.disable_progress_bar()
        library.set_verbosity_error()
