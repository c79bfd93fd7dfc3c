"""What each trainer makes of an image and its mask: its own look-up, crop, resize and weights.

Re-implemented from the trainers' sources, nothing of theirs runs. `open_view` gives one trainer's
view of its folders, `see` one image in it. The snapshots that this follows are named in each
module.
"""

from typing import TYPE_CHECKING, Literal, TypeAlias, assert_never, get_args

if TYPE_CHECKING:
    from lora_prep.trainers.view import Layout, Seen, View

Trainer: TypeAlias = Literal[
    "diffusion-pipe", "ai-toolkit", "kohya", "onetrainer", "simpletuner", "musubi", "diffusers"
]

TRAINERS: tuple[Trainer, ...] = get_args(Trainer)


def open_view(trainer: Trainer, layout: "Layout") -> "View":
    """A trainer's view of its folders, which are listed once."""
    match trainer:
        case "diffusion-pipe":
            from lora_prep.trainers.diffusion_pipe import DiffusionPipe

            return DiffusionPipe(layout)
        case "ai-toolkit":
            from lora_prep.trainers.ai_toolkit import AiToolkit

            return AiToolkit(layout)
        case "kohya":
            from lora_prep.trainers.kohya import Kohya

            return Kohya(layout)
        case "onetrainer":
            from lora_prep.trainers.onetrainer import OneTrainer

            return OneTrainer(layout)
        case "simpletuner":
            from lora_prep.trainers.simpletuner import SimpleTuner

            return SimpleTuner(layout)
        case "musubi":
            from lora_prep.trainers.musubi import Musubi

            return Musubi(layout)
        case "diffusers":
            from lora_prep.trainers.diffusers_scripts import DiffusersScripts

            return DiffusersScripts(layout)
        case _:
            assert_never(trainer)


def see(trainer: Trainer, layout: "Layout", name: str) -> "Seen":
    """What a trainer makes of the image `name`, relative to the image folder.

    For many images of a folder, `open_view(trainer, layout).see(name)` lists the folders once.
    """
    return open_view(trainer, layout).see(name)
