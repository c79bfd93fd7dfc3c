"""`lora-prep normalize`."""

import os
from pathlib import Path

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand
from lora_prep.cli.options import FOLDER


@click.command(
    "normalize",
    cls=ConfiguredCommand,
    epilog="""\b
Example:
  lora-prep normalize photos --out data/faces
""",
)
@click.argument("photos", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Where the copies go.")
@options.recursive_option
@options.running_options
def command(
    photos: Path,
    out: Path,
    recursive: bool,
    running: options.Running,
) -> None:
    """Copy images so that every trainer reads the same pixels.

    Orientation is baked in (some trainers apply the EXIF tag, some do not), colours become 8-bit
    sRGB, and all metadata, the place where a photograph was taken among it, is left out. Names are
    kept; a JPEG that needs no change keeps its compressed data bit for bit. Formats that trainers
    do not read (HEIC, AVIF, GIF) become PNG. Captions are copied along.
    """
    from lora_prep.cli.console import run_stage
    from lora_prep.dataset import Dataset
    from lora_prep.stages.normalize import NormalizeImages

    dataset = Dataset.at(photos, recursive=recursive)
    stage = NormalizeImages(dataset, Path(os.path.abspath(out)))  # noqa: PTH100 keeps links
    run_stage(
        stage,
        stage.out.parent,
        stage.out,
        running,
    )
