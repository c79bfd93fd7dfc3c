"""SimpleTuner: data backends; masks are a conditioning backend of the images' own file names."""

import json
from typing import Any

from lora_prep.export.configs import Command, Config
from lora_prep.export.gather import Gathered
from lora_prep.export.plan import Plan
from lora_prep.export.recipe import Recipe, Shape, common_notes
from lora_prep.pairs import NEGATIVE, POSITIVE

_FAMILIES = {
    "flux1": "flux",
    "flux2": "flux2",
    "sd15": "sd1x",
    "sdxl": "sdxl",
    "sd3": "sd3",
    "qwen-image": "qwen_image",
    "wan21": "wan",
}
_FLAVOURS = {"klein-4b": "klein-4b", "klein-9b": "klein-9b"}
"""`model_flavour`, where it is not the family's default."""


def shape(plan: Plan) -> Shape:
    """All images become PNG, so that a mask can have an image's name and be what it says."""
    if plan.negative:
        return Shape(images=POSITIVE, mask_name="none")
    return Shape(mask_name="name") if plan.uses_masks else Shape(mask_name="none")


def recipe(plan: Plan, gathered: Gathered) -> Recipe:
    """The backends, for each resolution its own."""
    backends: list[dict[str, Any]] = []
    for resolution in plan.resolutions:
        backends += _of_resolution(plan, gathered, resolution)
    backends.append(
        {
            "id": f"{plan.name}-text",
            "dataset_type": "text_embeds",
            "default": True,
            "type": "local",
            "cache_dir": plan.places("cache", "text"),
        }
    )
    configs = (
        Config("multidatabackend.json", "simpletuner", backends),
        Config(
            "config.json",
            "simpletuner-training",
            _training(plan),
            yours=True,
            hint=_hint(plan),
            blocks="peft_lora_target_modules",
        ),
    )
    change = ("cd", "/d") if plan.places.style == "windows" else ("cd",)
    cannot = [
        "`crop_style` is `center`, for images and masks alike: random crops would part them.",
        "The loss is the mean over all pixels, masked ones included: small masks learn slowly.",
    ]
    if plan.uses_masks:
        cannot.append(
            "Each image needs a mask of just its own file name; JPEG and WebP images were written "
            "as PNG for that."
        )
    if plan.negative:
        cannot.append(
            f"A slider: the LoRA is trained at weight {plan.slider_strength:g} on `{POSITIVE}` and "
            f"at -{plan.slider_strength:g} on `{NEGATIVE}`, a batch of each in turn."
        )
    if gathered.classes:
        cannot.append(
            "Class images (`is_regularisation_data`) have no weight of their own, and by its own "
            "documents work with LyCORIS adapters (`lora_type` `lycoris`), not with standard LoRA."
        )
    return Recipe(
        configs,
        (Command((*change, plan.places())), Command(("simpletuner", "train"))),
        "SimpleTuner takes `config.json` of the folder that it is started in",
        tuple(cannot),
        tuple(common_notes(plan)),
        {"batch_size": plan.batch_size},
    )


def _training(plan: Plan) -> dict[str, Any]:
    """`config.json`, whose keys are the trainer's options. A list would become many options."""
    alpha = plan.network_alpha
    training: dict[str, Any] = {
        "model_type": "lora",
        "lora_type": "standard",
        "lora_rank": plan.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "model_family": _FAMILIES.get(plan.family, "FAMILY"),
    }
    if flavour := _FLAVOURS.get((plan.model.variant or "") if plan.model else ""):
        training["model_flavour"] = flavour
    if plan.base:
        training["pretrained_model_name_or_path"] = plan.base
    if plan.emission and plan.emission.value:
        modules = plan.emission.value["peft_lora_target_modules"]
        training["peft_lora_target_modules"] = json.dumps(modules)
    elif plan.negative:
        training["slider_lora_target"] = True
    return training | {
        "data_backend_config": plan.places("multidatabackend.json"),
        "output_dir": plan.places("output"),
        "train_batch_size": plan.batch_size,
        "max_train_steps": plan.steps,
        "num_train_epochs": 0,
        "learning_rate": plan.learning_rate,
        "lr_scheduler": "constant",
        "optimizer": "adamw_bf16",
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "checkpoint_step_interval": 250,
        "validation_disable": True,
        "report_to": "none",
        "seed": 42,
    }


def _hint(plan: Plan) -> str:
    """How `config.json` is filled in."""
    if plan.family:
        return f": the name that SimpleTuner has for {plan.family} is not known here"
    return " (`model_family`), or give --model"


def _of_resolution(plan: Plan, gathered: Gathered, resolution: int) -> list[dict[str, Any]]:
    name = f"{plan.name}-{resolution}"
    size = {
        "type": "local",
        "crop": True,
        "crop_style": "center",
        "crop_aspect": "preserve" if plan.buckets else "square",
        "resolution": resolution,
        "resolution_type": "pixel_area",
        "minimum_image_size": 0,
    }
    captions = {"caption_strategy": "textfile", "disable_multiline_split": True}
    images: dict[str, Any] = {
        "id": name,
        "dataset_type": "image",
        "instance_data_dir": plan.places("images"),
        "cache_dir_vae": plan.places("cache", name),
        **size,
        **captions,
        "repeats": plan.repeats - 1,
    }
    found = [images]
    if plan.negative:
        images |= {
            "id": f"{name}-{POSITIVE}",
            "instance_data_dir": plan.places(POSITIVE),
            "slider_strength": plan.slider_strength,
        }
        less = {
            "id": f"{name}-{NEGATIVE}",
            "instance_data_dir": plan.places(NEGATIVE),
            "cache_dir_vae": plan.places("cache", f"{name}-{NEGATIVE}"),
            "slider_strength": -plan.slider_strength,
        }
        found.append({**images, **less})
    if plan.uses_masks:
        images["conditioning_data"] = f"{name}-masks"
        found.append(
            {
                "id": f"{name}-masks",
                "dataset_type": "conditioning",
                "conditioning_type": "mask",
                "instance_data_dir": plan.places("masks"),
                "cache_dir_vae": plan.places("cache", f"{name}-masks"),
                **size,
            }
        )
    if gathered.classes:
        found.append(
            {
                "id": f"{name}-class",
                "dataset_type": "image",
                "instance_data_dir": plan.places("class"),
                "cache_dir_vae": plan.places("cache", f"{name}-class"),
                **size,
                **captions,
                "repeats": plan.prior_repeats - 1,
                "is_regularisation_data": True,
            }
        )
    return found
