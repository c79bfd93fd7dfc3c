import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from lora_prep.errors import DatasetError
from sample_data import photos

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_photographs_are_copied_byte_for_byte(tmp_path: Path) -> None:
    shipped = photos.photographs()
    written = photos.collect(tmp_path / "new" / "photos")
    assert [path.name for path in written] == [photo.name for photo in shipped]
    for photo, path in zip(shipped, written, strict=True):
        assert path.read_bytes() == photo.path.read_bytes()
    assert len({path.stem for path in written}) == len(written)


def test_there_are_faces_and_negatives() -> None:
    faces = {photo.name: photo.faces for photo in photos.photographs()}
    assert faces["t1.jpg"] == 6
    assert sum(count > 0 for count in faces.values()) == 4
    assert sum(count == 0 for count in faces.values()) == 3
    assert all(photo.source for photo in photos.photographs())


def test_the_packages_are_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from sample_data.photos import collect\n"
        f"collect(Path({str(tmp_path)!r}))\n"
        "print(*{'insightface', 'skimage', 'matplotlib', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    with pytest.raises(DatasetError, match=r"grace_hopper.*pip install matplotlib"):
        photos.collect(tmp_path)


@pytest.mark.usefixtures("no_network")
def test_the_demo_has_something_to_normalise(tmp_path: Path) -> None:
    written = {path.name: path for path in photos.collect_demo(tmp_path)}
    assert len(written) == 10
    assert len({path.stem for path in written.values()}) == 10

    upright = np.asarray(Image.open(written["astronaut.png"]).convert("RGB"))
    with Image.open(written["astronaut_turned.jpg"]) as turned:
        assert turned.getexif()[0x0112] == 6
        assert turned.getexif().get_ifd(0x8825)[1] == "N"
        lying = np.asarray(turned)
        shown = np.asarray(ImageOps.exif_transpose(turned))
    assert np.abs(shown - upright.astype(float)).mean() < 3
    assert np.abs(lying - upright.astype(float)).mean() > 30

    deep = cv2.imread(str(written["coffee_16bit.png"]), cv2.IMREAD_UNCHANGED)
    assert deep.dtype == np.uint16
    coffee = cv2.imread(str(written["coffee.png"]))
    assert (deep // 257 == coffee).all()
    assert Image.open(written["chelsea_cmyk.jpg"]).mode == "CMYK"
