"""How an export is to be read back, as the manifest has it, and as one typed value."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from lora_prep.errors import DatasetError
from lora_prep.export import schema
from lora_prep.export.manifest import MANIFEST, Manifest, is_safe
from lora_prep.export.places import PathStyle, Places
from lora_prep.export.recipe import MaskName, Shape
from lora_prep.trainers import Trainer
from lora_prep.trainers.view import Layout
from lora_prep.types import Json


@dataclass(frozen=True, slots=True)
class About:
    """What a finished export says of itself."""

    configs: Mapping[str, str]
    """Configuration files, with the schemas that hold their keys."""
    shape: Shape
    look: Mapping[str, Any]
    """Settings of `trainers.Layout`."""
    resolution: int
    buckets: bool
    images: tuple[str, ...]
    places: Places

    def layout(self, out: Path) -> Layout:
        """The folders and settings that the trainer is given."""
        masks = out / self.shape.masks if self.shape.mask_name in ("stem", "name") else None
        settings = {"buckets": self.buckets, **self.look}
        return Layout(out / self.shape.images, masks, self.resolution, **settings)

    def to_json(self) -> dict[str, Json]:
        """For the manifest."""
        return {
            "configs": dict(self.configs),
            "shape": asdict(self.shape),
            "look": dict(self.look),
            "resolution": self.resolution,
            "buckets": self.buckets,
            "images": list(self.images),
            "root": self.places.root,
            "style": self.places.style,
        }


def about(out: Path, manifest: Manifest) -> tuple[Trainer, About]:
    """The trainer and the rest. Raises DatasetError where there is no finished export, or where
    the manifest does not say all that is needed."""
    known = [name for name in get_args(Trainer) if name == manifest.trainer]
    if not known or not manifest.about:
        raise DatasetError(
            f"{out} holds no finished export ({MANIFEST}): make one with lora-prep export --to"
        )
    try:
        return known[0], _parse(manifest.about)
    except (KeyError, TypeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DatasetError(
            f"{out / MANIFEST} does not say how to read the export ({what}): export again"
        ) from error


def _parse(value: Mapping[str, Json]) -> About:
    configs, look, images = (
        _of(dict, value["configs"]),
        _of(dict, value["look"]),
        _of(list, value["images"]),
    )
    for name, kind in configs.items():
        if not is_safe(name) or kind not in schema.names():
            raise ValueError(f"{name!r} is no configuration")
    style = value["style"]
    if style not in get_args(PathStyle):
        raise ValueError(f"the path style {style!r} is not known")
    return About(
        configs,
        _shape(_of(dict, value["shape"])),
        {name: _setting(name, setting) for name, setting in look.items()},
        _setting("resolution", value["resolution"]),
        _setting("buckets", value["buckets"]),
        tuple(_of(str, name) for name in images),
        Places(_of(str, value["root"]), style),
    )


def _shape(value: dict[str, Json]) -> Shape:
    shape = Shape(**value)
    if not is_safe(shape.images) or not is_safe(shape.masks):
        raise ValueError("a folder of `shape` is not in the export")
    if shape.mask_name not in get_args(MaskName):
        raise ValueError(f"the mask name {shape.mask_name!r} is not known")
    return shape


def _setting(name: str, value: Json) -> Any:
    """A setting of `Layout`, of its type. Raises TypeError and ValueError."""
    wanted = {field.name: field.type for field in fields(Layout)}.get(name)
    if wanted is bool:
        return _of(bool, value)
    if wanted not in (int, float) or isinstance(value, bool):
        raise TypeError(f"{name!r} is no setting, or of the wrong type")
    if wanted is int:
        if _of(int, value) < 1:
            raise ValueError(f"{name} has to be 1 or more")
    elif not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} has to be 0 or more")
    return value


def _of(kind: type, value: Json) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{str(value)[:40]!r} is of the wrong type")
    return value
