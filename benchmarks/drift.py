"""How well `validate --drift` tells masks that were turned, moved or mistaken from good ones.

Painted portraits with true masks of the face and of the head, eroded by 2 % as `lora-prep masks`
does it: each is looked at as it is, and damaged in every way. Prints recall for each kind of
damage, the false alarms among the untouched, and precision as it would be in a data set where one
mask of ten is damaged. With landmarks (after `lora-prep detect` or `masks`) and without.

    python -m benchmarks.drift [--portraits N] [--json]
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from benchmarks.rows import record
from lora_prep import masks
from lora_prep.types import BoolMask, Face, Image, Mask
from lora_prep.validate.alignment import MOST, is_moved, is_turned
from lora_prep.validate.drift import SAME, TURNS, apply_turn, placement
from sample_data.portraits import Portrait, draw_portrait

FIRST_SEED = 60_000
"""Thresholds were set on other seeds."""

SHIFTS = (3, 5, 10, 20)
"""Per cent of the mask's size."""

DAMAGED = 0.1
"""Part of the masks, for the precision."""


def main() -> None:
    """Look at all of them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--portraits", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.portraits < 5:
        parser.error("--portraits: 5 or more, so that each has another's mask to be given")
    started = time.process_time()
    found, cases = _measure(arguments.portraits)
    each = (time.process_time() - started) / cases
    rows = {way: _figures(counts) for way, counts in found.items()}
    for way, row in rows.items():
        nobody = "no other tool looks"
        what = f"masks that do not fit, by {way}: recall"
        record("drift", what, "of 1, more is better", row["recall"], nobody, None)
    for way, counts in found.items():
        hits, seen = counts["untouched"]
        what = f"false alarms, by {way}, of {seen} masks that fit"
        record("drift", what, "of 1", hits / seen, "limit", 0.05, "≤ 0.05")
    if arguments.json:
        print(json.dumps({"portraits": arguments.portraits, "seconds_each": each, **rows}))
        return
    print(f"{arguments.portraits} portraits, face and head masks; {each * 1000:.0f} CPU-ms a look")
    kinds = list(next(iter(found.values())))
    print(f"{'':18}" + "".join(f"{way:>20}" for way in rows))
    for kind in kinds:
        title = "false alarms" if kind == "untouched" else f"recall {kind}"
        cells = "".join(
            f"{hits / seen:>13.1%} of {seen:3}" for hits, seen in (c[kind] for c in found.values())
        )
        print(f"{title:18}{cells}")
    for name in ("precision", "recall"):
        print(f"{name:18}" + "".join(f"{row[name]:>20.1%}" for row in rows.values()))
    print(f"precision where {DAMAGED:.0%} of the masks are damaged; recall: mean of all kinds")


Counts = Mapping[str, tuple[int, int]]


def _measure(number: int) -> tuple[dict[str, Counts], int]:
    """For both ways and each kind of damage: how many were flagged, of how many."""
    rng = np.random.default_rng(0)
    sizes = ((320, 320), (384, 288))  # quarter turns are possible on squares alone
    portraits = [
        draw_portrait(FIRST_SEED + i, size=sizes[i // 2 % 2], people=1, scale=(0.2, 0.6))
        for i in range(number)
    ]
    counts: dict[str, dict[str, list[int]]] = {
        way: defaultdict(lambda: [0, 0]) for way in ("landmarks", "pixels alone")
    }
    looks = 0
    for index, portrait in enumerate(portraits):
        for region in ("face_mask", "head_mask"):
            other = portraits[(index + 4) % number]
            for kind, mask in _cases(portrait, other, region, rng):
                for way, faces in (("landmarks", [portrait.people[0].face]), ("pixels alone", [])):
                    looks += 1
                    counts[way][kind][0] += _is_flagged(portrait.image, mask, faces)
                    counts[way][kind][1] += 1
    return {w: {k: (v[0], v[1]) for k, v in kinds.items()} for w, kinds in counts.items()}, looks


def _is_flagged(image: Image, mask: Mask, faces: list[Face]) -> bool:
    fit = placement(image, mask, faces)
    if fit is None:
        return False
    return is_turned(fit) or is_moved(fit) or bool(fit.faces and fit.landmarks < MOST)


def _cases(
    portrait: Portrait, other: Portrait, region: str, rng: np.random.Generator
) -> Iterator[tuple[str, Mask]]:
    mask = _eroded(getattr(portrait.people[0], region))
    yield "untouched", mask
    white = mask > 0
    for turn in TURNS:
        turned = np.ascontiguousarray(apply_turn(mask, turn))
        if turned.shape == mask.shape:
            both = np.count_nonzero((turned > 0) & white) / np.count_nonzero((turned > 0) | white)
            if both < SAME:  # else nobody could tell
                yield "flip" if turn in ("x", "y") else "rotation", turned
    size = float(np.sqrt(np.count_nonzero(white)))
    for percent in SHIFTS:
        angle = rng.uniform(0, 2 * np.pi)
        length = size * percent / 100
        yield (
            f"shift {percent} %",
            _shifted(mask, round(np.cos(angle) * length), round(np.sin(angle) * length)),
        )
    foreign = _eroded(getattr(other.people[0], region))
    if foreign.shape == mask.shape:
        yield "another's mask", foreign


def _eroded(mask: BoolMask) -> Mask:
    return masks.erode(mask, masks.Margin.parse("2%").radius(mask)).astype(np.uint8) * 255


def _shifted(mask: Mask, x: int, y: int) -> Mask:
    height, width = mask.shape
    moved = np.zeros_like(mask)
    moved[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = mask[
        max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)
    ]
    return moved


def _figures(counts: Counts) -> dict[str, float]:
    false_alarms = counts["untouched"][0] / counts["untouched"][1]
    recalls = {k: hits / seen for k, (hits, seen) in counts.items() if k != "untouched"}
    recall = float(np.mean(list(recalls.values())))
    flagged = DAMAGED * recall + (1 - DAMAGED) * false_alarms
    precision = DAMAGED * recall / flagged if flagged else 1.0
    return {"false_alarms": false_alarms, **recalls, "recall": recall, "precision": precision}


if __name__ == "__main__":
    main()
