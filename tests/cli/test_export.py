"""`lora-prep export`: what it prints, its exit codes, its configuration."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest

from lora_prep import imageio


@pytest.fixture
def data(tmp_path):
    for name in ("one.png", "two\nlines.png"):
        pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
        mask = np.zeros((96, 128), np.uint8)
        mask[20:70, 30:90] = 255
        for folder, encoded in (
            ("faces", imageio.encode_image(pixels, "png")),
            ("masks", imageio.encode_mask(mask)),
        ):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / folder / name).write_bytes(encoded)
    return tmp_path / "data"


def test_json_tells_everything(data, tmp_path, lora_prep):
    (data / "masks" / "one.png").unlink()
    options = ("--out", tmp_path / "x", "--trigger", "ohwx", "--json", "--check")
    result = lora_prep("export", "--to", "diffusion-pipe", data, *options, code=1)
    document = json.loads(result.stdout)
    assert document["images"] == 1
    assert document["left_out"][0]["key"] == "one.png"
    assert document["configs"] == ["dataset.toml", "training.toml"]
    assert document["check"]["problems"] == []
    assert document["check"]["masked"] == 1
    assert "images/two_lines.png" in document["changed"]


def test_names_cannot_forge_lines(data, tmp_path, lora_prep):
    (data / "masks" / "two\nlines.png").unlink()
    options = ("--out", tmp_path / "x", "--trigger", "x")
    result = lora_prep("export", "--to", "kohya", data, *options, code=1)
    assert "left out  two\\nlines.png: " in result.output


def test_the_command_survives_the_shell(data, tmp_path, lora_prep):
    out = tmp_path / 'it\'s "mine" & $HOME'
    lora_prep("export", "--to", "kohya", data, "--out", out, "--trigger", "x")
    command = re.search(r"```sh\n(.*?)```", (out / "TRAIN.md").read_text(), re.DOTALL)
    words = shlex.split(command[1])
    assert words[words.index("--dataset_config") + 1] == str(out / "dataset.toml")
    config = tomllib.loads((out / "dataset.toml").read_text())
    assert config["datasets"][0]["subsets"][0]["image_dir"] == str(out / "rgba")


def test_masks_of_older_images_are_warned_of(faces, tmp_path, lora_prep):
    lora_prep("masks", faces, "--preset", "embedded", "--no-face", "skip", code=None)
    options = ("--out", tmp_path / "x", "--trigger", "x")
    assert "out of date" not in lora_prep("export", "--to", "kohya", faces, *options).stderr
    first = sorted((faces.parent / "masks").iterdir())[0].stem
    image = next(faces.glob(f"{first}.*"))
    image.write_bytes(imageio.encode_image(imageio.decode_image(image.read_bytes())[::-1], "png"))
    result = lora_prep("export", "--to", "kohya", faces, *options, code=None)
    assert f"masks out of date: masks/{first}.png; " in result.stderr


def test_check_alone_needs_no_data(data, tmp_path, lora_prep):
    out = tmp_path / "x"
    lora_prep("export", "--to", "onetrainer", data, "--out", out, "--trigger", "x")
    result = lora_prep("export", "--check", "--out", out)
    assert "onetrainer reads 2 images, uses the masks of 2: all well" in result.output
    document = json.loads(lora_prep("export", "--check", "--out", out, "--json").output)
    assert document["check"]["images"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "kohya"), "--out DIR"),
        (("--out", "x"), "say for which trainer"),
        (("--check", "--out", "nowhere"), "holds no finished export"),
        (("--to", "lora-trainer", "--out", "x"), "'lora-trainer' is not one of"),
        (("--to", "kohya", "--out", "x", "--priors", "nowhere"), "there is no folder nowhere"),
        (("--to", "kohya", "--out", "x", "--augmented"), "there is no folder"),
    ],
)
def test_wrong_usage(arguments, said, data, tmp_path, lora_prep, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in lora_prep("export", *arguments, code=2).output
    assert not (tmp_path / "x").exists()


def test_settings_from_the_configuration_file(data, tmp_path, lora_prep, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lora-prep.toml").write_text(
        '[dataset]\nimages = "data/faces"\nmasks = "data/masks"\n'
        '[export]\nto = "ai-toolkit"\nout = "train"\ntrigger = "ohwx"\nresolution = [512, 768]\n'
    )
    lora_prep("export")
    assert "- 512\n      - 768" in (tmp_path / "train" / "config.yaml").read_text()
    Path("lora-prep.toml").write_text("[export]\nmask_flor = 0.1\n")
    assert "mask-floor" in lora_prep("export", data, code=2).output


def test_quiet_says_problems_only(data, tmp_path, lora_prep):
    options = ("--out", tmp_path / "x", "--trigger", "x", "-q")
    assert lora_prep("export", "--to", "kohya", data, *options).output == ""
    (data / "masks" / "one.png").unlink()
    assert (
        "left out  one.png" in lora_prep("export", "--to", "kohya", data, *options, code=1).output
    )
