"""What counts as an image, what belongs to it, and what is refused."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_prep.dataset import Dataset, is_image
from lora_prep.errors import DatasetError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def names(dataset: Dataset) -> list[str]:
    return [sample.name for sample in dataset]


def test_the_parallel_layout(tmp_path):
    faces = touch(tmp_path / "data/faces", "x.jpg", "a b.PNG")
    dataset = Dataset.at(faces)
    sample = dataset.sample("x.jpg")
    assert names(dataset) == ["a b.PNG", "x.jpg"]
    assert len(dataset) == 2
    assert sample.mask == tmp_path / "data/masks/x.png"
    assert sample.caption == tmp_path / "data/faces/x.txt"
    assert dataset.root == tmp_path / "data"
    assert dataset.state == tmp_path / "data/.lora-prep"
    assert dataset.key(sample.image) == "faces/x.jpg"


def test_masks_elsewhere_take_the_state_along(tmp_path):
    faces = touch(tmp_path / "readonly/faces", "x.jpg")
    dataset = Dataset.at(faces, masks=tmp_path / "work/masks")
    assert dataset.state == tmp_path / "work/.lora-prep"
    assert dataset.key(faces / "x.jpg") == "../readonly/faces/x.jpg"


@pytest.mark.parametrize("folder", ["faces", "images"])
def test_the_root_will_do(tmp_path, folder):
    touch(tmp_path / folder, "x.jpg")
    assert Dataset.at(tmp_path).images == tmp_path / folder


def test_only_visible_images_count(tmp_path):
    touch(
        tmp_path / "d",
        "a.jpg",
        "b.TIFF",
        "a.txt",
        ".hidden.jpg",
        "._a.jpg",
        ".cache/c.jpg",
        "notes",
    )
    assert names(Dataset.at(tmp_path / "d")) == ["a.jpg", "b.TIFF"]


def test_sub_folders_are_read_on_request_and_mirrored(tmp_path):
    touch(tmp_path / "d", "a.jpg", "in/b.jpg", "in/deeper/c.jpg")
    assert names(Dataset.at(tmp_path / "d")) == ["a.jpg"]
    dataset = Dataset.at(tmp_path / "d", recursive=True)
    assert names(dataset) == ["a.jpg", "in/b.jpg", "in/deeper/c.jpg"]
    assert dataset.sample("in/b.jpg").mask == tmp_path / "masks/in/b.png"


def test_a_loop_of_links_is_not_followed(tmp_path):
    folder = touch(tmp_path / "d", "a.jpg")
    (folder / "loop").symlink_to(folder)
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    assert names(Dataset.at(folder, recursive=True)) == ["a.jpg"]


def test_a_dot_in_a_name_is_part_of_the_stem(tmp_path):
    folder = touch(tmp_path / "d", "img.v2.jpg")
    sample = Dataset.at(folder).sample("img.v2.jpg")
    assert (sample.stem, sample.mask.name, sample.caption.name) == (
        "img.v2",
        "img.v2.png",
        "img.v2.txt",
    )


def test_images_that_would_share_a_mask_know_each_other(tmp_path):
    folder = touch(tmp_path / "d", "x.jpg", "x.png", "y.jpg", "X.webp")
    dataset = Dataset.at(folder)
    assert dataset.sharers(dataset.sample("x.jpg")) == ["x.png"]
    assert dataset.sharers(dataset.sample("y.jpg")) == []
    assert dataset.sharers(dataset.sample("X.webp")) == []


def test_unicode_forms_of_one_name_share_a_mask(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    folder = touch(tmp_path / "d", composed, decomposed)
    dataset = Dataset.at(folder)
    assert dataset.sharers(dataset.sample(composed)) == [decomposed]


def test_masks_among_the_images_are_refused(tmp_path):
    folder = touch(tmp_path / "d", "x.jpg")
    for masks in (folder, folder / "masks"):
        with pytest.raises(DatasetError, match="beside it"):
            Dataset.at(folder, masks=masks)


def test_what_is_not_a_dataset_is_told_so(tmp_path):
    touch(tmp_path, "empty/notes.txt", "nested/in/x.jpg", "file.jpg")
    with pytest.raises(DatasetError, match="there is no folder"):
        Dataset.at(tmp_path / "missing")
    with pytest.raises(DatasetError, match="is a file"):
        Dataset.at(tmp_path / "file.jpg")
    with pytest.raises(DatasetError, match="there is no image in"):
        Dataset.at(tmp_path / "empty")
    with pytest.raises(DatasetError, match="--recursive"):
        Dataset.at(tmp_path / "nested")


@given(st.text(min_size=1, max_size=20), st.sampled_from([".jpg", ".JPEG", ".png", ".WebP"]))
def test_endings_count_in_any_case(stem, suffix):
    assert is_image(stem.replace("/", "") + "x" + suffix)
    assert not is_image(stem.replace("/", "") + "x" + suffix + ".part")
