"""How good the masks of `lora-prep masks` are: `python -m benchmarks.mask_quality`.

Pictures: portraits whose truth is known. Contenders: the stage that the command runs, with
insightface and sam2 as they are and the small weights of `tests/assets` in them; the loop that
recipes show, with the same SAM2; the preset that needs no weights. The models learned on painted
portraits, and these are held out: the figures compare ways to ask one and the same SAM2, and say
nothing about photographs and released weights. Masks are judged before erosion (`--erode 0`).
All but the time is the same on every run.
"""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.rows import record
from lora_prep import backends, imageio, masks
from lora_prep.backends import DetectorSpec, SegmenterSpec, sam2_model
from lora_prep.dataset import Dataset
from lora_prep.executors.local import LocalExecutor
from lora_prep.faces import faces_path, read_faces
from lora_prep.masks import Margin
from lora_prep.run import run
from lora_prep.stages.masks import FacePolicy, MakeMasks
from lora_prep.types import BoolMask, Image, Point, Region
from sample_data.painter import person as painter
from sample_data.painter.hair import LONG, paint_glasses
from sample_data.painter.identity import make_identity
from sample_data.portraits import Person, Portrait, draw_portrait

FIRST_SEED = 7_000_000
"""No model was trained on a seed below ten million; the tests use others than these."""

SIZES = ((384, 384), (512, 384), (384, 512))
ASSETS = Path(__file__).parents[1] / "tests" / "assets"
PACK, CHECKPOINT = ASSETS / "tiny_faces", ASSETS / "tiny_sam2" / "tiny_sam2.pt"

DETECTORS = {
    "lora-prep": DetectorSpec("insightface", str(PACK), det_size=512, device="cpu"),
    "embedded": DetectorSpec("cascade"),
}
SEGMENTERS = {
    "lora-prep": SegmenterSpec(
        "sam2", str(CHECKPOINT), str(CHECKPOINT.with_suffix(".yaml")), device="cpu"
    ),
    "embedded": SegmenterSpec("grabcut"),
}
POLICIES: tuple[FacePolicy, ...] = ("largest", "all")
RECIPE = "recipe: centre point, masks[0]"
BEST_SCORE = "centre point, best score of 3"
AT_FACE = "point on the face found, masks[0]"
OURS, EMBEDDED = "**lora-prep: insightface + sam2**", "lora-prep: embedded preset"

Floats: TypeAlias = NDArray[np.float64]
Made: TypeAlias = dict[tuple[Region, FacePolicy], list[BoolMask]]
"""Masks of all pictures, in their order; empty where a method found no face."""


@dataclass(frozen=True)
class Picture:
    """A portrait, and which of the slices it is in."""

    portrait: Portrait
    slices: frozenset[str]

    @property
    def image(self) -> Image:
        """The pixels."""
        return self.portrait.image

    def truth(self, region: Region, policy: FacePolicy) -> BoolMask:
        """What is to be masked: the visible part of the region."""
        people = self.portrait.people if policy == "all" else [self.largest]
        return masks.union([_region(person, region) for person in people])

    @property
    def largest(self) -> Person:
        """Whose face's box is the largest."""
        return max(self.portrait.people, key=lambda person: person.face.area)


def _region(person: Person, region: Region) -> BoolMask:
    return {
        Region.FACE: person.face_mask,
        Region.HEAD: person.head_mask,
        Region.PERSON: person.person_mask,
    }[region]


# Pictures ---------------------------------------------------------------------------------------

SLICES: dict[str, Callable[[Person], bool]] = {
    "long hair": lambda person: make_identity(person.identity).hair_style in LONG,
    "fringe or curls": lambda p: make_identity(p.identity).hair_style in ("fringe", "curly"),
    "beard": lambda p: make_identity(p.identity).beard in ("goatee", "full"),
    "tilted > 15°": lambda person: abs(person.tilt) > 15,
    "turned > 12°": lambda person: abs(person.yaw) > 12,
    "partly hidden": lambda person: person.visible < 0.97,
}
"""Of the largest face. Besides: glasses, two or three people."""


def draw(seed: int) -> Picture:
    """The portrait with this seed; its slices are those of the largest face."""
    size = SIZES[seed % len(SIZES)]
    # The painter keeps no record of glasses: whom it paints some for is seen from outside.
    with patch.object(painter, "paint_glasses", wraps=paint_glasses) as paints:
        portrait = draw_portrait(seed, size=size, scale=(0.16, 0.6))
    first = max(portrait.people, key=lambda person: person.face.area)
    slices = {name for name, holds in SLICES.items() if holds(first)}
    if first.identity in {call.args[1].number for call in paints.call_args_list}:
        slices.add("glasses")
    if len(portrait.people) > 1:
        slices.add("two or three people")
    return Picture(portrait, frozenset(slices or {"none of these"}))


# Methods ----------------------------------------------------------------------------------------


def with_lora_prep(models: str, data: Dataset, pictures: Sequence[Picture]) -> Made:
    """The masks that the stage writes, for each region and policy."""
    made: Made = {}
    for region in Region:
        for policy in POLICIES:
            stage = MakeMasks(
                data,
                DETECTORS[models],
                SEGMENTERS[models],
                region=region,
                faces=policy,
                erode=Margin.parse("0"),
                cache_embeddings=models == "lora-prep",
            )
            run(stage, data.root, executor=LocalExecutor(2), force=True)
            made[region, policy] = [
                _read(data.sample(name).mask, picture)
                for name, picture in zip(names(len(pictures)), pictures, strict=True)
            ]
            for path in data.masks.glob("*"):  # may not be there
                path.unlink()
    return made


def names(count: int) -> list[str]:
    """The pictures' file names."""
    return [f"p{i:04}.png" for i in range(count)]


def _read(path: Path, picture: Picture) -> BoolMask:
    if not path.exists():
        return np.zeros(picture.image.shape[:2], np.bool_)
    return imageio.decode_mask(path.read_bytes()) > 0


def with_points(data: Dataset, pictures: Sequence[Picture]) -> dict[str, Made]:
    """One positive point, three masks: what `SAM2ImagePredictor` itself gives for it.

    The mask is the same whatever region or faces are wanted: a point cannot say which.
    """
    model = sam2_model.load(sam2_model.find(SEGMENTERS["lora-prep"]), "cpu")
    detector = backends.detector_identity(DETECTORS["lora-prep"])
    found: dict[str, list[BoolMask]] = {RECIPE: [], BEST_SCORE: [], AT_FACE: []}
    for name, picture in zip(names(len(pictures)), pictures, strict=True):
        height, width = picture.image.shape[:2]
        sample = data.sample(name)
        faces = read_faces(faces_path(data, sample), sample.image.read_bytes(), detector)
        with torch.inference_mode():
            model.set_image(picture.image)
            at_centre, scores = _ask(model, (width / 2, height / 2))
            found[RECIPE].append(at_centre[0])
            found[BEST_SCORE].append(at_centre[int(scores.argmax())])
            if faces:
                largest = max(faces, key=lambda face: face.area)
                found[AT_FACE].append(_ask(model, largest.centre)[0][0])
            else:
                found[AT_FACE].append(np.zeros((height, width), np.bool_))
    everything = [(region, policy) for region in Region for policy in POLICIES]
    return {method: dict.fromkeys(everything, made) for method, made in found.items()}


def _ask(model: Any, point: Point) -> tuple[np.ndarray, np.ndarray]:
    found, scores, _ = model.predict(
        point_coords=np.array([point]), point_labels=np.array([1]), multimask_output=True
    )
    return found > 0, scores


# Tables -----------------------------------------------------------------------------------------


def ious(made: Made, pictures: Sequence[Picture], region: Region, policy: FacePolicy) -> Floats:
    """IoU of each picture's mask with the truth; 0 where a method made none."""
    pairs = zip(made[region, policy], pictures, strict=True)
    return np.array([masks.iou(mask, picture.truth(region, policy)) for mask, picture in pairs])


def print_methods(methods: dict[str, Made], pictures: Sequence[Picture]) -> None:
    """A row a method: mean and 10th percentile of the IoU for each region and policy."""
    columns = [(region, policy) for region in Region for policy in POLICIES]
    print("| method | " + " | ".join(f"{r}, {p}" for r, p in columns) + " | without a mask |")
    print("|---" * (len(columns) + 2) + "|")
    for name, made in methods.items():
        cells = []
        for region, policy in columns:
            values = ious(made, pictures, region, policy)
            cells.append(f"{short(values.mean())} / {short(np.quantile(values, 0.1))}")
        note(name, methods, pictures)
        missing = sum(not mask.any() for mask in made[Region.FACE, "largest"])
        print(f"| {name} | " + " | ".join(cells) + f" | {missing} |")


def note(name: str, methods: dict[str, Made], pictures: Sequence[Picture]) -> None:
    """Rows of the table of all benchmarks: the largest face, against the recipe."""
    if name not in (EMBEDDED, OURS):
        return
    for region in Region:
        mean, recipe = (
            float(ious(methods[method], pictures, region, "largest").mean())
            for method in (name, RECIPE)
        )
        what = f"{region} of {len(pictures)} portraits, {name}"
        record("mask quality", what, "mean IoU, more is better", mean, RECIPE, recipe)


def print_slices(methods: dict[str, Made], pictures: Sequence[Picture]) -> None:
    """A row a slice of five pictures or more: mean IoU of three ways, of the largest face."""
    chosen = {RECIPE: "recipe", EMBEDDED: "embedded", OURS: "ours"}
    print("| the largest face | pictures | " + " | ".join(chosen_columns(chosen)) + " |")
    print("|---" * (2 + len(Region)) + "|")
    every = sorted({name for picture in pictures for name in picture.slices})
    for name in ["all pictures", *every]:
        inside = [name in ("all pictures", *picture.slices) for picture in pictures]
        if sum(inside) < 5:
            continue
        cells = []
        for region in Region:
            means = [
                ious(methods[method], pictures, region, "largest")[inside].mean()
                for method in chosen
            ]
            cells.append(" / ".join(map(short, means)))
        print(f"| {name} | {sum(inside)} | " + " | ".join(cells) + " |")


def chosen_columns(chosen: dict[str, str]) -> list[str]:
    """Headings of the slices' columns."""
    return [f"{region}: {' / '.join(chosen.values())}" for region in Region]


def short(value: float) -> str:
    """.912 for 0.912."""
    return f"{value:.3f}".removeprefix("0")


# Pictures to look at ----------------------------------------------------------------------------

SHOWN: tuple[tuple[str, Region, FacePolicy], ...] = (
    ("turned > 12°", Region.FACE, "largest"),
    ("glasses", Region.FACE, "largest"),
    ("tilted > 15°", Region.HEAD, "largest"),
    ("long hair", Region.HEAD, "largest"),
    ("beard", Region.PERSON, "largest"),
    ("two or three people", Region.FACE, "all"),
)
"""Slice, and the region and policy that its first picture is shown with: a row of the sheet."""

CELL, LABEL = 190, 22


def sheet(methods: dict[str, Made], pictures: Sequence[Picture]) -> Image:
    """Truth, recipe, embedded and ours side by side, a row a slice."""
    shown = {RECIPE: "recipe: masks[0]", EMBEDDED: "embedded preset", OURS: "insightface + sam2"}
    rows = [np.hstack([_label(text) for text in ("truth", *shown.values())])]
    used: set[int] = set()
    for name, region, policy in SHOWN:
        fitting = (i for i, p in enumerate(pictures) if name in p.slices and i not in used)
        index = next(fitting, None)
        if index is None:
            continue
        used.add(index)
        picture = pictures[index]
        wanted = [picture.truth(region, policy)]
        wanted += [methods[method][region, policy][index] for method in shown]
        rows.append(np.hstack([_cell(picture.image, mask) for mask in wanted]))
        what = f"{name.replace('°', ' degrees')}: {region}, {policy}"
        rows.append(np.hstack([_label(what), _label("", 3 * CELL)]))
    return np.vstack(rows)


def _cell(image: Image, mask: BoolMask) -> Image:
    picture = masks.overlay(image, masks.feather(mask, 0), ())
    height, width = picture.shape[:2]
    scale = (CELL - 4) / max(height, width)
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cell = np.full((CELL, CELL, 3), 255, np.uint8)
    top, left = (CELL - small.shape[0]) // 2, (CELL - small.shape[1]) // 2
    cell[top : top + small.shape[0], left : left + small.shape[1]] = small
    return cell


def _label(text: str, width: int = CELL) -> Image:
    strip = np.full((LABEL, width, 3), 255, np.uint8)
    where, ink = (4, LABEL - 7), (40, 40, 40)
    cv2.putText(strip, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.38, ink, 1, cv2.LINE_AA)
    return strip


@click.command()
@click.option("-n", "count", default=60, show_default=True, help="Number of portraits.")
@click.option("--overlays", type=click.Path(path_type=Path), help="Write a contact sheet there.")
def main(count: int, overlays: Path | None) -> None:
    """IoU with the truth: the recipe, the embedded preset, insightface + sam2."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    start = time.monotonic(), time.process_time()
    packages = ("insightface", "sam2", "torch", "opencv-python")
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(", ".join(f"{p} {version(p)}" for p in packages))
    pictures = [draw(FIRST_SEED + i) for i in range(count)]
    people = sum(len(picture.portrait.people) for picture in pictures)
    print(f"{count} held-out portraits of {people} people; IoU, mean / 10th percentile\n")
    methods: dict[str, Made] = {RECIPE: {}, BEST_SCORE: {}, AT_FACE: {}}
    with tempfile.TemporaryDirectory() as folder:
        for models, method in (("embedded", EMBEDDED), ("lora-prep", OURS)):
            faces = Path(folder) / models / "faces"
            faces.mkdir(parents=True)
            for name, picture in zip(names(count), pictures, strict=True):
                (faces / name).write_bytes(imageio.encode_image(picture.image, "png"))
            data = Dataset.at(faces)
            methods[method] = with_lora_prep(models, data, pictures)
        methods |= with_points(data, pictures)
    print_methods(methods, pictures)
    print()
    print_slices(methods, pictures)
    if overlays:
        imageio.make_folder(overlays)
        drawn = imageio.encode_image(sheet(methods, pictures), "jpeg", quality=78)
        imageio.replace(overlays / "mask_quality.jpg", drawn)
    wall, cpu = time.monotonic() - start[0], time.process_time() - start[1]
    print(f"\n{wall:.0f} s, {cpu:.0f} of them CPU time")


if __name__ == "__main__":
    main()
