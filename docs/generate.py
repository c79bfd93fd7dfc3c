"""Writes docs/commands/*.md from the help of the commands: `python -m docs.generate`."""

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from lora_prep.cli import COMMANDS, main

FOLDER = Path(__file__).parent / "commands"
NOTE = "<!-- Made by `make docs` from the help of the command: change that, not this. -->"


def page(name: str) -> str:
    """The page of one command."""
    command = main.get_command(click.Context(main), name)
    assert command
    return "\n\n".join([NOTE, *section(command, f"lora-prep {name}", "#")]) + "\n"


def section(command: click.Command, title: str, level: str) -> Iterator[str]:
    """The blocks of one command, and of its own commands below it."""
    context = click.Context(command)
    yield f"{level} {title}"
    yield fenced(" ".join([title, *command.collect_usage_pieces(context)]))
    yield from paragraphs(command.help or "", f"{level}#")
    if items := "\n".join(options(command, context)):
        yield f"{level}# Options"
        yield items
    yield from paragraphs(command.epilog or "", f"{level}#")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner
            yield from section(inner, f"{title} {name}", f"{level}#")


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """A list item for each option."""
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record and isinstance(parameter, click.Option):
            names, text = record
            yield f"- `{names}`: {escaped(re.sub(' +', ' ', text))}"


def paragraphs(text: str, level: str) -> Iterator[str]:
    r"""The blocks of a help text; those that Click prints as they are (`\b`) become code."""
    for block in re.split(r"\n\s*\n|\n(?=\x08)", cleandoc(text)):
        title, _, lines = block.removeprefix("\b\n").partition("\n")
        if not block.startswith("\b"):
            yield escaped(block)
        elif lines.startswith("  ") and title.endswith(":"):
            yield f"{level} {title.removesuffix(':')}"
            yield fenced(cleandoc(lines))
        else:
            yield escaped(f"{title}\n{lines}".strip())


def fenced(text: str) -> str:
    """A block of code."""
    return f"```\n{text}\n```"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, but for what stands in backticks."""
    plain_and_code = re.split(r"(`[^`]*`)", text)
    plain_and_code[::2] = [
        re.sub(r"\*|<(?=[\w/!])", r"\\\g<0>", plain) for plain in plain_and_code[::2]
    ]
    return "".join(plain_and_code)


def write(folder: Path) -> None:
    """Write all pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        (folder / f"{name}.md").write_text(page(name), encoding="utf-8")


if __name__ == "__main__":
    write(FOLDER)
