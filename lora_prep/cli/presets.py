"""From options to the models they mean."""

from dataclasses import replace
from typing import Any

from lora_prep.backends import DetectorSpec, SegmenterSpec

PRESETS = {
    "best": (
        DetectorSpec("insightface", "buffalo_l"),
        SegmenterSpec("sam2", "facebook/sam2-hiera-large"),
    ),
    "fast": (
        DetectorSpec("insightface", "buffalo_sc"),
        SegmenterSpec("sam2", "facebook/sam2-hiera-tiny"),
    ),
    "embedded": (DetectorSpec("cascade"), SegmenterSpec("grabcut")),
}


def detector_spec(
    *,
    preset: str,
    detector: Any,
    face_model: str | None,
    det_size: int | None,
    min_score: float | None,
    device: str,
) -> DetectorSpec:
    """The preset's detector, with what the options say instead."""
    spec = PRESETS[preset][0]
    given = {
        "name": detector,
        "model": face_model,
        "det_size": det_size,
        "min_score": min_score,
        "device": device,
    }
    return replace(spec, **{name: value for name, value in given.items() if value is not None})


def specs(
    *,
    segmenter: Any,
    sam2_model: str | None,
    sam2_config: str | None,
    dtype: Any,
    compile: bool,
    **detector: Any,
) -> tuple[DetectorSpec, SegmenterSpec]:
    """The preset's detector and segmenter, with what the options say instead."""
    spec = PRESETS[detector["preset"]][1]
    given = {
        "name": segmenter,
        "model": sam2_model,
        "config": sam2_config,
        "dtype": dtype,
        "compile": compile,
        "device": detector["device"],
    }
    found = replace(spec, **{name: value for name, value in given.items() if value is not None})
    return detector_spec(**detector), found
