"""Whether a LoRA file is one that can be reckoned with: shapes, alphas, PEFT's configuration.

Files come from anywhere, and everything behind `adapter.read` divides by ranks and multiplies by
alphas. Each check raises UsageError that names the file and the tensor or the key.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_prep.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's configuration (ranks, alphas) in a file's metadata, as JSON."""


def check_pair(path: Path, stem: str, down: "Tensor | None", up: "Tensor | None") -> None:
    """A is (rank, in, ...) and B is (out, rank, ...); None for one that the file does not have."""
    for name, tensor in (("A", down), ("B", up)):
        if tensor is not None and tensor.dim() < 2:
            raise UsageError(
                f"{path}: {name} of {stem} has the shape {tuple(tensor.shape)}, and is no matrix: "
                "the file is damaged, or no LoRA throughout"
            )
    ranks = {t.shape[axis] for t, axis in ((down, 0), (up, 1)) if t is not None}
    if len(ranks) > 1 or 0 in ranks:
        raise UsageError(
            f"{path}: A and B of {stem} have the ranks {', '.join(map(str, sorted(ranks)))}; a "
            "LoRA has one for both, above 0: the file is damaged, or no LoRA throughout"
        )


def check_alpha(path: Path, key: str, alpha: "Tensor") -> None:
    """Alpha is one finite number."""
    if alpha.numel() != 1 or not math.isfinite(float(alpha.float().item())):
        said = f"{alpha.numel()} numbers" if alpha.numel() != 1 else f"{alpha.float().item():g}"
        raise UsageError(f"{path}: {key} is {said}, where an alpha is one finite number")


def peft_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's configuration in a file's metadata, its alphas and targets checked; {} for none."""
    if ADAPTER not in metadata:
        return {}
    try:
        config = json.loads(metadata[ADAPTER])
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {ADAPTER} in its metadata is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: {ADAPTER} in its metadata is no JSON object")
    for key, value in config.items():
        wanted = _wanted(key.rpartition(".")[2], value)
        if wanted:
            raise UsageError(
                f"{path}: {key} in its metadata ({ADAPTER}) has to be {wanted}, not "
                f"{json.dumps(value)[:60]}"
            )
    return config


def _wanted(key: str, value: Any) -> str:
    """What PEFT has for a key, where the value is something else; empty where it is fine."""
    if value is None:
        return ""
    match key:
        case "lora_alpha":
            return "" if _is_number(value) else "a finite number"
        case "alpha_pattern":
            fine = isinstance(value, dict) and all(map(_is_number, value.values()))
            return "" if fine else "an object with finite numbers"
        case "target_modules":
            names = isinstance(value, list) and all(isinstance(name, str) for name in value)
            return "" if names or isinstance(value, str) else "a text or a list of texts"
        case _:
            return ""


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False
