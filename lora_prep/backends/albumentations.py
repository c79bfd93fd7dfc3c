"""albumentations 2.0.8: the one module that knows it.

It is MIT-licensed and no longer developed (its successor is AGPL), so what it gets wrong is put
right or refused here. Found by reading and running it:

- A border that continues the image would continue the mask as well, and multiply the keypoints by
  nine: masks and points always get the constant border, 0 (`_zero_border`).
- Neither NumPy's nor Python's seed counts: each draw sets its own.
- Unknown arguments are a warning unless it is told to be strict.
- It asks a server for its newest version while it is imported.
"""

import difflib
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations

from lora_prep.augmentation import Pipeline, Points, is_binary
from lora_prep.errors import ItemError, UsageError
from lora_prep.types import Image, Json, Mask

# Of transforms that have become a special case of another, and of pipelines that move no points.
warnings.filterwarnings("ignore", category=UserWarning, module="albumentations")

_GROUPS = ("OneOf", "OneOrOther", "RandomOrder", "Sequential", "SomeOf")

_FLIPS = ("HorizontalFlip", "VerticalFlip")

_NO_MASK = "it changes the mask's shape, not the picture's: what is ignored would be trained on"
_OTHERS = "it needs other pictures or boxes, which lora-prep does not give it"
_SIDES = "it swaps left and right by chance, however it is called: use HorizontalFlip and --flip"
_NUMBERS = "it makes numbers that are no 8-bit RGB pixels; trainers do that themselves"
_TEARS = "it tears faces apart"

REFUSED: Mapping[str, str] = {
    "MaskDropout": "it paints over what is to be trained on, in picture and mask",
    "Morphological": _NO_MASK,
    **dict.fromkeys(("D4", "SquareSymmetry", "Transpose", "TimeReverse"), _SIDES),
    **dict.fromkeys(("RandomGridShuffle", "TimeMasking", "FrequencyMasking"), _TEARS),
    **dict.fromkeys(("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"), _NUMBERS),
    **dict.fromkeys(
        (
            "AtLeastOneBBoxRandomCrop",
            "BBoxSafeRandomCrop",
            "RandomCropNearBBox",
            "RandomSizedBBoxSafeCrop",
            "ConstrainedCoarseDropout",
            "FDA",
            "HistogramMatching",
            "PixelDistributionAdaptation",
            "TemplateTransform",
            "Mosaic",
            "OverlayElements",
            "TextImage",
        ),
        _OTHERS,
    ),
    "Lambda": "a configuration file holds no functions",
}
"""Transforms that are not let in, and why."""

_DROPOUTS = {
    "CoarseDropout": "fill_mask",
    "Erasing": "fill_mask",
    "GridDropout": "fill_mask",
    "XYMasking": "fill_mask",
    "PixelDropout": "mask_drop_value",
}
"""Transforms that paint over the picture and leave the mask alone, unless this argument is 0."""

_FLAGS: Mapping[str, Mapping[str, int]] = {
    "border_mode": {
        "constant": cv2.BORDER_CONSTANT,
        "replicate": cv2.BORDER_REPLICATE,
        "reflect": cv2.BORDER_REFLECT,
        "reflect_101": cv2.BORDER_REFLECT_101,
        "wrap": cv2.BORDER_WRAP,
    },
    "interpolation": {
        "nearest": cv2.INTER_NEAREST,
        "linear": cv2.INTER_LINEAR,
        "cubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
        "lanczos4": cv2.INTER_LANCZOS4,
    },
}
"""Names for OpenCV's numbers."""


@dataclass(frozen=True, slots=True)
class Transformed:
    """A picture after a draw, with all that went along."""

    image: Image
    mask: Mask | None
    points: Points
    """In the order given; NaN for a point that the transform dropped."""


class Augmenter:
    """A pipeline ready to run. Holds random state: each thread needs its own."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Raises UsageError where the pipeline is not understood (see `check`)."""
        self._hard = _compose(pipeline, cv2.INTER_NEAREST)
        self._soft = _compose(pipeline, cv2.INTER_LINEAR)

    def draw(
        self, image: Image, mask: Mask | None, points: Points, seed: int, *, soft: bool = False
    ) -> Transformed:
        """Transform a picture, its mask and points in it, as the seed says.

        Masks are sampled at the nearest pixel, so that binary ones stay binary; soft ones linearly.
        The arrays given are not written to. Raises ItemError where the pipeline does not fit the
        picture, such as a crop larger than it.
        """
        compose = self._soft if soft else self._hard
        compose.set_random_seed(seed)
        given: dict[str, Any] = {"image": image}
        if mask is not None:
            given["mask"] = mask
        try:
            made = compose(
                **given,
                keypoints=points
                - 0.5,  # it counts from the centre of the first pixel, `Points` do not
                numbers=np.arange(len(points)),
            )
        except MemoryError:
            raise
        except Exception as error:  # each transform has its own, such as CropSizeError
            raise ItemError(
                f"the pipeline does not fit this picture ({_one_line(error)})", code="pipeline"
            ) from error
        moved = np.full((len(points), 2), np.nan)
        if len(points):
            numbers = np.asarray(made["numbers"], int)
            moved[numbers] = np.asarray(made["keypoints"], float)[:, :2] + 0.5
        picture, weights = made["image"], made.get("mask")
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ItemError("the pipeline made no 8-bit RGB picture of it", code="pipeline")
        if weights is not None and (
            weights.shape != picture.shape[:2]
            or weights.dtype != np.uint8
            or (not soft and not is_binary(weights))
        ):
            raise ItemError("the pipeline made no mask that fits the picture", code="pipeline")
        return Transformed(np.ascontiguousarray(picture), weights, moved)


def check(pipeline: Pipeline, *, flip: bool) -> None:
    """Refuse what is unknown, would harm, or mirrors faces where `flip` does not allow it.

    Raises UsageError that names the transform and says why.
    """
    for table in pipeline:
        _build(table)
    if not flip:
        for name in _names(pipeline):
            if name in _FLIPS:
                raise UsageError(
                    f"the pipeline's {name} mirrors faces, which are not symmetric: give --flip "
                    "as well if that is meant"
                )


def _names(pipeline: Pipeline) -> Iterator[str]:
    for table in pipeline:
        yield str(table["transform"])
        yield from _names(table.get("transforms", ()))


def _compose(pipeline: Pipeline, mask_interpolation: int) -> Any:
    points = albumentations.KeypointParams(
        "xy", label_fields=["numbers"], remove_invisible=False, check_each_transform=False
    )
    return albumentations.Compose(
        [_build(table) for table in pipeline] or [albumentations.NoOp()],
        keypoint_params=points,
        mask_interpolation=mask_interpolation,
        strict=True,
    )


def _build(table: Mapping[str, Json]) -> Any:
    """The transform that a table describes. Raises UsageError."""
    arguments = dict(table)
    name = arguments.pop("transform", None)
    if not isinstance(name, str):
        raise UsageError(
            f'the pipeline has {dict(table)!r}: each table says its transform = "Name"'
        )
    if name in REFUSED:
        raise UsageError(f"the pipeline's {name} is refused: {REFUSED[name]}")
    if name in _GROUPS:
        return _build_group(name, arguments)
    known = _transforms()
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *_GROUPS], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"albumentations has no transform {name!r}{hint}")
    _check_fills(name, arguments)
    allowed = [p for p in inspect.signature(known[name].__init__).parameters if p != "self"]
    for key in arguments:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(allowed)}"
            raise UsageError(f"the pipeline's {name} has no argument {key!r}; {hint}")
    try:
        values = {key: _value(key, value) for key, value in arguments.items()}
        return known[name](**values, strict=True)
    except (ValueError, TypeError) as error:
        raise UsageError(f"the pipeline's {name}: {_one_line(error)}") from error


def _build_group(name: str, arguments: dict[str, Json]) -> Any:
    inner = arguments.pop("transforms", None)
    if not isinstance(inner, list) or not inner or not all(isinstance(t, dict) for t in inner):
        raise UsageError(f"the pipeline's {name} wants transforms = [{{transform = ...}}, ...]")
    group = getattr(albumentations, name)
    built = [_build(table) for table in inner]
    try:
        return group(built, **{key: _value(key, value) for key, value in arguments.items()})
    except (ValueError, TypeError) as error:
        raise UsageError(f"the pipeline's {name}: {_one_line(error)}") from error


def _check_fills(name: str, arguments: Mapping[str, Json]) -> None:
    """Refuse what would train on ignored or painted-over pixels."""
    needed = _DROPOUTS.get(name)
    if needed and arguments.get(needed) != 0:
        raise UsageError(
            f"the pipeline's {name} would paint over the picture and leave the mask: training "
            f"would learn the holes. Give {needed} = 0"
        )
    fill = arguments.get("fill_mask", 0)
    if fill != 0:
        raise UsageError(
            f"the pipeline's {name} has fill_mask = {fill!r}: what lies outside of the picture "
            "is ignored, so it is 0"
        )


def _value(key: str, value: Json) -> Any:
    """A value of a configuration file as albumentations wants it."""
    if isinstance(value, str):
        for ending, flags in _FLAGS.items():
            if key.endswith(ending) and value in flags:
                return flags[value]
            if key.endswith(ending):
                raise ValueError(f"{key} is one of {', '.join(flags)}, not {value!r}")
    if isinstance(value, list):
        return tuple(_value(key, v) for v in value)
    if isinstance(value, dict):
        return {k: _value(k, v) for k, v in value.items()}
    return value


@cache
def _transforms() -> dict[str, type[Any]]:
    """The transforms of pictures, by name."""
    base, volume = albumentations.BasicTransform, albumentations.Transform3D
    abstract = (base, volume, albumentations.DualTransform, albumentations.ImageOnlyTransform)
    return {
        name: _zero_border(found)
        for name, found in vars(albumentations).items()
        if inspect.isclass(found)
        and issubclass(found, base)
        and not issubclass(found, volume)
        and found not in abstract
        and name not in REFUSED
    }


def _zero_border(transform: type[Any]) -> type[Any]:
    """The transform, but for masks and points: their border is constant, and 0."""
    if "border_mode" not in inspect.signature(transform.__init__).parameters:
        return transform

    def apply_to_mask(self: Any, mask: np.ndarray, **params: Any) -> Any:
        with _constant_border(self):
            return transform.apply_to_mask(self, mask, **params)

    def apply_to_keypoints(self: Any, keypoints: np.ndarray, **params: Any) -> Any:
        with _constant_border(self):
            return transform.apply_to_keypoints(self, keypoints, **params)

    methods: dict[str, Any] = {
        "apply_to_mask": apply_to_mask,
        "apply_to_keypoints": apply_to_keypoints,
    }
    metaclass: Any = type(transform)
    made: type[Any] = metaclass(transform.__name__, (transform,), methods)
    return made


@contextmanager
def _constant_border(transform: Any) -> Iterator[None]:
    border = transform.border_mode
    transform.border_mode = cv2.BORDER_CONSTANT
    try:
        yield
    finally:
        transform.border_mode = border


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:240]
