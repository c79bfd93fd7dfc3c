import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_prep import imageio, pairs
from lora_prep.cli import pairs as command
from lora_prep.dataset import Dataset
from lora_prep.errors import UsageError
from lora_prep.executors.local import LocalExecutor
from lora_prep.pairs import Pairs
from lora_prep.run import Report
from lora_prep.run import run as run_with
from lora_prep.stages.pairs import OPERATIONS, MakePairs
from lora_prep.types import Status

Run = Callable[..., Any]


def run(stage: MakePairs, root: Path) -> Report:
    return run_with(stage, root, executor=LocalExecutor(2))


def read(path: Path) -> np.ndarray:
    return imageio.decode_image(path.read_bytes()).astype(np.float64)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.*")
        if path.is_file()
    }


def detail(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image, axis=0)).mean())


def colour(image: np.ndarray) -> float:
    return float(image.std(axis=2).mean())


def contrast(image: np.ndarray) -> float:
    return float(image.std())


def grain(image: np.ndarray) -> float:
    return -detail(image)


MORE: dict[str, Callable[[np.ndarray], float]] = {
    "blur": detail,
    "sharpen": detail,
    "desaturate": colour,
    "noise": grain,
    "brighten": np.mean,
    "darken": np.mean,
    "flatten": contrast,
}
"""What the positive side of an operation has more of."""


def test_the_command_knows_every_operation() -> None:
    assert tuple(OPERATIONS) == command.OPERATIONS


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_makes_pairs_that_pass_the_check(
    faces: Path, tmp_path: Path, operation: str
) -> None:
    for i, path in enumerate(sorted(faces.iterdir())):
        if i >= 4:
            path.unlink()
    out = tmp_path / "out"
    stage = MakePairs(Dataset.at(faces), out, operation)
    report = run(stage, tmp_path)
    assert report.counts[Status.DONE] == 4
    assert pairs.check(Pairs.at(out)) == []
    untouched = "negative" if stage.made == "positive" else "positive"
    for sample in stage.dataset:
        name = f"{sample.stem}.png"
        assert np.array_equal(read(out / untouched / name), read(sample.image))
        if measure := MORE.get(operation):
            high, low = (measure(read(out / side / name)) for side in ("positive", "negative"))
            assert high > low


def test_more_strength_is_more_of_it(faces: Path, tmp_path: Path) -> None:
    left = []
    for strength in (0.2, 0.5, 1.0):
        out = tmp_path / f"s{strength}"
        run(MakePairs(Dataset.at(faces), out, "blur", strength), tmp_path)
        left.append(detail(read(out / "negative" / "p00.png")))
    assert left == sorted(left, reverse=True)


def test_the_same_bytes_again_and_nothing_made_twice(faces: Path, tmp_path: Path) -> None:
    (faces / "p00.txt").write_text("a face")
    dataset = Dataset.at(faces)
    first = MakePairs(dataset, tmp_path / "a", "noise", seed=5)
    run(first, tmp_path)
    run(MakePairs(dataset, tmp_path / "b", "noise", seed=5), tmp_path)
    run(MakePairs(dataset, tmp_path / "c", "noise", seed=6), tmp_path)
    a, b, c = (hashes(tmp_path / name) for name in "abc")
    assert a == b
    assert a["negative/p00.png"] != c["negative/p00.png"]
    assert a["positive/p00.png"] == c["positive/p00.png"]
    assert (tmp_path / "a" / "positive" / "p00.txt").read_text() == "a face"
    assert a["positive/p00.txt"] == a["negative/p00.txt"]

    (tmp_path / "a" / "negative" / "p03.png").unlink()  # as after a killed run
    report = run(first, tmp_path)
    assert (report.counts[Status.FRESH], report.counts[Status.DONE]) == (9, 1)
    assert hashes(tmp_path / "a") == a
    shutil.copytree(faces, tmp_path / "moved" / "faces")
    run(MakePairs(Dataset.at(tmp_path / "moved" / "faces"), tmp_path / "moved" / "a", "noise",
                  seed=5), tmp_path / "moved")  # fmt: skip
    assert hashes(tmp_path / "moved" / "a") == a


def test_pictures_that_cannot_be_pairs_are_said_and_the_rest_is_made(
    faces: Path, tmp_path: Path, lora_prep: Run
) -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    (faces / "flat.png").write_bytes(imageio.encode_image(flat, "png"))
    (faces / "torn.png").write_bytes((faces / "p00.png").read_bytes()[:400])
    (faces / "p01.bmp").write_bytes(imageio.encode_image(flat, "bmp"))
    out = tmp_path / "out"
    result = lora_prep("pairs", "--make", faces, "--out", out, "--json", code=1)
    document = json.loads(result.stdout)
    failed = {item["key"]: item["code"] for item in document["items"] if item["code"]}
    assert failed == {
        "data/faces/flat.png": "unchanged",
        "data/faces/torn.png": "unreadable",
        "data/faces/p01.bmp": "shared-stem",
        "data/faces/p01.jpg": "shared-stem",
    }
    assert document["counts"]["done"] == 9
    assert document["result"] == "negative"
    assert len(list(out.rglob("*.png"))) == 18


def test_the_command_makes_says_and_does_it_once(
    faces: Path, tmp_path: Path, lora_prep: Run
) -> None:
    (faces / "p04.png").unlink()  # it has no colour
    out = tmp_path / "colour"
    asked = ("pairs", "--make", faces, "--out", out, "--operation", "desaturate")
    assert "9 to make" in lora_prep(*asked, "--dry-run").stdout
    assert not out.exists()
    said = lora_prep(*asked, "--strength", 1, "--result", "positive").stdout
    assert "positive: after desaturate (less colour)" in said
    assert "9 made" in said
    assert f"neg_folder: {out}/negative" in said
    assert colour(read(out / "positive" / "p00.png")) == 0
    again = lora_prep(*asked, "--strength", 1, "--result", "positive").stdout
    assert "9 fresh" in again
    assert "9 pairs, 0 errors, 0 warnings" in lora_prep("pairs", out).stdout


def test_the_originals_are_never_written_over(faces: Path, tmp_path: Path) -> None:
    dataset = Dataset.at(faces)
    for out in (faces, faces / "pairs"):
        with pytest.raises(UsageError, match="lies in the image folder"):
            MakePairs(dataset, out)
    inside = tmp_path / "set" / "positive"
    shutil.copytree(faces, inside)
    with pytest.raises(UsageError, match="write over the originals"):
        MakePairs(Dataset.at(inside), tmp_path / "set")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"operation": "blurr"}, "take one of blur"), ({"strength": 0.0}, "above 0"),
     ({"strength": 1.5}, "up to 1"), ({"strength": float("nan")}, "up to 1")],
)  # fmt: skip
def test_wrong_options(faces: Path, tmp_path: Path, options: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MakePairs(Dataset.at(faces), tmp_path / "out", **options)
