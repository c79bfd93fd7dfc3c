"""`lora-prep augment`."""

import os
from pathlib import Path
from typing import Any

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand, FileOrTables
from lora_prep.cli.options import FOLDER


@click.command(
    "augment",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep augment data/faces -n 4                   writes data/augmented/images and /masks
  lora-prep augment data/faces --preset light --format jpeg --quality 95
  lora-prep augment data/faces --pipeline mine.toml   albumentations transforms, see below

\b
A pipeline is a list of tables, in a file or in lora-prep.toml:
  [[augment.pipeline]]           # in a file of its own: [[pipeline]]
  transform = "Perspective"      # its name in albumentations
  scale = [0.02, 0.05]           # its arguments
  border_mode = "reflect_101"
""",
)
@options.images_argument
@click.option("--masks", type=FOLDER, help="Where the masks lie.  [default: masks beside IMAGES]")
@click.option("--no-masks", is_flag=True, help="Augment the images alone.")
@click.option(
    "--out", type=FOLDER, help="Gets images and masks.  [default: augmented beside IMAGES]"
)
@options.recursive_option
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1),
    help="Variants of each image. Asking for more later makes only those that are missing.  "
    "[default: 4, of flip-only 1]",
)
@click.option(
    "--preset",
    type=click.Choice(["light", "standard", "strong", "flip-only"]),
    default="standard",
    show_default=True,
    help="How far images are scaled, turned, shifted and relit: by 5, 10 or 20 %, 3, 8 or 15 "
    "degrees.",
)
@click.option(
    "--pipeline",
    type=FileOrTables(dir_okay=False),
    metavar="FILE",
    help="Transforms of your own instead of a preset's, from a TOML or JSON file.",
)
@click.option(
    "--flip",
    is_flag=True,
    help="Mirror half of the variants. Not for a person's likeness: faces are not symmetric, and "
    "mirrored partings, moles and smiles are learned as well.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Another seed, other variants."
)
@click.option(
    "--format",
    type=click.Choice(["png", "jpeg"]),
    default="png",
    show_default=True,
    help="png has no loss; jpeg takes a fifth of the space and half of the time.",
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=95,
    show_default=True,
    help="Of jpeg; colours always have the full resolution.",
)
@click.option(
    "--min-kept",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    help="Draw again where less of the mask is left, or a landmark left the picture; 0 = never.",
)
@click.option(
    "--tries",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Draws a variant gets before it counts as failed.",
)
@options.running_options
def command(
    images: Path | None,
    masks: Path | None,
    no_masks: bool,
    out: Path | None,
    recursive: bool,
    count: int | None,
    preset: Any,
    pipeline: Any,
    flip: bool,
    seed: int,
    format: Any,
    quality: int,
    min_kept: float,
    tries: int,
    running: options.Running,
) -> None:
    """Make variants of each image: moved, turned, relit, with a mask that fits.

    Image, mask and recorded faces move alike; colours change in the image alone. Masks stay
    binary where they were, and what was ignored stays ignored, the border included. Variants are a
    data set of their own, with captions, and their faces need not be detected again (run detect or
    masks before). The same seed gives the same files. A variant that lost the face is drawn again.
    """
    from lora_prep.augmentation import PRESETS, as_pipeline, read_pipeline
    from lora_prep.cli.console import name, run_stage
    from lora_prep.dataset import Dataset
    from lora_prep.errors import UsageError
    from lora_prep.stages.augment import AugmentImages, with_flip

    dataset = Dataset.at(options.required(images), masks=masks, recursive=recursive)
    if pipeline is None:
        transforms = PRESETS[preset]
        if preset == "flip-only" and count is not None and count > 1:
            raise UsageError(f"flip-only has one result an image, so -n 1, not -n {count}")
        count = count or (1 if preset == "flip-only" else 4)
    else:
        from lora_prep.backends.albumentations import check

        given = isinstance(pipeline, list)
        transforms = (
            as_pipeline(pipeline, "[augment] pipeline") if given else read_pipeline(Path(pipeline))
        )
        check(transforms, flip=flip)
    stage = AugmentImages(
        dataset,
        Path(os.path.abspath(out)) if out else dataset.images.parent / "augmented",  # noqa: PTH100 keeps links
        count=count or 4,
        pipeline=with_flip(transforms) if flip else transforms,
        seed=seed,
        with_masks=not no_masks,
        format=format,
        quality=quality,
        min_kept=min_kept,
        tries=tries,
    )
    surplus = stage.surplus()
    if surplus and not running.quiet:
        listed = ", ".join(map(name, surplus[:3])) + (", ..." if len(surplus) > 3 else "")
        click.echo(
            f"note: {len(surplus)} variants more than -n {stage.count} asks for are in "
            f"{name(str(stage.made.images))} ({listed}): trainers use them all. They are left as "
            "they are, whatever else changes; delete what you do not want",
            err=True,
        )
    run_stage(
        stage,
        dataset.root,
        stage.out,
        running,
    )
