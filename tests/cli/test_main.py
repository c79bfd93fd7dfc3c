import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import lora_prep
from lora_prep.cli import COMMANDS, main

HEAVY = (
    "torch", "torchvision", "onnxruntime", "insightface", "sam2", "skimage", "albumentations",
    "numpy", "cv2", "PIL", "jaxtyping",
)  # fmt: skip


def command(name: str) -> click.Command:
    """A command by its name: `masks`, `models list`."""
    found: click.Command = main
    for part in name.split():
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), part)
        assert inner
        found = inner
    return found


def names() -> Iterator[str]:
    for name in COMMANDS:
        yield name
        if isinstance(group := command(name), click.Group):
            yield from (f"{name} {inner}" for inner in group.commands)


ALL = tuple(names())


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    listed = result.stdout.partition("Commands:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines() if line[:3].strip()] == [*COMMANDS]


def test_help_says_whole_sentences_in_a_narrow_window() -> None:
    result = CliRunner().invoke(main, ["--help"], terminal_width=60)
    assert "..." not in result.stdout.partition("Commands:\n")[2]


def test_help_starts_without_the_heavy_packages(tmp_path: Path) -> None:
    script = f"""
import json, sys
from click.testing import CliRunner
from lora_prep.cli import main

codes = [CliRunner().invoke(main, [*args, "--help"]).exit_code for args in
         [[], *(name.split() for name in {ALL!r})]]
print(json.dumps([codes, sorted(set({HEAVY!r}) & set(sys.modules))]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    codes, imported = json.loads(done.stdout)
    assert codes == [0] * (1 + len(ALL))
    assert imported == []


def test_python_m_lora_prep(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lora_prep", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"lora-prep, version {lora_prep.__version__}\n"


def test_an_unknown_command() -> None:
    result = CliRunner().invoke(main, ["mask"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no command 'mask': did you mean 'masks'?" in result.stderr
    assert "No such command 'xyzzy'" in CliRunner().invoke(main, ["xyzzy"]).stderr


def test_an_unknown_option() -> None:
    result = CliRunner().invoke(main, ["masks", "--eroded", "3"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No such option '--eroded'" in result.stderr


def test_lora_preps_errors_go_to_stderr_with_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["masks", str(tmp_path / "nowhere")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: there is no folder {tmp_path / 'nowhere'}\n"


@pytest.mark.parametrize("name", ALL)
def test_every_command_is_named_as_it_is_called_and_has_help(name: str) -> None:
    found = command(name)
    assert found.name == name.split()[-1]
    assert found.get_short_help_str()
    for option in found.params:
        if isinstance(option, click.Option):
            assert option.help, option


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_examples_that_parse(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    epilog = command(name).epilog or ""
    examples = [line.strip() for line in epilog.splitlines() if line.startswith("  lora-prep ")]
    assert examples, epilog
    for example in examples:
        called, *args = shlex.split(re.split("   | > ", example)[0].removeprefix("lora-prep "))
        if isinstance(command(called), click.Group):
            called, args = f"{called} {args[0]}", args[1:]
        assert called.startswith(name)
        command(called).make_context(called, args)
