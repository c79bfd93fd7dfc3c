"""`python -m tools.tiny_models.sam2.evaluate DIR`: IoU on portraits that were not trained on."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from lora_prep.backends import SegmenterSpec, segmenter
from lora_prep.masks import iou, region_box
from lora_prep.types import Point, Region
from sample_data.portraits import Person, Portrait, draw_portrait
from tools.tiny_models.sam2.model import load_predictor

FIRST_SEED = 5_000_000
"""Far below the seeds for training, and not used for samples."""

SIZES = ((256, 256), (320, 256), (384, 512))


def face_ious(predictor: Any, portrait: Portrait) -> dict[str, float]:
    """IoU with the largest face of what SAM2 gives for each kind of prompt."""
    person = portrait.people[0]
    predictor.set_image(portrait.image)
    height, width = portrait.image.shape[:2]

    def ask(
        prompt: dict[str, np.ndarray], *, multimask: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        masks, scores, _ = predictor.predict(multimask_output=multimask, **prompt)
        return masks > 0, scores

    def points(*xy: Point) -> dict[str, np.ndarray]:
        return {"point_coords": np.array(xy), "point_labels": np.ones(len(xy), np.int32)}

    box = {"box": np.array(person.face.box)}
    landmarks = points(*(person.face.landmarks or ()))
    at_face, scores = ask(points(person.face.centre), multimask=True)
    at_centre, _ = ask(points((width / 2, height / 2)), multimask=True)
    masks = {
        "box + 5 landmarks, single": ask(box | landmarks)[0][0],
        "box only, single": ask(box)[0][0],
        "5 landmarks only, single": ask(landmarks)[0][0],
        "face-centre point, argmax(score)": at_face[scores.argmax()],
        "face-centre point, masks[0]": at_face[0],
        "image-centre point, masks[0]": at_centre[0],
    }
    return {kind: iou(mask, person.face_mask) for kind, mask in masks.items()}


def truth(person: Person, region: Region) -> np.ndarray:
    """The visible part of the region, (height, width) bool."""
    return {
        Region.FACE: person.face_mask,
        Region.HEAD: person.head_mask,
        Region.PERSON: person.person_mask,
    }[region]


def held_out(count: int) -> Iterator[Portrait]:
    """Portraits of several sizes that the model has not seen."""
    for i in range(count):
        yield draw_portrait(FIRST_SEED + i, size=SIZES[i % len(SIZES)])


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--count", default=200, show_default=True)
def main(folder: Path, count: int) -> None:
    """Print mean IoU and its 10th percentile for each kind of prompt and each region."""
    torch.set_num_threads(1)
    predictor = load_predictor(folder)
    through_product = segmenter(
        SegmenterSpec(
            model=str(folder / "tiny_sam2.pt"), config=str(folder / "tiny_sam2.yaml"), device="cpu"
        )
    )
    found: dict[str, list[float]] = defaultdict(list)
    for portrait in held_out(count):
        for kind, value in face_ious(predictor, portrait).items():
            found[kind].append(value)
        faces = [person.face for person in portrait.people]
        prepared = through_product.prepare(portrait.image)
        for region in Region:
            (answer,) = through_product.segment([prepared], [faces], region)
            masks = through_product.finish(prepared, answer)
            for person, mask in zip(portrait.people, masks, strict=True):
                expected = truth(person, region)
                found[f"lora-prep, {region}"].append(iou(mask, expected))
                found[f"the region's box itself, {region}"].append(_box_iou(person, region))
    click.echo("| Prompt | masks | IoU | p10 |\n|---|---|---|---|")
    for kind, values in found.items():
        mean, low = np.mean(values), np.quantile(values, 0.1)
        click.echo(f"| {kind} | {len(values)} | {mean:.3f} | {low:.2f} |")


def _box_iou(person: Person, region: Region) -> float:
    expected = truth(person, region)
    x0, y0, x1, y1 = region_box(person.face, region, *expected.shape)
    filled = np.zeros_like(expected)
    filled[y0:y1, x0:x1] = True
    return iou(filled, expected)


if __name__ == "__main__":
    main()
