"""How good a pack is on held-out portraits, through insightface's own FaceAnalysis.

python -m tools.tiny_models.faces.evaluate tests/assets/tiny_faces
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from tools.tiny_models.faces.data import Floats, Picture, draw_picture

PROVIDERS = ["CPUExecutionProvider"]


@dataclass(frozen=True, slots=True)
class Detection:
    """What a detector found in pictures, against the truth."""

    recall: float
    """Part of the faces found by a box of IoU 0.5 at least."""
    precision: float
    """Part of the boxes that are faces."""
    landmark_error: float
    """Mean distance of the landmarks of the faces found, as a part of the eyes' distance."""
    landmark_p95: float
    """Its 95th percentile over faces."""
    faces: int


@dataclass(frozen=True, slots=True)
class Verification:
    """How well the cosines of pairs tell same from different people."""

    accuracy: float
    """At the best threshold."""
    threshold: float
    tpr_at_1: float
    """Part of the pairs of one person that are accepted where 1 % of the others are."""
    same: float
    """Mean cosine."""
    different: float
    pairs: int


def load(pack: Path, det_size: int) -> Any:
    """insightface's FaceAnalysis over a pack, on the CPU with one thread."""
    import onnxruntime
    from insightface.app import FaceAnalysis

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    app = FaceAnalysis(
        name=str(pack.resolve()),
        allowed_modules=["detection", "recognition"],
        providers=PROVIDERS,
        sess_options=options,
    )
    app.prepare(ctx_id=0, det_thresh=0.5, det_size=(det_size, det_size))
    return app


def detection(app: Any, pictures: Iterable[Picture]) -> Detection:
    """Match what the app's detector finds, best first, to the pictures' faces."""
    found = right = faces = 0
    errors: list[float] = []
    for picture in pictures:
        boxes, landmarks = app.det_model.detect(_bgr(picture))
        found, faces = found + len(boxes), faces + len(picture.boxes)
        free = list(range(len(picture.boxes)))
        for box, points in zip(boxes, landmarks, strict=True):
            best = max(free, key=lambda i: _iou(box, picture.boxes[i]), default=None)
            if best is not None and _iou(box, picture.boxes[best]) >= 0.5:
                free.remove(best)
                right += 1
                errors.append(_landmark_error(points, picture.landmarks[best]))
    return Detection(
        right / faces,
        right / max(found, 1),
        float(np.mean(errors)),
        float(np.percentile(errors, 95)),
        faces,
    )


def draw_people(people: int, portraits: int, size: int, **how: Any) -> list[Picture]:
    """Square portraits of the first held-out people, all of one person next to each other."""
    return [
        draw_picture(seed, (size, size), identity=seed // portraits, **how)
        for seed in range(people * portraits)
    ]


def embeddings(app: Any, pictures: Iterable[Picture], *, detect: bool) -> Floats:
    """Unit embeddings (pictures, n) of the largest face in each picture.

    With `detect`, the app finds the face, and a face that it does not find has zeros: it is like
    nobody. Without, the crop is aligned by the true landmarks.
    """
    from insightface.app.common import Face

    recogniser = app.models["recognition"]
    rows = []
    for picture in pictures:
        image, landmarks = _bgr(picture), picture.landmarks[0]
        if detect:
            boxes, points = app.det_model.detect(image)
            ious = [_iou(box, picture.boxes[0]) for box in boxes]
            if max(ious, default=0.0) < 0.5:
                rows.append(np.zeros(recogniser.output_shape[-1], np.float32))
                continue
            landmarks = points[int(np.argmax(ious))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # insightface calls what scikit-image will drop
            rows.append(recogniser.get(image, Face(kps=landmarks)))
    stacked = np.array(rows, np.float32)
    lengths = np.linalg.norm(stacked, axis=-1, keepdims=True)
    return np.asarray(stacked / np.maximum(lengths, 1e-6), np.float32)


def verification(unit: Floats, portraits: int) -> Verification:
    """Judge all pairs of unit embeddings (people · portraits, n), both kinds weighted equally."""
    cosines = unit @ unit.T
    who = np.arange(len(unit)) // portraits
    upper = np.triu(np.ones_like(cosines, bool), 1)
    same = cosines[upper & (who[:, None] == who)]
    different = cosines[upper & (who[:, None] != who)]
    thresholds = np.unique(np.concatenate([same, different]))
    accuracy = (_above(same, thresholds) + 1 - _above(different, thresholds)) / 2
    strict = np.quantile(different, 0.99)
    return Verification(
        float(accuracy.max()),
        float(thresholds[accuracy.argmax()]),
        float((same > strict).mean()),
        float(same.mean()),
        float(different.mean()),
        len(same) + len(different),
    )


def _above(values: Floats, thresholds: Floats) -> NDArray[np.float64]:
    """Part of the values that reach each threshold."""
    return 1 - np.searchsorted(np.sort(values), thresholds) / len(values)


def _bgr(picture: Picture) -> NDArray[np.uint8]:
    return np.ascontiguousarray(picture.image[..., ::-1])


def _iou(a: Floats, b: Floats) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, float(wide)) * max(0.0, float(high))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (float(areas) - shared)


def _landmark_error(points: Floats, truth: Floats) -> float:
    eyes = float(np.linalg.norm(truth[1] - truth[0]))
    return float(np.linalg.norm(points - truth, axis=1).mean()) / eyes


@click.command()
@click.argument("pack", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pictures", default=200, show_default=True, help="Held-out pictures a row.")
@click.option("--people", default=40, show_default=True, help="Held-out people, of 5 portraits.")
def main(pack: Path, pictures: int, people: int) -> None:
    """Measure a PACK on portraits and people that no model here was trained on."""
    cv2.setNumThreads(1)
    print("| image | det_size | faces | recall | precision | landmark error mean / p95 |")
    print("|---|---|---|---|---|---|")
    for size, det_sizes in ((256, (256, 320, 640)), (512, (320, 512, 640))):
        drawn = [draw_picture(seed, (size, size)) for seed in range(pictures)]
        for det_size in det_sizes:
            d = detection(load(pack, det_size), drawn)
            print(
                f"| {size} | {det_size} | {d.faces} | {d.recall:.3f} | {d.precision:.3f} | "
                f"{d.landmark_error:.1%} / {d.landmark_p95:.1%} |",
                flush=True,
            )
    print()
    print(
        "| image | face height | landmarks | accuracy | TPR@FPR1 % | same / different | threshold |"
    )
    print("|---|---|---|---|---|---|---|")
    for size, scale in ((256, (0.12, 0.6)), (256, (0.25, 0.6)), (512, (0.12, 0.6))):
        drawn = draw_people(people, 5, size, scale=scale)
        app = load(pack, size)
        for detect in (False, True):
            v = verification(embeddings(app, drawn, detect=detect), 5)
            print(
                f"| {size} | {scale[0] * size:.0f}–{scale[1] * size:.0f} px | "
                f"{'found' if detect else 'true'} | {v.accuracy:.3f} | {v.tpr_at_1:.3f} | "
                f"{v.same:.2f} / {v.different:.2f} | {v.threshold:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
