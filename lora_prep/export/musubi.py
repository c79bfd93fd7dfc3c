"""musubi-tuner: data sets without masks, which it has none of."""

from typing import Any

from lora_prep.export.configs import Command, Config
from lora_prep.export.gather import Gathered
from lora_prep.export.plan import Plan
from lora_prep.export.recipe import Recipe, Shape, common_notes

_SCRIPTS = {"flux2": "flux_2", "qwen-image": "qwen_image", "wan21": "wan"}
_MODULES = {"flux2": "lora_flux_2", "qwen-image": "lora_qwen_image", "wan21": "lora_wan"}


def shape(_plan: Plan) -> Shape:
    """Images and captions."""
    return Shape(mask_name="none")


def recipe(plan: Plan, gathered: Gathered) -> Recipe:
    """A data set for each folder and resolution, with a cache of its own, which it insists on."""
    datasets: list[dict[str, Any]] = []
    for resolution in plan.resolutions:
        folders = [("images", plan.repeats)]
        if gathered.classes:
            folders.append(("class", plan.prior_repeats))
        for folder, repeats in folders:
            datasets.append(
                {
                    "image_directory": plan.places(folder),
                    "cache_directory": plan.places("cache", f"{folder}-{resolution}"),
                    "resolution": [resolution, resolution],
                    "num_repeats": repeats,
                }
            )
    general = {
        "caption_extension": ".txt",
        "batch_size": plan.batch_size,
        "enable_bucket": plan.buckets,
        "bucket_no_upscale": False,
    }
    config = Config("dataset.toml", "musubi", {"general": general, "datasets": datasets})
    cannot = [
        "**No masks**: musubi-tuner has no masked loss, everything in the images is trained. For "
        "masks take another trainer.",
        "EXIF orientation is not applied; this export has it in the pixels.",
    ]
    if gathered.classes:
        cannot.append(
            "Class images are just another data set: there is no prior weight; balance them by "
            "`num_repeats`."
        )
    notes = common_notes(plan)
    if plan.family and plan.family not in _SCRIPTS:
        notes.append(f"the names of musubi-tuner's scripts for {plan.family} are not known here")
    return Recipe(
        (config,),
        tuple(_commands(plan, config.name)),
        "In the folder of musubi-tuner, with your own model options added",
        tuple(cannot),
        tuple(notes),
        {},
    )


def _commands(plan: Plan, config: str) -> list[Command]:
    script = _SCRIPTS.get(plan.family, "MODEL")
    data = ("--dataset_config", plan.places(config))
    folder = "src/musubi_tuner"
    found = [
        Command(("python", f"{folder}/{script}_cache_latents.py", *data)),
        Command(("python", f"{folder}/{script}_cache_text_encoder_outputs.py", *data)),
    ]
    words = ["accelerate", "launch", f"{folder}/{script}_train_network.py", *data]
    words += ["--dit", plan.base or "MODEL"]
    words += ["--network_module", f"networks.{_MODULES.get(plan.family, 'lora')}"]
    words += ["--network_dim", str(plan.rank), "--network_alpha", f"{plan.network_alpha:g}"]
    if plan.emission and plan.emission.value:
        words += ["--network_args", *plan.emission.value["network_args"]]
    words += ["--learning_rate", f"{plan.learning_rate:g}", "--max_train_steps", str(plan.steps)]
    words += ["--output_dir", plan.places("output"), "--output_name", plan.name]
    found.append(Command(tuple(words)))
    return found
