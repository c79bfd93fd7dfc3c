"""The layers of the known models, written down once: no diffusers to import, no model to build.

`layers/<name>.json` is made from `configs/<name>.json` by `python -m lora_prep.training.targets`;
a test builds each model and compares.
"""

import json
from importlib import resources
from typing import Any

from lora_prep.training.targets.families import Model, describe_modules


def dump(model: Model) -> dict[str, Any]:
    """A model's layers as JSON values: those that all blocks of a list share are put together."""
    together: dict[tuple[str, str, int | None, int | None], list[int]] = {}
    for layer in model.layers:
        head, _, number = layer.head.rpartition(".")
        key = (head, layer.path, layer.inputs, layer.outputs)
        together.setdefault(key, []).append(int(number))
    return {
        "parameters": model.parameters,
        "layers": [[*key, *found] for key, found in together.items()],
    }


def load(name: str) -> Model:
    """The known model of this name."""
    text = (resources.files(__package__) / "layers" / f"{name}.json").read_text("utf-8")
    stored = json.loads(text)
    modules = {
        f"{head}.{number}.{path}": (inputs, outputs)
        for head, path, inputs, outputs, *numbers in stored["layers"]
        for number in numbers
    }
    return describe_modules(name, modules, parameters=stored["parameters"])
