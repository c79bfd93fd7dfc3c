"""What was decided, and how long it holds."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lora_prep import decisions, imageio
from lora_prep.dataset import Dataset
from lora_prep.decisions import Verdict
from lora_prep.errors import DatasetError
from lora_prep.journal import exclusive

NAMES = ("p00.png", "p01.jpg", "p02.png", "p04.png")
MASKING = ("--preset", "embedded", "--min-face", "100000", "--no-face")


@pytest.fixture
def data(tmp_path: Path, lora_prep: Callable[..., object]) -> Dataset:
    """Four images with white masks that lora-prep made."""
    faces = tmp_path / "data" / "faces"
    faces.mkdir(parents=True)
    for grey, name in enumerate(NAMES):
        image = np.full((40, 40, 3), 60 * grey, np.uint8)
        kind = "jpeg" if name.endswith("jpg") else "png"
        (faces / name).write_bytes(imageio.encode_image(image, kind))
    lora_prep("masks", faces, *MASKING, "white")
    return Dataset.at(faces)


def counts(result: object) -> dict[str, int]:
    found: dict[str, int] = json.loads(result.stdout)["counts"]
    return {status: count for status, count in found.items() if count}


def verdicts(data: Dataset) -> dict[str, str | None]:
    return {name: decision.verdict for name, decision in decisions.read(data).items()}


def decide(data: Dataset, name: str, verdict: Verdict | None) -> None:
    decisions.decide(data, data.sample(name), verdict)


def test_nothing_was_decided(data: Dataset) -> None:
    assert decisions.read(data) == {}
    assert decisions.rejected(data) == frozenset()


def test_they_are_read_back(data: Dataset) -> None:
    decide(data, "p00.png", Verdict.ACCEPTED)
    decide(data, "p01.jpg", Verdict.REJECTED)
    decide(data, "p02.png", Verdict.REJECTED)
    decide(data, "p02.png", None)
    assert verdicts(data) == {"p00.png": "accepted", "p01.jpg": "rejected", "p02.png": None}
    assert decisions.rejected(data) == {"p01.jpg"}
    assert decisions.rejected(Dataset.at(data.root)) == {"p01.jpg"}


def test_they_move_with_the_data_set(data: Dataset) -> None:
    decide(data, "p00.png", Verdict.ACCEPTED)
    decide(data, "p01.jpg", Verdict.REJECTED)
    moved = data.root.rename(data.root.with_name("elsewhere"))
    assert verdicts(Dataset.at(moved)) == {"p00.png": "accepted", "p01.jpg": "rejected"}


def test_another_image_under_the_name_is_undecided(data: Dataset) -> None:
    decide(data, "p00.png", Verdict.REJECTED)
    (data.images / "p00.png").write_bytes((data.images / "p02.png").read_bytes())
    assert decisions.read(data) == {}


def test_another_mask_is_not_accepted_and_a_rejected_image_stays_so(data: Dataset) -> None:
    decide(data, "p00.png", Verdict.ACCEPTED)
    decide(data, "p02.png", Verdict.REJECTED)
    for name in ("p00.png", "p02.png"):
        (data.masks / name).write_bytes((data.masks / "p04.png").read_bytes() + b"trailing")
    assert verdicts(data) == {"p02.png": "rejected"}
    (data.masks / "p02.png").unlink()
    assert verdicts(data) == {"p02.png": "rejected"}


def test_no_stage_replaces_a_mask_that_was_accepted_or_edited(
    data: Dataset, lora_prep: Callable[..., object]
) -> None:
    decide(data, "p00.png", Verdict.ACCEPTED)
    edited = data.masks / "p02.png"
    mask = imageio.decode_mask(edited.read_bytes())
    mask[:9] = 7
    edited.write_bytes(imageio.encode_mask(mask))
    decisions.note_edit(data, data.sample("p02.png"))
    before = {name: (data.masks / name).read_bytes() for name in ("p00.png", "p02.png")}
    result = lora_prep("masks", data.images, *MASKING, "black", "--json")
    assert counts(result) == {"done": 2, "kept": 2}
    assert {name: (data.masks / name).read_bytes() for name in before} == before
    assert "4 images" in lora_prep("status", data.images).output
    assert counts(lora_prep("masks", data.images, *MASKING, "black", "--json")) == {
        "fresh": 2,
        "kept": 2,
    }
    lora_prep("clean", data.images, "--only", "masks", "--yes")
    assert {name: (data.masks / name).read_bytes() for name in before} == before
    assert len(list(data.masks.iterdir())) == 2


def test_taking_an_acceptance_back_gives_the_mask_back_to_the_stage(
    data: Dataset, lora_prep: Callable[..., object]
) -> None:
    decide(data, "p00.png", Verdict.ACCEPTED)
    decide(data, "p00.png", Verdict.ACCEPTED)
    decide(data, "p00.png", None)
    assert counts(lora_prep("masks", data.images, *MASKING, "white", "--json")) == {"fresh": 4}
    decide(data, "p00.png", Verdict.ACCEPTED)
    lora_prep("masks", data.images, *MASKING, "black")
    decide(data, "p00.png", Verdict.REJECTED)
    assert counts(lora_prep("masks", data.images, *MASKING, "black", "--json")) == {
        "done": 1,
        "fresh": 3,
    }


def test_force_replaces_an_accepted_mask_and_it_is_undecided_then(
    data: Dataset, lora_prep: Callable[..., object]
) -> None:
    decide(data, "p00.png", Verdict.ACCEPTED)
    lora_prep("masks", data.images, *MASKING, "black", "--force")
    assert decisions.read(data) == {}


def test_accepting_waits_for_a_run(data: Dataset) -> None:
    with exclusive(data.state), pytest.raises(DatasetError, match="another lora-prep"):
        decide(data, "p00.png", Verdict.ACCEPTED)
    assert decisions.read(data) == {}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"images": {"faces/p00.png": 1}}', b"\xff", b"[" * 90_000]
)
def test_a_file_of_somebody_elses_is_left_alone(data: Dataset, content: bytes) -> None:
    path = decisions.path(data)
    path.write_bytes(content)
    for read in (decisions.read, decisions.rejected):
        with pytest.raises(DatasetError, match="is not what lora-prep wrote"):
            read(data)
    with pytest.raises(DatasetError, match="move it away"):
        decide(data, "p00.png", Verdict.REJECTED)
    assert path.read_bytes() == content
