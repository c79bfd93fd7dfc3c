"""`lora-prep clean`."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand
from lora_prep.cli.options import FOLDER

if TYPE_CHECKING:
    from lora_prep.clean import Candidate
    from lora_prep.dataset import Dataset

STEPS = ("masks", "augment", "embed", "priors", "normalize")
CHEAP = ("masks", "augment", "embed")
"""What is removed where nothing is named: priors cost hours, and normalize made the images."""

WHY = {
    "edited": "edited by hand",
    "outside": "outside",
    "other": "not made by `lora-prep embed` of these images",
}
"""Why a file stays, by its verdict."""


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
@click.option("--masks", type=FOLDER, help="Of the masks, only those here.  [default: all]")
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
    images go only when --only names them. embeddings.safetensors goes if it says that `lora-prep
    embed` made it of these images.
    """
    from lora_prep import clean
    from lora_prep.clean import Verdict
    from lora_prep.cli.console import SCHEMA, short
    from lora_prep.journal import exclusive

    dataset = clean.dataset_at(options.required(images), masks=masks, recursive=recursive)
    found = list(clean.made_by(dataset, steps or CHEAP, all_masks=masks is None))
    cached = list(clean.caches(dataset)) if caches else []
    what = ", ".join(_counted(dataset, found, len(cached), verbose=True))
    if not dry_run and what:
        if not yes:
            if not sys.stdin.isatty() or as_json:
                raise click.UsageError(
                    f"this would remove {what}: give --yes, or --dry-run to look"
                )
            click.confirm(f"Remove {what} from {short(dataset.root)}?", abort=True)
        with exclusive(dataset.state):
            found = [clean.remove_made(candidate, dataset.root) for candidate in found]
            for path in cached:
                clean.remove(path, dataset.root)
    going = [c.path for c in found if c.verdict is Verdict.REMOVE]
    staying = [c for c in found if c.verdict is not Verdict.REMOVE]
    if as_json:
        document = {
            "schema": SCHEMA,
            "dry_run": dry_run,
            "removed": [dataset.key(path) for path in (*going, *cached)],
            "stayed": {dataset.key(c.path): c.verdict for c in staying},
        }
        click.echo(json.dumps(document))
        return
    for path in going if dry_run else ():
        click.echo(f"would remove  {short(path)}")
    for candidate in staying:
        click.echo(f"stays         {short(candidate.path)} ({WHY[candidate.verdict]})")
    verb = "would be removed" if dry_run else "removed"
    listed = ", ".join(_counted(dataset, found, len(cached)))
    click.echo(f"{verb}: {listed or 'nothing'}; {len(staying)} stay")


def _counted(
    dataset: "Dataset", found: "Iterable[Candidate]", cached: int, *, verbose: bool = False
) -> Iterator[str]:
    """How many files of each step go, and `verbose`, out of which folders."""
    from lora_prep.clean import Verdict

    files: dict[str, list[str]] = defaultdict(list)
    for candidate in found:
        if candidate.verdict is Verdict.REMOVE:
            files[candidate.step].append(dataset.key(candidate.path))
    for step, keys in files.items():
        places = f" in {', '.join(_places(keys))}" if verbose else ""
        yield f"{len(keys)} {'files ' if verbose else ''}of {step}{places}"
    if cached:
        yield f"{cached} cached files" if verbose else f"{cached} cached"


def _places(keys: Sequence[str]) -> list[str]:
    """The folders just below the data set's root, sorted; files that lie there by their name."""
    from lora_prep.cli.console import name

    return sorted({name(key.partition("/")[0]) for key in keys})
