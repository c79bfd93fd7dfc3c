"""LoRA files: which blocks one really touches, and one taken apart by blocks.

Only safetensors. The namings of diffusers, PEFT, Black Forest Labs (ComfyUI, ai-toolkit) and kohya
(sd-scripts, musubi) are read; what is written has the naming that was read.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_prep.errors import UsageError
from lora_prep.training.targets import meta, names, sound
from lora_prep.training.targets.families import Model
from lora_prep.training.targets.names import Block, Key, Role
from lora_prep.training.targets.select import Selection

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = sound.ADAPTER

SELECTION = "lora_prep.selection"
"""Where `split` notes what a part is."""

MERGED = "lora_prep.merged"
"""Where `merge` notes what it put together."""


@dataclass(frozen=True)
class Module:
    """The tensors of one adapted module."""

    stem: str
    name: str
    block: Block | None
    """None for text encoders and for modules outside of blocks."""
    keys: tuple[str, ...]
    down: str | None
    up: str | None
    alpha: str | None


@dataclass(frozen=True)
class Lora:
    """A LoRA file in memory."""

    path: Path
    tensors: Mapping[str, "Tensor"]
    """In the file's order."""
    metadata: Mapping[str, str]

    @cached_property
    def model(self) -> Model:
        """The blocks and layers that the file has. Raises UsageError where it has none."""
        shapes = {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}
        return meta.from_keys(shapes, str(self.path), self.metadata)

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        """The adapted modules, in the file's order."""
        together: dict[str, list[tuple[str, Key]]] = {}
        for key in self.tensors:
            parsed = names.parse(key)
            together.setdefault(parsed.stem, []).append((key, parsed))
        found = []
        for stem, members in together.items():
            roles = {parsed.role: key for key, parsed in members}
            place = names.place(members[0][1].module)
            found.append(
                Module(
                    stem,
                    members[0][1].module,
                    place.block if place else None,
                    tuple(key for key, _ in members),
                    roles.get(Role.DOWN),
                    roles.get(Role.UP),
                    roles.get(Role.ALPHA),
                )
            )
        return tuple(found)

    @cached_property
    def style(self) -> str:
        """How its keys are written, for people and for comparison: files merge within one style."""
        for module in self.modules:
            if module.down is not None and module.block is not None:
                parsed = names.parse(module.down)
                place = names.place(parsed.module)
                naming = place.naming.value if place else ""
                suffix = module.down[len(module.stem) :]
                return f"{parsed.prefix}({naming} names){suffix}"
        return ""


def read(path: Path) -> Lora:
    """Read a LoRA file whole. Raises UsageError where it is none, or not a sound one."""
    shapes, metadata = meta.read_header(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: only .safetensors files are read")
    roles = {names.parse(key).role for key in shapes}
    if not {Role.DOWN, Role.UP} <= roles:
        other = any(".hada_" in key or ".lokr_" in key or ".oft_" in key for key in shapes)
        what = "a LoHa, LoKr or OFT" if other else "no LoRA: it has no lora_A and lora_B"
        raise UsageError(f"{path} is {what}; this works on LoRA files")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    lora = Lora(path, {key: tensors[key] for key in shapes}, metadata)
    _check(lora)
    return lora


def _check(lora: Lora) -> None:
    for module in lora.modules:
        down, up = (lora.tensors[key] if key else None for key in (module.down, module.up))
        sound.check_pair(lora.path, module.stem, down, up)
        if module.alpha is not None:
            sound.check_alpha(lora.path, module.alpha, lora.tensors[module.alpha])
    sound.peft_config(lora.path, lora.metadata)


def write(
    path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str], *, force: bool = False
) -> None:
    """Write a LoRA file whole, equal ones with equal bytes. Raises UsageError where it cannot."""
    from safetensors.torch import save_file

    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: LoRA files are written as .safetensors")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already: give another name, or --force to replace it")
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: t.contiguous() for k, t in tensors.items()}, part, dict(metadata) or None)
        meta.sort_metadata(part)
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------------------- check
@dataclass(frozen=True, slots=True)
class Touch:
    """What a LoRA does to one block, or to the modules outside of blocks."""

    label: str
    block: Block | None
    modules: int
    zero: int
    """Modules whose B·A is exactly 0: they were never trained."""
    ranks: tuple[int, ...]
    norm: float
    """Frobenius norm of all the block's (alpha / rank)·B·A together; nan for a broken file."""


def touches(lora: Lora) -> list[Touch]:
    """What the LoRA does to each block that it has, in the model's order; text encoders last."""
    grouped: dict[str, list[Module]] = {}
    for module in lora.modules:
        grouped.setdefault(_label(module), []).append(module)
    found = [_touch(label, modules, lora) for label, modules in grouped.items()]
    return sorted(found, key=lambda t: (t.block is None, t.block or Block("", (0,)), t.label))


def _label(module: Module) -> str:
    if module.block is not None:
        return module.block.label
    text = module.stem.startswith(("lora_te", "text_encoder"))
    return "text encoder" if text else "outside of blocks"


def _touch(label: str, modules: Sequence[Module], lora: Lora) -> Touch:
    norms, ranks = [], set()
    for module in modules:
        if module.down is None or module.up is None:
            raise UsageError(
                f"{lora.path}: {module.stem} has only a half of its LoRA "
                f"({', '.join(module.keys)}): the file is not whole, or not a LoRA throughout"
            )
        down, up = lora.tensors[module.down], lora.tensors[module.up]
        ranks.add(down.shape[0])
        norms.append(abs(scale(lora, module)) * product_norm(down, up))
    total = math.sqrt(sum(n * n for n in norms))
    return Touch(
        label, modules[0].block, len(modules), norms.count(0.0), tuple(sorted(ranks)), total
    )


def product_norm(down: "Tensor", up: "Tensor") -> float:
    """Frobenius norm of up @ down, without making the product: sqrt(tr(BᵀB · AAᵀ))."""
    a = down.flatten(1).double()
    b = up.flatten(1).double()
    if a.shape[0] != b.shape[1]:
        raise UsageError(f"ranks of A and B differ: {a.shape[0]} and {b.shape[1]}")
    squared = float(((b.T @ b) * (a @ a.T).T).sum())
    return math.nan if math.isnan(squared) else math.sqrt(max(squared, 0.0))


def scale(lora: Lora, module: Module) -> float:
    """alpha / rank of a module: from the file's tensors, or PEFT's configuration, else 1."""
    assert module.down is not None
    rank = lora.tensors[module.down].shape[0]
    if module.alpha is not None:
        return float(lora.tensors[module.alpha].float().item()) / rank
    config = sound.peft_config(lora.path, lora.metadata)
    prefix = names.parse(module.down).prefix
    alpha = config.get(f"{prefix}lora_alpha")
    for name, value in (config.get(f"{prefix}alpha_pattern") or {}).items():
        if module.name == name or module.name.endswith(f".{name}"):
            alpha = value
    if alpha is None:
        return 1.0
    root = bool(config.get(f"{prefix}use_rslora"))
    return float(alpha) / (math.sqrt(rank) if root else rank)


# ---------------------------------------------------------------------------- split
def split(lora: Lora, selection: Selection) -> tuple[dict[str, "Tensor"], dict[str, "Tensor"]]:
    """The tensors in the selected blocks, and all others. Each is in one of the two, unchanged.

    Raises UsageError where the LoRA has none of the blocks.
    """
    blocks = set(selection.blocks)
    chosen = {key for m in lora.modules if m.block in blocks for key in m.keys}
    if not chosen:
        raise UsageError(f"{lora.path} has none of {names.labels(blocks)}")
    inside = {key: tensor for key, tensor in lora.tensors.items() if key in chosen}
    outside = {key: tensor for key, tensor in lora.tensors.items() if key not in chosen}
    return inside, outside
