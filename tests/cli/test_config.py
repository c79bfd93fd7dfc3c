import json
import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_prep.cli import COMMANDS, main
from lora_prep.cli.config import (
    WITHOUT_TABLE,
    Config,
    ConfiguredCommand,
    configurable,
    find_config,
    option_defaults,
    read_config,
)
from lora_prep.cli.detect import command as detect
from lora_prep.cli.masks import command as masks
from lora_prep.cli.normalize import command as normalize
from lora_prep.errors import UsageError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lora-prep.toml"
    path.write_text(text, encoding="utf-8")
    return path


def images(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names or ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)
    return folder


def params(command: click.Command, *args: str | Path) -> dict[str, Any]:
    """What a command would be called with."""
    return command.make_context(command.name, [str(a) for a in args]).params


def complaint(command: click.Command, *args: str) -> str:
    with pytest.raises(click.UsageError) as caught:
        command.make_context(command.name, list(args))
    assert caught.value.exit_code == 2
    return caught.value.message


def plan(*args: str | Path) -> dict[str, Any]:
    """The document of `lora-prep masks --dry-run`."""
    options = ["--preset", "embedded", "--dry-run", "--json"]
    result = CliRunner().invoke(main, ["masks", *(str(a) for a in args), *options])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


# ------------------------------------------------------------------ which file
def test_the_nearest_file_upwards_counts(here: Path) -> None:
    write(here, "[masks]\nmin-face = 1")
    near = write(here / "a" / "b", "[masks]\nmin-face = 2")
    (here / "a" / "b" / "c" / "faces").mkdir(parents=True)
    assert find_config(here / "a" / "b" / "c" / "faces").path == near
    assert find_config(here / "a").path == here / "lora-prep.toml"
    assert params(masks, here / "a" / "b" / "c" / "faces")["min_face"] == 2
    assert params(masks, "a")["min_face"] == 1
    assert params(masks)["min_face"] == 1


def test_the_search_starts_at_the_image_folder_and_not_here(here: Path) -> None:
    write(here / "work", "[masks]\nmin-face = 1")
    write(here / "elsewhere", "[masks]\nmin-face = 2")
    os.chdir(here / "work")
    assert params(masks, "../elsewhere/faces")["min_face"] == 2


def test_no_file_means_the_defaults(here: Path) -> None:
    assert find_config(here).path is None
    assert params(masks, "faces")["min_face"] == 32
    assert params(masks, "faces")["out"] is None


def test_config_names_another_file(here: Path) -> None:
    write(here, "[masks]\nmin-face = 1")
    (here / "other.toml").write_text("[masks]\nmin-face = 7\n")
    assert params(masks, "faces", "--config", "other.toml")["min_face"] == 7
    assert params(masks, "faces")["min_face"] == 1


def test_config_that_is_not_there(here: Path) -> None:
    assert complaint(masks, "faces", "--config", "no.toml") == (
        "cannot read no.toml: No such file or directory"
    )


# ------------------------------------------------------------------ its values
def test_the_command_line_wins(here: Path) -> None:
    write(here, '[masks]\nregion = "head"\nmin-face = 5\nquiet = true\n')
    given = params(masks, "faces", "--region", "person", "--min-face", "6")
    assert (given["region"], given["min_face"], given["quiet"]) == ("person", 6, True)


def test_each_command_has_its_own_table(here: Path) -> None:
    write(here, "[masks]\nthreads = 2\n[detect]\nthreads = 3\n")
    assert params(masks, "faces")["threads"] == 2
    assert params(detect, "faces")["threads"] == 3


def test_a_table_of_another_command_may_be_wrong_without_hindering_this_one(here: Path) -> None:
    write(here, "[masks]\nbogus = 2\n[detect]\nthreads = 3\n")
    assert params(detect, "faces")["threads"] == 3


@pytest.mark.parametrize("key", ["min-face", "min_face"])
def test_keys_are_written_with_hyphens_or_underscores(here: Path, key: str) -> None:
    write(here, f"[masks]\n{key} = 9")
    assert params(masks, "faces")["min_face"] == 9


@pytest.mark.parametrize(("written", "parsed"), [('"3%"', "3%"), ("4", "4"), ("1.5", "1.5")])
def test_a_text_may_be_written_as_a_number(here: Path, written: str, parsed: str) -> None:
    write(here, f"[masks]\nerode = {written}")
    assert params(masks, "faces")["erode"] == parsed


def test_a_number_may_be_written_without_a_fraction(here: Path) -> None:
    write(here, "[detect]\nmin-score = 1")
    assert params(detect, "faces")["min_score"] == 1.0


def test_folders_are_relative_to_the_file(here: Path) -> None:
    write(here, f'[masks]\noverlay = "look"\n[normalize]\nout = "{here / "abs"}"\n')
    (here / "sub").mkdir()
    os.chdir(here / "sub")
    assert params(masks, "faces")["overlay"] == here / "look"
    assert params(masks, "faces", "--overlay", "mine")["overlay"] == Path("mine")
    assert params(normalize, "photos")["out"] == here / "abs"


def test_configurable_options_are_those_of_the_help(here: Path) -> None:
    keys = configurable(masks)
    assert {"region", "min-face", "json", "sam2-model", "recursive"} <= set(keys)
    assert not {"force", "dry-run", "config", "help", "out", "images"} & set(keys)
    assert "out" in configurable(normalize)


def test_commands_have_a_table_if_they_read_it() -> None:
    context = click.Context(main)
    reading = {n for n in COMMANDS if isinstance(main.get_command(context, n), ConfiguredCommand)}
    assert {name for name in COMMANDS if name not in WITHOUT_TABLE} <= reading


# ------------------------------------------------------------------ what is wrong with it
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mask]\n", "there is no table [mask]; did you mean 'masks'?"),
        ("[zzz]\n", "there is no table [zzz]; there are dataset, normalize, detect, "),
        ("[doctor]\n", "there is no table [doctor]; there are dataset"),
        ("masks = 3\n", "masks is a table: write [masks]"),
        ("[[masks]]\n", "masks is a table: write [masks]"),
        ('[dataset]\nimage = "x"\n', "[dataset] has no key 'image'; did you mean 'images'?"),
        ("[dataset]\nimages = 3\n", "[dataset] images wants a str, not 3"),
        ('[dataset]\nrecursive = "yes"\n', "[dataset] recursive wants a bool, not 'yes'"),
        ("[masks]\nmin-fac = 3\n", "[masks] has no key 'min-fac'; did you mean 'min-face'?"),
        ("[masks]\nforce = true\n", "[masks] has no key 'force'"),
        ('[masks]\nout = "x"\n', "say where the masks lie with `masks` in [dataset]"),
        ('[masks]\nmin-face = "many"\n', "[masks] min-face: it wants a whole number, not 'many'"),
        ("[masks]\nmin-face = 4.5\n", "[masks] min-face: it wants a whole number, not 4.5"),
        ("[masks]\nmin-face = inf\n", "[masks] min-face: it wants a whole number, not inf"),
        ("[masks]\nmin-face = true\n", "[masks] min-face: it wants a whole number, not True"),
        ("[masks]\nmin-face = -1\n", "[masks] min-face: -1 is not in the range x>=0."),
        ("[masks]\nquiet = 1\n", "[masks] quiet: it wants true or false, not 1"),
        ("[masks]\nregion = 5\n", "[masks] region: it wants a text, not 5"),
        ('[masks]\nregion = "foot"\n', "[masks] region: 'foot' is not one of 'face', 'head', 'per"),
        ("[masks]\noverlay = 3\n", "[masks] overlay: it wants a text, not 3"),
        ("[masks]\nerode = [3]\n", "[masks] erode: it wants a text, not [3]"),
        ("[masks.erode]\nx = 1\n", "[masks] erode: it wants a text, not {'x': 1}"),
        ("[masks\n", "is not valid TOML: Expected ']'"),
        ("\xe9 = 1\n", "is not valid TOML"),
    ],
)
def test_mistakes_are_named_with_their_place(here: Path, text: str, message: str) -> None:
    write(here, text)
    said = complaint(masks, "faces")
    assert str(here / "lora-prep.toml") in said
    assert message in said


def test_a_file_that_is_not_text(here: Path) -> None:
    (here / "lora-prep.toml").write_bytes(b"a = '\xff'")
    assert "is not valid TOML" in complaint(masks, "faces")


def test_help_is_shown_whatever_the_file_says(here: Path) -> None:
    write(here, "[masks")
    result = CliRunner().invoke(main, ["masks", "--help"])
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_mistakes_end_the_program_with_code_2(here: Path) -> None:
    write(here, "[masks]\nmin-fac = 3\n")
    result = CliRunner().invoke(main, ["masks", "faces"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'min-face'?" in result.stderr


def test_read_config_and_option_defaults_raise_usage_errors(here: Path) -> None:
    config = read_config(write(here, "[masks]\nbogus = 1\n"))
    with pytest.raises(UsageError, match="no key 'bogus'"):
        option_defaults(config, masks)
    assert option_defaults(config, detect) == {}


@given(data=st.data(), command=st.sampled_from([masks, detect]))
def test_a_value_is_either_refused_with_its_place_or_taken(
    data: st.DataObject, command: click.Command
) -> None:
    scalars = st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
    words = st.sampled_from(["face", "all", "sam2", "2%", "auto", "best"])
    values = scalars | words | st.lists(scalars, max_size=2) | st.just({"a": 1})
    key = data.draw(st.sampled_from(sorted(configurable(command))))
    value = data.draw(values)
    name = command.name or ""
    config = Config(Path("/nowhere/lora-prep.toml"), commands={name: {key: value}})
    refusal = ""
    try:
        defaults = option_defaults(config, command)
    except UsageError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith(f"/nowhere/lora-prep.toml: [{name}] {key}: ")
        return
    context = command.make_context(name, ["/nowhere"], default_map=defaults)
    assert set(defaults) <= set(context.params)


# ------------------------------------------------------------------ the data set's place
def test_dataset_is_used_where_no_folder_is_given(here: Path) -> None:
    images(here / "pictures")
    write(here, '[dataset]\nimages = "pictures"\nmasks = "weights/m"\n')
    (here / "sub").mkdir()
    os.chdir(here / "sub")
    document = plan()
    assert document["total"] == 2
    assert Path(document["out"]) == here / "weights" / "m"


@pytest.mark.parametrize("given", ["pictures", "pictures/", "./sub/../pictures", "link"])
def test_masks_feed_out_for_the_same_images(here: Path, given: str) -> None:
    images(here / "pictures")
    (here / "sub").mkdir()
    (here / "link").symlink_to("pictures")
    write(here, '[dataset]\nimages = "pictures"\nmasks = "m"\n')
    assert Path(plan(given)["out"]) == here / "m"


def test_masks_feed_out_for_the_root_of_the_same_images(here: Path) -> None:
    images(here / "set" / "faces")
    write(here, '[dataset]\nimages = "set/faces"\nmasks = "m"\n')
    assert Path(plan("set")["out"]) == here / "m"


def test_masks_do_not_feed_out_for_other_images(here: Path) -> None:
    images(here / "pictures")
    images(here / "other" / "faces")
    write(here, '[dataset]\nimages = "pictures"\nmasks = "m"\nrecursive = true\n')
    assert Path(plan("other/faces")["out"]) == here / "other" / "masks"
    assert not params(masks, "other/faces")["recursive"]


def test_out_on_the_command_line_wins(here: Path) -> None:
    images(here / "pictures")
    write(here, '[dataset]\nimages = "pictures"\nmasks = "m"\n')
    assert Path(plan("--out", "n")["out"]) == here / "n"


def test_recursive_is_the_data_sets(here: Path) -> None:
    images(here / "pictures")
    images(here / "pictures" / "more", "c.png")
    write(here, '[dataset]\nimages = "pictures"\nrecursive = true\n')
    assert [item["key"] for item in plan()["items"]] == [
        "pictures/a.png",
        "pictures/b.png",
        "pictures/more/c.png",
    ]


def test_a_commands_recursive_goes_before_the_data_sets(here: Path) -> None:
    write(here, '[dataset]\nimages = "p"\nrecursive = true\n[masks]\nrecursive = false\n')
    assert params(masks)["recursive"] is False
    assert params(detect)["recursive"] is True


def test_data_here_is_taken_where_nothing_is_said(here: Path) -> None:
    images(here / "data" / "faces")
    assert Path(plan()["out"]) == here / "data" / "masks"


def test_nothing_to_work_on(here: Path) -> None:
    result: Result = CliRunner().invoke(main, ["masks"])
    assert result.exit_code == 2
    assert "lora-prep init" in result.stderr
