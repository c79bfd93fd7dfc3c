"""kohya's sd-scripts: the mask as the image's alpha, or in a folder of its own."""

from typing import Any

from lora_prep.export.configs import Command, Config
from lora_prep.export.gather import Gathered
from lora_prep.export.plan import Plan
from lora_prep.export.recipe import Recipe, Shape, common_notes
from lora_prep.trainers.kohya import large_enough, longest_side
from lora_prep.trainers.view import Layout

_SCRIPTS = {
    "sd15": "train_network.py",
    "sd2": "train_network.py",
    "sdxl": "sdxl_train_network.py",
    "flux1": "flux_train_network.py",
    "sd3": "sd3_train_network.py",
}
_MODULES = {"flux1": "networks.lora_flux", "sd3": "networks.lora_sd3"}


def shape(plan: Plan) -> Shape:
    """RGBA takes image and mask through every step together; the mask folder is stretched."""
    if not plan.uses_masks:
        return Shape(mask_name="none")
    return Shape() if plan.route == "mask-dir" else Shape(images="rgba", mask_name="alpha")


def recipe(plan: Plan, gathered: Gathered) -> Recipe:
    """The data set's configuration and the options that go with it."""
    by_folder = plan.uses_masks and plan.route == "mask-dir"
    subsets: list[dict[str, Any]] = [
        {"image_dir": plan.places(shape(plan).images), "num_repeats": plan.repeats}
    ]
    if by_folder:
        subsets[0]["conditioning_data_dir"] = plan.places("masks")
    elif plan.uses_masks:
        subsets[0]["alpha_mask"] = True
    if gathered.classes:
        subsets.append(
            {
                "image_dir": plan.places("class"),
                "num_repeats": plan.prior_repeats,
                "is_reg": True,
            }
        )
    datasets = [
        {
            "resolution": resolution,
            "batch_size": plan.batch_size,
            "enable_bucket": plan.buckets,
            **({"max_bucket_reso": longest_side(resolution)} if plan.buckets else {}),
            "subsets": subsets,
        }
        for resolution in plan.resolutions
    ]
    value = {"general": {"caption_extension": ".txt"}, "datasets": datasets}
    config = Config("dataset.toml", "kohya", value)
    notes = common_notes(plan)
    if plan.family and plan.family not in _SCRIPTS:
        notes.append(f"sd-scripts does not train {plan.family}; musubi-tuner may")
    needed = len(gathered.pictures) * plan.repeats
    if len(gathered.classes) * plan.prior_repeats > needed:
        notes.append(
            f"kohya takes only as many class images as there are instance images times repeats: "
            f"{needed} of {len(gathered.classes) * plan.prior_repeats}"
        )
    command = Command(_words(plan, gathered, config.name, by_folder=by_folder))
    return Recipe(
        (config,),
        (command,),
        "In the folder of sd-scripts, with your own model and optimizer options added",
        tuple(_cannot(plan, by_folder)),
        tuple(notes),
        {
            "alpha_mask": plan.uses_masks and not by_folder,
            "masked_loss": by_folder,
            "class_images": bool(gathered.classes),
            "max_bucket": longest_side(plan.resolutions[0]),
        },
    )


def enlarged_size(plan: Plan, width: int, height: int) -> tuple[int, int] | None:
    """What an RGBA image has to be scaled to beforehand; None where it is large enough.

    sd-scripts enlarges with Pillow's Lanczos, which multiplies colours by alpha on the way: what
    the mask hides becomes black. What it makes smaller goes through OpenCV, which does not.
    """
    resolution = max(plan.resolutions)
    layout = Layout(
        plan.out, resolution=resolution, buckets=plan.buckets, max_bucket=longest_side(resolution)
    )
    size = large_enough(width, height, layout)
    return None if size == (width, height) else size


def _words(plan: Plan, gathered: Gathered, config: str, *, by_folder: bool) -> tuple[str, ...]:
    module, arguments = _MODULES.get(plan.family, "networks.lora"), []
    if plan.emission and plan.emission.value:
        module = plan.emission.value["network_module"]
        arguments = plan.emission.value["network_args"]
    words = ["accelerate", "launch", _SCRIPTS.get(plan.family, "train_network.py")]
    words += ["--pretrained_model_name_or_path", plan.base or "MODEL"]
    words += ["--dataset_config", plan.places(config)]
    words += ["--output_dir", plan.places("output"), "--output_name", plan.name]
    words += ["--network_module", module]
    words += ["--network_dim", str(plan.rank), "--network_alpha", f"{plan.network_alpha:g}"]
    if arguments:
        words += ["--network_args", *arguments, "--network_train_unet_only"]
    if by_folder:
        words.append("--masked_loss")
    if gathered.classes:
        words += ["--prior_loss_weight", f"{plan.prior_weight:g}"]
    words += ["--learning_rate", f"{plan.learning_rate:g}", "--max_train_steps", str(plan.steps)]
    return tuple(words)


def _cannot(plan: Plan, by_folder: bool) -> list[str]:
    found = [
        "The loss is the mean over all pixels, masked ones included: small masks learn slowly.",
        "Latents cached on disk (`*.npz`) keep the masks they were made with: delete them after an "
        "export with changed masks.",
        "EXIF orientation is not applied; this export has it in the pixels.",
    ]
    if by_folder:
        found += [
            "Without `--masked_loss` the masks are loaded and not used.",
            "The mask is stretched to the bucket while the image is cropped to it: they misalign "
            "wherever an image's shape is not its bucket's (IoU 0.84 to 0.93 measured; mended in "
            "later versions). The RGBA route, `lora-prep export` without `--route`, does not.",
            "Mask folders and class images (`is_reg`) do not combine: no class image is trained.",
        ]
    elif plan.uses_masks:
        found += [
            "Masks are the images' alpha channels (`alpha_mask`): no flag is needed.",
            "Images that are smaller than their bucket were enlarged in this export: sd-scripts "
            "itself would multiply the colours by alpha, and train on black around the mask. So "
            "do not raise the resolution in the configuration alone; export again.",
        ]
    return found
