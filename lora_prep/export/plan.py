"""What is exported, to which trainer, and with which settings: one frozen value."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from lora_prep.dataset import Dataset
from lora_prep.errors import UsageError
from lora_prep.export.places import Places
from lora_prep.trainers import Trainer
from lora_prep.training.targets import Emission, Model, Selection, emit

Route: TypeAlias = Literal["rgba", "mask-dir"]
Link: TypeAlias = Literal["copy", "hard", "symlink"]


@dataclass(frozen=True, slots=True)
class Slider:
    """A concept slider: what becomes more, what less, and of what."""

    positive: str
    negative: str
    target: str = ""


@dataclass(frozen=True)
class Plan:
    """An export. Raises UsageError for what the trainer would get wrong."""

    trainer: Trainer
    out: Path
    places: Places
    dataset: Dataset
    augmented: Dataset | None = None
    priors: Path | None = None
    negative: Dataset | None = None
    """The low end of image pairs; then `dataset` is their high end."""
    masked: bool = True
    route: Route = "rgba"
    """kohya: the mask as the image's alpha channel, or in a folder of its own."""
    link: Link = "copy"

    trigger: str = ""
    caption: str = ""
    """Template for images without a caption."""
    class_name: str = ""
    repeats: int = 1
    prior_repeats: int = 1
    prior_weight: float = 1.0
    mask_floor: float = 0.0
    """Weight of black, 0 to 1."""
    dop: float = 0.0
    """Weight of output preservation; 0 is off."""
    dop_class: str = ""
    """What the trigger becomes for that; empty: `class_name`."""
    background_prior: float = 0.0
    """Weight of the base model's own prediction where the mask is black; 0 is off."""

    resolutions: tuple[int, ...] = (1024,)
    buckets: bool = True
    min_ratio: float = 0.5
    max_ratio: float = 2.0
    batch_size: int = 1

    name: str = "subject"
    model: Model | None = None
    selection: Selection | None = None
    base: str = ""
    """The base model for the trainer: a path or a hub id."""
    rank: int = 16
    alpha: float | None = None
    learning_rate: float = 1e-4
    steps: int = 2000
    slider: Slider | None = None
    slider_strength: float = 1.0
    """SimpleTuner: the weight that the high end of the pairs is trained at, the low end at minus
    that."""

    def __post_init__(self) -> None:
        for problem in _refusals(self):
            raise UsageError(problem)

    @property
    def family(self) -> str:
        """The base model's family, such as `flux2`; empty where no model was named."""
        return self.model.family if self.model else ""

    @property
    def network_alpha(self) -> float:
        """The LoRA's alpha: the rank, unless another one was asked for."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def uses_masks(self) -> bool:
        """Whether masks are written: wanted, and the trainer has a masked loss."""
        return self.masked and self.trainer not in WITHOUT_MASKS

    @cached_property
    def emission(self) -> Emission | None:
        """The selected blocks in the trainer's words; None where everything is trained."""
        return emit(self.selection, self.trainer, self.rank) if self.selection else None


WITHOUT_MASKS = ("musubi", "diffusers")
FLOOR_KEYS = ("ai-toolkit", "onetrainer")
"""Trainers with a key for the weight of black; for the others it is put into the masks."""


def _refusals(plan: Plan) -> list[str]:
    """Why this would go wrong."""
    found = []
    if plan.route != "rgba" and plan.trainer != "kohya":
        found.append(f"--route is for kohya: {plan.trainer} has one way to be given masks")
    if plan.route == "mask-dir" and plan.masked and plan.priors is not None:
        found.append(
            "kohya's mask folders (conditioning_data_dir) and class images (is_reg) do not "
            "combine: no class image would be trained. Leave out --route mask-dir, or give "
            "--no-priors"
        )
    if plan.trainer == "diffusers" and len(plan.resolutions) > 1:
        found.append("diffusers' scripts train at one resolution: give --resolution once")
    if (
        plan.dop
        and plan.trainer == "ai-toolkit"
        and not (plan.trigger and (plan.dop_class or plan.class_name))
    ):
        found.append(
            "--dop needs --trigger and --dop-class (or --class): output preservation replaces the "
            "one by the other in the captions"
        )
    if plan.slider and plan.trainer == "ai-toolkit" and plan.priors is not None:
        found.append("a concept slider of ai-toolkit takes no class images: give --no-priors")
    if plan.negative and plan.trainer != "simpletuner":
        why = "trains no slider from image pairs"
        if plan.trainer == "ai-toolkit":
            why = "trains sliders from image pairs of Stable Diffusion alone, and no masks with it"
        found.append(
            f"--pairs: {plan.trainer} {why}: take simpletuner, or lora-prep train (`[slider]`)"
        )
    if plan.negative and plan.priors is not None:
        found.append("a slider takes no class images: give --no-priors")
    if plan.negative and plan.augmented:
        found.append("--pairs: variants would have no other half: leave out --augmented")
    return found + _misplaced(plan)


def _misplaced(plan: Plan) -> list[str]:
    """OUT must neither hold nor lie in what is exported."""
    import os

    out = Path(os.path.realpath(plan.out))
    sources = [plan.dataset.images, plan.dataset.masks]
    if plan.negative:
        sources.append(plan.negative.images)
    if plan.augmented:
        sources += [plan.augmented.images, plan.augmented.masks]
    if plan.priors:
        sources.append(plan.priors)
    for source in sources:
        real = Path(os.path.realpath(source))
        if out == real or real in out.parents:
            return [f"--out lies in {source}, which is exported: choose a folder beside it"]
        if out in real.parents:
            return [f"--out {plan.out} holds {source}, which is exported: choose an empty folder"]
    return []
