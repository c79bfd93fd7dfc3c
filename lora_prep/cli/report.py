"""`lora-prep report`."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_prep.cli import options
from lora_prep.cli.config import META, ConfiguredCommand
from lora_prep.cli.options import FOLDER

if TYPE_CHECKING:
    from lora_prep.dataset import Dataset
    from lora_prep.report import Facts, Options


@click.command(
    "report",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep report                         writes data/report.html
  lora-prep report data/faces --deep --out look.html
  lora-prep report --max-images 500 --thumbnail-size 384
\b
Exit codes: 0 the report was written, whatever is in it; 2 wrong usage, or it cannot be written.
""",
)
@click.argument("images", type=FOLDER, required=False, metavar="[DATA]")
@click.option("--masks", type=FOLDER, help="The masks.  [default: masks beside the images]")
@options.recursive_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file.  [default: report.html beside the masks]",
)
@click.option(
    "--max-images",
    type=click.IntRange(0),
    default=2000,
    show_default=True,
    help="Images in the gallery; of more, those with issues come first. All are counted.",
)
@click.option(
    "--thumbnail-size",
    type=click.IntRange(32, 1024),
    default=256,
    show_default=True,
    help="Longer side of their pictures, in pixels: at 256 a picture takes about 15 kB.",
)
@click.option(
    "--erode",
    help="What `lora-prep masks` took off, for the lines before and after.  [default: --erode of "
    "[masks] in lora-prep.toml, or 2%]",
)
@click.option("--deep", is_flag=True, help="Check as `lora-prep validate --deep` does.")
@click.option("--drift", is_flag=True, help="Check as `lora-prep validate --drift` does.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Threads that read images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as one JSON document, too.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; print nothing.")
def command(
    images: Path | None,
    masks: Path | None,
    recursive: bool,
    out: Path | None,
    max_images: int,
    thumbnail_size: int,
    erode: str | None,
    deep: bool,
    drift: bool,
    threads: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show DATA on one page: what is in it, what is wrong, what was made.

    Writes a single HTML file with all pictures in it, for any browser, from the disk, without a
    network: totals, issues with what to do, a gallery to filter and sort with masks and
    measurements, their distributions, near-duplicates, augmented pairs and class images. The file
    holds small pictures of people: mind whom you send it to.
    """
    from lora_prep import report
    from lora_prep.cli.console import SCHEMA, short
    from lora_prep.dataset import Dataset
    from lora_prep.masks import Margin

    dataset = Dataset.at(options.required(images), masks=masks, recursive=recursive)
    target = Path(os.path.abspath(out or dataset.root / "report.html"))  # noqa: PTH100 keeps links
    report.check_target(target)
    how = report.Options(
        thumbnail_size=thumbnail_size,
        max_images=max_images,
        erosion=Margin.parse(erode or _configured_erosion()),
        threads=threads,
    )
    try:
        facts = gathered(dataset, how, deep=deep, drift=drift, hidden=quiet or as_json)
        size = report.write(target, facts)
    except KeyboardInterrupt:
        click.echo("interrupted: nothing was written", err=True)
        sys.exit(130)
    if as_json:
        document = {"out": str(target), "bytes": size, **report.to_json(facts)}
        click.echo(json.dumps({"schema": SCHEMA, **document}))
    elif not quiet:
        from lora_prep.report.page import size_text

        shown = sum(image.shown for image in facts.images)
        for line in facts.missing:
            click.echo(line)
        found = sum(len(issues) for _, issues in facts.kinds)
        click.echo(
            f"{_number(len(facts.images), 'image')}, {shown} in the gallery, "
            f"{_number(found, 'issue')} -> {short(target)} ({size_text(size)})"
        )


def gathered(
    dataset: "Dataset", how: "Options", *, deep: bool, drift: bool, hidden: bool
) -> "Facts":
    """Check the data set and look at it, with bars on a terminal."""
    from tqdm import tqdm

    from lora_prep.report import Kind, collect
    from lora_prep.validate import CHECKS, cache_path, validate

    hidden = hidden or not sys.stderr.isatty()
    with tqdm(total=len(dataset), desc="validate", unit="img", disable=hidden) as bar:
        checked = validate(
            dataset,
            deep=deep,
            drift=drift,
            cache=cache_path(dataset),
            threads=how.threads,
            observe=bar.update,
        )
    with tqdm(total=len(dataset), desc="report", unit="img", disable=hidden) as bar:
        return collect(
            dataset,
            issues=checked.issues,
            kinds=[Kind(c.code, c.title, c.severity, c.reason, c.fix) for c in CHECKS],
            options=how,
            observe=bar.update,
        )


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _configured_erosion() -> str:
    """`erode` of `[masks]` in the configuration, or that command's default."""
    config = click.get_current_context().meta[META]
    return str(config.commands.get("masks", {}).get("erode", "2%"))
