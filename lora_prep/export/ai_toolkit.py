"""ai-toolkit: one job with its data sets; masks by stem in a folder beside the images."""

from typing import Any

from lora_prep.export.configs import Command, Config
from lora_prep.export.gather import Gathered
from lora_prep.export.plan import Plan
from lora_prep.export.recipe import Recipe, Shape, common_notes
from lora_prep.training.targets.emit import UNETS

_MODELS = {
    "klein-9b": ("black-forest-labs/FLUX.2-klein-base-9B", "flux2_klein_9b"),
    "klein-4b": ("black-forest-labs/FLUX.2-klein-base-4B", "flux2_klein_4b"),
    "flux2-dev": ("black-forest-labs/FLUX.2-dev", "flux2"),
    "flux1-dev": ("black-forest-labs/FLUX.1-dev", "flux"),
    "qwen-image": ("Qwen/Qwen-Image", "qwen_image"),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd1"),
}
"""Hub id and `arch` by the name that --model knows."""


def shape(plan: Plan) -> Shape:
    """Folders are searched recursively, so the masks lie beside the images, never in them."""
    return Shape() if plan.uses_masks else Shape(mask_name="none")


def recipe(plan: Plan, gathered: Gathered) -> Recipe:
    """The whole job, the base model included where it is known."""
    process: dict[str, Any] = {
        "type": "concept_slider" if plan.slider else "sd_trainer",
        "training_folder": plan.places("output"),
        "device": "cuda:0",
    }
    if plan.dop:
        process["trigger_word"] = plan.trigger
    process["network"] = _network(plan)
    process["save"] = {"dtype": "bf16", "save_every": 250, "max_step_saves_to_keep": 4}
    process["datasets"] = _datasets(plan, gathered)
    process["train"] = _train(plan, gathered)
    if plan.slider:
        process["slider"] = {
            "positive_prompt": plan.slider.positive,
            "negative_prompt": plan.slider.negative,
            "target_class": plan.slider.target,
        }
    notes = common_notes(plan)
    model = _model(plan)
    if model:
        process["model"] = model
    else:
        notes.append(
            "ai-toolkit needs a base model: give --model (and --base), or add `model:` with "
            "`name_or_path` and `arch` to the job"
        )
    if plan.background_prior and not plan.uses_masks:
        notes.append("--background-prior has no effect without masks")
    job = {
        "job": "extension",
        "config": {"name": plan.name, "process": [process]},
        "meta": {"name": "[name]", "version": "1.0"},
    }
    config = Config("config.yaml", "ai-toolkit", job)
    cannot = (
        "Images without a mask among images with one are given zeros in a batch and not learned, "
        "without a word; this export leaves them out.",
        "The mask is divided by its mean over the batch: batches whose masks are all black are "
        "NaN. Such masks are left out of this export unless `mask_min_value` is above 0.",
        "`prior_preservation`, `class_prompt`, `num_class_images` and `prior_loss_weight`, which "
        "some guides name, do not exist and are ignored. Class images are the data set with "
        "`is_reg`, their weight is `train.reg_weight`.",
    )
    return Recipe(
        (config,),
        (Command(("python", "run.py", plan.places(config.name))),),
        "In the folder of ai-toolkit",
        cannot,
        tuple(notes),
        {"mask_min_value": plan.mask_floor, "batch_size": plan.batch_size},
    )


def _network(plan: Plan) -> dict[str, Any]:
    network: dict[str, Any] = {
        "type": "lora",
        "linear": plan.rank,
        "linear_alpha": plan.network_alpha,
    }
    if plan.emission and plan.emission.value:
        network.update(plan.emission.value["network"])
    return network


def _datasets(plan: Plan, gathered: Gathered) -> list[dict[str, Any]]:
    def common() -> dict[str, Any]:  # anew each time: YAML would write a reference
        resolutions = list(plan.resolutions)
        return {"caption_ext": "txt", "resolution": resolutions, "buckets": plan.buckets}

    instance: dict[str, Any] = {"folder_path": plan.places("images")}
    if plan.uses_masks:
        instance["mask_path"] = plan.places("masks")
        instance["mask_min_value"] = plan.mask_floor
    found = [{**instance, **common(), "num_repeats": plan.repeats}]
    if gathered.classes:
        found.append(
            {
                "folder_path": plan.places("class"),
                "is_reg": True,
                **common(),
                "num_repeats": plan.prior_repeats,
            }
        )
    return found


def _train(plan: Plan, gathered: Gathered) -> dict[str, Any]:
    flow = plan.family not in UNETS
    train: dict[str, Any] = {
        "batch_size": plan.batch_size,
        "steps": plan.steps,
        "gradient_checkpointing": True,
        "train_unet": True,
        "train_text_encoder": False,
        "noise_scheduler": "flowmatch" if flow else "ddpm",
        "optimizer": "adamw8bit",
        "lr": plan.learning_rate,
        "dtype": "bf16",
    }
    if gathered.classes:
        train["reg_weight"] = plan.prior_weight
    if plan.dop:
        train["diff_output_preservation"] = True
        train["diff_output_preservation_class"] = plan.dop_class or plan.class_name
        train["diff_output_preservation_multiplier"] = plan.dop
    if plan.background_prior and plan.uses_masks:
        train["inverted_mask_prior"] = True
        train["inverted_mask_prior_multiplier"] = plan.background_prior
    return train


def _model(plan: Plan) -> dict[str, Any]:
    known = _MODELS.get(plan.model.variant or "") if plan.model else None
    name = plan.base or (known[0] if known else "")
    if not name:
        return {}
    return {"name_or_path": name, **({"arch": known[1]} if known else {})}
