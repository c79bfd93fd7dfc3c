"""`lora-prep init`."""

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lora_prep.cli.config import FILE_NAME, WITHOUT_TABLE, ConfiguredCommand, configurable
from lora_prep.cli.options import FOLDER
from lora_prep.errors import DatasetError

IMAGES = "data/faces"
MASKS = "data/masks"
WIDTH = 98

HEAD = f"""\
# Defaults for lora-prep. A key is an option of the command without its dashes; take the "#"
# before it away to set it. What is given on the command line wins. Folders are relative to this
# file.

[dataset]
images = "{IMAGES}"
masks = "{MASKS}"
# Read sub-folders, too.
#recursive = false
"""


@click.command(
    "init",
    epilog="""\b
Examples:
  lora-prep init
  lora-prep init ada
""",
)
@click.argument("folder", metavar="[DIR]", type=FOLDER, default=".")
def command(folder: Path) -> None:
    """Start a data set in DIR (default: here).

    Writes lora-prep.toml, in which every option of every command stands commented out with its
    default, and makes the folders data/faces and data/masks. An existing lora-prep.toml is never
    replaced.
    """
    start(folder)
    made = [str(folder / name) for name in (FILE_NAME, IMAGES, MASKS)]
    click.echo(f"made {', '.join(made)}")
    click.echo("next:")
    if folder.resolve() != Path.cwd():
        click.echo(f"  cd {folder}")
    click.echo(
        f"  lora-prep normalize PHOTOS --out {IMAGES}   upright sRGB copies of your photographs"
    )
    click.echo("  lora-prep masks                              a mask for each of them")
    click.echo("  lora-prep validate                           checks that images and masks fit")


def start(folder: Path) -> None:
    """Write the configuration file and make the folders.

    Raises DatasetError where there is a configuration file already, and where one of them cannot
    be made.
    """
    path = folder / FILE_NAME
    if path.exists():
        raise DatasetError(
            f"there is a {path} already: it was left as it is. Edit it, or give another folder"
        )
    text = template()
    try:
        for name in (IMAGES, MASKS):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise DatasetError(f"cannot make {error.filename or path}: {error.strerror}") from error


def template() -> str:
    """The text of a new lora-prep.toml, made of the commands' own options."""
    from lora_prep.cli import COMMANDS, main

    context = click.Context(main)
    names = [name for name in COMMANDS if name not in WITHOUT_TABLE]
    found = [main.get_command(context, name) for name in names]
    tables = [table(one) for one in found if isinstance(one, ConfiguredCommand)]
    return "\n".join([HEAD, *tables])


def table(one: click.Command) -> str:
    """A command's table, its keys commented out."""
    return "\n".join([f"[{one.name}]", *_lines(one), ""])


def _lines(one: click.Command) -> Iterator[str]:
    for key, option in configurable(one).items():
        help_text = option.help or ""
        yield from textwrap.wrap(help_text, WIDTH, initial_indent="# ", subsequent_indent="# ")
        choices = ""
        if isinstance(option.type, click.Choice):
            choices = f"  # {' | '.join(option.type.choices)}"
        yield f"#{key} = {json.dumps(example(option), ensure_ascii=False)}{choices}"


def example(option: click.Option) -> Any:
    """The option's default; where it has none, what its help calls its default, or any that fits.

    Strings, numbers, truth values and lists of strings are written alike in JSON and TOML.
    """
    default = option.to_info_dict()["default"]
    if default is not None:
        return list(default) if option.multiple else default
    if option.multiple:
        return []
    if option.is_flag:
        return False
    said = re.search(r"\[default: (-?\d+(?:\.\d+)?)\]", option.help or "")
    if said:
        return json.loads(said[1])
    match option.type:
        case click.Choice(choices=choices):
            return choices[0]
        case click.IntRange(min=least) | click.FloatRange(min=least):
            return least
        case _:
            return option.make_metavar(click.Context(click.Command("")))
