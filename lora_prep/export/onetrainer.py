"""OneTrainer: concepts, and masks named `<stem>-masklabel.png` beside the images."""

from typing import Any

from lora_prep.export.configs import Command, Config
from lora_prep.export.gather import Gathered
from lora_prep.export.plan import Plan
from lora_prep.export.recipe import Recipe, Shape, common_notes

CONCEPT_VERSION = 2
CONFIG_VERSION = 10
"""`__version` of configurations: without it, OneTrainer would migrate them from the oldest."""

_MODEL_TYPES = {
    "sd15": "STABLE_DIFFUSION_15",
    "sdxl": "STABLE_DIFFUSION_XL_10_BASE",
    "sd3": "STABLE_DIFFUSION_3",
    "sd35-medium": "STABLE_DIFFUSION_35",
    "sd35-large": "STABLE_DIFFUSION_35",
    "flux1-dev": "FLUX_DEV_1",
    "flux2-dev": "FLUX_2",
    "klein-4b": "FLUX_2",
    "klein-9b": "FLUX_2",
    "qwen-image": "QWEN",
}

_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
"""By default they are trained, too; the selected layers are of the model itself."""


def shape(plan: Plan) -> Shape:
    """Masks lie beside the images."""
    return Shape(masks="images", mask_name="label") if plan.uses_masks else Shape(mask_name="none")


def recipe(plan: Plan, gathered: Gathered) -> Recipe:
    """The concepts, and what of the training's configuration concerns data and masks."""
    concepts = [_concept(plan.name, plan.places("images"), "STANDARD", plan.repeats, 1.0)]
    if gathered.classes:
        concepts.append(
            _concept(
                f"{plan.name} class",
                plan.places("class"),
                "PRIOR_PREDICTION",
                plan.prior_repeats,
                plan.prior_weight,
            )
        )
    train: dict[str, Any] = {
        "__version": CONFIG_VERSION,
        "training_method": "LORA",
        "concept_file_name": plan.places("concepts.json"),
        "workspace_dir": plan.places("workspace"),
        "cache_dir": plan.places("cache"),
        "output_model_destination": plan.places("output", f"{plan.name}.safetensors"),
        "resolution": ",".join(map(str, plan.resolutions)),
        "aspect_ratio_bucketing": plan.buckets,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "lora_rank": plan.rank,
        "lora_alpha": plan.network_alpha,
        "masked_training": plan.uses_masks,
    }
    if plan.uses_masks:
        train["unmasked_probability"] = 0.0
        train["unmasked_weight"] = plan.mask_floor
        train["normalize_masked_area_loss"] = False
        if plan.background_prior:
            train["masked_prior_preservation_weight"] = plan.background_prior
    if plan.base:
        train["base_model_name"] = plan.base
    kind = _MODEL_TYPES.get((plan.model.variant or plan.family) if plan.model else "")
    if kind:
        train["model_type"] = kind
    if plan.emission and plan.emission.value:
        train.update(plan.emission.value)
        train.update({part: {"train": False} for part in _TEXT_ENCODERS})
    notes = common_notes(plan)
    if not (plan.base and kind):
        notes.append(
            "OneTrainer starts from Stable Diffusion 1.5 where no model is named: give --model and "
            "--base, or choose it in its window"
        )
    cannot = (
        "An image without `-masklabel.png` beside it would be trained whole, without a word; this "
        "export leaves such images out.",
        "OneTrainer's own default trains a tenth of the steps without masks "
        "(`unmasked_probability`); this configuration sets it to 0.",
        "`masked_prior_preservation_weight` together with `normalize_masked_area_loss` is NaN for "
        "white masks: leave one of them off.",
        "The training's length is `epochs`, and what is not in the configuration is OneTrainer's "
        "default: look it over in its window.",
    )
    return Recipe(
        (
            Config("concepts.json", "onetrainer-concepts", concepts),
            Config("config.json", "onetrainer", train),
        ),
        (Command(("python", "scripts/train.py", "--config-path", plan.places("config.json"))),),
        "In the folder of OneTrainer (or load config.json in its window)",
        cannot,
        tuple(notes),
        {"unmasked_weight": plan.mask_floor, "masked_loss": plan.uses_masks},
    )


def _concept(name: str, path: str, kind: str, repeats: int, weight: float) -> dict[str, Any]:
    return {
        "__version": CONCEPT_VERSION,
        "name": name,
        "path": path,
        "type": kind,
        "enabled": True,
        "include_subdirectories": False,
        "seed": 0,
        "balancing": float(repeats),
        "balancing_strategy": "REPEATS",
        "loss_weight": weight,
        "image": {"enable_crop_jitter": False, "enable_random_flip": False},
        "text": {"prompt_source": "sample"},
    }
