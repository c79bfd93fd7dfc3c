"""One LoRA in three namings, and back without a changed bit.

| naming | FLUX | U-Nets | read by |
|---|---|---|---|
| `diffusers` | `transformer.transformer_blocks.0.attn.to_q.lora_A.weight` | `unet.down_blocks…` | diffusers, ComfyUI |
| `comfyui` | `diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight` | as kohya | ComfyUI, ai-toolkit, diffusers (FLUX.2) |
| `kohya` | `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight` | `lora_unet_down_blocks_…`, SDXL `lora_unet_input_blocks_…` | sd-scripts, musubi, ComfyUI, diffusers |

FLUX's authors have one matrix where diffusers has q, k and v (and, in FLUX.1's single blocks, the
feed-forward's first). Their LoRAs become one of three (four) times the rank: A = [Aq; Ak; Av] and B
with Bq, Bk, Bv on its diagonal, which is exact; sd-scripts and diffusers know that form.
"""  # noqa: E501

import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.trainer.families import FamilyName

Pair: TypeAlias = tuple[Tensor, Tensor]
"""A (rank, inputs) and B (outputs, rank) of a module."""

PARTS = "lora_prep.parts"
"""Where the metadata says which of a fused matrix's parts there are, if not all."""

_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_DOUBLE = {
    "img_attn.qkv": tuple(f"attn.{name}" for name in _QKV),
    "txt_attn.qkv": tuple(f"attn.{name}" for name in _ADDED),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
}
_FLUX1_DOUBLE = {
    **_DOUBLE,
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_FLUX1_SINGLE = {
    "linear1": (*(f"attn.{name}" for name in _QKV), "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_FLUX2_DOUBLE = {
    **_DOUBLE,
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_FLUX2_SINGLE = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}

_FLUX: dict[str, tuple[tuple[str, str, Mapping[str, tuple[str, ...]]], ...]] = {
    "flux1": (
        ("transformer_blocks", "double_blocks", _FLUX1_DOUBLE),
        ("single_transformer_blocks", "single_blocks", _FLUX1_SINGLE),
    ),
    "flux2-klein": (
        ("transformer_blocks", "double_blocks", _FLUX2_DOUBLE),
        ("single_transformer_blocks", "single_blocks", _FLUX2_SINGLE),
    ),
}


# ------------------------------------------------------------------ modules: names and matrices
def fuse(
    pairs: Mapping[str, Pair], family: FamilyName, outputs: Mapping[str, int]
) -> tuple[dict[str, Pair], dict[str, list[str]]]:
    """Modules of diffusers as the model's authors have them, and which parts a fused one has.

    `outputs`: widths of the modules that may be missing beside a fused one, by diffusers' name.
    Raises UsageError for a module that has no other name.
    """
    if family == "sd15":
        return dict(pairs), {}
    if family == "sdxl":
        return {_to_sgm(name): pair for name, pair in pairs.items()}, {}
    fused: dict[str, Pair] = {}
    partial: dict[str, list[str]] = {}
    left = dict(pairs)
    for theirs, ours in _fused_names(pairs, family):
        found = {name: left.pop(name) for name in ours if name in left}
        if not found:
            continue
        if len(ours) == 1:
            fused[theirs] = found[ours[0]]
            continue
        if len(found) < len(ours):
            partial[theirs] = [name for name in ours if name in found]
        widths = [found[n][1].shape[0] if n in found else outputs[n] for n in ours]
        fused[theirs] = _block_diagonal([found.get(name) for name in ours], widths)
    if left:
        raise UsageError(f"{next(iter(left))} has no name in the naming of the model's authors")
    return fused, partial


def unfuse(
    pairs: Mapping[str, Pair],
    family: FamilyName,
    partial: Mapping[str, Sequence[str]],
    outputs: Mapping[str, int],
) -> dict[str, Pair]:
    """What `fuse` made, back; also of LoRAs that were trained on fused matrices."""
    if family == "sd15":
        return dict(pairs)
    if family == "sdxl":
        return {_from_sgm(name): pair for name, pair in pairs.items()}
    known = dict(_all_names(pairs, family))
    split: dict[str, Pair] = {}
    for theirs, (down, up) in pairs.items():
        ours = known.get(theirs)
        if ours is None:
            raise UsageError(f"{theirs} is no module of {family} that is known")
        if len(ours) == 1:
            split[ours[0]] = (down, up)
            continue
        widths = _widths(ours, up.shape[0], outputs)
        present = list(partial.get(theirs, ours))
        split.update(_unblocked(ours, present, widths, down, up))
    return split


def _fused_names(
    names: Mapping[str, Pair], family: FamilyName
) -> list[tuple[str, tuple[str, ...]]]:
    """Of every block that occurs in diffusers' names: the authors' name and ours."""
    found = []
    for ours, theirs, layers in _FLUX[family]:
        pattern = re.compile(rf"{ours}\.(\d+)\.")
        blocks = sorted({int(m.group(1)) for name in names if (m := pattern.match(name))})
        for i in blocks:
            for layer, parts in layers.items():
                found.append((f"{theirs}.{i}.{layer}", tuple(f"{ours}.{i}.{p}" for p in parts)))
    return found


def _all_names(names: Mapping[str, Pair], family: FamilyName) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    for ours, theirs, layers in _FLUX[family]:
        for name in names:
            if m := re.match(rf"{theirs}\.(\d+)\.(.+)$", name):
                parts = layers.get(m.group(2), ())
                found.append((name, tuple(f"{ours}.{m.group(1)}.{p}" for p in parts)))
    return [(name, parts) for name, parts in found if parts]


def _widths(ours: Sequence[str], total: int, outputs: Mapping[str, int]) -> list[int]:
    """Rows of each part: equal ones for q, k and v, the rest for the feed-forward."""
    if all(name in outputs for name in ours):
        return [outputs[name] for name in ours]
    if len(ours) == 3:
        return [total // 3] * 3
    hidden = total // 7  # FLUX.1: three times the width, and four times for the feed-forward
    return [hidden, hidden, hidden, total - 3 * hidden]


def _block_diagonal(pairs: Sequence[Pair | None], widths: Sequence[int]) -> Pair:
    present = [pair for pair in pairs if pair is not None]
    down = torch.cat([a for a, _ in present])
    up = torch.zeros(sum(widths), len(down), dtype=present[0][1].dtype)
    row = column = 0
    for pair, width in zip(pairs, widths, strict=True):
        if pair is not None:
            b = pair[1]
            up[row : row + width, column : column + b.shape[1]] = b
            column += b.shape[1]
        row += width
    return down, up


def _unblocked(
    ours: Sequence[str], present: Sequence[str], widths: Sequence[int], down: Tensor, up: Tensor
) -> dict[str, Pair]:
    """The parts of a block-diagonal B, each with its rows of A; else A is everybody's."""
    rows = dict(zip(ours, torch.split(up, list(widths)), strict=True))
    rank, uneven = divmod(len(down), len(present))
    columns = {name: slice(i * rank, (i + 1) * rank) for i, name in enumerate(present)}
    outside = up.clone()
    start = 0
    for name, width in zip(ours, widths, strict=True):
        if name in columns:
            outside[start : start + width, columns[name]] = 0
        start += width
    if uneven or bool(outside.any()):
        return {name: (down.clone(), rows[name].contiguous()) for name in ours}
    return {
        name: (down[columns[name]].contiguous(), rows[name][:, columns[name]].contiguous())
        for name in present
    }


def _to_sgm(name: str) -> str:
    """SDXL's U-Net as Stability numbers it: three entries a level."""
    if m := re.match(r"down_blocks\.(\d+)\.attentions\.(\d+)\.(.+)$", name):
        level, index, rest = int(m.group(1)), int(m.group(2)), m.group(3)
        return f"input_blocks.{3 * level + index + 1}.1.{rest}"
    if m := re.match(r"up_blocks\.(\d+)\.attentions\.(\d+)\.(.+)$", name):
        level, index, rest = int(m.group(1)), int(m.group(2)), m.group(3)
        return f"output_blocks.{3 * level + index}.1.{rest}"
    if m := re.match(r"mid_block\.attentions\.0\.(.+)$", name):
        return f"middle_block.1.{m.group(1)}"
    raise UsageError(f"{name} has no name in Stability's naming: train attention blocks")


def _from_sgm(name: str) -> str:
    if m := re.match(r"input_blocks\.(\d+)\.1\.(.+)$", name):
        level, index = divmod(int(m.group(1)) - 1, 3)
        return f"down_blocks.{level}.attentions.{index}.{m.group(2)}"
    if m := re.match(r"output_blocks\.(\d+)\.1\.(.+)$", name):
        level, index = divmod(int(m.group(1)), 3)
        return f"up_blocks.{level}.attentions.{index}.{m.group(2)}"
    if m := re.match(r"middle_block\.1\.(.+)$", name):
        return f"mid_block.attentions.0.{m.group(1)}"
    raise UsageError(f"{name} is no module of SDXL's attention blocks")


# ------------------------------------------------------------------ files: keys and tensors
def to_keys(
    pairs: Mapping[str, Pair],
    family: FamilyName,
    naming: str,
    scale: float,
    outputs: Mapping[str, int],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file in a naming, and what its metadata has to say.

    `scale` is alpha / rank. kohya's files hold an alpha for each module; comfyui's only where the
    scale is not 1 (diffusers' reader of FLUX.2 knows none); diffusers' keep it in the metadata.
    """
    unet = family in ("sd15", "sdxl")
    if naming == "diffusers":
        prefix = "unet." if unet else "transformer."
        tensors: dict[str, Tensor] = {}
        for name, (down, up) in pairs.items():
            tensors[f"{prefix}{name}.lora_A.weight"] = down
            tensors[f"{prefix}{name}.lora_B.weight"] = up
        return tensors, {}
    fused, partial = fuse(pairs, family, outputs)
    tensors = {}
    for name, (down, up) in fused.items():
        alpha = torch.tensor(scale * len(down))
        if naming == "kohya" or unet:
            stem = f"lora_unet_{name.replace('.', '_')}"
            tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = down, up
            tensors[f"{stem}.alpha"] = alpha
            continue
        stem = f"diffusion_model.{name}"
        tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = down, up
        if scale != 1:
            tensors[f"{stem}.alpha"] = alpha
    return tensors, {PARTS: json.dumps(partial)} if partial else {}


def from_keys(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    family: FamilyName,
    outputs: Mapping[str, int],
) -> dict[str, Pair]:
    """A file's modules by diffusers' names, A and B as they were, whatever its naming.

    Alphas are not applied. Raises UsageError for keys that are not understood.
    """
    from lora_prep.training.targets import names

    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    theirs = False
    for key, tensor in tensors.items():
        parsed = names.parse(key)
        if parsed.role is names.Role.DOWN:
            downs[parsed.module] = tensor
        elif parsed.role is names.Role.UP:
            ups[parsed.module] = tensor
        else:
            continue
        place = names.place(parsed.module)
        theirs = theirs or (place is not None and place.naming is names.Naming.ORIGINAL)
    if not downs or downs.keys() != ups.keys():
        raise UsageError("this is no whole LoRA: each module needs its A and its B")
    pairs = {name: (downs[name], ups[name]) for name in downs}
    if not theirs:
        return pairs
    return unfuse(pairs, family, json.loads(metadata.get(PARTS, "{}")), outputs)
