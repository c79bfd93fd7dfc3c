"""Selections of blocks and layers: presets and expressions.

An expression is one or more terms with commas between them:

    double[0:8]              blocks as in a Python slice: 0 to 7
    single[:12], single.3    the first twelve; one
    up.0.attentions.1        U-Nets
    double[0:8].attn         in these blocks: attn, ff, mod, or a layer's name such as attn.to_q
    to_q,to_k,to_v           layers in all blocks
    sdxl:b-lora-style        a preset
    all

Blocks may also be given as diffusers or Black Forest Labs name them
(`single_transformer_blocks[0:12]`, `double_blocks.3`).
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lora_prep.errors import UsageError
from lora_prep.training.targets import names, patterns, presets
from lora_prep.training.targets.families import Layer, Model
from lora_prep.training.targets.names import Block
from lora_prep.training.targets.presets import Preset

KINDS = ("attn", "ff", "mod")

_GROUPS = {
    "double": "double",
    "double_blocks": "double",
    "transformer_blocks": "double",
    "double_transformer_blocks": "double",
    "joint_blocks": "double",
    "single": "single",
    "single_blocks": "single",
    "single_transformer_blocks": "single",
    "block": "block",
    "blocks": "block",
    "down": "down",
    "down_blocks": "down",
    "mid": "mid",
    "mid_block": "mid",
    "up": "up",
    "up_blocks": "up",
}
_PREFIXES = ("base_model", "model", "transformer", "unet", "diffusion_model")
_PARTS = ("attentions", "resnets", "downsamplers", "upsamplers")
_PRESET = re.compile(r"[\w.-]+:[\w.-]+")
_TOKEN = re.compile(r"\.?(?:(\d+)(?=\.|\[|$)|([A-Za-z_]\w*)|\[([^\]]*)\])")


@dataclass(frozen=True)
class Selection:
    """What of a model is trained."""

    model: Model
    expression: str
    layers: tuple[Layer, ...]
    """In the model's order; never empty."""
    presets: tuple[Preset, ...] = ()
    notes: tuple[str, ...] = ()
    """What the user should know: names that were corrected, claims that nobody verified."""

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in which something is trained, sorted."""
        return tuple(sorted({layer.block for layer in self.layers}))

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The full names of the selected modules."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def whole(self) -> bool:
        """Whether every linear layer of each of its blocks is selected."""
        return len(self.layers) == sum(len(self.model.by_block[b]) for b in self.blocks)

    def lora_parameters(self, rank: int) -> int | None:
        """The size of a LoRA of this rank, in numbers; None where layers' sizes are unknown."""
        sizes = [layer.lora_parameters(rank) for layer in self.layers]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def peft_regex(self) -> str:
        """A regular expression for PEFT's `target_modules` that matches these modules alone."""
        return patterns.modules_regex(self.layers)


def select(model: Model, expression: str) -> Selection:
    """The modules that an expression or a preset names.

    Raises UsageError where a part of it hits nothing, names a block that is not there, or names a
    layer that only some of the blocks have.
    """
    chosen: set[str] = set()
    notes: list[str] = []
    used: list[Preset] = []
    anywhere: list[str] = []
    for term in _split(expression):
        if _PRESET.fullmatch(term):
            preset = presets.find(term, model)
            used.append(preset)
            if not preset.verified:
                notes.append(f"{preset.name} is not verified ({preset.source}): {preset.note}")
            chosen.update(select(model, preset.expression).modules)
            continue
        parsed = _parse(term, model)
        notes.extend(parsed.notes)
        if parsed.blocks is None:
            anywhere.append(term)
        chosen.update(_hits(term, parsed, model))
    if anywhere:
        _check_all_blocks_hit(anywhere, model, chosen)
    layers = tuple(layer for layer in model.layers if layer.name in chosen)
    return Selection(model, expression, layers, tuple(used), tuple(dict.fromkeys(notes)))


@dataclass(frozen=True, slots=True)
class _Term:
    blocks: tuple[Block, ...] | None
    """None: a layer's name without blocks."""
    layer: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


def _split(expression: str) -> list[str]:
    """The terms: what commas outside of brackets divide."""
    terms = [term.strip() for term in re.split(r",(?![^\[]*\])", expression)]
    if not all(terms):
        raise UsageError(
            f"{expression!r} selects nothing: write blocks, such as double[0:8] or "
            "up.0.attentions.1, with commas between them"
        )
    return terms


def _parse(term: str, model: Model) -> _Term:
    words = _words(term)
    while words and words[0] in _PREFIXES:
        words = words[1:]
    if words and words[0] in ("all", "*"):
        return _Term(model.blocks, tuple(words[1:]))
    group = _GROUPS.get(words[0]) if words else None
    if group is None:
        return _bare_layer(term, words, model)
    notes = []
    if words[0] == "double_transformer_blocks":
        notes.append(
            f"there is no `double_transformer_blocks`: the double blocks of this model are "
            f"`{_list_name(model, 'double')}`, and that is what was taken for `{term}`"
        )
    if group not in model.counts and {group, *model.counts} <= {"block", "double"}:
        group = next(iter(model.counts))
    if group not in model.counts:
        raise UsageError(f"{term}: there are no {group} blocks here. This is {model.describe()}")
    if group in ("down", "mid", "up"):
        blocks, layer = _unet_blocks(term, group, words[1:], model)
    else:
        blocks, layer = _listed_blocks(term, group, words[1:], model)
    return _Term(blocks, tuple(layer), notes)


def _list_name(model: Model, group: str) -> str:
    heads = (x.head for x in model.layers if x.block.group == group)
    return next(heads, "transformer_blocks.0").rpartition(".")[0]


def _words(term: str) -> list[str]:
    """`double[0:8].attn` -> double, [0:8], attn; numbers between dots become [3]."""
    words, end = [], 0
    if term == "*":
        return ["*"]
    while end < len(term):
        found = _TOKEN.match(term, end)
        if not found:
            raise UsageError(
                f"{term!r} is not understood at {term[end:]!r}: write blocks as double[0:8], "
                "single.3 or up.0.attentions.1"
            )
        number, word, inside = found.groups()
        words.append(word if word is not None else f"[{number if inside is None else inside}]")
        end = found.end()
    return words


def _bare_layer(term: str, words: list[str], model: Model) -> _Term:
    layer = tuple(words)
    if not any(_is_hit(x, layer) for x in model.layers):
        known = [*model.counts, *{w for x in model.layers for w in x.path.split(".")}]
        near = difflib.get_close_matches(words[0] if words else term, [*known, *_GROUPS], 1)
        guess = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"{term}: no block and no layer is called so.{guess} This is {model.describe()}; its "
            f"layers are {_layer_names(model.layers)}"
        )
    return _Term(None, layer)


def _layer_names(layers: Iterable[Layer]) -> str:
    """Their distinct names, inner numbers left out."""
    paths = (re.sub(r"^transformer_blocks\.\d+\.", "", layer.path) for layer in layers)
    return ", ".join(dict.fromkeys(paths))


def _listed_blocks(
    term: str, group: str, words: Sequence[str], model: Model
) -> tuple[tuple[Block, ...], Sequence[str]]:
    here = [b for b in model.blocks if b.group == group]
    if words and words[0].startswith("["):
        wanted = _indices(words[0], [b.numbers[0] for b in here], term, group)
        return tuple(b for b in here if b.numbers[0] in wanted), words[1:]
    return tuple(here), words


def _unet_blocks(
    term: str, group: str, words: Sequence[str], model: Model
) -> tuple[tuple[Block, ...], Sequence[str]]:
    here = [b for b in model.blocks if b.group == group]
    if group != "mid" and words and words[0].startswith("["):
        levels = sorted({b.numbers[0] for b in here})
        wanted = _indices(words[0], levels, term, f"{group} (blocks with attention)")
        here, words = [b for b in here if b.numbers[0] in wanted], words[1:]
    if words and words[0] in _PARTS:
        part = words[0]
        here, words = [b for b in here if b.part == part], words[1:]
        if not here:
            raise UsageError(
                f"{term}: there are no {part} to train there; it has {model.describe()}"
            )
        if words and words[0].startswith("["):
            for level in {b.numbers[:-1] for b in here}:
                last = [b.numbers[-1] for b in here if b.numbers[:-1] == level]
                name = ".".join((group, *map(str, level), part))
                wanted = _indices(words[0], last, term, name)
            here, words = [b for b in here if b.numbers[-1] in wanted], words[1:]
    return tuple(here), words


def _indices(text: str, valid: Sequence[int], term: str, what: str) -> set[int]:
    """The numbers in brackets, `0:8` or `0,3,5:7`; each has to be one of `valid`."""
    wanted: set[int] = set()
    for item in text[1:-1].split(","):
        found = re.fullmatch(r"\s*(\d*)\s*(:?)\s*(\d*)\s*", item)
        if not found or not any(found.groups()):
            hint = " (a range is written 0:8, its end not included)" if "-" in item else ""
            raise UsageError(f"{term}: {item.strip() or '[]'!r} is no number or range{hint}")
        first, colon, end = found.groups()
        if not colon:
            wanted.add(int(first))
            continue
        start, stop = int(first or min(valid)), int(end) if end else max(valid) + 1
        if start >= stop:
            raise UsageError(f"{term}: {item.strip()} is an empty range")
        if stop - start > 10_000:
            raise UsageError(f"{term}: {item.strip()} is out of range")
        wanted.update(range(start, stop))
    missing = sorted(wanted - set(valid))
    if missing:
        listed = ", ".join(map(str, valid)) if len(valid) < 6 else f"{valid[0]} to {valid[-1]}"
        raise UsageError(
            f"{term}: out of range: {what} has {listed}, not {missing[0]}"
            + (f" to {missing[-1]}" if len(missing) > 1 else "")
        )
    return wanted


def _is_hit(layer: Layer, wanted: Sequence[str]) -> bool:
    """Whether a layer's name holds these words in a row, or is of the kind that they name."""
    plain = [w[1:-1] if w.startswith("[") else w for w in wanted]
    if not plain or _holds(layer.path.split("."), plain):
        return True
    return plain[0] in KINDS and layer.kind == plain[0] and _holds(layer.path.split("."), plain[1:])


def _holds(path: Sequence[str], words: Sequence[str]) -> bool:
    n = len(words)
    return any(list(path[i : i + n]) == list(words) for i in range(len(path) - n + 1))


def _hits(term: str, parsed: _Term, model: Model) -> set[str]:
    """The modules of one term; an error where a named block has none."""
    blocks = model.blocks if parsed.blocks is None else parsed.blocks
    hits: set[str] = set()
    empty: list[Block] = []
    for block in blocks:
        names_here = [x.name for x in model.by_block[block] if _is_hit(x, parsed.layer)]
        hits.update(names_here)
        if not names_here:
            empty.append(block)
    if not hits:
        layers = [layer for block in blocks for layer in model.by_block[block]]
        raise UsageError(f"{term} hits nothing: the layers there are {_layer_names(layers)}")
    if empty and parsed.blocks is not None:
        _half_matched(term, empty, model)
    return hits


def _check_all_blocks_hit(terms: list[str], model: Model, chosen: set[str]) -> None:
    empty = [b for b in model.blocks if not any(x.name in chosen for x in model.by_block[b])]
    if empty:
        _half_matched(",".join(terms), empty, model)


def _half_matched(term: str, empty: list[Block], model: Model) -> None:
    layers = [layer for block in empty for layer in model.by_block[block]]
    group = next((g for g in model.counts if g not in {b.group for b in empty}), None)
    layer = term.split(",")[0].removeprefix("all.")
    only = f", or say which blocks are meant ({group}.{layer})" if group else ""
    raise UsageError(
        f"{term} hits only a part of the blocks: nothing in {names.labels(empty)}, where the "
        f"layers are {_layer_names(layers)}. Name those, too{only or ', or leave these blocks out'}"
    )
