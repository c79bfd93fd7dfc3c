"""The data set's side of the page."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from lora_prep import decisions, imageio
from lora_prep.dataset import Dataset
from lora_prep.decisions import Verdict
from lora_prep.errors import DatasetError, ItemError
from lora_prep.faces import FaceRecord, faces_path
from lora_prep.masks import Margin
from lora_prep.review.session import Session
from lora_prep.types import Face, Issue, Severity
from tests.review.conftest import HEIGHT, WIDTH, on_disk, weights

NONE = Margin.parse("0")


def issue(path: str, severity: Severity) -> Issue:
    return Issue("X001", severity, path, "wrong", "mend it")


def names(session: Session) -> list[str]:
    return [row["name"] for row in session.images()]


def detected(data: Dataset, name: str, *scores: float) -> None:
    sample = data.sample(name)
    found = tuple(Face((0.0, 0.0, 9.0, 9.0), score) for score in scores)
    path = faces_path(data, sample)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FaceRecord("any", "0", WIDTH, HEIGHT, found).to_bytes())


def test_the_worst_come_first(data: Dataset) -> None:
    warnings = [issue("faces/a.txt", Severity.WARNING)] * 3
    found = [*warnings, issue("masks/c.png", Severity.ERROR), issue("faces/x.png", Severity.ERROR)]
    assert names(Session(data, found)) == ["c.png", "a.png", "b.png"]
    assert [len(row["issues"]) for row in Session(data, found).images()] == [1, 3, 0]


def test_unsure_faces_come_before_sure_ones(data: Dataset) -> None:
    detected(data, "a.png", 0.9, 0.2)
    detected(data, "b.png", 0.6)
    detected(data, "c.png")
    assert names(Session(data)) == ["c.png", "b.png", "a.png"]


def test_unpainted_pixels_stay_as_they_are(data: Dataset, session: Session) -> None:
    seen = session.mask(0)
    session.save(0, np.full((3, 2), 9, np.uint8), 78, 57, seen.name)
    expected = weights(0)
    expected[57:, 78:] = 9
    assert np.array_equal(on_disk(data, "a.png"), expected)


def test_a_mask_of_a_picture_as_cameras_make_them(data: Dataset) -> None:
    image = np.full((4000, 6000, 3), 90, np.uint8)
    (data.images / "a.jpg").write_bytes(imageio.encode_image(image, "jpeg"))
    (data.images / "a.png").unlink()
    mask = np.arange(4000 * 6000, dtype=np.uint32).astype(np.uint8).reshape(4000, 6000)
    (data.masks / "a.png").write_bytes(imageio.encode_mask(mask))
    session = Session(Dataset.at(data.images))
    seen = session.mask(0)
    assert np.array_equal(seen.mask, mask)
    shown = imageio.decode_image(session.shown(0, full=False))
    assert shown.shape == (1365, 2048, 3)
    session.save(0, np.zeros((40, 50), np.uint8), 5000, 3000, seen.name)
    mask[3000:3040, 5000:5050] = 0
    assert np.array_equal(on_disk(data, "a.png"), mask)


def test_the_image_is_turned_as_cameras_say_and_the_mask_with_it(data: Dataset) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(data.images / "a.jpg", exif=exif)
    (data.images / "a.png").unlink()
    (data.masks / "a.png").unlink()
    session = Session(Dataset.at(data.images))
    assert session.size(0) == (80, 60)
    session.save(0, np.full((80, 60), 255, np.uint8), 0, 0, "none")
    assert on_disk(data, "a.png").shape == (80, 60)


def test_the_thumbnail_of_a_camera_s_picture_is_upright(data: Dataset) -> None:
    """Its right half is bright, and what of the top the mask trains."""
    image = np.zeros((1200, 800, 3), np.uint8)
    image[:, 400:] = 200
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    lying = PillowImage.fromarray(image).transpose(PillowImage.Transpose.ROTATE_90)
    lying.save(data.images / "a.jpg", quality=95, exif=exif)
    (data.images / "a.png").unlink()
    mask = np.zeros((1200, 800), np.uint8)
    mask[:600] = 255
    (data.masks / "a.png").write_bytes(imageio.encode_mask(mask))
    small = imageio.decode_image(Session(Dataset.at(data.images)).thumbnail(0)).astype(float)
    assert small.shape == (112, 75, 3)
    assert small[5:50, :30].max() < 20
    assert small[5:50, 45:].mean() == pytest.approx(200, abs=3)
    assert small[62:107, 45:].mean() == pytest.approx(90, abs=3)


def test_an_image_without_a_mask_gets_one(data: Dataset) -> None:
    shutil.rmtree(data.masks)
    session = Session(data)
    assert session.mask(1).name == "none"
    session.save(1, np.full((1, 1), 200, np.uint8), 5, 6, "none")
    mask = on_disk(data, "b.png")
    assert (mask[6, 5], np.count_nonzero(mask)) == (200, 1)
    assert not (data.state / "trash").exists()


def test_what_others_made_goes_to_the_trash_once(data: Dataset, session: Session) -> None:
    dot = np.zeros((1, 1), np.uint8)
    first = session.save(0, dot, 0, 0, session.mask(0).name)
    second = session.save(0, dot, 1, 0, first.name)
    (folder,) = (data.state / "trash").iterdir()
    assert [p.name for p in (folder / "masks").iterdir()] == ["a.png"]
    (data.masks / "a.png").write_bytes(imageio.encode_mask(weights(8)))
    with pytest.raises(ItemError, match="changed by somebody else"):
        session.save(0, dot, 2, 0, second.name)
    session.save(0, dot, 2, 0, session.mask(0).name)
    kept = {imageio.decode_mask(p.read_bytes()).tobytes() for p in (folder / "masks").iterdir()}
    assert kept == {weights(0).tobytes(), weights(8).tobytes()}


def test_undo_of_validate_finds_the_backup(
    data: Dataset, session: Session, lora_prep: Callable[..., object]
) -> None:
    session.save(0, np.zeros((1, 1), np.uint8), 0, 0, session.mask(0).name)
    (folder,) = (data.state / "trash").iterdir()
    (line,) = (folder / "manifest.jsonl").read_text().splitlines()
    assert json.loads(line)["from"] == "masks/a.png"
    (data.masks / "a.png").unlink()
    assert "back  masks/a.png" in lora_prep("validate", data.images, "--undo", folder).output
    assert np.array_equal(on_disk(data, "a.png"), weights(0))


def test_images_that_share_a_mask_are_not_edited(data: Dataset) -> None:
    shutil.copy(data.images / "a.png", data.images / "a.bmp")
    session = Session(Dataset.at(data.images))
    with pytest.raises(ItemError, match=r"a\.png would share the mask a\.png"):
        session.save(0, np.zeros((1, 1), np.uint8), 0, 0, session.version(0))
    assert np.array_equal(on_disk(data, "a.png"), weights(0))


@pytest.fixture
def ring(data: Dataset) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(mask, (40, 30), 20, 200, 6)
    (data.masks / "a.png").write_bytes(imageio.encode_mask(mask))
    return mask


def test_operations(session: Session, ring: np.ndarray) -> None:
    assert np.array_equal(session.changed(0, "invert", NONE), 255 - ring)
    assert (session.changed(0, "all", NONE) == 255).all()
    assert (session.changed(0, "clear", NONE) == 0).all()
    filled = session.changed(0, "fill", NONE)
    assert filled[30, 40] == 255
    assert np.array_equal(filled[ring > 0], ring[ring > 0])
    assert filled[0, 0] == 0


def test_the_edge_moves_and_weights_stay(session: Session, ring: np.ndarray) -> None:
    thin = session.changed(0, "erode", Margin.parse("4px"))
    assert 0 < np.count_nonzero(thin) < np.count_nonzero(ring)
    assert set(np.unique(thin)) == {0, 200}
    thick = session.changed(0, "erode", Margin.parse("-4px"))
    assert (thick[ring > 0] == 200).all()
    assert np.count_nonzero(thick) > np.count_nonzero(ring)
    feathered = session.changed(0, "feather", Margin.parse("4px"))
    assert np.array_equal(feathered > 0, ring > 0)
    assert np.unique(feathered).size > 3
    with pytest.raises(ItemError, match="would leave nothing"):
        session.changed(0, "erode", Margin.parse("40px"))


def test_restore_is_as_it_was_when_the_page_was_opened(session: Session) -> None:
    seen = session.mask(0)
    assert np.array_equal(session.changed(0, "restore", NONE), weights(0))
    session.save(0, np.zeros((HEIGHT, WIDTH), np.uint8), 0, 0, seen.name)
    assert np.array_equal(session.changed(0, "restore", NONE), weights(0))


def test_a_verdict_is_written_down_at_once(data: Dataset, session: Session) -> None:
    assert session.decide(2, Verdict.REJECTED)["verdict"] == "rejected"
    assert decisions.rejected(data) == {"c.png"}
    session.save(1, np.zeros((1, 1), np.uint8), 0, 0, session.mask(1).name)
    rows = {row["name"]: (row["verdict"], row["edited"]) for row in Session(data).images()}
    assert rows == {
        "a.png": (None, False),
        "b.png": (None, True),
        "c.png": ("rejected", False),
    }


def test_there_has_to_be_a_mask_to_accept(data: Dataset, session: Session) -> None:
    (data.masks / "a.png").unlink()
    with pytest.raises(ItemError, match="no mask to accept"):
        session.decide(0, Verdict.ACCEPTED)
    assert session.decide(0, Verdict.REJECTED)["verdict"] == "rejected"


def test_nothing_is_saved_where_the_decisions_cannot_be_read(
    data: Dataset, session: Session
) -> None:
    decisions.path(data).parent.mkdir(exist_ok=True)
    decisions.path(data).write_text("{")
    with pytest.raises(DatasetError, match="not what lora-prep wrote"):
        session.save(0, np.zeros((1, 1), np.uint8), 0, 0, session.mask(0).name)
    assert np.array_equal(on_disk(data, "a.png"), weights(0))
    assert not (data.state / "trash").exists()


def test_a_mask_that_was_saved_is_not_called_unsaved(
    data: Dataset, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = imageio.replace

    def full(path: Path, content: bytes) -> None:
        if path == decisions.path(data):
            raise DatasetError(f"{path}: no space left")
        replace(path, content)

    monkeypatch.setattr(imageio, "replace", full)
    first = session.save(0, np.full((1, 1), 9, np.uint8), 0, 0, session.mask(0).name)
    assert "the mask is saved" in first.warning
    assert "no space left" in first.warning
    assert on_disk(data, "a.png")[0, 0] == 9
    monkeypatch.undo()
    assert session.save(0, np.zeros((1, 1), np.uint8), 0, 0, first.name).warning == ""


def test_restore_says_that_the_backup_is_gone(data: Dataset, session: Session) -> None:
    session.save(0, np.zeros((1, 1), np.uint8), 0, 0, session.mask(0).name)
    shutil.rmtree(data.state / "trash")
    with pytest.raises(ItemError, match="the mask as it was cannot be read"):
        session.changed(0, "restore", NONE)
