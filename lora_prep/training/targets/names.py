"""Names of modules: those of every ecosystem taken apart into block and layer.

One module has many names. The same weight of FLUX is
`transformer.transformer_blocks.0.attn.to_q.lora_A.weight` (diffusers),
`diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight` (ComfyUI, ai-toolkit) and
`lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight` (kohya, musubi). All of them say
`double.0` here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Naming(StrEnum):
    """Whose names a model or a file uses for the blocks."""

    DIFFUSERS = "diffusers"
    ORIGINAL = "original"
    """The author's own: Black Forest Labs' `double_blocks`, Stability's `input_blocks`, ..."""


class Role(StrEnum):
    """What a tensor of a file is."""

    DOWN = "down"
    """LoRA's A: (rank, inputs)."""
    UP = "up"
    """LoRA's B: (outputs, rank)."""
    ALPHA = "alpha"
    OTHER = "other"
    """A part of DoRA, LoHa, LoKr, or a bias."""
    WEIGHT = "weight"
    """A weight of the model itself."""


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """A block of a model, under the name that this package gives it in all namings."""

    group: str
    """`double` (image and text), `single`, `block` (any other transformer), or a U-Net's `down`,
    `mid`, `up`."""
    numbers: tuple[int, ...]
    part: str = ""
    """U-Nets: `attentions` or `resnets`, `downsamplers`, `upsamplers`."""

    @property
    def label(self) -> str:
        """Such as `double.3` or `up.0.attentions.1`."""
        if not self.part:
            return f"{self.group}.{self.numbers[0]}"
        *level, last = self.numbers
        return ".".join((self.group, *map(str, level), self.part, str(last)))

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module sits."""

    block: Block
    head: str
    """The block's own name where the name was found: `transformer_blocks.3`."""
    layer: str
    """What follows in the block: `attn.to_q`."""
    naming: Naming


@dataclass(frozen=True, slots=True)
class Key:
    """A tensor's name taken apart."""

    prefix: str
    """What was before the module's name, such as `transformer.` or `lora_unet_`."""
    module: str
    """The module's name with dots, un-flattened, without prefix."""
    role: Role
    stem: str
    """All of the key that the tensors of one module share."""
    flat: bool
    """Whether the name was flattened as kohya does."""


_SUFFIXES = (
    (Role.DOWN, r"\.lora_A(?:\.[\w-]+)?\.weight|\.lora_A|[._]lora[._]down\.weight"),
    (Role.UP, r"\.lora_B(?:\.[\w-]+)?\.weight|\.lora_B|[._]lora[._]up\.weight"),
    (Role.ALPHA, r"\.alpha"),
    (
        Role.OTHER,
        r"\.(?:dora_scale|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?|lora_mid\.weight"
        r"|hada_\w+|lokr_\w+|oft_\w+|diff(?:_b)?|bias|lora_[AB](?:\.[\w-]+)?\.bias)",
    ),
    (Role.WEIGHT, r"\.weight"),
)
_SUFFIX = [(role, re.compile(f"(?:{pattern})$")) for role, pattern in _SUFFIXES]

_DOTTED_PREFIX = re.compile(
    r"^(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\."
    r"|unet\.|model\.(?=\w+_?blocks\.)|net\.)+"
)
_FLAT_PREFIX = re.compile(
    r"^(?:lora_unet|lora_transformer|lora_te\d?|lora_te|lycoris(?:_unet|_transformer)?)_"
)
_TEXT_PREFIX = re.compile(r"^(?:text_encoders?|lora_te)[\w.]*?(?=[._])")

_WORDS = """
transformer_blocks single_transformer_blocks double_blocks single_blocks joint_blocks
down_blocks up_blocks mid_block input_blocks output_blocks middle_block to_q to_k to_v
to_out add_q_proj add_k_proj add_v_proj to_add_out to_qkv_mlp_proj ff_context linear_in
linear_out proj_in proj_out proj_mlp norm1_context img_attn txt_attn img_mlp txt_mlp
img_mod txt_mod self_attn cross_attn k_img v_img x_block context_block adaLN_modulation
time_emb_proj conv_shortcut emb_layers in_layers out_layers skip_connection time_embed
label_emb time_embedding add_embedding x_embedder context_embedder t_embedder y_embedder
time_text_embed time_guidance_embed timestep_embedder guidance_embedder text_embedder
linear_1 linear_2 norm_out final_layer img_in txt_in time_in vector_in guidance_in
in_layer out_layer double_stream_modulation_img double_stream_modulation_txt
single_stream_modulation
"""
_TREE = {tuple(word.split("_")) for word in _WORDS.split()}
_LONGEST = max(map(len, _TREE))


def unflatten(name: str) -> str:
    """A kohya name with its dots: `double_blocks_0_img_attn_qkv` -> `double_blocks.0.img_attn.qkv`.

    Words that hold an underscore themselves are known; the longest one is taken.
    """
    tokens = name.split("_")
    parts = []
    while tokens:
        length = next(
            (n for n in range(min(_LONGEST, len(tokens)), 1, -1) if tuple(tokens[:n]) in _TREE), 1
        )
        parts.append("_".join(tokens[:length]))
        del tokens[:length]
    return ".".join(parts)


def parse(key: str) -> Key:
    """Take the name of a tensor apart. Never fails: what is not known stays in `module`."""
    role, stem = Role.OTHER, key
    for candidate, pattern in _SUFFIX:
        found = pattern.search(key)
        if found:
            role, stem = candidate, key[: found.start()]
            break
    text = _TEXT_PREFIX.match(stem)
    if text:
        return Key(text.group(), stem, role, stem, stem.startswith("lora_te"))
    flat = _FLAT_PREFIX.match(stem)
    if flat:
        rest = stem[flat.end() :]
        return Key(flat.group(), rest if "." in rest else unflatten(rest), role, stem, True)
    dotted = _DOTTED_PREFIX.match(stem)
    prefix = dotted.group() if dotted else ""
    return Key(prefix, stem[len(prefix) :], role, stem, False)


_LISTS = {
    "transformer_blocks": ("double", Naming.DIFFUSERS),
    "single_transformer_blocks": ("single", Naming.DIFFUSERS),
    "double_blocks": ("double", Naming.ORIGINAL),
    "single_blocks": ("single", Naming.ORIGINAL),
    "joint_blocks": ("double", Naming.ORIGINAL),
    "blocks": ("block", Naming.DIFFUSERS),
}
_LIST = re.compile(rf"^((?:{'|'.join(_LISTS)})\.(\d+))(?:\.(.+))?$")
_UNET = re.compile(
    r"^((?:(down|up)_blocks\.(\d+)|(mid)_block)"
    r"\.(attentions|resnets|downsamplers|upsamplers)\.(\d+))(?:\.(.+))?$"
)
_SGM = re.compile(r"^((?:(in|out)put_blocks\.(\d+)|middle_block)\.(\d+))(?:\.(.+))?$")
_ATTENTION = re.compile(r"^(?:proj_in|proj_out|norm$|norm\.|transformer_blocks\.)")


def place(module: str) -> Place | None:
    """The block of a module, from its name with dots and without prefix; None outside of blocks."""
    found = _LIST.match(module)
    if found:
        head, number, layer = found.groups()
        group, naming = _LISTS[head.rpartition(".")[0]]
        if group == "block" and re.match(r"(?:self_attn|cross_attn|ffn\.\d)", layer or ""):
            naming = Naming.ORIGINAL
        return Place(Block(group, (int(number),)), head, layer or "", naming)
    found = _UNET.match(module)
    if found:
        head, side, level, mid, part, number, layer = found.groups()
        numbers = (int(number),) if mid else (int(level), int(number))
        return Place(Block(side or mid, numbers, part), head, layer or "", Naming.DIFFUSERS)
    return _place_sgm(module)


def _place_sgm(module: str) -> Place | None:
    """U-Nets as Stability names them: three entries a level, the first of them sampling down."""
    found = _SGM.match(module)
    if not found:
        return None
    head, side, number, inner, layer = found.groups()
    layer = layer or ""
    attention = bool(_ATTENTION.match(layer))
    if side is None:
        part, index = ("attentions", 0) if attention else ("resnets", int(inner) // 2)
        return Place(Block("mid", (index,), part), head, layer, Naming.ORIGINAL)
    n = int(number)
    if side == "in":
        if n == 0:
            return None
        level, index = divmod(n - 1, 3)
        part = "downsamplers" if index == 2 else "attentions" if attention else "resnets"
        block = Block("down", (level, 0 if index == 2 else index), part)
    else:
        level, index = divmod(n, 3)
        sampler = re.match(r"^conv(?:\.|$)", layer) is not None
        part = "upsamplers" if sampler else "attentions" if attention else "resnets"
        block = Block("up", (level, 0 if sampler else index), part)
    return Place(block, head, layer, Naming.ORIGINAL)


def kind(layer: str) -> str:
    """What a layer of a block does: `attn`, `ff`, `mod` (modulation) or `other`.

    FLUX.2's fused `attn.to_qkv_mlp_proj` and `linear1` are both attention and feed-forward: `attn`.
    """
    words = layer.split(".")
    if any(w in ("norm", "norm1", "norm1_context", "norm2", "modulation") for w in words) or any(
        w.endswith("_mod") or w.startswith("adaLN") for w in words
    ):
        return "mod"
    if any("attn" in w for w in words) or words[0] in ("linear1", "linear2"):
        return "attn"
    if any(
        w in ("ff", "ff_context", "ffn", "mlp", "proj_mlp") or w.endswith("_mlp") for w in words
    ):
        return "ff"
    return "other"


def labels(blocks: Iterable[Block]) -> str:
    """A list of blocks for people: neighbours joined, such as `double 0-7, up.0.attentions.1`."""
    runs: list[tuple[str, int, int]] = []
    for block in sorted(set(blocks)):
        stem = block.label.rpartition(".")[0]
        number = block.numbers[-1]
        if runs and runs[-1][0] == stem and runs[-1][2] == number - 1:
            runs[-1] = (stem, runs[-1][1], number)
        else:
            runs.append((stem, number, number))
    return ", ".join(f"{s}.{a}" if a == b else f"{s} {a}-{b}" for s, a, b in runs)
