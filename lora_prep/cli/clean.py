"""`lora-prep clean`."""

import json
import sys
from collections import Counter
from pathlib import Path

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand
from lora_prep.cli.options import FOLDER

STEPS = ("masks", "augment", "embed", "priors", "normalize")
CHEAP = ("masks", "augment", "embed")
"""What is removed where nothing is named: priors cost hours, and normalize made the images."""


@click.command(
    "clean",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep clean --dry-run            what would go
  lora-prep clean data --yes           masks, augmented pairs and embeddings
  lora-prep clean data --only augment --yes
""",
)
@click.argument("images", type=FOLDER, required=False, metavar="[DATA]")
@click.option(
    "--only",
    "steps",
    multiple=True,
    type=click.Choice(STEPS),
    help="Only what this step made. May be given several times.",
)
@click.option("--masks", type=FOLDER, help="The masks.  [default: masks beside the images]")
@options.recursive_option
@click.option("--caches", is_flag=True, help="Remove found faces and cached embeddings, too.")
@click.option("--dry-run", is_flag=True, help="List what would be removed, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    images: Path | None,
    steps: tuple[str, ...],
    masks: Path | None,
    recursive: bool,
    caches: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove what lora-prep made: masks, augmented pairs and embeddings.

    A file goes only if its content is, byte for byte, what lora-prep wrote. What you made or edited
    stays and is listed, and so does what lies outside the data set's folder. Priors and normalised
    images go only when --only names them.
    """
    from lora_prep import clean
    from lora_prep.cli.console import SCHEMA, short
    from lora_prep.dataset import Dataset
    from lora_prep.journal import exclusive

    dataset = Dataset.at(options.required(images), masks=masks, recursive=recursive)
    found = list(clean.made_by(dataset, steps or CHEAP))
    going = [c.path for c in found if c.verdict is clean.Verdict.REMOVE]
    cached = list(clean.caches(dataset)) if caches else []
    counts = Counter(c.step for c in found if c.verdict is clean.Verdict.REMOVE)
    staying = [c for c in found if c.verdict is not clean.Verdict.REMOVE]
    removing = bool(going or cached) and not dry_run
    if not as_json:
        for path in going if dry_run else ():
            click.echo(f"would remove  {short(path)}")
        for candidate in staying:
            why = "edited by hand" if candidate.verdict is clean.Verdict.EDITED else "outside"
            click.echo(f"stays         {short(candidate.path)} ({why})")
    if removing and not yes:
        what = ", ".join(f"{count} files of {step}" for step, count in counts.items())
        what += (
            f"{', ' if what and cached else ''}{f'{len(cached)} cached files' if cached else ''}"
        )
        if not sys.stdin.isatty() or as_json:
            raise click.UsageError(f"this would remove {what}: give --yes, or --dry-run to look")
        click.confirm(f"Remove {what} from {short(dataset.root)}?", abort=True)
    if removing:
        with exclusive(dataset.state):
            for path in (*going, *cached):
                clean.remove(path, dataset.root)
    if as_json:
        document = {
            "schema": SCHEMA,
            "dry_run": dry_run,
            "removed": [dataset.key(path) for path in (*going, *cached)],
            "stayed": {dataset.key(c.path): c.verdict for c in staying},
        }
        click.echo(json.dumps(document))
        return
    verb = "would be removed" if dry_run else "removed"
    listed = [f"{count} of {step}" for step, count in counts.items()]
    listed += [f"{len(cached)} cached"] if cached else []
    click.echo(f"{verb}: {', '.join(listed) or 'nothing'}; {len(staying)} stay")
