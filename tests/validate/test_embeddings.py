"""Family E."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lora_prep.dataset import EMBEDDINGS as FILENAME
from lora_prep.dataset import Dataset
from lora_prep.embeddings import Embeddings, read_embeddings, with_metadata
from lora_prep.journal import hash_file
from lora_prep.stages.embed import record_path
from tests.validate.made import Data, encode, photo

NAMES = ("a.jpg", "c.webp", "été 北京.png")
MODEL = "arcface buffalo_l/w600k_r50.onnx"


def write(
    data: Data, *, dimension: int = 512, stranger: int = -1, names: tuple[str, ...] = NAMES
) -> Path:
    """A face in each image, all of one person but one."""
    rng = np.random.default_rng(0)
    subject = rng.normal(size=dimension)
    rows = subject + 0.3 * rng.normal(size=(len(names), dimension))
    if stranger >= 0:
        rows[stranger] = rng.normal(size=dimension)
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    count = len(names)
    embeddings = Embeddings(
        names=names,
        faces=np.zeros(count, np.int32),
        boxes=np.tile(np.array([10, 10, 30, 40], np.float32), (count, 1)),
        landmarks=np.ones((count, 5, 2), np.float32),
        scores=np.ones(count, np.float32),
        vectors=vectors,
        norms=np.full(count, 20, np.float32),
        sha256=tuple(
            hash_file(data.faces / n) if (data.faces / n).is_file() else "0" * 64 for n in names
        ),
        metadata={"model": MODEL},
    )
    path = data.root / FILENAME
    path.write_bytes(embeddings.to_bytes())
    return path


def test_good_embeddings_are_fine(data: Data) -> None:
    write(data)
    assert data.codes() == {}


def test_none_are_said_only_if_asked(data: Data) -> None:
    assert data.codes() == {}
    assert data.codes(select=["E"]) == {"E007": [FILENAME]}


@pytest.mark.parametrize("junk", [b"", b"junk" * 30, None])
def test_a_damaged_file(data: Data, junk: bytes | None) -> None:
    path = write(data)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if junk is None else junk)
    assert data.codes() == {"E001": [FILENAME]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7.0])
def test_numbers_that_cannot_be(data: Data, value: float) -> None:
    path = write(data)
    content = path.read_bytes()
    at = content.index(b'"vectors"')
    start = int(content[at:].split(b'"data_offsets":[')[1].split(b",")[0])
    begin = 8 + int.from_bytes(content[:8], "little") + start
    path.write_bytes(content[:begin] + np.float32(value).tobytes() + content[begin + 4 :])
    assert data.codes() == {"E001": [FILENAME]}


def test_the_wrong_dimension(data: Data) -> None:
    write(data, dimension=128)
    assert data.codes() == {"E002": [FILENAME]}


def test_an_image_that_was_added(data: Data) -> None:
    write(data, names=NAMES[:2])
    assert data.codes() == {"E003": ["faces/été 北京.png"]}


def test_an_image_that_was_changed(data: Data) -> None:
    write(data)
    image = data.image("a.jpg", encode(photo(mode="L"), "JPEG"))
    os.utime(data.root / FILENAME, (1e9, 1e9))
    os.utime(image, (1e9, 1e9))  # a copy that keeps its date is found, too
    assert data.codes() == {"E004": ["faces/a.jpg"]}


def test_an_image_that_is_gone(data: Data) -> None:
    write(data, names=(*NAMES, "x.jpg"))
    assert data.codes() == {"E005": [FILENAME]}


def test_a_stranger(data: Data) -> None:
    write(data, stranger=1)
    assert data.codes() == {"E006": ["faces/c.webp"]}


OTHER = "sface face_recognition_sface_2021dec.onnx sha256=12 alignment=opencv-alignCrop"


@pytest.mark.parametrize(
    ("recogniser", "detector", "names", "found"),
    [
        (f"{MODEL} sha256=34 alignment=insightface-norm_crop", "d", NAMES, False),
        (OTHER, "d", NAMES, True),
        (f"{MODEL} sha256=56 alignment=insightface-norm_crop", "d", NAMES, True),
        (f"{MODEL} sha256=34 alignment=insightface-norm_crop", "another", NAMES, True),
        (OTHER, "d", NAMES[1:], False),
    ],
    ids=["the same", "another kind", "other weights", "another detector", "not in the file"],
)
@pytest.mark.parametrize("seconds", [-5, 5])
def test_a_run_of_another_model_that_did_not_end(
    data: Data,
    recogniser: str,
    detector: str,
    names: tuple[str, ...],
    found: bool,
    seconds: int,
) -> None:
    path = write(data, names=names)
    rows = with_metadata(read_embeddings(path), model_sha256="34", detector="d")
    path.write_bytes(rows.to_bytes())
    dataset = Dataset.at(data.root)
    record = record_path(dataset, dataset.sample("a.jpg"))
    record.parent.mkdir(parents=True)
    about = {"recogniser": recogniser, "detector": detector}
    record.write_bytes(replace(rows, metadata=about).to_bytes())
    when = path.stat().st_mtime + seconds  # a copy has any dates
    os.utime(record, (when, when))
    assert data.codes(ignore=["E003"]) == ({"E008": [FILENAME]} if found else {})


@pytest.mark.parametrize("junk", [b"", b"\x05\0\0\0\0\0\0\0null!", b"\xff" * 20])
def test_a_damaged_record_says_nothing_of_the_model(data: Data, junk: bytes) -> None:
    write(data)
    dataset = Dataset.at(data.root)
    record = record_path(dataset, dataset.sample("a.jpg"))
    record.parent.mkdir(parents=True)
    record.write_bytes(junk)
    assert data.codes() == {}
