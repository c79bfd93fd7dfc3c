"""diffusion-pipe: `[[directory]]` tables with `path` and `mask_path`."""

from lora_prep.export.configs import Command, Config, toml_value
from lora_prep.export.gather import Gathered
from lora_prep.export.plan import Plan
from lora_prep.export.recipe import Recipe, Shape, common_notes
from lora_prep.types import Json

RATIOS = 7


def shape(plan: Plan) -> Shape:
    """Masks in a folder beside the images, by stem."""
    return Shape() if plan.uses_masks else Shape(mask_name="none")


def recipe(plan: Plan, gathered: Gathered) -> Recipe:
    """The data set's configuration; the training's own names the model's files."""
    instance: dict[str, Json] = {"path": plan.places("images")}
    if plan.uses_masks:
        instance["mask_path"] = plan.places("masks")
    directories = [{**instance, "num_repeats": plan.repeats}]
    if gathered.classes:
        directories.append({"path": plan.places("class"), "num_repeats": plan.prior_repeats})
    dataset: dict[str, Json] = {
        "resolutions": list(plan.resolutions),
        "enable_ar_bucket": plan.buckets,
        "min_ar": plan.min_ratio,
        "max_ar": plan.max_ratio,
        "num_ar_buckets": RATIOS,
        "frame_buckets": [1],
        "directory": directories,
    }
    if not plan.buckets:
        for key in ("min_ar", "max_ar", "num_ar_buckets"):
            del dataset[key]
    config = Config("dataset.toml", "diffusion-pipe", dataset)
    command = Command(
        ("deepspeed", "--num_gpus=1", "train.py", "--deepspeed", "--config", "TRAINING.toml")
    )
    cannot = [
        "Masks are cached with the latents and an edited mask of the same name is not noticed: "
        "after each export with changed masks add `--regenerate_cache`.",
        "The loss is the mean over all pixels, masked ones included: small masks learn slowly.",
        "It cannot be told which blocks to train, only which not (`[adapter]` `exclude_modules`).",
    ]
    if gathered.classes:
        cannot.append(
            "Class images are just another directory: there is no prior weight; balance them by "
            "`num_repeats`."
        )
    place = toml_value(plan.places(config.name))
    intro = (
        f"Set `dataset = {place}` in your own training configuration "
        "(TRAINING.toml below), which names the model's files, and run it in the folder of "
        "diffusion-pipe"
    )
    return Recipe(
        (config,),
        (command,),
        intro,
        tuple(cannot),
        tuple(common_notes(plan)),
        {"min_ratio": plan.min_ratio, "max_ratio": plan.max_ratio, "ratios": RATIOS},
    )
