"""How good the masks are that need no download: `python -m benchmarks.embedded_masks`.

Truth: painted portraits (exact), and the nine faces in the photographs that installed packages
ship, traced by hand in `traced.json` (their outlines also served to choose the recipe: the
portraits' seeds did not). Everything but the times is the same on every run.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import click
import cv2
import numpy as np

from benchmarks.rows import record
from lora_prep import anatomy, imageio, masks
from lora_prep.backends import SegmenterSpec, segmenter
from lora_prep.backends.cascade import CascadeDetector
from lora_prep.types import BoolMask, Face, Image, Region
from sample_data.photos import photographs
from sample_data.portraits import draw_portrait

SIZE = (512, 512)
FIRST_SEED = 10_000
SEGMENTER = segmenter(SegmenterSpec("grabcut"))

Method = Callable[[Image, Face, Region], BoolMask]


@dataclass(frozen=True)
class Subject:
    """A face with the truth about it, and the cascade's idea of it."""

    image: Image
    face: Face
    regions: dict[Region, BoolMask]
    found: Face | None


def ellipse(image: Image, face: Face, region: Region) -> BoolMask:
    """The baseline: people made of ellipses."""
    return anatomy.fill(anatomy.outlines(face, region), *image.shape[:2])


def grabcut_rectangle(image: Image, face: Face, region: Region) -> BoolMask:
    """GrabCut as in OpenCV's tutorial: from the box alone, 5 rounds, on a crop of 192 pixels."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = anatomy.region_box(face, region, height, width)
    dx, dy = round(0.45 * (x1 - x0)), round(0.45 * (y1 - y0))
    left, top, right, bottom = (max(x0 - dx, 0), max(y0 - dy, 0), x1 + dx, y1 + dy)
    window = image[top:bottom, left:right]
    zoom = 192 / max(window.shape[:2])
    small = cv2.resize(window, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    box = [round(v * zoom) for v in (x0 - left, y0 - top, x1 - x0, y1 - y0)]
    guess = np.zeros(small.shape[:2], np.uint8)
    cv2.setRNGSeed(0)
    if box[2] < small.shape[1] or box[3] < small.shape[0]:
        unused = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(small, guess, box, *unused, 5, cv2.GC_INIT_WITH_RECT)
    cut = np.where(guess % 2 == 1, np.uint8(255), np.uint8(0))
    whole = np.zeros((height, width), np.bool_)
    size = window.shape[1], window.shape[0]
    whole[top:bottom, left:right] = cv2.resize(cut, size, interpolation=cv2.INTER_LINEAR) >= 128
    return whole


def ours(image: Image, face: Face, region: Region) -> BoolMask:
    """What `lora-prep masks --preset embedded` makes, before it is eroded."""
    prepared = SEGMENTER.prepare(image)
    (answer,) = SEGMENTER.segment([prepared], [[face]], region)
    (mask,) = SEGMENTER.finish(prepared, answer)
    return mask


METHODS: dict[str, Method] = {
    "ellipse": ellipse,
    "grabCut, rectangle": grabcut_rectangle,
    "ours": ours,
}


def overlap(a: Face, b: Face) -> float:
    """Intersection over union of two boxes."""
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a.area + b.area - shared)


def match(face: Face, found: Sequence[Face]) -> Face | None:
    """The detected face that lies on a true one, with an IoU of at least 0.4."""
    best = max(found, key=lambda other: overlap(face, other), default=None)
    return best if best and overlap(face, best) >= 0.4 else None


def traced(name: str, shape: tuple[int, int]) -> Iterator[tuple[Face, dict[Region, BoolMask]]]:
    """The hand-traced faces of a photograph; the box is that of the outline."""
    for entry in json.loads((Path(__file__).parent / "traced.json").read_text()):
        if entry["photo"] == name:
            outlines = {r: np.array(entry[r], float) for r in Region if r in entry}
            face = outlines[Region.FACE]
            (x0, y0), (x1, y1) = face.min(axis=0).tolist(), face.max(axis=0).tolist()
            a, b, c, d, e = ((float(x), float(y)) for x, y in entry["landmarks"])
            yield (
                Face((x0, y0, x1, y1), 1.0, (a, b, c, d, e)),
                {region: anatomy.fill([line], *shape) for region, line in outlines.items()},
            )


def photo_subjects(detector: CascadeDetector) -> list[Subject]:
    """The faces in the photographs; says what the cascade finds in each."""
    subjects = []
    for photo in photographs():
        image = imageio.decode_image(photo.path.read_bytes())
        start = time.process_time()
        found = detector.detect(image)
        spent = time.process_time() - start
        truth = list(traced(photo.name, (image.shape[0], image.shape[1])))
        assert len(truth) == photo.faces
        mine = [Subject(image, face, regions, match(face, found)) for face, regions in truth]
        right = sum(s.found is not None for s in mine)
        print(
            f"  {photo.name:22}{right} of {photo.faces} faces, {len(found) - right} false, "
            f"scores {[round(f.score, 2) for f in found]}, {spent * 1000:.0f} ms"
        )
        subjects += mine
    return subjects


def portrait_subjects(detector: CascadeDetector, count: int) -> list[Subject]:
    """The nearest person of each portrait; says how many people the cascade finds."""
    subjects, spent, found_in_all = [], 0.0, 0
    leaning: dict[bool, list[bool]] = {False: [], True: []}
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        portrait = draw_portrait(seed, size=SIZE)
        start = time.process_time()
        found = detector.detect(portrait.image)
        spent += time.process_time() - start
        found_in_all += len(found)
        for person in portrait.people:
            leaning[abs(person.tilt) > 15].append(match(person.face, found) is not None)
        person = portrait.people[0]
        regions = {
            Region.FACE: person.face_mask,
            Region.HEAD: person.head_mask,
            Region.PERSON: person.person_mask,
        }
        subjects.append(Subject(portrait.image, person.face, regions, match(person.face, found)))
    right = sum(map(sum, leaning.values()))
    print(
        f"  {count} portraits: {sum(leaning[False])} of {len(leaning[False])} upright faces and "
        f"{sum(leaning[True])} of {len(leaning[True])} that lean more than 15°; "
        f"{found_in_all - right} false; {spent / count * 1000:.0f} ms each"
    )
    return subjects


def compare(title: str, subjects: Sequence[Subject]) -> None:
    """Print how well each method does with each kind of box."""
    print(f"\n{title}: IoU with the truth")
    print(
        f"  {'region':8}{'boxes':19}{'method':20}{'mean':>6}{'p10':>6}{'min':>6}{'n':>5}{'ms':>6}"
    )
    for region in Region:
        for boxes in ("true, landmarks", "true", "cascade"):
            means: dict[str, float] = {}
            for name, method in METHODS.items():
                values, start = [], time.process_time()
                for subject in subjects:
                    face = {
                        "true, landmarks": subject.face,
                        "true": replace(subject.face, landmarks=None),
                        "cascade": subject.found,
                    }[boxes]
                    if face and region in subject.regions:
                        mask = method(subject.image, face, region)
                        values.append(masks.iou(mask, subject.regions[region]))
                spent = (time.process_time() - start) / max(len(values), 1)
                mean, low, least = np.mean(values), np.percentile(values, 10), np.min(values)
                means[name] = float(mean)
                print(
                    f"  {region:8}{boxes:19}{name:20}{mean:6.3f}{low:6.2f}{least:6.2f}"
                    f"{len(values):5}{spent * 1000:6.0f}"
                )
            if boxes == "true, landmarks":
                what = f"{region}, {len(subjects)} {title.lower()}, box and landmarks given"
                for peer in ("ellipse", "grabCut, rectangle"):
                    unit = "mean IoU, more is better"
                    record("embedded masks", what, unit, means["ours"], peer, means[peer])


def draw_overlays(folder: Path, detector: CascadeDetector) -> None:
    """What the embedded preset makes of the photographs, to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo in photographs():
        image = imageio.decode_image(photo.path.read_bytes())
        faces = detector.detect(image)
        for region in Region:
            nothing = np.zeros(image.shape[:2], np.bool_)
            made = [nothing, *(ours(image, face, region) for face in faces)]
            picture = masks.overlay(image, masks.feather(masks.union(made), 0), faces)
            path = folder / f"{photo.path.stem}-{region}.png"
            path.write_bytes(imageio.encode_image(picture, "png"))


@click.command()
@click.option("-n", "count", default=60, show_default=True, help="Number of portraits.")
@click.option("--overlays", type=click.Path(path_type=Path), help="Draw the masks into a folder.")
def main(count: int, overlays: Path | None) -> None:
    """Compare the embedded masks with simpler ones."""
    versions = ", ".join(f"{p} {version(p)}" for p in ("opencv-python", "scikit-image", "numpy"))
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}")
    print(f"{versions}; ms are CPU time\n\nFaces found by the cascade (box IoU at least 0.4)")
    detector = CascadeDetector()
    photos = photo_subjects(detector)
    portraits = portrait_subjects(detector, count)
    compare("Photographs", photos)
    compare("Portraits", portraits)
    if overlays:
        draw_overlays(overlays, detector)


if __name__ == "__main__":
    main()
