"""Which blocks of a model a LoRA is trained on, and what a trained one touches.

    model = resolve("klein-9b")                # or a folder, a config, a checkpoint, a module
    selection = select(model, "double[0:8]")   # or a preset
    LoraConfig(target_modules=selection.peft_regex())
    emit(selection, "ai-toolkit").text

Importing this imports neither torch nor diffusers.
"""

from lora_prep.training.targets.emit import CONSUMERS, Emission, emit, emit_all
from lora_prep.training.targets.families import Layer, Model
from lora_prep.training.targets.meta import is_model, resolve, shipped
from lora_prep.training.targets.names import Block, Naming
from lora_prep.training.targets.presets import PRESETS, Preset
from lora_prep.training.targets.select import Selection, select

__all__ = [
    "CONSUMERS",
    "PRESETS",
    "Block",
    "Emission",
    "Layer",
    "Model",
    "Naming",
    "Preset",
    "Selection",
    "emit",
    "emit_all",
    "is_model",
    "resolve",
    "select",
    "shipped",
]
