"""`lora-prep captions`."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand

if TYPE_CHECKING:
    from lora_prep.captions import Finding
    from lora_prep.dataset import Dataset


@click.command(
    "captions",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep captions data/faces
  lora-prep captions data/faces --trigger ohwx
  lora-prep captions data/faces --fill "a photo of {trigger} woman" --trigger ohwx
\b
Exit codes: 0 all well, or faults without --exit-code; 1 faults with it; 2 wrong usage.
""",
)
@options.images_argument
@options.recursive_option
@click.option("--trigger", metavar="WORD", default="", help="Report captions without this word.")
@click.option(
    "--fill",
    metavar="TEMPLATE",
    help="Write missing and empty captions from this; {trigger}, {stem} and {folder} are replaced. "
    "Captions with text in them are never changed.",
)
@click.option("--dry-run", is_flag=True, help="Say what --fill would write, and write nothing.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 where a fault is left.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("-v", "--verbose", is_flag=True, help="List all faults, however many.")
def command(
    images: Path | None,
    recursive: bool,
    trigger: str,
    fill: str | None,
    dry_run: bool,
    exit_code: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """List captions that are missing, empty or the same, and fill the gaps.

    A caption is the .txt file beside an image. kohya, ai-toolkit and OneTrainer train an image
    without one on an empty prompt; diffusion-pipe drops it.
    """
    from lora_prep import captions
    from lora_prep.captions import Fault
    from lora_prep.cli.console import SCHEMA, name
    from lora_prep.dataset import Dataset

    dataset = Dataset.at(options.required(images), recursive=recursive)
    found = list(captions.check(dataset, trigger))
    filled: list[tuple[str, str]] = []
    if fill is not None:
        for finding in found:
            if finding.fault in (Fault.MISSING, Fault.EMPTY):
                text = captions.render(fill, finding.sample, trigger)
                filled.append((finding.sample.name, text))
                if not dry_run:
                    captions.write(finding.sample, text)
        if filled and not dry_run:
            found = list(captions.check(dataset, trigger))
    if as_json:
        document = {
            "schema": SCHEMA,
            "images": len(dataset),
            "dry_run": dry_run,
            "filled": dict(filled),
            "faults": [
                {"image": f.sample.name, "fault": f.fault, "message": f.message} for f in found
            ],
        }
        click.echo(json.dumps(document))
    else:
        verb = "would write" if dry_run else "wrote"
        for image, text in filled if verbose or dry_run else ():
            click.echo(f"{verb}  {name(image)}: {text}")
        _print(dataset, found, len(filled), verb, verbose)
    if exit_code and found:
        sys.exit(1)


def _print(
    dataset: "Dataset", found: Sequence["Finding"], filled: int, verb: str, verbose: bool
) -> None:
    from lora_prep.captions import Fault
    from lora_prep.cli.console import SHOWN, name

    counts = Counter(f.fault for f in found)
    alike = counts[Fault.DUPLICATE]
    if not verbose and alike > 3:  # a template gives all of them the same
        found = [f for f in found if f.fault is not Fault.DUPLICATE]
        click.echo(f"{alike} captions are the same as another one's (--verbose lists them)")
    shown = found if verbose else found[:SHOWN]
    width = max((len(f.fault) for f in shown), default=0)
    for finding in shown:
        said = f" ({name(finding.message)})" if finding.message else ""
        click.echo(f"{finding.fault:{width}}  {name(finding.sample.name)}{said}")
    if len(shown) < len(found):
        click.echo(f"... and {len(found) - len(shown)} more (--verbose or --json lists all)")
    told = ", ".join(f"{counts[fault]} {fault}" for fault in Fault if counts[fault])
    if filled:
        click.echo(f"{verb} {filled} captions")
    click.echo(f"{len(dataset)} images: {told or 'all captions are well'}")
