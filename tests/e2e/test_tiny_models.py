"""The commands with insightface and sam2 as they are, on weights that mean something.

The real FaceAnalysis and SAM2's real model, the small weights of `tests/assets`, held-out painted
portraits with their truth, and no network.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_prep import imageio, masks
from lora_prep.types import Face, Region
from sample_data.portraits import Portrait, draw_portrait
from tests.fakes.tiny_faces import DETECTING, MASKING, SAM2
from tools.tiny_models.sam2.model import load_predictor

FIRST_SEED = 6_000_000
"""No model here was trained on a seed below ten million."""

COUNT = 12


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*_args):
        raise AssertionError("something asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[list[Portrait], Path]:
    """Portraits, a third of them of two people, and the folder that they are in."""
    folder = tmp_path_factory.mktemp("unseen")
    portraits: list[Portrait] = []
    for seed in range(FIRST_SEED, FIRST_SEED + 3 * COUNT):
        i = len(portraits)
        size = (384, 320) if i % 2 else (320, 384)
        portrait = draw_portrait(seed, size=size, people=2 if i % 3 == 2 else 1, scale=(0.2, 0.6))
        areas = sorted(person.face.area for person in portrait.people)
        if len(areas) > 1 and areas[-2] > 0.8 * areas[-1]:
            continue  # which of them is the largest is anybody's guess
        portraits.append(portrait)
        data = imageio.encode_image(portrait.image, "png")
        (folder / f"p{i:02}.png").write_bytes(data)
        if len(portraits) == COUNT:
            break
    return portraits, folder


@pytest.fixture(scope="module")
def unseen(drawn) -> list[Portrait]:
    return drawn[0]


@pytest.fixture
def images(drawn, tmp_path) -> Path:
    return Path(shutil.copytree(drawn[1], tmp_path / "data" / "faces"))


def written(images: Path) -> dict[str, bytes]:
    folder = images.parent / "masks"
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.png"))}


def decoded(images: Path) -> list[np.ndarray]:
    return [imageio.decode_mask(data) > 0 for data in written(images).values()]


def truth(portrait: Portrait, region: Region, policy: str) -> np.ndarray:
    largest = max(portrait.people, key=lambda person: person.face.area)
    people = portrait.people if policy == "all" else [largest]
    return masks.union([getattr(person, f"{region}_mask") for person in people])


def test_faces_are_found_where_they_are(unseen, images, lora_prep):
    result = lora_prep("detect", images, *DETECTING, "--json")
    items = json.loads(result.stdout)["items"]
    wrong = 0
    for portrait, item in zip(unseen, items, strict=True):
        found = item["info"]["faces"]
        wrong += abs(len(found) - len(portrait.people))
        for person in portrait.people:
            eyes = np.array(person.face.landmarks[1]) - person.face.landmarks[0]
            away = [
                np.linalg.norm(np.array(face["landmarks"]) - person.face.landmarks, axis=1).mean()
                for face in found
            ]
            assert min(away) < 0.25 * np.linalg.norm(eyes)
            assert found[int(np.argmin(away))]["score"] > 0.5
    assert wrong <= 1


@pytest.mark.parametrize(
    ("region", "policy", "least"),
    [
        (Region.FACE, "largest", 0.9),
        (Region.FACE, "all", 0.9),
        (Region.HEAD, "all", 0.88),
        (Region.PERSON, "largest", 0.86),
    ],
)
def test_masks_are_right(unseen, images, lora_prep, region, policy, least):
    """Measured: .93, .93, .91, .90; the point and `masks[0]` of the recipe reach .1 to .5."""
    options = ("--region", region, "--faces", policy, "--erode", "0", "--json")
    result = json.loads(lora_prep("masks", images, *MASKING, *options).stdout)
    assert result["counts"]["done"] == COUNT
    pairs = zip(decoded(images), unseen, strict=True)
    ious = [masks.iou(mask, truth(portrait, region, policy)) for mask, portrait in pairs]
    assert np.mean(ious) >= least


def test_batches_and_threads_change_nothing_to_speak_of(images, lora_prep):
    made = []
    for batch, threads in ((1, 1), (1, 4), (5, 1), (5, 4)):
        how = ("--batch-size", batch, "--threads", threads, "--force")
        lora_prep("masks", images, *MASKING, "--faces", "all", *how)
        made.append(decoded(images))
    first, *others = made
    assert all(mask.any() for mask in first)
    for other in others:
        assert min(masks.iou(a, b) for a, b in zip(first, other, strict=True)) >= 0.99


def test_masks_are_those_of_sam2s_own_predictor(unseen, images, lora_prep):
    """Asked for one mask by box and landmarks, as the command asks."""
    items = json.loads(lora_prep("detect", images, *DETECTING, "--json").stdout)["items"]
    lora_prep("masks", images, *MASKING, "--dtype", "float32", "--erode", "0")
    predictor = load_predictor(SAM2.parent)
    ious = []
    for portrait, item, mask in zip(unseen, items, decoded(images), strict=True):
        face = max(map(Face.from_json, item["info"]["faces"]), key=lambda face: face.area)
        height, width = portrait.image.shape[:2]
        predictor.set_image(portrait.image)
        (theirs,), _, _ = predictor.predict(
            box=np.array(masks.region_box(face, Region.FACE, height, width)),
            point_coords=np.array(face.landmarks),
            point_labels=np.ones(5, np.int32),
            multimask_output=False,
        )
        ious.append(masks.iou(mask, masks.clean(theirs > 0)))
    assert np.mean(ious) >= 0.975


def test_erosion_and_kept_faces_go_through(images, lora_prep):
    lora_prep("detect", images, *DETECTING)
    lora_prep("masks", images, *MASKING, "--erode", "0")
    whole = decoded(images)
    lora_prep("masks", images, *MASKING, "--erode", "2%")
    for before, after in zip(whole, decoded(images), strict=True):
        assert after.any()
        assert not (after & ~before).any()
        assert 0.8 < after.sum() / before.sum() < 1


def test_killed_and_ended_by_two_workers_the_masks_are_the_same(
    images, lora_prep, tmp_path, monkeypatch
):
    for path in sorted(images.iterdir()):  # more work, to be interrupted in it
        shutil.copy(path, path.with_name(f"{path.stem}a.png"))
    undisturbed = Path(shutil.copytree(images, tmp_path / "undisturbed" / "faces"))
    lora_prep("masks", undisturbed, *MASKING)
    wanted = written(undisturbed)
    assert len(wanted) == 2 * COUNT

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_prep", "masks", str(images), *MASKING, "-q"]
    )
    while len(written(images)) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = written(images)
    assert 2 <= len(before) < len(wanted)
    assert before.items() <= wanted.items()

    several = ("--executor", "processes", "--workers", 2)
    result = json.loads(lora_prep("masks", images, *MASKING, *several, "--json").stdout)
    assert result["counts"]["fresh"] + result["counts"]["done"] == len(wanted)
    assert result["counts"]["fresh"] >= 1
    assert written(images) == wanted
