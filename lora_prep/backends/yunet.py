"""Face detection with YuNet, through OpenCV's `FaceDetectorYN`: weights under the MIT licence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lora_prep import digests
from lora_prep.backends import DetectorSpec, weights
from lora_prep.errors import BackendError
from lora_prep.types import Face, Image

REPO, FILENAME = "opencv/face_detection_yunet", "face_detection_yunet_2023mar.onnx"
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
"""The one in the Git LFS pointer of opencv/opencv_zoo."""

NMS = 0.3
TOP_K = 5000
"""OpenCV's defaults for overlapping boxes, and for how many of them are looked at."""

ADVICE = (
    "On a machine with a network run `lora-prep models pull yunet` and bring the file here, then "
    "give it with --face-model FILE; or, but not for `embed`, which needs landmarks, use the "
    "detector that needs no download with --detector cascade"
)


def identity(spec: DetectorSpec) -> str:
    """The model's hash, and the settings that change the faces; a missing model is downloaded.

    Raises BackendError where the model is not to be had.
    """
    path = model_file(spec)
    return (
        f"yunet {path.name} sha256={digests.sha256(path)} "
        f"det_size={spec.det_size} min_score={spec.min_score} nms={NMS}"
    )


def model_file(spec: DetectorSpec) -> Path:
    """The ONNX file that `spec.model` gives, else OpenCV's released one.

    Raises BackendError where it is not to be had.
    """
    if not spec.model:
        return weights.hub_file(REPO, FILENAME, ADVICE, expected=SHA256)
    path = Path(spec.model).expanduser()
    if not path.is_file():
        raise BackendError(
            f"--face-model: there is no file {spec.model}. For YuNet give an .onnx file, or leave "
            "the option out to use the one that OpenCV publishes"
        )
    return path


class YuNetDetector:
    """`cv2.FaceDetectorYN`. Of one detector, only one method may run at a time."""

    def __init__(self, spec: DetectorSpec) -> None:
        """Load the model, and try it on an empty image.

        It runs on the CPU whatever `spec.device` says: OpenCV's wheels are built without CUDA.
        Raises BackendError where the model is not to be had, damaged, or no YuNet.
        """
        import cv2

        path = model_file(spec)
        self._name, self._side = path.name, spec.det_size
        content = np.frombuffer(path.read_bytes(), np.uint8)
        try:
            with quiet():
                # From memory, since OpenCV cannot open paths with all characters on Windows.
                self._model = cv2.FaceDetectorYN.create(
                    "onnx",
                    content,
                    np.empty(0, np.uint8),
                    (self._side, self._side),
                    spec.min_score,
                    NMS,
                    TOP_K,
                )
                self._model.detect(np.zeros((self._side, self._side, 3), np.uint8))
        except cv2.error as error:
            raise BackendError(
                f"OpenCV cannot run {path} as YuNet: {first_line(error)}. The file is damaged, or "
                "no YuNet of 2023 or later: leave --face-model out to use the one that OpenCV "
                "publishes"
            ) from error

    def describe(self) -> str:
        """Model file and size of the detector's input."""
        return f"YuNet {self._name} at {self._side}×{self._side}, OpenCV on the CPU"

    def detect(self, image: Image) -> list[Face]:
        """All faces of at least `min_score`, best first; equal scores are ordered by their boxes.

        Images larger than `det_size`×`det_size` are fitted into it; no image is enlarged. The rest
        of the square is black, so that the network always sees the size that it was made for.
        Raises BackendError where OpenCV fails.
        """
        import cv2

        height, width = image.shape[:2]
        scale = min(1.0, self._side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        fitted = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        square = np.zeros((self._side, self._side, 3), np.uint8)
        square[: size[1], : size[0]] = cv2.cvtColor(fitted, cv2.COLOR_RGB2BGR)
        try:
            _, found = self._model.detect(square)
        except cv2.error as error:
            raise BackendError(
                f"OpenCV failed on an image of {width}×{height} pixels with {self.describe()}: "
                f"{first_line(error)}"
            ) from error
        if found is None:
            return []
        stretch = np.tile((width / size[0], height / size[1]), 7)
        faces = [_face(row[:14].astype(float) * stretch, float(row[14])) for row in found]
        return sorted(
            (face for face in faces if face.width > 0 and face.height > 0),
            key=lambda face: (-face.score, face.box),
        )


def _face(row: np.ndarray, score: float) -> Face:
    """A row of FaceDetectorYN as a face.

    It has x, y, width, height, then the subject's right eye, left eye, nose tip, right and left
    mouth corner: what is the subject's right is on the image's left.
    """
    x, y, width, height = (float(v) for v in row[:4])
    a, b, c, d, e = ((float(x), float(y)) for x, y in row[4:14].reshape(5, 2))
    return Face((x, y, x + width, y + height), score, (a, b, c, d, e))


@contextmanager
def quiet() -> Iterator[None]:
    """OpenCV without its warnings: FaceDetectorYN always sets a target that OpenCV 5 has not."""
    import cv2

    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        logging.setLogLevel(before)


def first_line(error: Exception) -> str:
    """What an OpenCV error says, without the lines about OpenCV's source."""
    return str(error).strip().splitlines()[0]
