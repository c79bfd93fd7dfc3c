"""What a list of modules tells about the model: its family, its blocks, its layers.

Counts are read off the names, never assumed. The table of variants below only gives a name to what
was found.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from lora_prep.errors import UsageError
from lora_prep.training.targets import names
from lora_prep.training.targets.names import Block, Naming

VARIANTS = {
    ("sd15", (7, 9)): ("sd15",),
    ("sdxl", (5, 6)): ("sdxl",),
    ("flux1", (19, 38)): ("flux1-dev",),
    ("flux2", (8, 48)): ("flux2-dev",),
    ("flux2", (5, 20)): ("klein-4b",),
    ("flux2", (8, 24)): ("klein-9b",),
    ("sd3", (24,)): ("sd3", "sd35-medium"),
    ("sd3", (38,)): ("sd35-large",),
    ("qwen-image", (60,)): ("qwen-image",),
    ("wan21", (30,)): ("wan21-1.3b",),
    ("wan21", (40,)): ("wan21-14b",),
}
"""Family and number of blocks (U-Nets: attention blocks down and mid, up) -> the known models."""

FAMILIES = (*dict.fromkeys(family for family, _ in VARIANTS), "sd2")

_UNETS = {768: "sd15", 1024: "sd2", 2048: "sdxl"}
"""Width of the text that a U-Net's cross attention reads."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer inside of a block."""

    name: str
    """The module's full name in the model, with dots."""
    block: Block
    head: str
    """The block's name in the model: `transformer_blocks.3`."""
    path: str
    """The layer's name in the block: `attn.to_q`."""
    inputs: int | None = None
    outputs: int | None = None

    @property
    def kind(self) -> str:
        """`attn`, `ff`, `mod` or `other`."""
        return names.kind(self.path)

    def lora_parameters(self, rank: int) -> int | None:
        """The size of a LoRA of this rank, in numbers; None where the layer's size is unknown."""
        if self.inputs is None or self.outputs is None:
            return None
        return rank * (self.inputs + self.outputs)


@dataclass(frozen=True)
class Model:
    """A model's blocks and the linear layers in them: all that targeting needs."""

    title: str
    """What was resolved: a family's name, a path, a class."""
    family: str
    """`sd15`, `sd2`, `sdxl`, `sd3`, `flux1`, `flux2`, `qwen-image`, `wan21`, or `unknown`."""
    variant: str | None
    """The known model that has this many blocks, such as `klein-9b`."""
    naming: Naming
    layers: tuple[Layer, ...]
    parameters: int | None = None
    """Numbers in the whole model, where it was built."""
    lora: bool = False
    """Read off a LoRA: there may be blocks that the file does not touch."""
    possible: tuple[str, ...] = ()
    """Of an unknown family: those that have such blocks and layers, where nothing tells which."""

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks, in the order of `double`, `single`, ..."""
        return tuple(sorted({layer.block for layer in self.layers}))

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many blocks each group has: {'double': 8, 'single': 24}."""
        found: dict[str, int] = {}
        for block in self.blocks:
            found[block.group] = found.get(block.group, 0) + 1
        return found

    @cached_property
    def by_block(self) -> dict[Block, tuple[Layer, ...]]:
        """The layers of each block."""
        found: dict[Block, list[Layer]] = {block: [] for block in self.blocks}
        for layer in self.layers:
            found[layer.block].append(layer)
        return {block: tuple(layers) for block, layers in found.items()}

    def of_family(self, family: str) -> "Model":
        """The same blocks, of a family that something else than their names tells."""
        model = replace(self, family=family, possible=())
        return replace(model, variant=_variant(model))

    def describe(self) -> str:
        """One line: family, variant, counts."""
        counts = ", ".join(f"{group} {count}" for group, count in self.counts.items())
        known = f" ({self.variant})" if self.variant and self.variant != self.family else ""
        family = " or ".join(self.possible) or self.family
        return f"{family}{known}: {counts} blocks, {self.naming.value} names"


def describe_modules(
    title: str,
    modules: Mapping[str, tuple[int, int] | None],
    others: Iterable[str] = (),
    *,
    parameters: int | None = None,
    lora: bool = False,
) -> Model:
    """The model that has these linear modules.

    `modules`: name with dots, without prefix -> (inputs, outputs), or None where that is unknown.
    `others`: names of further modules and parameters; they only help to tell the family.
    Raises UsageError where no module lies in a block of a known kind.
    """
    layers: list[Layer] = []
    namings: list[Naming] = []
    for name, size in modules.items():
        found = names.place(name)
        if found is None or (found.block.part and found.block.part != "attentions" and not lora):
            continue
        inputs, outputs = size or (None, None)
        layers.append(Layer(name, found.block, found.head, found.layer, inputs, outputs))
        namings.append(found.naming)
    if not layers:
        raise UsageError(
            f"{title}: none of its {len(modules)} modules lies in a transformer block of a kind "
            "that is known (transformer_blocks, double_blocks, blocks, down_blocks, ...): "
            f"the first are {', '.join(list(modules)[:3]) or 'missing'}"
        )
    layers.sort(key=lambda layer: layer.block)
    families = identify(layers, others)
    naming = Naming.ORIGINAL if Naming.ORIGINAL in namings else Naming.DIFFUSERS
    model = Model(title, "unknown", None, naming, tuple(layers), parameters, lora, families)
    return model.of_family(families[0]) if len(families) == 1 else model


def identify(layers: Iterable[Layer], others: Iterable[str] = ()) -> tuple[str, ...]:
    """The family, from what only that family has; several where nothing tells, none if unknown.

    FLUX.1 and FLUX.2 in diffusers' names: FLUX.1's single blocks have `attn.to_q`, `proj_mlp` and
    `proj_out`, FLUX.2's `attn.to_qkv_mlp_proj` and `attn.to_out`. In Black Forest Labs' names:
    FLUX.1 has a modulation in each block (`img_mod`, `modulation.lin`), FLUX.2 one for all; a LoRA
    without either is told by its widths.
    """
    layers = list(layers)
    groups = {layer.block.group for layer in layers}
    words = {word for layer in layers for word in layer.path.split(".")}
    if groups & {"down", "mid", "up"}:
        return _unet(layers)
    if "block" in groups:
        return ("wan21",) if words & {"attn2", "cross_attn", "ffn"} else ()
    if any(layer.head.startswith("joint_blocks") for layer in layers):
        return ("sd3",)
    if words & {"to_qkv_mlp_proj", "linear_in", "linear_out"} or any(
        "stream_modulation" in other for other in others
    ):
        return ("flux2",)
    if any(layer.head.startswith(("double_", "single_blocks")) for layer in layers):
        return _flux(layers, words)
    single = {layer.path for layer in layers if layer.block.group == "single"}
    if single & _FLUX2_SINGLE:
        return ("flux2",)
    if single & _FLUX1_SINGLE:
        return ("flux1",)
    if words & {"img_mlp", "txt_mlp", "img_mod", "txt_mod"}:
        return ("qwen-image",)
    if not single and ("attn" not in words or "attn1" in words):
        return ()
    found = _joint(layers, words)
    return tuple(x for x in found if x in ("flux1", "flux2")) if single else found


_FLUX1_SINGLE = {"attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out", "norm.linear"}
_FLUX2_SINGLE = {"attn.to_qkv_mlp_proj", "attn.to_out"}

_JOINT = {
    "flux1": {3072: 19},
    "flux2": {3072: 5, 4096: 8, 6144: 8},
    "sd3": {1536: 24, 2432: 38},
    "qwen-image": {3072: 60},
}
"""Families with `transformer_blocks`: the models' widths and how many of these blocks they have."""


def _joint(layers: list[Layer], words: set[str]) -> tuple[str, ...]:
    """`transformer_blocks` alone: SD3, Qwen-Image, or the double blocks of FLUX.

    Their attention has the same names in all of them; the width and the number of blocks tell.
    """
    if "attn2" in words:
        return ("sd3",)
    widths = {x.inputs for x in layers if x.block.group == "double" and x.path.startswith("attn.")}
    known = widths & {width for models in _JOINT.values() for width in models}
    deepest = max((x.block.numbers[0] for x in layers if x.block.group == "double"), default=0)
    found = [
        family
        for family, models in _JOINT.items()
        if any(deepest < n for width, n in models.items() if not known or width in known)
    ]
    feed_forward = bool(words & {"ff", "ff_context"})  # of FLUX.2 and Qwen-Image it was told above
    return tuple(x for x in found if not feed_forward or x in ("flux1", "sd3"))


def _flux(layers: list[Layer], words: set[str]) -> tuple[str, ...]:
    """FLUX.1 or FLUX.2, in Black Forest Labs' names."""
    if words & {"img_mod", "txt_mod", "modulation"}:
        return ("flux1",)
    for layer in layers:
        if layer.inputs is None or layer.outputs is None:
            continue
        ratio = layer.outputs / layer.inputs
        if layer.path == "linear1":
            return ("flux2",) if round(ratio) == 9 else ("flux1",)
        if layer.path == "linear2":
            return ("flux2",) if round(1 / ratio) == 4 else ("flux1",)
        if layer.path in ("img_mlp.0", "txt_mlp.0"):
            return ("flux2",) if round(ratio) == 6 else ("flux1",)
        if layer.path in ("img_mlp.2", "txt_mlp.2"):
            return ("flux2",) if round(1 / ratio) == 3 else ("flux1",)
        if "_attn." in layer.path and layer.inputs in (4096, 6144):
            return ("flux2",)
    last = {layer.block.group: layer.block.numbers[0] for layer in layers}  # they are sorted
    double, single = last.get("double", -1) + 1, last.get("single", -1) + 1
    if single > 38 or ("flux2", (double, single)) in VARIANTS:
        return ("flux2",)
    return ("flux1",) if double > 8 or single > 24 else ("flux1", "flux2")


def _unet(layers: list[Layer]) -> tuple[str, ...]:
    for layer in layers:
        if layer.path.endswith("attn2.to_k") and layer.inputs in _UNETS:
            return (_UNETS[layer.inputs],)
    attentions = [layer for layer in layers if layer.block.part == "attentions"]
    if any(
        layer.block.group == "up" and layer.block.numbers[0] == 0 for layer in attentions
    ) or any(
        x.path.startswith("transformer_blocks.") and x.path.split(".")[1] != "0" for x in layers
    ):
        return ("sdxl",)
    if any(
        (layer.block.group, layer.block.numbers[0]) in {("down", 0), ("up", 3)}
        for layer in attentions
    ):
        return ("sd15",)
    return ()


def _variant(model: Model) -> str | None:
    counts = dict(model.counts)
    if "up" in counts:
        key: tuple[int, ...] = (counts.get("down", 0) + counts.get("mid", 0), counts["up"])
    else:
        key = tuple(counts[group] for group in ("double", "single", "block") if group in counts)
    known = VARIANTS.get((model.family, key), ())
    if len(known) < 2:
        return known[0] if known else None
    dual = any(".attn2." in f".{layer.path}" for layer in model.layers)
    return known[1] if dual else known[0]
