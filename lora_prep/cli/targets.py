"""`lora-prep targets`."""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_prep.errors import BackendError

if TYPE_CHECKING:
    from lora_prep.training.targets import Emission, Model, Selection
    from lora_prep.training.targets.adapter import Touch

SCHEMA = 1
"""Version of the JSON documents."""

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    "targets",
    epilog="""\b
Examples:
  lora-prep targets --list
  lora-prep targets klein-9b
  lora-prep targets klein-9b --select "double[0:8]"
  lora-prep targets sdxl --select sdxl:b-lora-style --for ai-toolkit --for kohya
  lora-prep targets models/FLUX.1-dev --select "single[0:10].attn" --picture blocks.png
  lora-prep targets --check my-lora.safetensors
""",
)
@click.argument("model", required=False)
@click.option(
    "--select",
    "expression",
    metavar="EXPR",
    help="Blocks or a preset: double[0:8], single[:12].attn, up.0.attentions.1, "
    "sdxl:b-lora-style; several with commas.",
)
@click.option(
    "--for",
    "consumers",
    metavar="TRAINER",
    multiple=True,
    help="Print what this trainer's configuration needs: peft, diffusers, ai-toolkit, kohya, "
    "onetrainer, musubi, simpletuner, or all. May be repeated.  [default: peft]",
)
@click.option(
    "--rank",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="The LoRA's rank, for its size.",
)
@click.option("--check", type=FILE, help="Say which blocks a trained LoRA really touches.")
@click.option("--picture", type=FILE, help="Draw the grid of blocks into a .png or .svg file.")
@click.option("--list", "listing", is_flag=True, help="The known models and the presets.")
@click.option("--modules", is_flag=True, help="Print the selected modules' names.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    model: str | None,
    expression: str | None,
    consumers: tuple[str, ...],
    rank: int,
    check: Path | None,
    picture: Path | None,
    listing: bool,
    modules: bool,
    as_json: bool,
) -> None:
    """Choose the blocks of a model to train, and write that for each trainer.

    MODEL is a known name (`--list`), a diffusers folder or config.json, a .safetensors checkpoint
    or LoRA, or a Hugging Face id; of all of them, no weights are loaded. Without --select it shows
    the blocks. With it, it is a dry run: the modules that are hit and the LoRA's size.

    --check reads a LoRA's weights and tells the blocks that it changes, and those with zeros. With
    MODEL it also tells those it has nothing for; with --select, whether it keeps to these blocks
    (exit code 1 if not).
    """
    if listing:
        _list(as_json)
    elif check is not None:
        check_lora(check, model, expression, picture, as_json)
    elif model is None:
        raise click.UsageError("give a MODEL, --check FILE, or --list")
    elif expression is None:
        if consumers or modules:
            raise click.UsageError("--for and --modules need --select")
        _show(resolve_model(model), picture, as_json)
    else:
        _select(resolve_model(model), expression, consumers, rank, picture, modules, as_json)


def resolve_model(model: str) -> "Model":
    """The model that the user means; the only place that may ask the hub, for a config alone.

    A model's folder here goes before the known model of the same name; a note says which it is.
    """
    from lora_prep.training import targets

    folder = Path(model)
    if model in targets.shipped() and folder.is_dir():
        if targets.is_model(folder):
            click.echo(
                f"note: {model} is the folder here, not the known model of that name", err=True
            )
            return targets.resolve(folder)
        click.echo(
            f"note: {model} is the known model; the folder of that name here is no diffusers model",
            err=True,
        )
    if not Path(model).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return targets.resolve(_hub_config(model))
    return targets.resolve(model)


def _hub_config(repo: str) -> Path:
    """The config of the part of a repository that LoRAs are trained on: from the cache, or fetched.

    Raises BackendError, within seconds, where it cannot be had.
    """
    from huggingface_hub.errors import EntryNotFoundError

    from lora_prep.backends import weights
    from lora_prep.training import targets

    parts = ("transformer/config.json", "unet/config.json", "config.json")
    for filename in parts:
        cached = weights.cached_hub_file(repo, filename)
        if cached:
            return cached
    advice = f"Give a folder or a file, or one of {', '.join(targets.shipped())}."
    try:
        index = json.loads(weights.hub_file(repo, "model_index.json", advice).read_text("utf-8"))
    except BackendError as error:
        if not isinstance(error.__cause__, EntryNotFoundError):
            raise
        return weights.hub_file(repo, "config.json", advice)
    except ValueError as error:
        raise BackendError(f"{repo}/model_index.json is no JSON: {error}. {advice}") from error
    for part in ("transformer", "unet"):
        if part in index:
            return weights.hub_file(repo, f"{part}/config.json", advice)
    raise BackendError(f"{repo} has neither a transformer nor a U-Net. {advice}")


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps({"schema": SCHEMA, **document}, indent=2))


def _list(as_json: bool) -> None:
    from lora_prep.training import targets

    found = targets.PRESETS.values()
    if as_json:
        rows = [
            {
                "name": p.name,
                "select": p.expression,
                "source": p.source,
                "verified": p.verified,
                "note": p.note,
            }
            for p in found
        ]
        _print_json({"models": list(targets.shipped()), "presets": rows})
        return
    click.echo("models\n  " + "\n  ".join(targets.shipped()))
    click.echo("\npresets")
    for preset in found:
        known = "verified" if preset.verified else "not verified"
        click.echo(f"  {preset.name:25} {preset.expression:26} {known}: {preset.source}")


def _model_json(model: "Model") -> dict[str, Any]:
    return {
        "title": model.title,
        "family": model.family,
        "possible": list(model.possible),
        "variant": model.variant,
        "naming": model.naming.value,
        "blocks": model.counts,
        "layers": len(model.layers),
        "parameters": model.parameters,
    }


def _count(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"


def _show(model: "Model", picture: Path | None, as_json: bool) -> None:
    from lora_prep.training import targets
    from lora_prep.training.targets import picture as drawing

    grid = drawing.rows(model.blocks, {})
    if picture:
        drawing.write(grid, picture, model.describe())
    if as_json:
        _print_json({"model": _model_json(model)})
        return
    click.echo(model.describe())
    if model.parameters:
        what = "tensors of the file" if model.lora else "parameters"
        click.echo(
            f"{_count(model.parameters)} {what}, {len(model.layers)} linear layers in blocks"
        )
    click.echo("\n" + drawing.as_text(grid) + "\n")
    shown: dict[str, list[str]] = {}
    for layer in model.layers:
        path = re.sub(r"^transformer_blocks\.\d+\.", "", layer.path)
        listed = shown.setdefault(layer.block.group, [])
        if path not in listed:
            listed.append(path)
    for group, layers in shown.items():
        click.echo(f"{group}: {', '.join(layers)}")
    fitting = [preset.name for preset in targets.PRESETS.values() if preset.fits(model)]
    if fitting:
        click.echo(f"\npresets: {', '.join(fitting)}")


def _select(
    model: "Model",
    expression: str,
    consumers: tuple[str, ...],
    rank: int,
    picture: Path | None,
    modules: bool,
    as_json: bool,
) -> None:
    from lora_prep.training import targets
    from lora_prep.training.targets import names
    from lora_prep.training.targets import picture as drawing

    selection = targets.select(model, expression)
    wanted = targets.CONSUMERS if "all" in consumers else consumers or ("peft",)
    emissions = [targets.emit(selection, consumer, rank) for consumer in wanted]
    size = selection.lora_parameters(rank)
    grid = drawing.coverage(selection)
    if picture:
        drawing.write(grid, picture, f"{model.variant or model.family}: {expression}")
    for note in selection.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        _print_json(_selection_json(selection, emissions, rank, size))
        return
    click.echo(model.describe())
    click.echo(f"{len(selection.layers)} modules in {names.labels(selection.blocks)}")
    if size is not None:
        share = f", {size / model.parameters:.2%} of the model" if model.parameters else ""
        click.echo(
            f"a LoRA of rank {rank} has {_count(size)} parameters{share}; "
            f"{2 * size / 1e6:.1f} MB in bfloat16"
        )
    click.echo("\n" + drawing.as_text(grid))
    if modules:
        click.echo("\n" + "\n".join(selection.modules))
    for emission in emissions:
        click.echo(f"\n# {emission.consumer}")
        if emission.text:
            click.echo(emission.text)
        for note in emission.notes:
            click.echo(f"note: {note}")


def _selection_json(
    selection: "Selection", emissions: "list[Emission]", rank: int, size: int | None
) -> dict[str, Any]:
    return {
        "model": _model_json(selection.model),
        "select": selection.expression,
        "presets": [
            {"name": p.name, "source": p.source, "verified": p.verified} for p in selection.presets
        ],
        "notes": list(selection.notes),
        "blocks": [block.label for block in selection.blocks],
        "modules": list(selection.modules),
        "rank": rank,
        "lora_parameters": size,
        "for": {
            e.consumer: {"value": e.value, "exact": e.exact, "notes": list(e.notes)}
            for e in emissions
        },
    }


def check_lora(
    file: Path, model: str | None, expression: str | None, picture: Path | None, as_json: bool
) -> None:
    """`--check`, and `lora-prep lora check`. Exits with 1 where the LoRA is not as it should be."""
    from lora_prep.training import targets
    from lora_prep.training.targets import adapter, names
    from lora_prep.training.targets import picture as drawing

    lora = adapter.read(file)
    found = adapter.touches(lora)
    whole = resolve_model(model) if model else lora.model
    touched = {t.block: t.norm for t in found if t.block and (t.norm > 0 or math.isnan(t.norm))}
    blocks = sorted({*whole.blocks, *(t.block for t in found if t.block)})
    absent = [b for b in blocks if b not in {t.block for t in found}]
    stray = []
    if expression:
        allowed = set(targets.select(whole, expression).blocks)
        stray = [t.label for t in found if t.block not in allowed and t.norm != 0]
    strongest = max((n for n in touched.values() if math.isfinite(n)), default=0) or 1
    grid = drawing.rows(blocks, {b: n / strongest for b, n in touched.items() if math.isfinite(n)})
    if picture:
        drawing.write(grid, picture, file.name)
    broken = [t.label for t in found if not math.isfinite(t.norm)]
    if as_json:
        rows = [
            {
                "block": t.label,
                "modules": t.modules,
                "zero_modules": t.zero,
                "ranks": list(t.ranks),
                "norm": t.norm if math.isfinite(t.norm) else None,
            }
            for t in found
        ]
        document = {"model": _model_json(whole), "style": lora.style, "blocks": rows}
        absent_labels = [b.label for b in absent]
        _print_json({**document, "absent": absent_labels, "outside": stray, "broken": broken})
    else:
        shown = lora.model.of_family(whole.family) if model else lora.model
        click.echo(f"{file}: {shown.describe()}, written as {lora.style}\n")
        _print_touches(found)
        click.echo("\n" + drawing.as_text(grid))
        if absent:
            click.echo(f"\nnot in the file: {names.labels(absent)}")
        if broken:
            click.echo(f"\nbroken, nan or infinite: {', '.join(broken)}")
        if expression:
            said = f"touches {', '.join(stray)}, too" if stray else "touches nothing else"
            click.echo(f"\noutside of {expression}: {said}")
        if not touched and not any(t.norm for t in found):
            click.echo("\nall of it is zero: this LoRA does nothing")
    if stray or broken or not any(t.norm for t in found):
        raise click.exceptions.Exit(1)


def _print_touches(found: "list[Touch]") -> None:
    finite = [t.norm for t in found if math.isfinite(t.norm)]
    total = sum(n * n for n in finite) or 1.0
    width = max(len(t.label) for t in found)
    click.echo(f"{'block':{width}}  modules  rank   norm of B·A   share")
    for t in found:
        ranks = ",".join(map(str, t.ranks))
        share = f"{t.norm * t.norm / total:6.1%}" if math.isfinite(t.norm) else ""
        if t.zero == t.modules:
            share = "  zero: not touched"
        elif t.zero:
            share += f"  {t.zero} of its modules are zero"
        click.echo(f"{t.label:{width}}  {t.modules:7}  {ranks:>4}   {t.norm:11.4g}  {share}")
