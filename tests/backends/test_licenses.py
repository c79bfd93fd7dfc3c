import json

import pytest

from lora_prep.backends import licenses
from lora_prep.errors import BackendError


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("LORA_PREP_ACCEPT_LICENSE", raising=False)
    return tmp_path


def test_nothing_is_accepted_at_first(home):
    assert not licenses.accepted()
    with pytest.raises(BackendError, match="buffalo_m is one of insightface's model packs"):
        licenses.require("buffalo_m")
    assert list(home.iterdir()) == []


def test_accepted_once_is_accepted_for_all_packs(home):
    licenses.accept()
    assert licenses.accepted()
    licenses.require("buffalo_l")
    licenses.require("antelopev2")


def test_the_record_says_what_and_when(home):
    licenses.accept()
    path = home / ".config" / "lora-prep" / "accepted.json"
    assert path == licenses.record()
    entry = json.loads(path.read_text())["insightface"]
    assert entry["terms"] == "for non-commercial research only"
    assert entry["accepted"].endswith("+00:00")
    assert [p.name for p in path.parent.iterdir()] == ["accepted.json"]


def test_the_users_configuration_folder_counts(home, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "conf"))
    licenses.accept()
    assert (home / "conf" / "lora-prep" / "accepted.json").is_file()
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")  # which the standard says to ignore
    assert licenses.record() == home / ".config" / "lora-prep" / "accepted.json"
    assert not licenses.accepted()


@pytest.mark.parametrize(
    ("value", "means"), [("1", True), ("yes", True), ("TRUE", True), ("0", False), ("", False)]
)
def test_the_variable_counts_for_the_process(home, monkeypatch, value, means):
    monkeypatch.setenv("LORA_PREP_ACCEPT_LICENSE", value)
    assert licenses.accepted() is means
    assert not licenses.record().exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"\xff", b'{"insightface'])
def test_a_damaged_record_accepts_nothing_and_is_replaced(home, content):
    licenses.record().parent.mkdir(parents=True)
    licenses.record().write_bytes(content)
    assert not licenses.accepted()
    licenses.accept()
    assert licenses.accepted()


def test_what_else_is_in_the_record_stays(home):
    licenses.record().parent.mkdir(parents=True)
    licenses.record().write_text('{"other": 1}')
    licenses.accept()
    assert set(json.loads(licenses.record().read_text())) == {"other", "insightface"}


def test_a_record_that_cannot_be_written(home):
    (home / ".config").touch()
    with pytest.raises(BackendError, match=r"accepted\.json: .*LORA_PREP_ACCEPT_LICENSE=1"):
        licenses.accept()
