"""diffusion-pipe: `[[directory]]` tables with `path` and `mask_path`, and the training itself."""

from lora_prep.export.configs import Command, Config
from lora_prep.export.gather import Gathered
from lora_prep.export.plan import Plan
from lora_prep.export.recipe import Recipe, Shape, common_notes
from lora_prep.types import Json

RATIOS = 7

_MODELS = {
    "flux1": ("flux", "diffusers_path"),
    "flux2": ("flux2", "diffusion_model"),
    "qwen-image": ("qwen_image", "diffusers_path"),
    "sd3": ("sd3", "diffusers_path"),
    "sdxl": ("sdxl", "checkpoint_path"),
    "wan21": ("wan", "ckpt_path"),
}
"""`[model]`'s `type` and the key of the model's folder or file, by family."""


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
    configs = (
        Config("dataset.toml", "diffusion-pipe", dataset),
        Config(
            "training.toml",
            "diffusion-pipe-training",
            _training(plan),
            yours=True,
            hint=_hint(plan),
            blocks="adapter.exclude_modules",
        ),
    )
    command = Command(
        (
            *("deepspeed", "--num_gpus=1", "train.py", "--deepspeed"),
            *("--config", plan.places("training.toml")),
        )
    )
    cannot = [
        "Masks are cached with the latents and an edited mask of the same name is not noticed: "
        "after each export with changed masks add `--regenerate_cache`.",
        "The loss is the mean over all pixels, masked ones included: small masks learn slowly.",
        "The LoRA's alpha is always its rank; a key for it stops the training.",
    ]
    if gathered.classes:
        cannot.append(
            "Class images are just another directory: there is no prior weight; balance them by "
            "`num_repeats`."
        )
    return Recipe(
        configs,
        (command,),
        "In the folder of diffusion-pipe",
        tuple(cannot),
        tuple(common_notes(plan) + _notes(plan)),
        {"min_ratio": plan.min_ratio, "max_ratio": plan.max_ratio, "ratios": RATIOS},
    )


def _training(plan: Plan) -> dict[str, Json]:
    kind, key = _MODELS.get(plan.family, ("TYPE", "diffusers_path"))
    model: dict[str, Json] = {"type": kind, key: plan.base or "MODEL", "dtype": "bfloat16"}
    if plan.family == "flux2":
        model["vae"] = "VAE"
        model["text_encoders"] = [{"path": "TEXT_ENCODER", "type": "flux2"}]
    adapter: dict[str, Json] = {"type": "lora", "rank": plan.rank, "dtype": "bfloat16"}
    if plan.emission and plan.emission.value:
        adapter.update(plan.emission.value["adapter"])
    return {
        "output_dir": plan.places("output"),
        "dataset": plan.places("dataset.toml"),
        "epochs": 1000,
        "max_steps": plan.steps,
        "micro_batch_size_per_gpu": plan.batch_size,
        "pipeline_stages": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "warmup_steps": min(100, plan.steps // 10),
        "save_every_n_steps": 250,
        "checkpoint_every_n_minutes": 120,
        "activation_checkpointing": True,
        "partition_method": "parameters",
        "save_dtype": "bfloat16",
        "caching_batch_size": 1,
        "steps_per_print": 1,
        "model": model,
        "adapter": adapter,
        "optimizer": {
            "type": "adamw_optimi",
            "lr": plan.learning_rate,
            "betas": [0.9, 0.99],
            "weight_decay": 0.01,
            "eps": 1e-8,
        },
    }


def _hint(plan: Plan) -> str:
    """How the training's configuration is filled in."""
    if plan.family == "flux2":
        return ": the files as ComfyUI has them"
    if plan.family not in _MODELS:
        return " (docs/supported_models.md of diffusion-pipe), or give --model and --base"
    return ", or give --base"


def _notes(plan: Plan) -> list[str]:
    """What the training cannot be told."""
    found = []
    if plan.family and plan.family not in _MODELS:
        found.append(f"diffusion-pipe does not train {plan.family}")
    if plan.network_alpha != plan.rank:
        found.append(f"--alpha {plan.network_alpha:g}: diffusion-pipe's alpha is the rank")
    return found
