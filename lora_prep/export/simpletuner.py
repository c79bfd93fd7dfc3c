"""SimpleTuner: data backends; masks are a conditioning backend of the images' own file names."""

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
    config = Config("multidatabackend.json", "simpletuner", backends)
    words = ["simpletuner", "train", f"--data_backend_config={plan.places(config.name)}"]
    words += ["--model_type=lora", f"--lora_rank={plan.rank}"]
    words += [f"--lora_alpha={plan.network_alpha:g}"]
    words += [f"--model_family={_FAMILIES.get(plan.family, 'FAMILY')}"]
    words += [f"--pretrained_model_name_or_path={plan.base or 'MODEL'}"]
    words += [f"--train_batch_size={plan.batch_size}", f"--max_train_steps={plan.steps}"]
    words += [f"--learning_rate={plan.learning_rate:g}"]
    words += [f"--output_dir={plan.places('output')}"]
    if plan.emission and plan.emission.value:
        import json

        modules = json.dumps(plan.emission.value["peft_lora_target_modules"])
        words.append(f"--peft_lora_target_modules={modules}")
    elif plan.negative:
        words.append("--slider_lora_target=true")
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
            "documents work with LyCORIS adapters (`--lora_type=lycoris`), not with standard LoRA."
        )
    return Recipe(
        (config,),
        (Command(tuple(words)),),
        "In the folder of SimpleTuner, with your own model options added",
        tuple(cannot),
        tuple(common_notes(plan)),
        {"batch_size": plan.batch_size},
    )


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
