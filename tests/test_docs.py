import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import click
import pytest

from docs import generate
from lora_prep.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)


def shown_commands(page: Path) -> Iterator[str]:
    """Every call of lora-prep in a page's blocks of code."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.M):
        for line in block.splitlines():
            if line.removeprefix("$ ").startswith("lora-prep "):
                yield re.split(r" \| | && | > |   ", line.removeprefix("$ "))[0]


def test_the_pages_of_the_commands_are_up_to_date(tmp_path: Path) -> None:
    generate.write(tmp_path)
    made = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text("utf-8") for path in generate.FOLDER.iterdir()}
    assert set(made) == {f"{name}.md" for name in COMMANDS}
    assert kept == made, "run make docs"


def test_every_option_is_on_its_page() -> None:
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        text = generate.page(name)
        for option in chain(command.params, *(one.params for one in inner)):
            for opt in option.opts if isinstance(option, click.Option) else ():
                assert re.search(rf"^- `[^`]*{opt}\b", text, re.M), (name, opt)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"\w+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_that_are_shown_can_be_typed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for shown in shown_commands(page):
        _, name, *args = shlex.split(shown, comments=True)
        if name.startswith("-") or "[OPTIONS]" in args:
            continue
        command = main.get_command(click.Context(main), name)
        assert command, shown
        if isinstance(command, click.Group):
            name, *args = args
            command = command.get_command(click.Context(command), name)
            assert command, shown
        with suppress(click.exceptions.Exit):  # --help
            command.make_context(name, args)  # raises where something cannot be typed so


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a * b", r"a \* b"),
        ("`a*b` and 1<=x", "`a*b` and 1<=x"),
        ("<name>", r"\<name>"),
    ],
)
def test_escaping(text: str, shown: str) -> None:
    assert generate.escaped(text) == shown


def test_paragraphs_keep_what_click_keeps() -> None:
    text = "One\ntwo.\n\n\b\nExamples:\n  lora-prep x   y\n  lora-prep z\n\b\nCodes: 0, 1.\n"
    assert list(generate.paragraphs(text, "##")) == [
        "One\ntwo.",
        "## Examples",
        "```\nlora-prep x   y\nlora-prep z\n```",
        "Codes: 0, 1.",
    ]
