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
    context = click.Context(command, info_name=name)
    items = "\n".join(options(command, context))
    blocks = [
        NOTE,
        f"# lora-prep {name}",
        fenced(" ".join(["lora-prep", name, *command.collect_usage_pieces(context)])),
        *paragraphs(command.help or ""),
        *(["## Options", items] if items else []),
        *paragraphs(command.epilog or ""),
    ]
    return "\n\n".join(blocks) + "\n"


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """A list item for each option."""
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record and isinstance(parameter, click.Option):
            names, text = record
            yield f"- `{names}`: {escaped(re.sub(' +', ' ', text))}"


def paragraphs(text: str) -> Iterator[str]:
    r"""The blocks of a help text; those that Click prints as they are (`\b`) become code."""
    for block in re.split(r"\n\s*\n|\n(?=\x08)", cleandoc(text)):
        title, _, lines = block.removeprefix("\b\n").partition("\n")
        if not block.startswith("\b"):
            yield escaped(block)
        elif lines.startswith("  ") and title.endswith(":"):
            yield f"## {title.removesuffix(':')}"
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
