import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_prep import imageio, pairs
from lora_prep.errors import DatasetError
from lora_prep.pairs import Fault, Pairs
from lora_prep.types import Severity

Run = Callable[..., Any]


def picture(seed: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pairs without a fault."""
    for side in ("positive", "negative"):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        for i in range(5):
            seed = i if side == "positive" else 100 + i
            image = imageio.encode_image(picture(seed), "png")
            (tmp_path / "pairs" / side / f"p{i}.png").write_bytes(image)
    return tmp_path / "pairs"


def found(folder: Path, **options: Any) -> list[tuple[Fault, str]]:
    return [(f.fault, f.path) for f in pairs.check(Pairs.at(folder, **options))]


def test_pairs_without_a_fault(folder: Path) -> None:
    assert found(folder) == []
    assert Pairs.at(folder).stems == [f"p{i}" for i in range(5)]


def test_an_orphan_on_either_side(folder: Path) -> None:
    (folder / "negative" / "p1.png").unlink()
    (folder / "positive" / "p2.png").rename(folder / "positive" / "P2.png")
    assert found(folder) == [
        (Fault.ORPHAN, "negative/p2.png"),
        (Fault.ORPHAN, "positive/P2.png"),
        (Fault.ORPHAN, "positive/p1.png"),
        (Fault.FEW, "."),
    ]


def test_names_are_compared_as_unicode_means_them(folder: Path) -> None:
    (folder / "positive" / "p1.png").rename(folder / "positive" / "z\u0061\u0308.png")
    (folder / "negative" / "p1.png").rename(folder / "negative" / "z\u00e4.png")
    assert [fault for fault, _ in found(folder)] == [Fault.OTHER_NAME]


def test_sizes_that_differ(folder: Path) -> None:
    data = imageio.encode_image(picture(7, (24, 31)), "png")
    (folder / "negative" / "p3.png").write_bytes(data)
    (finding,) = pairs.check(Pairs.at(folder))
    assert (finding.fault, finding.path) == (Fault.SIZE, "positive/p3.png")
    assert "32×24 and 31×24" in finding.message


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_a_picture_without_difference_by_bytes_or_pixels(folder: Path, kind: Any) -> None:
    (folder / "negative" / "p3.png").unlink()
    (folder / "negative" / f"p3.{kind}").write_bytes(imageio.encode_image(picture(3), kind))
    faults = found(folder)
    assert faults[0] == (Fault.EQUAL, "positive/p3.png")
    assert (len(faults) == 1) == (kind == "png")  # the suffixes differ, too


@pytest.mark.parametrize(
    ("target", "kind", "word"),
    [("positive/p4.png", "png", "file"), ("negative/p4.png", "png", "file"),
     ("negative/p4.png", "bmp", "picture")],
)  # fmt: skip
def test_a_picture_in_two_pairs(folder: Path, target: str, kind: Any, word: str) -> None:
    (folder / target).unlink()
    copy = (folder / target).with_suffix(f".{kind}")
    copy.write_bytes(imageio.encode_image(picture(0), kind))
    finding = pairs.check(Pairs.at(folder))[0]
    assert (finding.fault, finding.path) == (
        Fault.DUPLICATE,
        copy.relative_to(folder).as_posix(),
    )
    assert f"same {word} as positive/p0.png" in finding.message


def test_unreadable_files(folder: Path) -> None:
    (folder / "positive" / "p0.png").write_bytes(b"")
    path = folder / "negative" / "p1.png"
    path.write_bytes(path.read_bytes()[:300])
    assert found(folder) == [
        (Fault.UNREADABLE, "negative/p1.png"),
        (Fault.UNREADABLE, "positive/p0.png"),
    ]


def test_two_images_of_one_stem(folder: Path) -> None:
    data = imageio.encode_image(picture(50), "jpeg")
    (folder / "positive" / "p0.jpg").write_bytes(data)
    assert (Fault.SHARED_STEM, "positive/p0.jpg") in found(folder)


def test_captions_that_differ(folder: Path) -> None:
    (folder / "positive" / "p0.txt").write_text("a sharp face")
    (folder / "positive" / "p1.txt").write_text("a face\n")
    (folder / "negative" / "p1.txt").write_text("a face")
    findings = pairs.check(Pairs.at(folder))
    assert [(f.fault, f.path) for f in findings] == [(Fault.CAPTION, "positive/p0.txt")]
    assert findings[0].severity is Severity.WARNING


def test_other_folders_and_sub_folders(folder: Path) -> None:
    (folder / "positive").rename(folder / "big")
    (folder / "negative").rename(folder / "small")
    with pytest.raises(DatasetError, match="there are big, small: name the two sides"):
        Pairs.at(folder)
    assert found(folder, positive="big", negative="small") == []
    for side in ("big", "small"):
        (folder / side / "deep").mkdir()
        (folder / side / "p0.png").rename(folder / side / "deep" / "p0.png")
    assert len(Pairs.at(folder, positive="big", negative="small", recursive=True)) == 5
    with pytest.raises(DatasetError, match="both sides"):
        Pairs.at(folder, positive="big", negative="big")


def test_folders_that_are_not_there_or_empty(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DatasetError, match="no folder"):
        Pairs.at(tmp_path / "nowhere")
    shutil.rmtree(folder / "negative")
    (folder / "negative").mkdir()
    with pytest.raises(DatasetError, match="no image"):
        Pairs.at(folder)


# ------------------------------------------------------------------ the command
def test_the_command_prints_faults_and_hints(folder: Path, lora_prep: Run) -> None:
    out = lora_prep("pairs", folder).stdout
    assert "5 pairs, 0 errors, 0 warnings" in out
    assert f"pos_folder: {folder}/positive, neg_folder: {folder}/negative" in out
    assert "--folders positive,negative --scales 1,-1" in out
    (folder / "positive" / "p0.txt").write_text("a sharp face")
    lora_prep("pairs", folder)
    lora_prep("pairs", folder, "--strict", code=1)
    (folder / "negative" / "p0.png").unlink()
    out = lora_prep("pairs", folder, code=1).stdout
    assert "error    orphan      positive/p0.png" in out
    assert "pos_folder" not in out
    document = json.loads(lora_prep("pairs", folder, "--json", code=1).stdout)
    assert (document["pairs"], document["errors"]) == (4, 1)
    assert document["findings"][0]["fault"] == "orphan"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a folder of pairs to check, or --make"),
        (["{f}", "--make", "{f}"], "give a folder of pairs to check, or --make"),
        (["{f}", "--operation", "noise"], "--operation: that goes with --make"),
        (["{f}", "--force", "--out", "x"], "--force, --out: that goes with --make"),
        (["--make", "{f}/positive"], "--make needs --out"),
        (["--make", "{f}/positive", "--out", "x", "--strict"], "--strict: that goes without"),
        (["--make", "{f}/positive", "--out", "x", "--strength", "0"], "strength"),
    ],
)
def test_options_that_do_not_go_together(
    folder: Path, lora_prep: Run, arguments: list[str], words: str
) -> None:
    given = [one.format(f=folder) for one in arguments]
    assert words in lora_prep("pairs", *given, code=2).output
