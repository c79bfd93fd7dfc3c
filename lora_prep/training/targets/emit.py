"""A selection as each trainer wants to be told.

Each trainer matches names by its own rule (lora-prep's tests hold a small version of each rule):

    PEFT             re.fullmatch of one expression, or exact names
    ai-toolkit       plain substrings of `transformer.<name>`, any of them
    sd-scripts       numbers of blocks (FLUX.1, SD3); a rank for each of 23 or 25 blocks (U-Nets)
    OneTrainer       re.search of any expression; commas divide expressions
    musubi-tuner     re.match; what is included wins over what is excluded
    SimpleTuner      exact names, as a JSON list
    diffusers        exact names with commas between them
    diffusion-pipe   re.fullmatch (PEFT's) of one expression for what is left out
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lora_prep.errors import UsageError
from lora_prep.training.targets import meta, patterns
from lora_prep.training.targets.families import Layer
from lora_prep.training.targets.names import Block, Naming
from lora_prep.training.targets.select import Selection, select

UNETS = ("sd15", "sd2", "sdxl")
_FLUX = ("flux1", "flux2")
_ORIGINAL_KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "flux1": {
        "attn": ("img_attn", "txt_attn"),
        "ff": ("img_mlp", "txt_mlp"),
        "mod": ("img_mod", "txt_mod"),
    },
    "flux2": {"attn": ("img_attn", "txt_attn"), "ff": ("img_mlp", "txt_mlp")},
    "wan21": {"attn": ("self_attn", "cross_attn"), "ff": ("ffn",)},
}

_KOHYA_UNET_ONLY = "--network_train_unet_only"
"""Without it sd-scripts trains the text encoders, too, whatever the blocks."""


@dataclass(frozen=True, slots=True)
class Emission:
    """What to write into a trainer's configuration."""

    consumer: str
    value: Any
    """JSON: a string, a list or an object by the trainer's own keys; None where the trainer
    cannot be told."""
    text: str
    """The same, to paste. Empty where there is no value."""
    exact: bool
    """Whether the trainer then trains just the selected layers; else more layers of the same
    blocks, as `notes` say."""
    notes: tuple[str, ...] = ()


def original_head(family: str, block: Block) -> str:
    """A block's name in the author's own code: `double_blocks.3`, `output_blocks.1.1`."""
    number = block.numbers[-1]
    if block.group == "mid":
        return "middle_block.1"
    if block.group in ("down", "up"):
        level = block.numbers[0]
        first = f"input_blocks.{1 + 3 * level + number}"
        return f"{first}.1" if block.group == "down" else f"output_blocks.{3 * level + number}.1"
    if family in _FLUX:
        return f"{block.group}_blocks.{number}"
    if family == "sd3":
        return f"joint_blocks.{number}"
    return f"{'blocks' if block.group == 'block' else 'transformer_blocks'}.{number}"


def emit(selection: Selection, consumer: str, rank: int = 16) -> Emission:
    """The selection for one of `CONSUMERS`. `rank` is what sd-scripts' `block_dims` wants.

    Raises UsageError where there is no such consumer.
    """
    if consumer not in _EMITTERS:
        raise UsageError(f"no consumer {consumer!r}: there are {', '.join(CONSUMERS)}")
    return _EMITTERS[consumer](selection, rank)


def emit_all(selection: Selection, rank: int = 16) -> list[Emission]:
    """The selection for every consumer."""
    return [emit(selection, consumer, rank) for consumer in CONSUMERS]


def _cannot(consumer: str, note: str) -> Emission:
    return Emission(consumer, None, "", False, (note,))


def _in_diffusers(selection: Selection) -> Selection | None:
    """The same selection in diffusers' names, where that can be told."""
    model = selection.model
    if model.naming is Naming.DIFFUSERS:
        return selection
    if model.variant is None or not selection.whole:
        return None
    return select(meta.resolve(model.variant), ",".join(block.label for block in selection.blocks))


_ONLY_DIFFUSERS = (
    "wants diffusers' names, and the model was given in its author's, where layers are fused: give "
    "the diffusers model or a known name, or select whole blocks of a known model"
)


def _peft(selection: Selection, _rank: int) -> Emission:
    named = _in_diffusers(selection)
    if named is None:
        return _cannot("peft", f"PEFT on diffusers {_ONLY_DIFFUSERS}")
    regex = named.peft_regex()
    return Emission("peft", regex, f'target_modules=r"{regex}"', True)


def _ai_toolkit(selection: Selection, _rank: int) -> Emission:
    family = selection.model.family
    notes: list[str] = []
    if family == "flux2":  # ai-toolkit runs Black Forest Labs' own code for it
        heads, exact = _original_parts(selection)
        entries = [f"transformer.{head}." for head in heads]
        if not exact:
            notes.append(_WHOLE_BLOCKS)
    else:
        named = _in_diffusers(selection)
        if named is None:
            return _cannot("ai-toolkit", f"ai-toolkit {_ONLY_DIFFUSERS}")
        prefix = "" if family in UNETS else "transformer."
        entries = []
        for block in named.blocks:
            layers = [layer for layer in named.layers if layer.block == block]
            if len(layers) == len(named.model.by_block[block]):
                entries.append(f"{prefix}{layers[0].head}.")
            else:
                entries.extend(f"{prefix}{layer.name}" for layer in layers)
        exact = True
    body = "".join(f"\n      - {json.dumps(entry)}" for entry in entries)
    text = f"network:\n  network_kwargs:\n    only_if_contains:{body}"
    value = {"network": {"network_kwargs": {"only_if_contains": entries}}}
    return Emission("ai-toolkit", value, text, exact, tuple(notes))


_WHOLE_BLOCKS = (
    "this trainer has the layers under other names, some of them fused: it trains the whole blocks"
)


def _kinds(selection: Selection, block: Block) -> tuple[str, ...] | None:
    """The kinds of layers whose all is selected in a block; None where it is not by kinds."""
    everything = selection.model.by_block[block]
    chosen = {layer.name for layer in selection.layers if layer.block == block}
    kinds = tuple(dict.fromkeys(layer.kind for layer in everything if layer.name in chosen))
    return kinds if chosen == {x.name for x in everything if x.kind in kinds} else None


def _original_parts(selection: Selection) -> tuple[list[str], bool]:
    """Blocks, or their parts, in the author's names; and whether they are just what is selected."""
    family, exact = selection.model.family, True
    parts: list[str] = []
    for block in selection.blocks:
        head = original_head(family, block)
        chosen = [layer for layer in selection.layers if layer.block == block]
        if len(chosen) == len(selection.model.by_block[block]):
            parts.append(head)
            continue
        kinds = None if block.group == "single" else _kinds(selection, block)
        table = _ORIGINAL_KINDS.get(family, {})
        if kinds is None or not set(kinds) <= set(table):
            parts.append(head)
            exact = False
        else:
            parts.extend(f"{head}.{part}" for kind in kinds for part in table[kind])
    return parts, exact


def _network_args(module: str, arguments: Sequence[str]) -> str:
    quoted = " ".join(json.dumps(a).replace("\\\\", "\\") for a in arguments)
    return f"--network_module {module} --network_args {quoted} {_KOHYA_UNET_ONLY}"


def _kohya(selection: Selection, rank: int) -> Emission:
    family = selection.model.family
    if family in ("sd15", "sdxl"):
        return _kohya_unet(selection, rank)
    if family == "sd3":
        numbers = patterns.ranges(block.numbers[0] for block in selection.blocks)
        arguments, exact, module = [f"train_block_indices={numbers}"], selection.whole, "lora_sd3"
    elif family == "flux1":
        arguments = [
            f"train_{group}_block_indices="
            + patterns.ranges(b.numbers[0] for b in selection.blocks if b.group == group)
            for group in ("double", "single")
        ]
        extra = _kohya_flux_parts(selection)
        arguments.extend(extra or [])
        exact, module = extra is not None, "lora_flux"
    else:
        return _cannot("kohya", f"sd-scripts does not train {family} by blocks; musubi-tuner may")
    notes = () if exact else ("sd-scripts picks blocks, not layers: it trains the whole blocks",)
    value = {"network_module": f"networks.{module}", "network_args": arguments}
    return Emission("kohya", value, _network_args(f"networks.{module}", arguments), exact, notes)


def _kohya_flux_parts(selection: Selection) -> list[str] | None:
    """Ranks of 0 for the parts of double blocks that are not trained; None: cannot be said."""
    if selection.whole:
        return []
    found = set()
    for block in selection.blocks:
        whole = sum(x.block == block for x in selection.layers) == len(
            selection.model.by_block[block]
        )
        if block.group == "single":
            if not whole:
                return None
            continue
        found.add(_kinds(selection, block))
    kinds = found.pop() if len(found) == 1 else None
    table = _ORIGINAL_KINDS["flux1"]
    if (
        kinds is None
        or selection.model.naming is not Naming.DIFFUSERS
        or not set(kinds) <= {*table}
    ):
        return None
    return [f"{part}_dim=0" for kind in table if kind not in kinds for part in table[kind]]


def kohya_unet_index(family: str, block: Block) -> int:
    """The place of a U-Net's attention block in sd-scripts' `block_dims`."""
    level, number = block.numbers[0], block.numbers[-1]
    if family == "sdxl":  # embeddings, 9 input blocks, 3 in the middle, 9 output blocks, output
        if block.group == "mid":
            return 11
        return 2 + 3 * level + number if block.group == "down" else 13 + 3 * level + number
    if block.group == "mid":
        return 12
    return (1 if block.group == "down" else 13) + 3 * level + number


def _kohya_unet(selection: Selection, rank: int) -> Emission:
    family = selection.model.family
    dims = [0] * (23 if family == "sdxl" else 25)
    for block in selection.blocks:
        if block.part == "attentions":
            dims[kohya_unet_index(family, block)] = rank
    arguments = ["block_dims=" + ",".join(map(str, dims))]
    notes = (
        ()
        if selection.whole
        else ("sd-scripts picks blocks, not layers: it also trains feed-forward and projections",)
    )
    value = {"network_module": "networks.lora", "network_args": arguments}
    text = _network_args("networks.lora", arguments)
    return Emission("kohya", value, text, selection.whole, notes)


def _onetrainer(selection: Selection, _rank: int) -> Emission:
    named = _in_diffusers(selection)
    if named is None:
        return _cannot("onetrainer", f"OneTrainer {_ONLY_DIFFUSERS}")
    start = r"(?:^|\.)"
    if named.whole:
        heads = dict.fromkeys(layer.head for layer in named.layers)
        filters = [rf"{start}{patterns.heads_regex(heads)}\."]
    else:
        filters = [f"{start}{patterns.layers_regex(named.layers)}$"]
    value = {"layer_filter": ",".join(filters), "layer_filter_regex": True}
    return Emission("onetrainer", value, json.dumps(value, indent=2), True)


def _musubi(selection: Selection, _rank: int) -> Emission:
    family, exact = selection.model.family, True
    if family in (*UNETS, "sd3", "unknown"):
        return _cannot("musubi", f"musubi-tuner does not train {family}")
    if family == "qwen-image":
        named = _in_diffusers(selection)
        if named is None:
            return _cannot("musubi", f"musubi-tuner {_ONLY_DIFFUSERS}")
        include = [_musubi_same_names(named.layers, named.whole)]
    else:
        heads, exact = _original_parts(selection)
        include = [rf"^{head}\." for head in _joined(heads)]
    arguments = [
        "exclude_patterns=['.*']",
        "include_patterns=[" + ", ".join(f"r'{pattern}'" for pattern in include) + "]",
    ]
    notes = () if exact else (_WHOLE_BLOCKS,)
    text = "--network_args " + " ".join(f'"{argument}"' for argument in arguments)
    return Emission("musubi", {"network_args": arguments}, text, exact, notes)


def _musubi_same_names(layers: Sequence[Layer], whole: bool) -> str:
    if whole:
        return rf"^{patterns.heads_regex(layer.head for layer in layers)}\."
    return patterns.modules_regex(layers)


def _joined(heads: Sequence[str]) -> list[str]:
    """Expressions for names such as `double_blocks.3` and `double_blocks.3.img_attn`."""
    tails: dict[str, list[str]] = {}
    for head in heads:
        name, number, *tail = head.split(".")
        tails.setdefault(".".join(tail), []).append(f"{name}.{number}")
    return [
        patterns.heads_regex(found) + (rf"\.{tail}" if tail else "")
        for tail, found in tails.items()
    ]


def _simpletuner(selection: Selection, _rank: int) -> Emission:
    named = _in_diffusers(selection)
    if named is None:
        return _cannot("simpletuner", f"SimpleTuner {_ONLY_DIFFUSERS}")
    modules = list(named.modules)
    text = f"--peft_lora_target_modules='{json.dumps(modules)}'"
    return Emission("simpletuner", {"peft_lora_target_modules": modules}, text, True)


def _diffusers(selection: Selection, _rank: int) -> Emission:
    if selection.model.family in UNETS:
        return _cannot(
            "diffusers",
            "diffusers' scripts for Stable Diffusion 1.5 and XL have no --lora_layers: edit their "
            "LoraConfig, with the expression for PEFT",
        )
    named = _in_diffusers(selection)
    if named is None:
        return _cannot("diffusers", f"--lora_layers {_ONLY_DIFFUSERS}")
    layers = ",".join(named.modules)
    return Emission("diffusers", {"lora_layers": layers}, f'--lora_layers="{layers}"', True)


def _diffusion_pipe(selection: Selection, _rank: int) -> Emission:
    """It hands `exclude_modules` to PEFT: one expression for all but what is selected."""
    family, exact = selection.model.family, True
    if family in (*UNETS, "unknown"):
        why = "SDXL's code in diffusion-pipe does not read [adapter].exclude_modules"
        if family != "sdxl":
            why = f"diffusion-pipe does not train {family}"
        return _cannot("diffusion-pipe", why)
    if family in ("flux2", "wan21"):  # it runs the authors' own code for these
        heads, exact = _original_parts(selection)
        wanted = rf"{patterns.alternatives(_joined(heads))}\..*"
    else:
        named = _in_diffusers(selection)
        if named is None:
            return _cannot("diffusion-pipe", f"diffusion-pipe {_ONLY_DIFFUSERS}")
        wanted = patterns.layers_regex(named.layers)
        if named.whole:
            wanted = rf"{patterns.heads_regex(layer.head for layer in named.layers)}\..*"
    regex = rf"(?!(?:{wanted})$).*"
    notes = () if exact else (_WHOLE_BLOCKS,)
    text = f"[adapter]\nexclude_modules = '{regex}'"
    value = {"adapter": {"exclude_modules": regex}}
    return Emission("diffusion-pipe", value, text, exact, notes)


_EMITTERS: dict[str, Callable[[Selection, int], Emission]] = {
    "peft": _peft,
    "diffusers": _diffusers,
    "ai-toolkit": _ai_toolkit,
    "kohya": _kohya,
    "onetrainer": _onetrainer,
    "musubi": _musubi,
    "simpletuner": _simpletuner,
    "diffusion-pipe": _diffusion_pipe,
}
CONSUMERS = tuple(_EMITTERS)
