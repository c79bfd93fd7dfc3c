"""The DreamBooth LoRA scripts of diffusers: two folders of nothing but images, one prompt."""

from collections import Counter

from lora_prep import captions
from lora_prep.errors import UsageError
from lora_prep.export.configs import Command, Config
from lora_prep.export.gather import Gathered
from lora_prep.export.plan import Plan
from lora_prep.export.recipe import Recipe, Shape, common_notes

_SCRIPTS = {
    "klein-9b": "train_dreambooth_lora_flux2_klein.py",
    "klein-4b": "train_dreambooth_lora_flux2_klein.py",
    "flux2-dev": "train_dreambooth_lora_flux2.py",
    "flux1-dev": "train_dreambooth_lora_flux.py",
    "qwen-image": "train_dreambooth_lora_qwen_image.py",
    "sdxl": "train_dreambooth_lora_sdxl.py",
    "sd15": "train_dreambooth_lora.py",
    "sd3": "train_dreambooth_lora_sd3.py",
    "sd35-medium": "train_dreambooth_lora_sd3.py",
    "sd35-large": "train_dreambooth_lora_sd3.py",
}

_WITHOUT = {"train_dreambooth_lora.py": ("repeats", "lora_alpha")}
"""Options that a script refuses, or refused in versions that are still in use."""


def shape(_plan: Plan) -> Shape:
    """Every file is opened as an image: no captions beside them."""
    return Shape(mask_name="none", captions=False, class_captions=False)


def recipe(plan: Plan, gathered: Gathered) -> Recipe:
    """The scripts' arguments, as values in a file and as the command."""
    prompt, others = instance_prompt(plan, gathered)
    arguments: dict[str, str | int | float | bool] = {
        "pretrained_model_name_or_path": plan.base or "MODEL",
        "instance_data_dir": plan.places("images"),
        "instance_prompt": prompt,
        "output_dir": plan.places("output"),
        "resolution": plan.resolutions[0],
        "center_crop": True,
        "repeats": plan.repeats,
        "rank": plan.rank,
        "train_batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "max_train_steps": plan.steps,
    }
    notes = common_notes(plan)
    if plan.alpha is not None:
        arguments["lora_alpha"] = plan.network_alpha
    if gathered.classes:
        classes = Counter(picture.caption for picture in gathered.classes)
        arguments["with_prior_preservation"] = True
        arguments["class_data_dir"] = plan.places("class")
        arguments["class_prompt"] = classes.most_common(1)[0][0]
        arguments["num_class_images"] = len(gathered.classes)
        arguments["prior_loss_weight"] = plan.prior_weight
        if len(classes) > 1:
            notes.append(
                f"the class images were drawn from {len(classes)} prompts; the scripts take one "
                f"for all: {arguments['class_prompt']}"
            )
        if plan.prior_repeats > 1:
            notes.append("--prior-repeats: the scripts have no repeats for class images")
    if plan.emission and plan.emission.value:
        arguments["lora_layers"] = plan.emission.value["lora_layers"]
    if others:
        better = (
            "" if plan.caption else "; say another with --caption, such as 'a photo of {trigger}'"
        )
        notes.append(
            f"captions that are not used: {others}; the scripts train all images on one "
            f"prompt, {prompt!r}{better}"
        )
    script = _SCRIPTS.get(plan.model.variant or "" if plan.model else "", "SCRIPT.py")
    for key in _WITHOUT.get(script, ()):
        value = arguments.pop(key, 1)
        if key == "repeats" and value != 1:
            notes.append(f"--repeats: {script} has none; the length is --max_train_steps")
        elif key == "lora_alpha" and value != plan.rank and plan.alpha is not None:
            notes.append(
                f"--alpha: not every version of {script} has --lora_alpha, and without it alpha is "
                f"the rank; add --lora_alpha {plan.network_alpha:g} if yours has it"
            )
    words = ["accelerate", "launch", script]
    for key, value in arguments.items():
        words += [f"--{key}"] if value is True else [f"--{key}", f"{value}"]
    cannot = (
        "**No masks**: the scripts have no masked loss, everything in the images is trained.",
        "One prompt for all images: captions are not read.",
        "Every file in the two folders is opened as an image: put nothing else there. "
        "`num_class_images` is just as many as there are, so that none is drawn.",
        "All images are cut to squares, here from the middle.",
    )
    return Recipe(
        (Config("arguments.json", "diffusers", arguments),),
        (Command(tuple(words)),),
        "In diffusers' `examples/dreambooth` (arguments.json holds the same values, for programs)",
        cannot,
        tuple(notes),
        {"buckets": False},
    )


def instance_prompt(plan: Plan, gathered: Gathered) -> tuple[str, int]:
    """The prompt of all images, and how many have another caption.

    The template's, where one was given; the caption that all images have; the trigger; else the
    caption that most have. Raises UsageError where every image has its own.
    """
    texts = Counter(picture.caption for picture in gathered.pictures)
    if plan.caption or (plan.trigger and len(texts) != 1):
        first = next(iter(plan.dataset))
        template = plan.caption or "{trigger}"
        if "{stem}" in template or "{folder}" in template:
            raise UsageError(
                "--caption: the scripts of diffusers train all images on one prompt; leave out "
                "{stem} and {folder}"
            )
        prompt = captions.render(template, first, plan.trigger)
    else:
        prompt, count = texts.most_common(1)[0]
        if count == 1 < len(texts):
            raise UsageError(
                "the scripts of diffusers train all images on one prompt, and every image has a "
                "caption of its own: say which prompt with --caption or --trigger"
            )
    return prompt, sum(texts.values()) - texts[prompt]
