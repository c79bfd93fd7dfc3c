"""Names of tensors as each ecosystem writes them, made from rules that were read in its source."""

FLUX_DOUBLE = ("img_attn.qkv", "img_attn.proj", "txt_attn.qkv", "txt_attn.proj")
FLUX_MLP = ("img_mlp.0", "img_mlp.2", "txt_mlp.0", "txt_mlp.2")
FLUX1_MOD = ("img_mod.lin", "txt_mod.lin")
SGM_LAYERS = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
)


def bfl_modules(doubles: int, singles: int, *, flux1: bool) -> list[str]:
    """The linear modules of Black Forest Labs' own code."""
    double = FLUX_DOUBLE + FLUX_MLP + (FLUX1_MOD if flux1 else ())
    single = ("linear1", "linear2", *(("modulation.lin",) if flux1 else ()))
    return [
        *(f"double_blocks.{i}.{layer}" for i in range(doubles) for layer in double),
        *(f"single_blocks.{i}.{layer}" for i in range(singles) for layer in single),
    ]


def wan_modules(blocks: int) -> list[str]:
    """The linear modules of Wan's own code, which musubi-tuner uses."""
    layers = [f"{a}.{x}" for a in ("self_attn", "cross_attn") for x in "qkvo"]
    return [f"blocks.{i}.{x}" for i in range(blocks) for x in [*layers, "ffn.0", "ffn.2"]]


def sgm_sdxl_modules() -> list[str]:
    """A part of SDXL's attention layers, as Stability's code and kohya's files name them."""
    depth = {"input_blocks.4": 2, "input_blocks.5": 2, "input_blocks.7": 10, "input_blocks.8": 10}
    depth |= {"middle_block": 10}
    depth |= {f"output_blocks.{n}": 10 for n in range(3)}
    depth |= {f"output_blocks.{n}": 2 for n in range(3, 6)}
    return [
        f"{block}.1.transformer_blocks.{i}.{layer}"
        for block, count in depth.items()
        for i in range(count)
        for layer in SGM_LAYERS
    ]


def as_kohya(module: str) -> str:
    return "lora_unet_" + module.replace(".", "_")


def lora_keys(modules: list[str], style: str) -> list[str]:
    """The keys of a LoRA on these modules: `diffusers`, `unet`, `comfyui`, `peft` or `kohya`."""
    if style == "kohya":
        tails = (".lora_down.weight", ".lora_up.weight", ".alpha")
        return [as_kohya(module) + tail for module in modules for tail in tails]
    prefix = {
        "diffusers": "transformer.",
        "unet": "unet.",
        "comfyui": "diffusion_model.",
        "peft": "base_model.model.",
    }[style]
    return [f"{prefix}{m}.lora_{side}.weight" for m in modules for side in "AB"]
