"""Face detection with insightface's `FaceAnalysis`."""

import contextlib
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lora_prep import digests
from lora_prep.backends import DetectorSpec, device, weights
from lora_prep.errors import BackendError, UsageError
from lora_prep.types import Face, Image, Point


def identity(spec: DetectorSpec) -> str:
    """The pack, the hash of its detector's ONNX file, and the settings that change the faces.

    A pack that is not there yet is downloaded; no model is loaded. Other devices give the same
    faces up to rounding, so the device is no part of it.
    Raises BackendError where the pack is not to be had or its licence has not been accepted, and
    UsageError for a wrong `det_size`.
    """
    _check(spec)
    pack = spec.model or weights.DEFAULT_PACK
    model = _detector_file(weights.face_pack(pack))
    return (
        f"insightface {Path(pack).name}/{model.name} sha256={digests.sha256(model)} "
        f"det_size={spec.det_size} min_score={spec.min_score}"
    )


class InsightFaceDetector:
    """insightface's SCRFD detector, with only the detection module of a pack loaded."""

    def __init__(self, spec: DetectorSpec) -> None:
        """Load the detector, onto CUDA where `spec.device` allows it and CUDA starts.

        Raises UsageError for a wrong `det_size` or device, and BackendError where the pack or the
        device is not to be had, the pack's licence has not been accepted, or it cannot be loaded.
        """
        _check(spec)
        providers = device.onnx_providers(spec.device)
        pack = spec.model or weights.DEFAULT_PACK
        folder = weights.face_pack(pack)
        model = _detector_file(folder)
        # insightface 2.1 prints nothing here, but ONNX Runtime does when CUDA does not start.
        with contextlib.redirect_stdout(sys.stderr):
            self._app = _load(folder, spec, providers)
        self._name = f"{Path(pack).name}/{model.name}"
        self._providers = list(self._app.det_model.session.get_providers())
        device.require_cuda(spec.device, self._providers)
        self._det_size = spec.det_size
        if self._app.det_model.input_size != (spec.det_size, spec.det_size):
            width, height = self._app.det_model.input_size
            raise UsageError(
                f"the detector {model} takes images of {width}×{height} pixels only: "
                f"--det-size {spec.det_size} does not fit it"
            )

    def describe(self) -> str:
        """Pack and model file, size of the detector's input, ONNX Runtime's active providers."""
        return (
            f"insightface {self._name} at {self._det_size}×{self._det_size}, "
            f"{' then '.join(self._providers)}"
        )

    def detect(self, image: Image) -> list[Face]:
        """All faces of at least `min_score`, best first; equal scores are ordered by their boxes.

        The image is fitted into `det_size`×`det_size`. An image whose shorter side shrinks to less
        than two pixels by that has no faces; insightface itself fails on it.
        Raises BackendError where ONNX Runtime fails.
        """
        height, width = image.shape[:2]
        if self._det_size * min(height, width) < 2 * max(height, width):
            return []
        try:
            found = self._app.get(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BackendError(
                f"insightface failed on an image of {width}×{height} pixels "
                f"with {self.describe()}: {error}"
            ) from error
        faces = [_face(one) for one in found]
        return sorted(
            (face for face in faces if face.width > 0 and face.height > 0),
            key=lambda face: (-face.score, face.box),
        )


def _check(spec: DetectorSpec) -> None:
    if spec.det_size < 32 or spec.det_size % 32:
        below = max(32, spec.det_size // 32 * 32)
        raise UsageError(
            f"--det-size {spec.det_size}: it has to be a multiple of 32, such as {below} "
            f"or {below + 32}; 640 suits photographs"
        )


def _load(folder: Path, spec: DetectorSpec, providers: list[device.Provider]) -> Any:
    """insightface's FaceAnalysis over `folder`, prepared."""
    try:
        from insightface.app import FaceAnalysis

        # Given a directory, FaceAnalysis looks for no download. A det_size is always set: without
        # one, insightface 2.1 merges the faces of two sizes, at the cost of precision.
        app = FaceAnalysis(
            name=str(folder.resolve()), allowed_modules=["detection"], providers=providers
        )
        on_cpu = providers == [device.CPU_PROVIDER]
        size = (spec.det_size, spec.det_size)
        app.prepare(ctx_id=-1 if on_cpu else 0, det_thresh=spec.min_score, det_size=size)
    except Exception as error:  # a bare AssertionError, ONNX Runtime's own types, ImportError, ...
        reason = str(error) or type(error).__name__
        raise BackendError(
            f"insightface cannot load the pack in {folder}: {reason}. If its files are damaged, "
            "delete the directory and run again"
        ) from error
    return app


def _detector_file(folder: Path) -> Path:
    """The ONNX file of a pack that FaceAnalysis takes for the detector.

    That is the one its manifest names, if there is one, else by insightface's own rule the first
    by name with five or more outputs. Raises BackendError where there is none.
    """
    try:
        if (folder / "manifest.json").is_file():
            from insightface.model_zoo import package_manifest

            if package_manifest.has_model_package_manifest(folder):
                return Path(package_manifest.load_model_package(folder).task("detection").path)
        for path in sorted(folder.glob("*.onnx")):
            if _outputs(path, path.stat().st_size, path.stat().st_mtime_ns) >= 5:
                return path
    except (OSError, ValueError, TypeError) as error:
        raise BackendError(f"{folder} is no readable insightface pack: {error}") from error
    raise BackendError(
        f"{folder} has no face detector: none of its .onnx files has a detector's outputs. "
        "Give --face-model a whole pack, such as buffalo_l"
    )


@lru_cache
def _outputs(path: Path, size: int, mtime_ns: int) -> int:  # noqa: ARG001, they are the key
    """How many outputs an ONNX model has. Raises ValueError where the file is damaged."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return len(onnx.load(path, load_external_data=False).graph.output)
    except DecodeError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error


def _face(found: Any) -> Face:
    """insightface's face as ours; its `kps` are in our order of landmarks."""
    x0, y0, x1, y1 = (float(v) for v in found.bbox)
    landmarks = None
    if found.kps is not None:
        a, b, c, d, e = (_point(row) for row in found.kps)
        landmarks = (a, b, c, d, e)
    return Face((x0, y0, x1, y1), float(found.det_score), landmarks)


def _point(row: np.ndarray) -> Point:
    return float(row[0]), float(row[1])
