"""`lora-prep priors` as a user runs it, with a real, tiny pipeline."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from pathlib import Path

import pytest
from click.testing import Result

from lora_prep import executors, imageio, priors
from lora_prep.backends.diffusers_pipeline import DiffusersPainter, Request
from lora_prep.cli import main
from lora_prep.types import Image
from tests.fakes.tiny_pipelines import FAMILIES, Family, saved
from tests.stages.test_priors import each_for_itself


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("sd15", tmp_path_factory.mktemp("pipelines") / "sd15")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def arguments(model: Path, data: Path, count: int) -> list[str]:
    place = [str(data), "--model", str(model), "--device", "cpu"]
    return ["priors", *place, "--class", "a person", "-n", str(count), "--steps", "2"]


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.fakes.tiny_pipelines", "lora_prep.cli"])
"""What takes a new process many seconds to import is imported once."""


@pytest.fixture(scope="module", autouse=True)
def _server_ends() -> Iterator[None]:
    """It holds a gigabyte."""
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def draw_and_die(command: list[str], folder: Path) -> None:
    """Run it in this process, which SIGKILL hits in an image: some are saved, one is in a part."""
    draw, calls = DiffusersPainter.draw, itertools.count()

    def deadly(self: DiffusersPainter, requests: Sequence[Request]) -> list[Image | str]:
        drawn = next(calls)
        while len(list(folder.glob("*"))) < drawn:  # files, or parts of such
            time.sleep(0.005)
        if drawn >= 2 and any(folder.glob("[0-9]*.png")):
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(self, requests)

    DiffusersPainter.draw = deadly  # type: ignore[method-assign]
    main(command)


@pytest.mark.parametrize("family", FAMILIES)
def test_killed_and_resumed_in_other_batches_gives_the_same_bytes(
    family: Family, tmp_path: Path, lora_prep: Callable[..., Result]
) -> None:
    model = saved(family, tmp_path / "model")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for data in (whole, killed):
        data.mkdir()
    lora_prep(*arguments(model, whole, 4), "--size", 64)
    wanted = content(whole / "priors")
    assert len(wanted) == 4

    command = [*arguments(model, killed, 4), "--size", "64"]
    process = SERVER.Process(target=draw_and_die, args=([*command, "-q"], killed / "priors"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was to be killed"
    found = {k: v for k, v in content(killed / "priors").items() if not k.startswith(".")}
    assert 1 <= len(found) < 4
    assert found.items() < wanted.items()

    document = json.loads(lora_prep(*command, "--batch-size", 3, "--json").stdout)
    assert document["counts"]["fresh"] == len(found)
    assert content(killed / "priors") == wanted


def test_six_after_four_in_other_batches_are_those_of_six_at_once(model, tmp_path, lora_prep):
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    lora_prep(*arguments(model, tmp_path / "once", 6), "--batch-size", 4)
    lora_prep(*arguments(model, tmp_path / "twice", 4), "--batch-size", 1)
    lora_prep(*arguments(model, tmp_path / "twice", 6), "--batch-size", 3)
    once = content(tmp_path / "once" / "priors")
    assert len(once) == 6
    assert content(tmp_path / "twice" / "priors") == once


def test_what_was_drawn_is_replaced_with_force_alone(model, tmp_path, lora_prep):
    lora_prep(*arguments(model, tmp_path, 3))
    before = content(tmp_path / "priors")
    other = (*arguments(model, tmp_path, 4), "--seed", 1)
    for given in (other, (*other, "--json"), (*other, "--quiet")):
        result = lora_prep(*given, code=2)
        assert "3 class images" in result.output
        assert "--force" in result.output
        assert content(tmp_path / "priors") == before
    assert "4 to make" in lora_prep(*other, "--dry-run").stdout
    lora_prep(*other, "--force")
    after = content(tmp_path / "priors")
    assert len(after) == 4
    assert not after.keys() & before.keys()
    lora_prep(*other)


def test_several_workers_leave_no_two_alike(model, tmp_path, lora_prep, monkeypatch):
    real = priors.seed_of

    def seed_of(seed: int, index: int, attempt: int = 0) -> int:
        return real(seed, index if attempt else index % 2, attempt)  # 0 and 2 are alike at first

    monkeypatch.setattr(priors, "seed_of", seed_of)
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    lora_prep(*arguments(model, tmp_path / "one", 3))
    monkeypatch.setattr(executors, "choose", lambda *_, **_options: each_for_itself)
    result = lora_prep(*arguments(model, tmp_path / "many", 3), "--executor", "processes")
    assert "1 images that workers drew alike were drawn again" in result.stdout
    assert content(tmp_path / "many" / "priors") == content(tmp_path / "one" / "priors")


def test_cost_device_and_advice_are_told_before(model, faces, lora_prep):
    for i in range(45):
        shutil.copy(faces / "p00.png", faces / f"more{i}.png")
    result = lora_prep(*arguments(model, faces, 2))
    assert "2 images of 64x64 x 2 steps = 4 denoising steps" in result.stderr
    assert "on cpu in float32" in result.stderr
    assert "rule of thumb" in result.stderr
    assert "output preservation" in result.stderr
    assert len(content(faces.parent / "priors")) == 2


def test_no_model_and_no_hub(tmp_path, lora_prep, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    result = lora_prep("priors", tmp_path, "--class", "a dog", "--model", "some/model", code=2)
    assert "hf download some/model" in result.output
    assert "--from DIR" in result.output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give --class"),
        (["--class", "a dog", "--lora", "x.safetensors"], "base model knows"),
        (["--class", "a dog", "--batch-size", "many"], "auto or a number"),
        ([".", "--class", "a dog", "--out", "."], "own folder"),
        (["--class", "a dog", "--size", "0x9", "--model", "."], "--size"),
        (["--from", "nowhere"], "no such folder"),
        (["--from", "nowhere", "-n", "3"], "-n has no meaning"),
    ],
)
def test_wrong_usage(given, message, model, tmp_path, lora_prep, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [str(model) if one == "." and given[-2] == "--model" else one for one in given]
    result = lora_prep("priors", *given, code=2)
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_without_diffusers(tmp_path, lora_prep, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "diffusers" else real(name)
    )
    result = lora_prep("priors", tmp_path, "--class", "a dog", code=2)
    assert "pip install 'lora-prep[priors]'" in result.output


def test_a_prompt_without_the_class(tmp_path, lora_prep):
    (tmp_path / "prompts.txt").write_text("a photo of {class}\na photo\n")
    result = lora_prep(
        *("priors", tmp_path, "--class", "a dog", "--prompts", tmp_path / "prompts.txt"), code=2
    )
    assert "line 2" in result.output


def test_require_face_draws_again_and_gives_up(model, tmp_path, lora_prep):
    given = (*arguments(model, tmp_path, 1), "--require-face", "--preset", "embedded")
    result = lora_prep(*given, code=1)
    assert "there is no face in it" in result.output
    assert content(tmp_path / "priors") == {}


def test_from_takes_over_and_the_rest_is_drawn(model, portraits, tmp_path, lora_prep):
    old, data = tmp_path / "old", tmp_path / "data"
    old.mkdir()
    data.mkdir()
    for i in range(2):
        picture = imageio.encode_image(portraits[i].image, "png")
        (old / f"x{i}.png").write_bytes(picture)
    (old / "broken.jpg").write_bytes(b"\xff\xd8 no")
    before = content(old)
    result = lora_prep("priors", data, "--from", old, code=1)
    assert "broken.jpg" in result.output
    assert len(content(data / "priors")) == 2
    assert content(old) == before
    lora_prep(*arguments(model, data, 3))
    assert len(content(data / "priors")) == 3
    assert {path.name for path in data.iterdir()} == {"priors", ".lora-prep"}


def test_export_knows_what_was_taken_over_shows(portraits, tmp_path, lora_prep):
    data, old = tmp_path / "data", tmp_path / "old"
    for folder, i in ((data / "faces", 0), (old, 1)):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(imageio.encode_image(portraits[i].image, "png"))
    export = ("export", "--to", "ai-toolkit", data, "--no-masks", "--trigger", "ohwx", "--out")
    said = lora_prep("priors", data, "--from", old).stderr
    assert "what these images show is not known: say it with --class" in said
    assert "say with --class" in lora_prep(*export, tmp_path / "x", code=2).stderr
    said = lora_prep("priors", data, "--from", old, "--class", " a woman ").stderr
    assert "not known" not in said
    lora_prep(*export, tmp_path / "x")
    (caption,) = (tmp_path / "x").glob("class/*.txt")
    assert caption.read_text("utf-8").strip() == "a woman"
    assert len(content(data / "priors")) == 1
