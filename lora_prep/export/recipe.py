"""What an export for one trainer consists of: folders, configurations, command, what to tell."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lora_prep.export.configs import Command, Config
from lora_prep.export.plan import FLOOR_KEYS, Plan
from lora_prep.types import Json

MaskName: TypeAlias = Literal["stem", "name", "label", "alpha", "none"]
"""`img.png`; the image's own name; `img-masklabel.png` beside it; its alpha channel; no mask."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How files lie in an export."""

    images: str = "images"
    masks: str = "masks"
    mask_name: MaskName = "stem"
    captions: bool = True
    class_captions: bool = True

    @property
    def png_only(self) -> bool:
        """Images have to be PNG files: their masks are, and share their names or their pixels."""
        return self.mask_name in ("name", "alpha")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything but the images."""

    configs: tuple[Config, ...]
    commands: tuple[Command, ...]
    intro: str
    """A sentence above the commands: where to run them, what to fill in."""
    cannot: tuple[str, ...]
    """What this trainer cannot do, or does otherwise than expected."""
    notes: tuple[str, ...] = ()
    """What was asked for and is not in the configuration, or not as asked."""
    look: Mapping[str, Json] = field(default_factory=dict)
    """Settings of `trainers.Layout`, to read the export back."""


def block_notes(plan: Plan) -> list[str]:
    """Where the selected blocks are not, or not exactly, what the trainer is told."""
    if plan.emission is None:
        return []
    return [f"--select: {note}" for note in plan.emission.notes]


def common_notes(plan: Plan) -> list[str]:
    """What was asked for and this trainer has no key for."""
    found = block_notes(plan)
    if plan.masked and not plan.uses_masks:
        found.append(f"{plan.trainer} has no masked loss: no mask is exported")
    if plan.uses_masks and plan.mask_floor and plan.trainer not in FLOOR_KEYS:
        found.append(
            f"{plan.trainer} has no key for the weight of black: --mask-floor is in the masks"
        )
    if plan.dop and plan.trainer != "ai-toolkit":
        found.append(f"--dop: {plan.trainer} has no output preservation; ai-toolkit has")
    if plan.background_prior and plan.trainer not in ("ai-toolkit", "onetrainer"):
        found.append(
            f"--background-prior: {plan.trainer} has no prior for what is masked; ai-toolkit and "
            "onetrainer have"
        )
    if plan.slider and plan.trainer != "ai-toolkit":
        found.append(f"--slider: {plan.trainer} trains no slider from prompts; ai-toolkit does")
        if plan.trainer == "simpletuner":
            found.append(
                "--slider: SimpleTuner trains sliders from image pairs (`lora-prep pairs`): "
                "export them with --pairs"
            )
    weightless = ("diffusion-pipe", "simpletuner", "musubi")
    if plan.priors and plan.prior_weight != 1 and plan.trainer in weightless:
        found.append(
            f"--prior-weight {plan.prior_weight:g}: {plan.trainer} has no weight for class images; "
            "give them fewer or more repeats (--prior-repeats)"
        )
    return found
