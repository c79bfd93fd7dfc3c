"""Face recognition with SFace, through OpenCV's `FaceRecognizerSF`: weights under Apache-2.0."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lora_prep import digests
from lora_prep.backends import Crop, RecogniserCard, RecogniserSpec, weights
from lora_prep.backends.yunet import first_line, quiet
from lora_prep.errors import BackendError, ItemError
from lora_prep.types import Face, Image

REPO, FILENAME = "opencv/face_recognition_sface", "face_recognition_sface_2021dec.onnx"
SHA256 = "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79"
"""The one in the Git LFS pointer of opencv/opencv_zoo."""

LICENSE = "Apache-2.0"

MIN_SIMILARITY = 0.363
"""OpenCV's own threshold for the cosine, chosen on LFW (its tutorial on face recognition)."""

ADVICE = (
    "On a machine with a network run `lora-prep models pull sface` and bring the file here, then "
    "give it with --recogniser-model FILE"
)


def card(spec: RecogniserSpec) -> RecogniserCard:
    """The model's hash and licence; a missing model is downloaded.

    Raises BackendError where the model is not to be had.
    """
    path = model_file(spec)
    digest = digests.sha256(path)
    return RecogniserCard(
        model=f"sface {path.name}",
        sha256=digest,
        alignment="opencv-alignCrop-112",
        license=LICENSE if digest == SHA256 else "unknown: ask who made the model",
        min_similarity=MIN_SIMILARITY,
    )


def model_file(spec: RecogniserSpec) -> Path:
    """The ONNX file that `spec.model` gives, else OpenCV's released one.

    Raises BackendError where it is not to be had.
    """
    if not spec.model:
        return weights.hub_file(REPO, FILENAME, ADVICE, expected=SHA256)
    path = Path(spec.model).expanduser()
    if not path.is_file():
        raise BackendError(
            f"--recogniser-model: there is no file {spec.model}. For SFace give an .onnx file, or "
            "leave the option out to use the one that OpenCV publishes"
        )
    return path


class SFaceRecogniser:
    """`cv2.FaceRecognizerSF`. Of one recogniser, only one method may run at a time."""

    def __init__(self, spec: RecogniserSpec) -> None:
        """Load the model, and try it on an empty picture.

        It runs on the CPU whatever `spec.device` says: OpenCV's wheels are built without CUDA.
        Raises BackendError where the model is not to be had, damaged, or no SFace.
        """
        import cv2

        path = model_file(spec)
        self._name = path.name
        content = np.frombuffer(path.read_bytes(), np.uint8)
        try:
            with quiet():
                # From memory, since OpenCV cannot open paths with all characters on Windows.
                self._model = cv2.FaceRecognizerSF.create("onnx", content, np.empty(0, np.uint8))
                tried = self._model.feature(np.zeros((112, 112, 3), np.uint8))
        except cv2.error as error:
            raise BackendError(
                f"OpenCV cannot run {path} as SFace: {first_line(error)}. The file is damaged, or "
                "no SFace: leave --recogniser-model out to use the one that OpenCV publishes"
            ) from error
        if tried.ndim != 2 or len(tried) != 1:
            raise BackendError(
                f"{path} is no face recogniser: for one picture it gives numbers of the shape "
                f"{list(tried.shape)}"
            )

    def describe(self) -> str:
        """Model file."""
        return f"SFace {self._name}, OpenCV on the CPU"

    def crop(self, image: Image, face: Face) -> Crop:
        """The face in 112×112 pixels, aligned by OpenCV's own `alignCrop`."""
        import cv2

        assert face.landmarks is not None
        # A row of FaceDetectorYN: x, y, width, height, five points, score.
        points = [v for point in face.landmarks for v in point]
        row = np.array([*face.box[:2], face.width, face.height, *points, face.score], np.float32)
        try:
            return np.asarray(self._model.alignCrop(image, row[None]), np.uint8)
        except cv2.error as error:
            raise ItemError(
                f"a face cannot be aligned: {first_line(error)}", code="no-alignment"
            ) from error

    def vectors(self, crops: Sequence[Crop]) -> Float[np.ndarray, "_ _"]:
        """OpenCV's features of each crop, 128 numbers, not normalised."""
        import cv2

        try:
            rows = [self._model.feature(cv2.cvtColor(c, cv2.COLOR_RGB2BGR)) for c in crops]
        except cv2.error as error:
            raise BackendError(
                f"OpenCV failed with {self.describe()}: {first_line(error)}"
            ) from error
        return np.concatenate([np.array(row, np.float32) for row in rows])
