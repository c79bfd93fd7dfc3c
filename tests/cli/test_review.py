"""`lora-prep review`: the command around the page."""

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lora_prep import decisions, imageio
from lora_prep.dataset import Dataset
from lora_prep.decisions import Verdict
from lora_prep.review import app


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    (tmp_path / "data" / "faces").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir()
    image = np.full((40, 40, 3), 90, np.uint8)
    for name in ("a.png", "b.png", "c\n.png"):
        (tmp_path / "data" / "faces" / name).write_bytes(imageio.encode_image(image, "png"))
        mask = tmp_path / "data" / "masks" / name
        mask.write_bytes(imageio.encode_mask(np.full((40, 40), 255, np.uint8)))
    return Dataset.at(tmp_path / "data")


def decided(data: Dataset) -> None:
    decisions.decide(data, data.sample("a.png"), Verdict.ACCEPTED)
    decisions.decide(data, data.sample("c\n.png"), Verdict.REJECTED)
    decisions.note_edit(data, data.sample("b.png"))


def test_list(data: Dataset, lora_prep: Callable[..., object]) -> None:
    decided(data)
    assert lora_prep("review", data.root, "--list").stdout.splitlines() == [
        "accepted  a.png",
        "undecided b.png  mask edited",
        r"rejected  c\n.png",
        "3 images: 1 accepted, 1 rejected, 1 undecided, 1 edited",
    ]


def test_json(data: Dataset, lora_prep: Callable[..., object]) -> None:
    decided(data)
    document = json.loads(lora_prep("review", data.root, "--json").stdout)
    assert document["schema"] == 1
    assert document["images"] == 3
    assert document["counts"] == {"accepted": 1, "rejected": 1, "undecided": 1, "edited": 1}
    found = {item["name"]: (item["verdict"], item["edited"]) for item in document["items"]}
    assert found == {
        "a.png": ("accepted", False),
        "b.png": (None, True),
        "c\n.png": ("rejected", False),
    }


def test_listing_writes_nothing(data: Dataset, lora_prep: Callable[..., object]) -> None:
    assert lora_prep("review", data.root, "--list").stdout == (
        "3 images: 0 accepted, 0 rejected, 3 undecided, 0 edited\n"
    )
    assert not data.state.exists()


def test_there_is_no_way_to_listen_to_other_machines(
    data: Dataset, lora_prep: Callable[..., object]
) -> None:
    result = lora_prep("review", data.root, "--host", "0.0.0.0", code=2)
    assert "No such option '--host'" in result.stderr


def test_a_port_that_is_taken(data: Dataset, lora_prep: Callable[..., object]) -> None:
    with app.listen(0) as listening:
        port = listening.getsockname()[1]
        result = lora_prep("review", data.root, "--no-browser", "--port", port, code=2)
    assert f"cannot listen at port {port}" in result.stderr


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_what_is_missing_is_named(
    data: Dataset,
    lora_prep: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "lora_prep.review.app")
    monkeypatch.delattr("lora_prep.review.app")
    monkeypatch.setitem(sys.modules, package, None)
    result = lora_prep("review", data.root, "--no-browser", code=None)
    assert result.exit_code == 2
    assert "pip install 'lora-prep[review]'" in result.stderr
    lora_prep("review", data.root, "--list")  # which needs none


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_prints_the_address_serves_and_ends_cleanly(data: Dataset, number: signal.Signals) -> None:
    arguments = ("review", str(data.root), "--preset", "embedded", "--no-browser")
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_prep", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("review: http://127.0.0.1:"), line
        host, _, path = line.removeprefix("review: http://").strip().partition("/")
        assert len(path) > 30  # the token
        connection = http.client.HTTPConnection(host, timeout=60)
        headers = {"Content-Type": "application/json"}
        body = json.dumps({"verdict": "rejected"})
        connection.request("PUT", f"/{path}api/images/0/decision", body, headers)
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (0 if number == signal.SIGINT else -number), err
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert "3 images: 0 accepted, 1 rejected, 2 undecided, 0 edited" in out
    assert decisions.rejected(data) == {"a.png"}
