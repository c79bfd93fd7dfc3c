"""`lora-prep slider`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_prep.errors import UsageError

if TYPE_CHECKING:
    from lora_prep.training.targets.adapter import Lora

FILE = click.Path(dir_okay=False, path_type=Path)

SOURCES = {
    "textual": "recorded in the file by the training (from prompts)",
    "visual": "recorded in the file by the training (from image pairs)",
    "stated": "recorded in the file, set by hand",
}


@click.group(
    "slider",
    epilog="""\b
Examples:
  lora-prep slider info texture.safetensors
  lora-prep slider info texture.safetensors --weight 1.5 --strict
  lora-prep slider set-range texture.safetensors --min -2 --max 2 --out ranged.safetensors
""",
)
def command() -> None:
    """Concept sliders: LoRAs whose weight is a dial, and which weights one was made for.

    `lora-prep pairs` makes and checks the pairs of images that a visual slider is trained on.
    """


@command.command(
    "info",
    epilog="""\b
Examples:
  lora-prep slider info texture.safetensors
  lora-prep slider info klein_slider_anatomy_v1.5.safetensors --weight 3
\b
Exit codes: 0 all well (there may be a warning), 1 a warning with --strict, 2 wrong usage.
""",
)
@click.argument("file", type=FILE)
@click.option("--weight", type=float, help="Warn if this weight lies outside the slider's range.")
@click.option("--strict", is_flag=True, help="A warning counts for the exit code.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def info(file: Path, weight: float | None, strict: bool, as_json: bool) -> None:
    """Say which weights a slider was trained for, its rank, alpha and blocks.

    The range is what the training wrote into the file; of a few public sliders without it, what
    their author says. A LoRA that says nothing may be used at any weight, at your own risk.
    """
    from lora_prep.cli import printable
    from lora_prep.cli.console import SCHEMA
    from lora_prep.training.sliders import outside
    from lora_prep.training.targets import adapter, names

    if weight is not None and not abs(weight) < float("inf"):
        raise click.UsageError("--weight is a number, such as 1.5")
    lora = adapter.read(file)
    found = _range(lora)
    notes = _notes(lora, found)
    warning = ""
    if weight is not None:
        if "low" in found:
            warning = outside(weight, found["low"], found["high"])
        else:
            warning = (
                f"whether weight {weight:g} is right for it cannot be told: the file has no range "
                "(`lora-prep slider set-range` writes one)"
            )
    touched = adapter.touches(lora)
    blocks = names.labels([one.block for one in touched if one.block is not None])
    document = {
        "schema": SCHEMA,
        "file": str(file),
        "range": [found["low"], found["high"]] if "low" in found else None,
        **{k: v for k, v in found.items() if k not in ("low", "high")},
        "rank": sorted({rank for one in touched for rank in one.ranks}),
        "scale": sorted(_scales(lora)),
        "family": lora.model.family,
        "blocks": blocks,
        "modules": sum(one.modules for one in touched),
        "weight": weight,
        "warning": warning,
        "notes": notes,
    }
    if as_json:
        click.echo(json.dumps(document))
    else:
        for line in _lines(document):
            click.echo(printable(line))
        for note in notes:
            click.echo(f"note: {printable(note)}", err=True)
        if warning:
            click.echo(f"warning: {printable(warning)}", err=True)
        elif weight is not None:
            click.echo(f"weight {weight:g} lies in the range")
    sys.exit(1 if warning and strict else 0)


@command.command(
    "set-range",
    epilog="""\b
Example:
  lora-prep slider set-range old.safetensors --min -3 --max 3 --out old-ranged.safetensors
""",
)
@click.argument("file", type=FILE)
@click.option("--min", "low", type=float, required=True, help="The lowest weight that works.")
@click.option("--max", "high", type=float, required=True, help="The highest weight that works.")
@click.option("--positive", default="", help="What there is more of at --max.")
@click.option("--negative", default="", help="What there is more of at --min.")
@click.option(
    "--out", type=FILE, required=True, help="The file to write; may be FILE with --force."
)
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
def set_range(
    file: Path, low: float, high: float, positive: str, negative: str, out: Path, force: bool
) -> None:
    """Write a range into a copy of a slider that has none, or a wrong one.

    Find it with a row of pictures at several weights. The tensors and all other metadata are taken
    over as they are.
    """
    from lora_prep.training.sliders import KEYS, SliderRecord
    from lora_prep.training.targets import adapter

    record = SliderRecord(low, high, "stated", positive, negative)
    lora = adapter.read(file)
    kept = {key: text for key, text in lora.metadata.items() if key not in KEYS}
    adapter.write(out, lora.tensors, {**kept, **record.to_metadata()}, force=force)
    click.echo(f"{out}: weights from {low:g} to {high:g}")


def _range(lora: "Lora") -> dict[str, Any]:
    """What is known of the range: from the file, else from what its author says."""
    from lora_prep.training.sliders import SliderRecord, documented

    try:
        record = SliderRecord.from_metadata(lora.metadata)
    except UsageError as error:
        raise UsageError(f"{lora.path}: {error}") from error
    if record is not None:
        return {
            "low": record.low,
            "high": record.high,
            "source": SOURCES[record.kind],
            "kind": record.kind,
            "positive": record.positive,
            "negative": record.negative,
            "target": record.target,
        }
    known = documented(lora.path.stem, lora.metadata)
    if known is not None:
        said = f"as documented by its author for v{known.version}, not recorded in the file"
        return {"low": known.low, "high": known.high, "source": said, "hint": known.note}
    return {"source": "not recorded"}


def _notes(lora: "Lora", found: dict[str, Any]) -> list[str]:
    from lora_prep.training.sliders import documented
    from lora_prep.training.targets.adapter import MERGED

    notes = [found["hint"]] if "hint" in found else []
    known = documented(lora.path.stem, lora.metadata)
    if known and "hint" not in found and (known.low, known.high) != (found["low"], found["high"]):
        notes.append(f"its author documents {known.low:g} to {known.high:g} for v{known.version}")
    if MERGED in lora.metadata and "low" in found:
        notes.append(
            "the file was put together by `lora-prep lora merge`: the range is that of one of its "
            "parts at strength 1"
        )
    return notes


def _scales(lora: "Lora") -> set[float]:
    """alpha / rank of the file's modules."""
    from lora_prep.training.targets.adapter import scale

    return {round(scale(lora, module), 6) for module in lora.modules if module.down is not None}


def _lines(document: dict[str, Any]) -> list[str]:
    span = document["range"]
    ranks, scales = (", ".join(f"{n:g}" for n in document[key]) for key in ("rank", "scale"))
    lines = [
        document["file"],
        f"weights   {span[0]:g} to {span[1]:g}, {document['source']}"
        if span
        else f"weights   {document['source']}",
    ]
    for key in ("positive", "negative", "target"):
        if document.get(key):
            end = {"positive": f" (at {span[1]:g})", "negative": f" (at {span[0]:g})"}.get(key, "")
            lines.append(f"{key:9} {document[key]}{end}")
    alphas = sorted({r * s for r in document["rank"] for s in document["scale"]})
    alpha = f", alpha {alphas[0]:g}" if len(alphas) == 1 else ""
    lines.append(f"rank      {ranks}{alpha} (alpha/rank {scales})")
    family = document["family"] if document["family"] != "unknown" else "of an unknown model"
    lines.append(f"blocks    {document['blocks'] or 'none'} ({family})")
    lines.append(f"modules   {document['modules']}")
    return lines
