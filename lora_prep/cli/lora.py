"""`lora-prep lora`."""

from pathlib import Path

import click

from lora_prep.errors import UsageError

FILE = click.Path(dir_okay=False, path_type=Path)

force_option = click.option("--force", is_flag=True, help="Replace files that are there already.")


@click.group(
    "lora",
    epilog="""\b
Examples:
  lora-prep lora check my-lora.safetensors
  lora-prep lora split both.safetensors --select sdxl:b-lora-style --out style.safetensors
  lora-prep lora merge cat.safetensors watercolor.safetensors --out mixed.safetensors
""",
)
def command() -> None:
    """LoRA files: look into one, take one apart by blocks, put several together.

    Reads and writes .safetensors in the naming of diffusers, PEFT, ComfyUI, ai-toolkit and kohya.
    """


@command.command(
    "check",
    epilog="""\b
Examples:
  lora-prep lora check my-lora.safetensors
  lora-prep lora check my-lora.safetensors --model klein-9b --select "double[0:8]"
""",
)
@click.argument("file", type=FILE)
@click.option("--model", help="Tell the blocks of this model that the file has nothing for.")
@click.option("--select", "expression", metavar="EXPR", help="Fail if others are touched, too.")
@click.option("--picture", type=FILE, help="Draw the grid of blocks into a .png or .svg file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def check(
    file: Path, model: str | None, expression: str | None, picture: Path | None, as_json: bool
) -> None:
    """Say which blocks a LoRA really touches: the same as `lora-prep targets --check`."""
    from lora_prep.cli.targets import check_lora

    check_lora(file, model, expression, picture, as_json)


@command.command(
    "split",
    epilog="""\b
Examples:
  lora-prep lora split both.safetensors --select up.0.attentions.1 --out style.safetensors
  lora-prep lora split k.safetensors --select "double[0:8]" --out a.safetensors --rest b.safetensors
""",
)
@click.argument("file", type=FILE)
@click.option(
    "--select",
    "expression",
    metavar="EXPR",
    required=True,
    help="Blocks or a preset, as for `lora-prep targets`; whole blocks are taken.",
)
@click.option("--out", type=FILE, required=True, help="Where the selected blocks go.")
@click.option("--rest", type=FILE, help="Where all others go, text encoders included.")
@force_option
def split(file: Path, expression: str, out: Path, rest: Path | None, force: bool) -> None:
    """Take the LoRA of some blocks out of a file.

    Tensors and metadata are taken over as they are, so that `lora merge` of both parts gives the
    file back, bit for bit.
    """
    from lora_prep.training.targets import adapter, names, select

    lora = adapter.read(file)
    selection = select(lora.model, expression)
    inside, outside = adapter.split(lora, selection)
    _not_the_same([file, out, *([rest] if rest else [])])
    if rest and not outside:
        raise UsageError(
            f"{file} has nothing but {expression}: there is no rest to write to {rest}"
        )
    if rest and rest.exists() and not force:
        raise UsageError(f"{rest} exists already: give another name, or --force to replace it")
    for note in selection.notes:
        click.echo(f"note: {note}", err=True)
    noted = {**lora.metadata, adapter.SELECTION: expression}
    adapter.write(out, inside, noted, force=force)
    click.echo(f"{out}: {len(inside)} tensors in {names.labels(selection.blocks)}")
    if rest:
        noted = {**lora.metadata, adapter.SELECTION: f"all but {expression}"}
        adapter.write(rest, outside, noted, force=force)
        click.echo(f"{rest}: {len(outside)} tensors")
    elif outside:
        click.echo(f"left out: {len(outside)} tensors (--rest writes them, too)")


@command.command(
    "merge",
    epilog="""\b
Examples:
  lora-prep lora merge cat.safetensors watercolor.safetensors --out mixed.safetensors
  lora-prep lora merge a.safetensors b.safetensors --strength 1 --strength 0.6 --out c.safetensors
""",
)
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="The file to write.")
@click.option(
    "--strength",
    "strengths",
    type=float,
    multiple=True,
    help="One for each file, in their order.  [default: 1]",
)
@force_option
def merge(files: tuple[Path, ...], out: Path, strengths: tuple[float, ...], force: bool) -> None:
    """Put LoRAs together: a B-LoRA's content with another one's style, for example.

    A strength counts once (0.5 is a half). Where files have a module in common, the result is the
    sum, of a higher rank. Metadata is kept.
    """
    import math

    from lora_prep.training.targets import adapter

    if strengths and len(strengths) != len(files):
        raise click.UsageError(f"{len(files)} files, but {len(strengths)} strengths")
    if not all(map(math.isfinite, strengths)):
        raise click.UsageError("a strength is a number, such as 0.8")
    _not_the_same([*files, out])
    loras = [adapter.read(file) for file in files]
    tensors, metadata = adapter.merge(loras, strengths or [1.0] * len(files))
    adapter.write(out, tensors, metadata, force=force)
    click.echo(f"{out}: {len(tensors)} tensors from {len(files)} files")


def _not_the_same(paths: list[Path]) -> None:
    real = [path.resolve() for path in paths]
    for i, path in enumerate(real):
        if path in real[:i]:
            raise UsageError(f"{paths[i]} is given twice; each file needs a name of its own")
