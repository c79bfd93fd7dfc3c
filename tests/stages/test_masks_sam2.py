"""`lora-prep masks` with the real FaceAnalysis and the real SAM2ImagePredictor.

Their weights are made here: a detector that takes red squares for faces, and a small SAM2 with
random weights, whose masks mean nothing but go through everything.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.fakes.red_square_detector import write_pack
from tests.fakes.tiny_sam2 import write_tiny_sam2


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("models")
    checkpoint, config = write_tiny_sam2(folder / "sam2", seed=1)
    pack = write_pack(folder / "pack")
    options = ("--face-model", pack, "--det-size", 320, "--device", "cpu", "--erode", "0")
    return tuple(map(str, (*options, "--sam2-model", checkpoint, "--sam2-config", config)))


@pytest.fixture
def squares(tmp_path) -> Path:
    """Pictures with one, two and no red square of 64 pixels."""
    folder = tmp_path / "data" / "faces"
    folder.mkdir(parents=True)
    random = np.random.default_rng(3)
    for name, corners in (("one", [(40, 60)]), ("two", [(30, 30), (200, 180)]), ("none", [])):
        picture = random.integers(60, 120, (320, 320, 3), np.uint8)
        for x, y in corners:
            picture[y : y + 64, x : x + 64] = (0, 0, 255)  # BGR
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    return folder


def test_masks_are_made_for_the_images_with_faces(squares, models, lora_prep):
    result = lora_prep("masks", squares, *models, "--faces", "all", "--json", code=1)
    items = {i["key"].split("/")[1]: i for i in json.loads(result.stdout)["items"]}
    assert items["none.png"]["code"] == "no-face"
    assert items["one.png"]["info"]["masked"] == 1
    assert items["two.png"]["info"]["masked"] == 2
    for name in ("one", "two"):
        mask = cv2.imread(str(squares.parent / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert (mask.shape, mask.dtype) == ((320, 320), np.uint8)
        assert set(np.unique(mask)) <= {0, 255}


def test_the_user_is_told_what_runs_where(squares, models, lora_prep):
    said = lora_prep("masks", squares, *models, code=1).stderr
    assert "CPUExecutionProvider" in said
    assert "on cpu" in said


def test_the_batch_size_changes_nothing_to_speak_of(squares, models, lora_prep):
    masks = []
    for size in (1, 3):
        lora_prep("masks", squares, *models, "--batch-size", size, "--force", code=1)
        masks.append(cv2.imread(str(squares.parent / "masks" / "two.png"), 0) > 0)
    assert np.mean(masks[0] != masks[1]) < 0.001


def test_other_weights_make_the_masks_anew(squares, models, lora_prep, tmp_path):
    lora_prep("masks", squares, *models, code=1)
    other, config = write_tiny_sam2(tmp_path / "other", seed=2)
    changed = ("--sam2-model", other, "--sam2-config", config)
    result = lora_prep("masks", squares, *models, *changed, "--json", code=1)
    assert json.loads(result.stdout)["counts"]["done"] == 2
    result = lora_prep("masks", squares, *models, *changed, "--json", code=1)
    assert json.loads(result.stdout)["counts"]["fresh"] == 2


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many images each call of the encoder got."""
    from lora_prep.backends.sam2 import Sam2Segmenter

    calls: list[int] = []
    encode = Sam2Segmenter._encode

    def spy(self, squares):
        calls.append(len(squares))
        return encode(self, squares)

    monkeypatch.setattr(Sam2Segmenter, "_encode", spy)
    return calls


def made(squares) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (squares.parent / "masks").iterdir()}


def test_kept_embeddings_save_later_commands_the_encoder(squares, models, lora_prep, encoded):
    options = ("masks", squares, *models, "--cache-embeddings", "--dtype", "float32")
    lora_prep(*options, code=1)
    assert encoded == [1, 1]
    first = made(squares)
    lora_prep(*options, "--force", code=1)
    assert made(squares) == first
    lora_prep(*options, "--region", "head", "--faces", "all", code=1)
    assert encoded == [1, 1]
    assert made(squares) != first
    kept = list((squares.parent / ".lora-prep" / "embeddings").iterdir())
    assert len(kept) == 2  # none for the picture without a face
    sizes = [path.stat().st_size for path in kept]
    for path in kept:
        path.write_bytes(path.read_bytes()[:-100])
    lora_prep(*options, "--force", code=1)
    assert encoded == [1, 1, 1, 1]
    assert made(squares) == first
    assert [path.stat().st_size for path in kept] == sizes


def test_masks_with_and_without_kept_embeddings_agree(squares, models, lora_prep, encoded):
    found = []
    for option in ((), ("--cache-embeddings",)):
        options = ("--dtype", "float32", "--force", *option)
        lora_prep("masks", squares, *models, *options, code=1)
        found.append(cv2.imread(str(squares.parent / "masks" / "one.png"), 0) > 0)
    assert len(encoded) == 4
    assert (found[0] & found[1]).sum() >= 0.99 * (found[0] | found[1]).sum()


def test_the_precision_is_chosen_and_told(squares, models, lora_prep):
    said = lora_prep("masks", squares, *models, "--dtype", "bfloat16", code=1).stderr
    assert "on cpu, bfloat16" in said


def test_a_missing_model_is_said_at_once_and_what_to_do(squares, models, lora_prep, tmp_path):
    pack = models[: models.index("--sam2-model")]
    result = lora_prep("masks", squares, *pack, "--sam2-model", tmp_path / "nowhere.pt", code=2)
    assert f"no file {tmp_path / 'nowhere.pt'}" in result.stderr
    assert not (squares.parent / "masks").exists()


def test_an_unreachable_hub_is_answered_with_what_to_do(
    squares, models, lora_prep, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pack = models[: models.index("--sam2-model")]
    result = lora_prep("masks", squares, *pack, "--preset", "fast", code=2)
    assert "sam2_hiera_tiny.pt" in result.stderr
    assert "--preset embedded" in result.stderr
    assert not (squares.parent / "masks").exists()
