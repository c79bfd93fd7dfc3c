"""Face recognition with the ArcFace models of insightface's packs, as `FaceAnalysis` does it."""

import contextlib
import re
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from lora_prep import digests
from lora_prep.backends import Crop, RecogniserCard, RecogniserSpec, device, licenses, weights
from lora_prep.errors import BackendError, ItemError
from lora_prep.types import Face, Image

MIN_SIMILARITY = 0.28
"""From here on insightface's own example of verification calls two pictures one person's (its
web-demos/src_recognition/main.py)."""

CHUNK = 32
"""Crops a call of the network, where it takes several."""


def card(spec: RecogniserSpec) -> RecogniserCard:
    """The pack, its recogniser's ONNX file with its hash and licence.

    A pack that is not there yet is downloaded; no model is loaded.
    Raises BackendError where it is not to be had or its licence has not been accepted.
    """
    from lora_prep.backends.catalogue import PACK_FILES

    path, name = model_file(spec)
    digest = digests.sha256(path)
    ours = digest in PACK_FILES.values() or weights.is_licensed(spec.model or weights.DEFAULT_PACK)
    terms = f"insightface: {licenses.TERMS}" if ours else "unknown: ask who made the model"
    return RecogniserCard(
        model=f"arcface {name}",
        sha256=digest,
        alignment="insightface-norm_crop",
        license=terms,
        min_similarity=MIN_SIMILARITY,
    )


def model_file(spec: RecogniserSpec) -> tuple[Path, str]:
    """The recogniser's ONNX file, and what to call it: pack and file.

    Raises BackendError where it is not to be had, or its pack's licence has not been accepted.
    """
    given = Path(spec.model).expanduser()
    if spec.model and given.is_file():
        return given, given.name
    pack = spec.model or weights.DEFAULT_PACK
    if not given.is_dir() and not re.fullmatch(r"\w[\w.-]*", pack):
        raise BackendError(
            f"--recogniser-model: there is neither a directory nor a file {pack}: give the "
            "directory that holds a pack's .onnx files, one .onnx file, or the name of a pack, "
            "such as buffalo_l"
        )
    try:
        folder = weights.face_pack(pack)
    except BackendError as error:
        raise BackendError(
            f"{error}. For the recogniser: --recogniser-model DIR, or --recogniser sface, whose "
            "weights are free for any use"
        ) from error
    path = _recogniser_file(folder)
    return path, f"{Path(pack).name}/{path.name}"


class ArcFaceRecogniser:
    """insightface's `ArcFaceONNX`, with its own alignment and normalisation of the input."""

    def __init__(self, spec: RecogniserSpec) -> None:
        """Load the recogniser, onto CUDA where `spec.device` allows it and CUDA starts.

        Raises BackendError where the pack or the device is not to be had, the pack's licence has
        not been accepted, or the file cannot be loaded or is no recogniser.
        """
        providers = device.onnx_providers(spec.device)
        path, self._name = model_file(spec)
        self._model = _load(path, providers)
        self._side = int(self._model.input_size[0])
        self._providers = list(self._model.session.get_providers())
        device.require_cuda(spec.device, self._providers)
        batch = self._model.session.get_inputs()[0].shape[0]
        self._chunk = 1 if isinstance(batch, int) else CHUNK

    def describe(self) -> str:
        """Pack and model file, ONNX Runtime's active providers."""
        return f"ArcFace {self._name}, {' then '.join(self._providers)}"

    def crop(self, image: Image, face: Face) -> Crop:
        """The face in 112×112 pixels (or what the model takes), by insightface's `norm_crop`."""
        from insightface.utils import face_align

        points = np.array(face.landmarks, np.float32)
        if not np.isfinite(points).all() or np.ptp(points, 0).max() < 1e-3:
            raise ItemError(
                "a face cannot be aligned: its landmarks all lie in one point", code="no-alignment"
            )
        with warnings.catch_warnings(action="ignore"):  # it calls scikit-image as of 0.25
            return np.asarray(face_align.norm_crop(image, points, self._side), np.uint8)

    def vectors(self, crops: Sequence[Crop]) -> Float[np.ndarray, "_ _"]:
        """insightface's `get_feat` of the crops, several at a time where the model takes them."""
        bgr = [cv2.cvtColor(crop, cv2.COLOR_RGB2BGR) for crop in crops]
        rows = [
            self._feat(bgr[start : start + self._chunk])
            for start in range(0, len(bgr), self._chunk)
        ]
        return np.concatenate(rows)

    def _feat(self, crops: list[Any]) -> Float[np.ndarray, "_ _"]:
        try:
            rows = np.asarray(self._model.get_feat(crops), np.float32)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            if len(crops) > 1:  # some files are declared for any number and take one
                return np.concatenate([self._feat([crop]) for crop in crops])
            raise BackendError(f"insightface failed with {self.describe()}: {error}") from error
        return rows.reshape(len(crops), -1)


def _load(path: Path, providers: list[device.Provider]) -> Any:
    """insightface's model for an ONNX file."""
    try:
        import onnxruntime
        from insightface.model_zoo import model_zoo

        onnxruntime.set_default_logger_severity(3)  # as FaceAnalysis does
        manifest = _manifest_task(path.parent)
        # ONNX Runtime prints when CUDA does not start.
        with contextlib.redirect_stdout(sys.stderr):
            if manifest is not None and Path(manifest.path) == path.resolve():
                model = model_zoo.get_model(
                    str(path.parent),
                    model_task="recognition",
                    model_descriptor=manifest,
                    providers=providers,
                )
            else:
                model = model_zoo.get_model(str(path.resolve()), providers=providers)
    except Exception as error:  # a bare AssertionError, ONNX Runtime's own types, ImportError, ...
        reason = str(error) or type(error).__name__
        raise BackendError(
            f"insightface cannot load the recogniser {path}: {reason}. If the file is damaged, "
            "delete it and bring it here again"
        ) from error
    if getattr(model, "taskname", "") != "recognition":
        raise BackendError(
            f"{path} is no face recogniser: a recogniser takes squares of 112×112 pixels and has "
            "one output"
        )
    return model


def _manifest_task(folder: Path) -> Any:
    """What a pack's manifest says of its recogniser; None without a manifest."""
    if not (folder / "manifest.json").is_file():
        return None
    from insightface.model_zoo import package_manifest

    if not package_manifest.has_model_package_manifest(folder):
        return None
    return package_manifest.load_model_package(folder).task("recognition")


def _recogniser_file(folder: Path) -> Path:
    """The ONNX file of a pack that FaceAnalysis takes for the recogniser.

    That is the one its manifest names, if there is one, else by insightface's own rule the first
    by name with a recogniser's shapes. Raises BackendError where there is none.
    """
    try:
        manifest = _manifest_task(folder)
        if manifest is not None:
            return Path(manifest.path)
        for path in sorted(folder.glob("*.onnx")):
            if _is_recogniser(path, path.stat().st_size, path.stat().st_mtime_ns):
                return path
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BackendError(f"{folder} is no readable insightface pack: {error}") from error
    raise BackendError(
        f"{folder} has no face recogniser: none of its .onnx files has a recogniser's input and "
        "output. Give --recogniser-model a whole pack, such as buffalo_l, or --recogniser sface"
    )


@lru_cache
def _is_recogniser(path: Path, size: int, mtime_ns: int) -> bool:  # noqa: ARG001, they are the key
    """Whether insightface's router takes an ONNX file for an ArcFace model, by its shapes.

    Raises ValueError where the file is damaged.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    shape = [axis.dim_value for axis in inputs[0].type.tensor_type.shape.dim] if inputs else []
    if len(shape) != 4 or len(graph.output) >= 5 or len(inputs) != 1:
        return False
    height, width = shape[2:]
    return bool(height == width >= 112 and width % 16 == 0 and width != 192)
