import json
import re
import shlex
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lora_prep.cli import COMMANDS, main
from lora_prep.cli.config import (
    WITHOUT_TABLE,
    ConfiguredCommand,
    configurable,
    option_defaults,
    read_config,
)
from lora_prep.cli.init import example, template


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured_commands() -> list[click.Command]:
    context = click.Context(main)
    names = [name for name in COMMANDS if name not in WITHOUT_TABLE]
    found = [main.get_command(context, name) for name in names]
    return [one for one in found if isinstance(one, ConfiguredCommand)]


def uncommented() -> str:
    """The template with all keys set."""
    return re.sub(r"^#(?=\S)", "", template(), flags=re.MULTILINE)


def test_makes_the_file_and_the_folders(here: Path) -> None:
    result = CliRunner().invoke(main, ["init"])
    assert result.exit_code == 0, result.output
    assert (here / "lora-prep.toml").read_text(encoding="utf-8") == template()
    assert (here / "data" / "faces").is_dir()
    assert (here / "data" / "masks").is_dir()


def test_prints_three_commands_that_exist(here: Path) -> None:
    printed = CliRunner().invoke(main, ["init"]).stdout
    told = re.findall(r"^  lora-prep (.*?)(?:   .*)?$", printed, flags=re.MULTILINE)
    assert len(told) == 3
    for line in told:
        name, *args = shlex.split(line)
        command = main.get_command(click.Context(main), name)
        assert command
        command.make_context(name, args)  # raises where an option is wrong or missing
    assert "  cd " not in printed


def test_another_folder_is_made_and_named(here: Path) -> None:
    result = CliRunner().invoke(main, ["init", "sets/ada"])
    assert result.exit_code == 0
    assert (here / "sets" / "ada" / "lora-prep.toml").is_file()
    assert (here / "sets" / "ada" / "data" / "faces").is_dir()
    assert "  cd sets/ada\n" in result.stdout


def test_folders_that_exist_are_left_as_they_are(here: Path) -> None:
    (here / "data" / "faces").mkdir(parents=True)
    (here / "data" / "faces" / "a.jpg").write_bytes(b"mine")
    assert CliRunner().invoke(main, ["init"]).exit_code == 0
    assert (here / "data" / "faces" / "a.jpg").read_bytes() == b"mine"
    assert (here / "data" / "masks").is_dir()


def test_an_existing_file_is_never_replaced(here: Path) -> None:
    (here / "lora-prep.toml").write_text("# mine")
    result = CliRunner().invoke(main, ["init"])
    assert result.exit_code == 2
    assert "there is a lora-prep.toml already: it was left as it is" in result.stderr
    assert (here / "lora-prep.toml").read_text() == "# mine"
    assert [path.name for path in here.iterdir()] == ["lora-prep.toml"]


def test_a_file_in_the_place_of_a_folder_is_said(here: Path) -> None:
    (here / "data").write_text("")
    result = CliRunner().invoke(main, ["init"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: cannot make data")
    assert not (here / "lora-prep.toml").exists()


def test_the_template_as_written_sets_the_place_only(here: Path) -> None:
    CliRunner().invoke(main, ["init"])
    config = read_config(here / "lora-prep.toml")
    assert (config.images, config.masks) == (here / "data/faces", here / "data/masks")
    assert not any(option_defaults(config, one) for one in configured_commands())


def test_the_template_has_a_table_for_each_configured_command_and_all_its_keys() -> None:
    values = tomllib.loads(uncommented())
    commands = configured_commands()
    assert {"normalize", "detect", "masks", "validate"} < {one.name for one in commands}
    assert set(values) == {"dataset"} | {one.name for one in commands}
    assert set(values["dataset"]) == {"images", "masks", "recursive"}
    for one in commands:
        assert one.name
        assert set(values[one.name]) == set(configurable(one))


def test_every_key_is_accepted_once_its_comment_sign_is_gone(here: Path) -> None:
    path = here / "lora-prep.toml"
    path.write_text(uncommented(), encoding="utf-8")
    config = read_config(path)
    for one in configured_commands():
        assert one.name
        assert len(option_defaults(config, one)) == len(configurable(one))
        photos = ["photos"] if one.name == "normalize" else []
        one.make_context(one.name, photos)


def test_values_in_the_template_are_the_defaults(here: Path) -> None:
    path = here / "lora-prep.toml"
    path.write_text(uncommented(), encoding="utf-8")
    config = read_config(path)
    for one in configured_commands():
        for key, option in configurable(one).items():
            default = option.to_info_dict()["default"]
            if default not in (None, ()):
                written = config.commands[one.name or ""][key]
                assert written == (list(default) if option.multiple else default), key


def test_a_run_with_all_keys_set(here: Path) -> None:
    (here / "lora-prep.toml").write_text(uncommented(), encoding="utf-8")
    (here / "data" / "faces").mkdir(parents=True)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(here / "data" / "faces" / "a.png")
    models = ["--detector", "cascade", "--segmenter", "grabcut"]
    result = CliRunner().invoke(main, ["masks", "--dry-run", "--json", *models])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["counts"]["done"] == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (click.Option(["--x"], default="2%"), "2%"),
        (click.Option(["--x"], is_flag=True), False),
        (click.Option(["--x"], type=click.IntRange(32), help="Side.  [default: 640]"), 640),
        (click.Option(["--x"], type=click.FloatRange(0, 1), help="Score.  [default: 0.5]"), 0.5),
        (click.Option(["--x"], type=click.IntRange(1), help="[default: 1 here, 8 there]"), 1),
        (click.Option(["--x"], type=click.Choice(["a", "b"])), "a"),
        (click.Option(["--x"], metavar="FILE"), "FILE"),
        (click.Option(["--x"], multiple=True), []),
        (click.Option(["--x"], multiple=True, default=["p", "q"]), ["p", "q"]),
    ],
)
def test_example_values(option: click.Option, value: object) -> None:
    assert example(option) == value
