"""The command line: one file a command, imported when it is called."""

import difflib
import importlib
import signal
import sys
import traceback
import warnings
from typing import Any

import click

from lora_prep import __version__
from lora_prep.errors import LoraPrepError

BUG = 70
"""Exit code for an error that nobody expected (EX_SOFTWARE of sysexits.h)."""

COMMANDS = (
    "init",
    "normalize",
    "detect",
    "embed",
    "masks",
    "augment",
    "priors",
    "pairs",
    "captions",
    "validate",
    "export",
    "preview",
    "report",
    "review",
    "run",
    "status",
    "clean",
    "targets",
    "lora",
    "slider",
    "train",
    "models",
    "doctor",
)


def printable(text: str) -> str:
    """Text with file names in it made safe to print: no control codes, no undecodable bytes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Failure(click.ClickException):
    """An error that stops a command before its work is done."""

    exit_code = 2


class Commands(click.Group):
    """Finds each command in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"lora_prep.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; of a name mistyped, say which was meant."""
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if near and args[0] not in COMMANDS:
            ctx.fail(f"there is no command {args[0]!r}: did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, each with its whole first sentence."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, one.get_short_help_str(limit=200)) for name, one in commands if one]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line; an interrupt ends it as it ends a command."""
        try:
            return super().make_context(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; the one place where lora-prep's errors become messages and exit code 2."""
        warnings.filterwarnings("ignore", module="PIL")  # it warns of what we report by name
        try:
            return super().invoke(ctx)
        except LoraPrepError as error:
            raise Failure(printable(str(error))) from error
        except KeyboardInterrupt:
            click.echo("\nstopped; run the same command again to go on", err=True)
            sys.exit(128 + signal.SIGINT)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception:
            traceback.print_exc()
            click.echo("\nThis is a bug in lora-prep; the lines above say where.", err=True)
            sys.exit(BUG)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 all well, 1 some items failed or issues were found, 2 wrong usage, "
    "70 a bug, 130 interrupted.",
)
@click.version_option(__version__, prog_name="lora-prep")
def main() -> None:
    """Prepare photographs of a face or an object for LoRA training.

    \b
    A usual session:
      lora-prep init                       a commented lora-prep.toml and the folders
      lora-prep normalize photos --out data/faces
      lora-prep embed                      who is in them? outliers and duplicates
      lora-prep masks                      writes data/masks
      lora-prep validate                   checks that images and masks fit
      lora-prep export --to kohya --out train
    """
