"""Short regular expressions for long lists of modules, and ranges for lists of numbers."""

import re
from collections.abc import Collection, Iterable

from lora_prep.training.targets.families import Layer

_INNER = re.compile(r"^transformer_blocks\.(\d+)\.")


def alternatives(items: Iterable[str]) -> str:
    """`a` or `(?:a|b)`, in the given order; the items are regular expressions."""
    listed = list(dict.fromkeys(items))
    return listed[0] if len(listed) == 1 else f"(?:{'|'.join(listed)})"


def numbers(values: Iterable[int]) -> str:
    """An expression for just these numbers."""
    return alternatives(map(str, sorted(set(values))))


def heads_regex(heads: Iterable[str]) -> str:
    """An expression, not anchored, for blocks' names: `transformer_blocks\\.(?:0|1|2)`."""
    lists: dict[str, list[int]] = {}
    for head in dict.fromkeys(heads):
        name, _, number = head.rpartition(".")
        lists.setdefault(name, []).append(int(number))
    return alternatives(rf"{re.escape(name)}\.{numbers(found)}" for name, found in lists.items())


def _paths_regex(paths: Collection[str]) -> str:
    """An expression for layers in a block; the numbers of inner blocks are put together."""
    inner: dict[str, set[int]] = {}
    plain = []
    for path in paths:
        found = _INNER.match(path)
        if found:
            inner.setdefault(path[found.end() :], set()).add(int(found.group(1)))
        else:
            plain.append(re.escape(path))
    together: dict[frozenset[int], list[str]] = {}
    for path, found_in in inner.items():
        together.setdefault(frozenset(found_in), []).append(re.escape(path))
    return alternatives(
        [
            *(
                rf"transformer_blocks\.{numbers(n)}\.{alternatives(tails)}"
                for n, tails in together.items()
            ),
            *plain,
        ]
    )


def layers_regex(layers: Iterable[Layer]) -> str:
    """An expression, not anchored, for these modules."""
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        blocks.setdefault(layer.head, []).append(layer.path)
    alike: dict[tuple[str, ...], list[str]] = {}
    for head, paths in blocks.items():
        alike.setdefault(tuple(paths), []).append(head)
    return alternatives(
        rf"{heads_regex(heads)}\.{_paths_regex(paths)}" for paths, heads in alike.items()
    )


def modules_regex(layers: Iterable[Layer]) -> str:
    """The same, anchored at both ends."""
    return f"^{layers_regex(layers)}$"


def ranges(values: Iterable[int]) -> str:
    """Numbers as sd-scripts writes them, ends included: `0-7,9`; `none` for no number."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and runs[-1][1] == value - 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"
