"""A trainer's own configuration file, read for the folders and the settings that matter to masks.

The keys that each trainer knows stay with `lora-prep export`; here, a key is only looked up. Paths
that are not absolute count from the file's folder.
"""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_prep.errors import DatasetError
from lora_prep.trainers import Trainer
from lora_prep.trainers.view import Layout

Table = Mapping[str, Any]


def find(folder: Path) -> list[tuple[Trainer, Path]]:
    """The configurations in a folder itself, by what is in them; files of other kinds are none."""
    found: list[tuple[Trainer, Path]] = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".toml", ".yaml", ".yml", ".json") and path.is_file():
            try:
                trainer = _trainer(_load(path))
            except DatasetError:
                continue
            if trainer:
                found.append((trainer, path))
    # OneTrainer's training configuration names the file of its concepts.
    whole = {p for t, p in found if t == "onetrainer" and isinstance(_load(p), dict)}
    return [(t, p) for t, p in found if t != "onetrainer" or not whole or p in whole]


def read(path: Path) -> tuple[Trainer, list[Layout]]:
    """Which trainer a configuration is for, and the layouts of the data in it that can be masked.

    One layout a folder and resolution. Folders without masks are left out where others have some:
    they hold class images. Raises DatasetError for what is no configuration of a known trainer.
    """
    data = _load(path)
    trainer = _trainer(data)
    if trainer is None:
        hint = ""
        if isinstance(data, dict) and "dataset" in data:
            hint = "; diffusion-pipe wants [[directory]] (KeyError: 'directory')"
        raise DatasetError(f"{path} is no data configuration of a trainer that is known{hint}")
    try:
        layouts = list(_READERS[trainer](data, path.parent))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{path}: {trainer} would stop at it ({type(error).__name__}: {error})"
        ) from error
    masked = [layout for layout in layouts if layout.masks or layout.alpha_mask]
    return trainer, masked or layouts


def _load(path: Path) -> Any:
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".toml":
            return tomllib.loads(text)
        if path.suffix in (".yaml", ".yml"):
            import yaml  # type: ignore[import-untyped]

            return yaml.safe_load(text)
        return json.loads(text)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # whatever the three parsers raise
        raise DatasetError(f"cannot parse {path}: {error}") from error


def _trainer(data: Any) -> Trainer | None:
    match data:
        case {"directory": [{"path": _}, *_]}:
            return "diffusion-pipe"
        case {"datasets": [{"subsets": _}, *_]}:
            return "kohya"
        case {"datasets": [{"image_directory": _}, *_]}:
            return "musubi"
        case {"config": {"process": [{"datasets": _}, *_]}}:
            return "ai-toolkit"
        case [{"path": _, "type": str()}, *_] | {"concept_file_name": _} | {"concepts": _}:
            return "onetrainer"
        case [dict(), *_] if any("instance_data_dir" in entry for entry in data):
            return "simpletuner"
    return None


def _diffusion_pipe(data: Table, base: Path) -> Iterator[Layout]:
    for directory in data["directory"]:
        both = {**data, **directory}
        buckets = bool(both.get("enable_ar_bucket", False))
        for resolution in both["resolutions"]:
            layout = Layout(
                _folder(base, directory["path"]),
                _folder(base, directory.get("mask_path")),
                resolution=_side(resolution),
                buckets=buckets,
            )
            if buckets:
                layout = Layout(
                    layout.images,
                    layout.masks,
                    resolution=layout.resolution,
                    min_ratio=float(both["min_ar"]),
                    max_ratio=float(both["max_ar"]),
                    ratios=int(both["num_ar_buckets"]),
                )
            yield layout


def _kohya(data: Table, base: Path) -> Iterator[Layout]:
    general = data.get("general", {})
    for dataset in data["datasets"]:
        both = {**general, **dataset}
        class_images = any(subset.get("is_reg") for subset in dataset["subsets"])
        for subset in dataset["subsets"]:
            yield Layout(
                _folder(base, subset["image_dir"]),
                _folder(base, subset.get("conditioning_data_dir")),
                resolution=_side(both["resolution"]),
                buckets=bool(both.get("enable_bucket", False)),
                max_bucket=int(both.get("max_bucket_reso", 1024)),
                no_upscale=bool(both.get("bucket_no_upscale", False)),
                batch_size=int(both.get("batch_size", 1)),
                alpha_mask=bool({**both, **subset}.get("alpha_mask", False)),
                class_images=class_images and not subset.get("is_reg", False),
            )


def _musubi(data: Table, base: Path) -> Iterator[Layout]:
    for dataset in data["datasets"]:
        both = {**data.get("general", {}), **dataset}
        yield Layout(
            _folder(base, dataset["image_directory"]),
            resolution=_side(both.get("resolution", [960, 544])),
            buckets=bool(both.get("enable_bucket", False)),
        )


def _ai_toolkit(data: Table, base: Path) -> Iterator[Layout]:
    process = data["config"]["process"][0]
    for dataset in process["datasets"]:
        sides = dataset.get("resolution", 512)
        for side in sides if isinstance(sides, list) else [sides]:
            yield Layout(
                _folder(base, dataset["folder_path"]),
                _folder(base, dataset.get("mask_path")),
                resolution=int(side),
                batch_size=int(process.get("train", {}).get("batch_size", 1)),
                alpha_mask=bool(dataset.get("alpha_mask", False)),
                mask_min_value=float(dataset.get("mask_min_value", 0.0)),
            )


def _onetrainer(data: Any, base: Path) -> Iterator[Layout]:
    settings: Table = data if isinstance(data, dict) else {"masked_training": True}
    concepts = data
    if isinstance(data, dict):
        concepts = data.get("concepts") or _load(base / Path(data["concept_file_name"]).name)
    for concept in concepts:
        if concept["type"] == "STANDARD":
            folder = _folder(base, concept["path"])
            yield Layout(
                folder,
                folder if settings.get("masked_training", False) else None,
                resolution=int(str(settings.get("resolution", 1024)).split(",")[0].split("x")[0]),
                buckets=bool(settings.get("aspect_ratio_bucketing", True)),
                masked_loss=bool(settings.get("masked_training", False)),
                unmasked_weight=float(settings.get("unmasked_weight", 0.1)),
                normalize=bool(settings.get("normalize_masked_area_loss", False)),
            )


def _simpletuner(data: Any, base: Path) -> Iterator[Layout]:
    masks = {
        entry["id"]: entry["instance_data_dir"]
        for entry in data
        if entry.get("dataset_type") == "conditioning" and entry.get("conditioning_type") == "mask"
    }
    for entry in data:
        if entry.get("dataset_type", "image") != "image":
            continue
        resolution = float(entry.get("resolution", 1024))
        if entry.get("resolution_type", "pixel_area") == "area":
            resolution = math.sqrt(resolution * 1e6)
        yield Layout(
            _folder(base, entry["instance_data_dir"]),
            _folder(base, masks.get(entry.get("conditioning_data"))),
            resolution=round(resolution),
        )


_READERS: dict[Trainer, Any] = {
    "diffusion-pipe": _diffusion_pipe,
    "kohya": _kohya,
    "musubi": _musubi,
    "ai-toolkit": _ai_toolkit,
    "onetrainer": _onetrainer,
    "simpletuner": _simpletuner,
}


def _folder(base: Path, text: Any) -> Any:
    return None if text is None else base / str(text)


def _side(resolution: Any) -> int:
    """Of a square of the same area."""
    if isinstance(resolution, list):
        return round(math.sqrt(int(resolution[0]) * int(resolution[-1])))
    return int(resolution)
