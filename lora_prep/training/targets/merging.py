"""Several LoRA files put together: modules that only one has as they are, of others the sum."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_prep.errors import UsageError
from lora_prep.training.targets import names, sound
from lora_prep.training.targets.adapter import ADAPTER, MERGED, SELECTION, Lora, Module, scale
from lora_prep.training.targets.meta import FAMILY
from lora_prep.training.targets.names import Role

if TYPE_CHECKING:
    from torch import Tensor


def merge(
    loras: Sequence[Lora], strengths: Sequence[float], family: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """One LoRA that does what all do together, each at its strength; and its metadata.

    A strength multiplies B alone, so that it counts once: B-LoRA's official `scale_lora`
    multiplies A and B, which makes 0.5 a quarter. Modules that only one file has are taken over
    as they are (bit for bit at strength 1); of a module that several have, the ranks add up:
    A = [A1; A2], B = [s1·B1, s2·B2], which is the exact sum.
    `family`: what they are all for, where their names do not tell, or tell it wrong.
    Raises UsageError where the files name their modules in different ways, or are for different
    models.
    """
    _check_same_style(loras)
    noted = family or _noted_family(loras)
    bake = _must_bake(loras)
    owners: dict[str, list[int]] = {}
    for i, lora in enumerate(loras):
        for module in lora.modules:
            owners.setdefault(module.stem, []).append(i)
    tensors: dict[str, Tensor] = {}
    for stem, indices in owners.items():
        parts = [
            (loras[i], next(m for m in loras[i].modules if m.stem == stem), strengths[i])
            for i in indices
        ]
        tensors.update(_alone(*parts[0], bake=bake) if len(parts) == 1 else _summed(parts))
    metadata = _merged_metadata(loras, strengths, bake)
    return tensors, metadata | ({FAMILY: noted} if noted else {})


def _alone(lora: Lora, module: Module, strength: float, *, bake: bool) -> dict[str, "Tensor"]:
    tensors = {key: lora.tensors[key] for key in module.keys}
    if module.up is None or module.down is None:
        if strength != 1:
            raise UsageError(f"{lora.path}: {module.stem} is no plain LoRA and cannot be scaled")
        return tensors
    factor = strength * (scale(lora, module) if bake and module.alpha is None else 1.0)
    if factor != 1:
        if any(names.parse(key).role is Role.OTHER for key in module.keys):
            raise UsageError(
                f"{lora.path}: {module.stem} is a DoRA, whose strength is no factor: merge at 1"
            )
        tensors[module.up] = _times(lora.tensors[module.up], factor)
    return tensors


def _times(tensor: "Tensor", factor: float) -> "Tensor":
    """The product in float32 (float64 for float64), rounded once to the tensor's own type."""
    import torch

    wide = torch.promote_types(tensor.dtype, torch.float32)
    return (tensor.to(wide) * factor).to(tensor.dtype)


def _summed(parts: Sequence[tuple[Lora, Module, float]]) -> dict[str, "Tensor"]:
    import torch

    downs, ups = [], []
    for lora, module, strength in parts:
        if module.down is None or module.up is None or len(module.keys) - bool(module.alpha) > 2:
            raise UsageError(
                f"{lora.path}: {module.stem} is in several of the files, and no plain LoRA (DoRA, "
                "LoHa, LoKr): it cannot be added"
            )
        down, up = lora.tensors[module.down], lora.tensors[module.up]
        wide = torch.promote_types(down.dtype, torch.float32)
        downs.append(down.to(wide))
        ups.append(up.to(wide) * (strength * scale(lora, module)))
    first, module, _ = parts[0]
    assert module.down is not None
    assert module.up is not None
    if len({d.shape[1:] for d in downs}) > 1 or len({(u.shape[0], *u.shape[2:]) for u in ups}) > 1:
        raise UsageError(f"{module.stem} has another shape in {parts[1][0].path}: another model")
    down, up = torch.cat(downs), torch.cat(ups, dim=1)
    tensors = {
        module.down: down.to(first.tensors[module.down].dtype),
        module.up: up.to(first.tensors[module.up].dtype),
    }
    alpha = next(((lo, m.alpha) for lo, m, _ in parts if m.alpha is not None), None)
    if alpha is not None:  # its scale is in B now: alpha = rank
        lora, key = alpha
        tensors[key] = torch.full_like(lora.tensors[key], float(down.shape[0]))
    return tensors


def _check_same_style(loras: Sequence[Lora]) -> None:
    styles = {lora.style: lora.path for lora in loras if lora.style}
    if len(styles) > 1:
        listed = "; ".join(f"{path}: {style}" for style, path in styles.items())
        raise UsageError(
            f"the files name their modules in different ways ({listed}): nothing reads a file with "
            "both. `lora-prep train` writes a LoRA in each of [save] namings; else convert one"
        )


def _noted_family(loras: Sequence[Lora]) -> str | None:
    """The family that the merged file is noted to be for: where one of the files has such a note.

    A file whose names fit several families goes with any of them. Raises UsageError where the files
    are for different models.
    """
    models = {lora.path: lora.model for lora in loras if lora.style}
    could = {
        path: model.possible or (model.family,)
        for path, model in models.items()
        if model.possible or model.family != "unknown"
    }
    common = set.intersection(*map(set, could.values())) if could else set()
    if could and not common:
        listed = ", ".join(f"{path} is for {' or '.join(of)}" for path, of in could.items())
        raise UsageError(
            f"the files are for different models: {listed}. If you know better, say with --model"
        )
    noted = any(FAMILY in lora.metadata for lora in loras)
    return common.pop() if noted and len(common) == 1 else None


def _configs_but_targets(loras: Sequence[Lora]) -> list[dict[str, Any]]:
    configs = [sound.peft_config(lora.path, lora.metadata) for lora in loras]
    return [
        {k: v for k, v in config.items() if k.rpartition(".")[2] != "target_modules"}
        for config in configs
    ]


def _must_bake(loras: Sequence[Lora]) -> bool:
    """Whether PEFT's configuration in the metadata cannot hold for the merged file.

    It states ranks and alphas for the whole file. Where the files disagree, or ranks add up, it is
    left out, and the scale goes into B.
    """
    configs = _configs_but_targets(loras)
    if not any(configs):
        return False
    stems = [module.stem for lora in loras for module in lora.modules]
    differ = any(config != configs[0] for config in configs)
    return differ or not _targets_join(loras) or len(set(stems)) < len(stems)


def _targets_join(loras: Sequence[Lora]) -> bool:
    """Whether the files' target modules are the same, or lists, which can be put together."""
    given = [sound.peft_config(lora.path, lora.metadata).items() for lora in loras]
    targets = [{k: v for k, v in c if k.endswith("target_modules")} for c in given]
    lists = all(isinstance(value, list) for one in targets for value in one.values())
    return lists or all(one == targets[0] for one in targets)


def _merged_metadata(
    loras: Sequence[Lora], strengths: Sequence[float], bake: bool
) -> dict[str, str]:
    """What all files say; where they differ, the first one's, and the others' with their number."""
    merged: dict[str, str] = {}
    parts = []
    for i, (lora, strength) in enumerate(zip(loras, strengths, strict=True)):
        part: dict[str, Any] = {"file": lora.path.name, "strength": strength}
        for key, value in lora.metadata.items():
            if key == SELECTION:
                part["selection"] = value
            elif key == FAMILY:
                continue
            elif key == ADAPTER:
                if not bake:
                    merged[ADAPTER] = _joined_targets(merged.get(ADAPTER), value)
            elif merged.setdefault(key, value) != value:
                merged[f"{key}.{i + 1}"] = value
        parts.append(part)
    return {**merged, MERGED: json.dumps(parts)}


def _joined_targets(first: str | None, second: str) -> str:
    if first is None or first == second:
        return second
    config, other = json.loads(first), json.loads(second)
    for key, value in other.items():
        if key.rpartition(".")[2] == "target_modules" and isinstance(value, list):
            config[key] = sorted({*(config.get(key) or []), *value})
    return json.dumps(config)
