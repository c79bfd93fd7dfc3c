"""What is listed, and that it is what `Dataset` takes for images."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_prep.dataset import Dataset, image_names
from lora_prep.errors import DatasetError
from lora_prep.validate.listing import Folder, Listing, scan
from tests.validate.made import Data

NAMES = ["a.jpg", "A.JPG", "._a.jpg", "a.txt", "b/c.png", "b/.d/e.png", ".f/g.png", "h.i.gif", "j"]


def touch(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_each_name_has_its_place(tmp_path: Path) -> None:
    touch(tmp_path, NAMES)
    (tmp_path / "linked").symlink_to("b")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "empty").mkdir()
    assert scan(tmp_path, recursive=False) == Folder(
        images=["A.JPG", "a.jpg", "h.i.gif"],
        others=["a.txt", "j"],
        hidden=["._a.jpg"],
        broken=["gone.png"],
        unread=["b", "linked"],
    )
    assert scan(tmp_path, recursive=True) == Folder(
        images=["A.JPG", "a.jpg", "b/c.png", "h.i.gif"],
        others=["a.txt", "j"],
        hidden=["._a.jpg"],
        broken=["gone.png"],
        unread=["linked"],
    )


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(NAMES), unique=True), recursive=st.booleans())
def test_images_are_what_the_data_set_takes(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], recursive: bool
) -> None:
    folder = tmp_path_factory.mktemp("names")
    touch(folder, names)
    assert [*scan(folder, recursive=recursive).images] == sorted(
        image_names(folder, recursive=recursive)
    )


def test_of_several_masks_the_png_counts(data: Data) -> None:
    for suffix in ("bmp", "webp"):
        data.mask(f"a.{suffix}")
    listing = Listing.of(Dataset.at(data.root))
    assert dict(listing.pairs)["a.jpg"] == "a.png"


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot read the folder .*nowhere"):
        scan(tmp_path / "nowhere", recursive=False)
