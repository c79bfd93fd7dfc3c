"""The detector's options, through `lora-prep detect`."""

import hashlib
import json
import shutil

import cv2
import numpy as np
import pytest
from huggingface_hub import constants

from lora_prep.backends import licenses, yunet
from tests.fakes import hub
from tests.fakes.red_square_detector import SIDE, write_pack
from tests.fakes.red_square_yunet import write_yunet


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user with a buffalo_l, who has accepted nothing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("LORA_PREP_ACCEPT_LICENSE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    write_pack(tmp_path / ".insightface" / "models" / "buffalo_l")
    return tmp_path


@pytest.fixture
def images(home):
    """A picture with a red square around (160, 128)."""
    folder = home / "data" / "faces"
    folder.mkdir(parents=True)
    image = np.full((320, 320, 3), 90, np.uint8)
    half = SIDE // 2
    image[128 - half : 128 + half, 160 - half : 160 + half] = (0, 0, 255)
    cv2.imwrite(str(folder / "a.png"), image)
    return folder


def boxes(result):
    (item,) = json.loads(result.stdout)["items"]
    return [face["box"] for face in item["info"]["faces"]]


SQUARE = [128, 96, 192, 160]
OPTIONS = ("--det-size", 320, "--device", "cpu", "--json")


def test_a_pack_by_name_wants_its_licence_accepted(images, lora_prep):
    refused = lora_prep("detect", images, *OPTIONS, code=2)
    assert refused.stdout == ""
    assert "buffalo_l is one of insightface's" in refused.stderr
    assert not licenses.record().exists()
    assert not (images.parent / ".lora-prep" / "faces").exists()


def test_accepted_once(images, lora_prep):
    first = lora_prep("detect", images, "--accept-license", *OPTIONS)
    assert boxes(first) == [pytest.approx(SQUARE, abs=0.1)]
    assert f"licence accepted: {licenses.record()}\n" in first.stderr
    again = lora_prep("detect", images, "--force", *OPTIONS)
    assert boxes(again) == boxes(first)
    assert "licence" not in again.stderr


def test_the_variable_is_enough(images, lora_prep, monkeypatch):
    monkeypatch.setenv("LORA_PREP_ACCEPT_LICENSE", "1")
    assert len(boxes(lora_prep("detect", images, *OPTIONS))) == 1
    assert not licenses.record().exists()


def test_models_of_the_users_own_want_nothing(images, home, lora_prep):
    own = shutil.copytree(home / ".insightface" / "models" / "buffalo_l", home / "own")
    given = lora_prep("detect", images, "--face-model", own, "--accept-license", *OPTIONS)
    assert len(boxes(given)) == 1
    assert not licenses.record().exists()


def test_yunet_from_a_file(images, home, lora_prep):
    file = write_yunet(home / "mine.onnx")
    given = lora_prep("detect", images, "--detector", "yunet", "--face-model", file, "--json")
    assert boxes(given) == [SQUARE]


@pytest.mark.parametrize("preset", ["best", "fast", "embedded"])
def test_yunet_as_opencv_publishes_it(images, home, lora_prep, monkeypatch, preset):
    content = write_yunet(home / "published.onnx").read_bytes()
    monkeypatch.setattr(yunet, "SHA256", hashlib.sha256(content).hexdigest())
    with hub.serve() as server:
        server.add_to_hub(yunet.REPO, yunet.FILENAME, content)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        options = ("--preset", preset, "--detector", "yunet", "--json")
        assert boxes(lora_prep("detect", images, *options)) == [SQUARE]


def test_a_configuration_cannot_accept(images, lora_prep, monkeypatch):
    (images.parent / "lora-prep.toml").write_text("[detect]\naccept-license = true\n")
    refused = lora_prep("detect", images, code=2)
    assert "[detect] has no key 'accept-license'" in refused.stderr
    assert not licenses.record().exists()
