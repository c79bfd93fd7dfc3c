"""What a list of modules tells about the model: its family, its blocks, its layers.

Counts are read off the names, never assumed. The table of variants below only gives a name to what
was found.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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

    def describe(self) -> str:
        """One line: family, variant, counts."""
        counts = ", ".join(f"{group} {count}" for group, count in self.counts.items())
        known = f" ({self.variant})" if self.variant and self.variant != self.family else ""
        return f"{self.family}{known}: {counts} blocks, {self.naming.value} names"


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
    family = identify(layers, others)
    naming = Naming.ORIGINAL if Naming.ORIGINAL in namings else Naming.DIFFUSERS
    model = Model(title, family, None, naming, tuple(layers), parameters, lora)
    return Model(title, family, _variant(model), naming, tuple(layers), parameters, lora)


def identify(layers: Iterable[Layer], others: Iterable[str] = ()) -> str:
    """The family, from what only that family has.

    FLUX.1 and FLUX.2 in Black Forest Labs' names: FLUX.1 has a modulation in each block
    (`img_mod`, `modulation.lin`), FLUX.2 one for all; a LoRA without either is told by its widths.
    """
    layers = list(layers)
    groups = {layer.block.group for layer in layers}
    paths = {(layer.block.group, layer.path) for layer in layers}
    words = {word for _, path in paths for word in path.split(".")}
    if groups & {"down", "mid", "up"}:
        return _unet(layers)
    if "block" in groups:
        return "wan21" if words & {"attn2", "cross_attn", "ffn"} else "unknown"
    if any(layer.head.startswith("joint_blocks") for layer in layers):
        return "sd3"
    if words & {"to_qkv_mlp_proj", "linear_in", "linear_out"} or any(
        "stream_modulation" in other for other in others
    ):
        return "flux2"
    black_forest = any(layer.head.startswith(("double_", "single_blocks")) for layer in layers)
    if black_forest:
        return _flux(layers, words)
    if "single" in groups:
        return "flux1"
    if words & {"img_mlp", "txt_mlp", "img_mod", "txt_mod"}:
        return "qwen-image"
    if "add_q_proj" not in words and "to_q" not in words:
        return "unknown"
    return _joint(layers, words)


def _joint(layers: list[Layer], words: set[str]) -> str:
    """`transformer_blocks` alone: SD3, Qwen-Image, or the double blocks of FLUX."""
    width = next((x.inputs for x in layers if x.path == "attn.to_q"), None)
    deepest = max(layer.block.numbers[0] for layer in layers)
    if "attn2" in words or width in (1536, 2432):
        return "sd3"
    if deepest >= 38:
        return "qwen-image"
    if width in (4096, 6144):
        return "flux2"
    if deepest < 19 and (width == 3072 or words & {"ff", "ff_context"}):
        return "flux1"
    return "sd3" if words & {"ff", "ff_context"} else "unknown"


def _flux(layers: list[Layer], words: set[str]) -> str:
    """FLUX.1 or FLUX.2, in Black Forest Labs' names."""
    if words & {"img_mod", "txt_mod", "modulation"}:
        return "flux1"
    for layer in layers:
        if layer.inputs is None or layer.outputs is None:
            continue
        ratio = layer.outputs / layer.inputs
        if layer.path == "linear1":
            return "flux2" if round(ratio) == 9 else "flux1"
        if layer.path == "linear2":
            return "flux2" if round(1 / ratio) == 4 else "flux1"
        if layer.path in ("img_mlp.0", "txt_mlp.0"):
            return "flux2" if round(ratio) == 6 else "flux1"
        if layer.path in ("img_mlp.2", "txt_mlp.2"):
            return "flux2" if round(1 / ratio) == 3 else "flux1"
        if layer.path.endswith("_attn.qkv") and layer.inputs in (4096, 6144):
            return "flux2"
    last = {layer.block.group: layer.block.numbers[0] for layer in layers}  # they are sorted
    double, single = last.get("double", -1) + 1, last.get("single", -1) + 1
    if single > 38 or ("flux2", (double, single)) in VARIANTS:
        return "flux2"
    return "flux1" if double > 8 or single > 24 else "unknown"


def _unet(layers: list[Layer]) -> str:
    for layer in layers:
        if layer.path.endswith("attn2.to_k") and layer.inputs in _UNETS:
            return _UNETS[layer.inputs]
    attentions = [layer for layer in layers if layer.block.part == "attentions"]
    if any(
        layer.block.group == "up" and layer.block.numbers[0] == 0 for layer in attentions
    ) or any(
        x.path.startswith("transformer_blocks.") and x.path.split(".")[1] != "0" for x in layers
    ):
        return "sdxl"
    if any(
        (layer.block.group, layer.block.numbers[0]) in {("down", 0), ("up", 3)}
        for layer in attentions
    ):
        return "sd15"
    return "unknown"


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
