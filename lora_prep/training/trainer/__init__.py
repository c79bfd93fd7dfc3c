"""The reference trainer: a LoRA with every loss of `lora_prep.training`, small enough to read.

    config   what a run is, read from a TOML file
    families what differs between SD 1.5, SDXL, FLUX.1 and FLUX.2 Klein
    plan     everything that can be known, and be wrong, before a model is loaded
    step     one batch to its losses: the forwards that the terms ask for
    loop     steps, logs, checkpoints, validation images
    save     the trained LoRA, in the namings of diffusers, ComfyUI and kohya

It is a reference: big runs belong into the trainers that `lora-prep export` writes for.
"""
