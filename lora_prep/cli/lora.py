"""`lora-prep lora`."""

from pathlib import Path

import click

from lora_prep.errors import UsageError

FILE = click.Path(dir_okay=False, path_type=Path)

model_option = click.option(
    "--model", help="What it is for, as for `lora-prep targets`.  [default: told by its names]"
)
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
@click.option(
    "--model", help="What it is for; tells the blocks of it that the file has nothing for."
)
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
@model_option
@click.option("--out", type=FILE, required=True, help="Where the selected blocks go.")
@click.option("--rest", type=FILE, help="Where all others go, text encoders included.")
@force_option
def split(
    file: Path, expression: str, model: str | None, out: Path, rest: Path | None, force: bool
) -> None:
    """Take the LoRA of some blocks out of a file.

    Tensors and metadata are taken over as they are, so that `lora merge` of both parts gives the
    file back, bit for bit. What model the whole file is for is noted in both: a part's names alone
    may not tell.
    """
    from lora_prep.cli.targets import resolve_model
    from lora_prep.training.targets import adapter, meta, names, select

    lora = adapter.read(file)
    whole = resolve_model(model) if model else lora.model
    selection = select(whole, expression)
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
    family = {meta.FAMILY: whole.family} if whole.family != "unknown" else {}
    noted = {**lora.metadata, **family, adapter.SELECTION: expression}
    adapter.write(out, inside, noted, force=force)
    click.echo(f"{out}: {len(inside)} tensors in {names.labels(selection.blocks)}")
    if rest:
        noted[adapter.SELECTION] = f"all but {expression}"
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
@model_option
@force_option
def merge(
    files: tuple[Path, ...],
    out: Path,
    strengths: tuple[float, ...],
    model: str | None,
    force: bool,
) -> None:
    """Put LoRAs together: a B-LoRA's content with another one's style, for example.

    A strength counts once (0.5 is a half). Where files have a module in common, the result is the
    sum, of a higher rank. Metadata is kept.
    """
    import math

    from lora_prep.cli.targets import resolve_model
    from lora_prep.training.targets import adapter, merging

    if strengths and len(strengths) != len(files):
        raise click.UsageError(f"{len(files)} files, but {len(strengths)} strengths")
    if not all(map(math.isfinite, strengths)):
        raise click.UsageError("a strength is a number, such as 0.8")
    _not_the_same([*files, out])
    loras = [adapter.read(file) for file in files]
    family = resolve_model(model).family if model else None
    tensors, metadata = merging.merge(loras, strengths or [1.0] * len(files), family)
    adapter.write(out, tensors, metadata, force=force)
    click.echo(f"{out}: {len(tensors)} tensors from {len(files)} files")


def _not_the_same(paths: list[Path]) -> None:
    real = [path.resolve() for path in paths]
    for i, path in enumerate(real):
        if path in real[:i]:
            raise UsageError(f"{paths[i]} is given twice; each file needs a name of its own")
