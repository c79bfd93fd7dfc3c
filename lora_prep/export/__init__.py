"""A data set as a trainer wants it: files, configuration, command; and whether it reads them.

    report = export(plan)            # Plan: what, for whom, where
    check(plan.out)                  # reads everything back

The source is only read. What each trainer needs is in the module of its name.
"""

from types import ModuleType
from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from lora_prep.trainers import Trainer


def module(trainer: "Trainer") -> ModuleType:
    """The module that knows a trainer: `shape(plan)` and `recipe(plan, gathered)`."""
    match trainer:
        case "diffusion-pipe":
            from lora_prep.export import diffusion_pipe

            return diffusion_pipe
        case "ai-toolkit":
            from lora_prep.export import ai_toolkit

            return ai_toolkit
        case "kohya":
            from lora_prep.export import kohya

            return kohya
        case "onetrainer":
            from lora_prep.export import onetrainer

            return onetrainer
        case "simpletuner":
            from lora_prep.export import simpletuner

            return simpletuner
        case "musubi":
            from lora_prep.export import musubi

            return musubi
        case "diffusers":
            from lora_prep.export import diffusers_scripts

            return diffusers_scripts
        case _:
            assert_never(trainer)
