"""`lora-prep masks`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand
from lora_prep.cli.options import FOLDER

if TYPE_CHECKING:
    from lora_prep.cli.console import End
    from lora_prep.stages.overlays import DrawOverlays
    from lora_prep.types import Outcome


@click.command(
    "masks",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep masks data/faces                     writes data/masks/*.png
  lora-prep masks data/faces --preset embedded   no model files, draft quality
  lora-prep masks data/faces --region head --erode 10px --overlay look
  lora-prep masks data/faces --faces reference   the person of `lora-prep embed` alone
""",
)
@options.images_argument
@click.option("--out", type=FOLDER, help="Where the masks go.  [default: masks beside IMAGES]")
@options.recursive_option
@options.preset_option(
    "Models: best = insightface buffalo_l + sam2-hiera-large, fast = buffalo_sc + sam2-hiera-tiny."
)
@click.option(
    "--region",
    type=click.Choice(["face", "head", "person"]),
    default="face",
    show_default=True,
    help="What to train on.",
)
@click.option(
    "--faces",
    type=click.Choice(["largest", "all", "center", "reference"]),
    default="largest",
    show_default=True,
    help="Which faces of an image with several; largest = by area times confidence, reference = "
    "the one most like the person of `lora-prep embed`.",
)
@click.option(
    "--min-face",
    type=click.IntRange(0),
    default=32,
    show_default=True,
    help="Pass over faces whose shorter side has fewer pixels.",
)
@click.option(
    "--min-similarity",
    type=click.FloatRange(-1, 1),
    help="For --faces reference: a face less like the reference is somebody else's.  "
    "[default: what `lora-prep embed` went by]",
)
@click.option(
    "--no-face",
    type=click.Choice(["fail", "skip", "white", "black"]),
    default="fail",
    show_default=True,
    help="An image without a face: report it, leave it out, or write a mask of one colour.",
)
@click.option(
    "--erode",
    default="2%",
    show_default=True,
    help="Take the mask's edge off: 2% of the square root of its area, or 10px for a kernel that "
    "wide; 0 = not at all, negative = widen.",
)
@click.option(
    "--feather",
    default="0",
    show_default=True,
    help="Let the weight fall off inside the edge over this distance (4px, 2%).",
)
@click.option(
    "--overlay",
    type=FOLDER,
    help="Draw previews of the masks into this folder, of your "
    "own ones as well; no mask is made again for it.",
)
@options.detector_options
@click.option(
    "--segmenter",
    type=click.Choice(["sam2", "grabcut"]),
    help="grabcut needs no model file.  [default: the preset's]",
)
@click.option(
    "--sam2-model",
    metavar="ID|FILE",
    help="sam2: a hub id or a checkpoint file.  [default: the preset's]",
)
@click.option("--sam2-config", metavar="FILE", help="sam2: the YAML file of a checkpoint file.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="sam2: precision; auto = bfloat16 where the device has instructions for it.  "
    "[default: auto]",
)
@click.option(
    "--compile",
    is_flag=True,
    help="sam2: compile the image encoder first. Takes minutes: for thousands of images on CUDA; "
    "of little use on the CPU.",
)
@click.option(
    "--cache-embeddings",
    is_flag=True,
    help="sam2: keep what the encoder makes of each image (8.4 MB) below .lora-prep/embeddings, so "
    "that another --region, --faces or a later command takes a fraction of the time.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Images a batch of the segmenter.  [default: 1 on the CPU, 8 on CUDA]",
)
@options.running_options
def command(
    images: Path | None,
    out: Path | None,
    recursive: bool,
    region: str,
    faces: Any,
    min_face: int,
    min_similarity: float | None,
    no_face: Any,
    erode: str,
    feather: str,
    overlay: Path | None,
    cache_embeddings: bool,
    batch_size: int | None,
    running: options.Running,
    **models: Any,
) -> None:
    """Make a mask for each image: white = train, black = ignore.

    Detects faces, segments them, fills holes, takes the edge off, and writes an 8-bit grey PNG as
    large as the image under the same name. Masks that are up to date are not made again; masks
    that you drew or edited are left alone.
    """
    from lora_prep.backends import default_batch_size
    from lora_prep.cli.console import End, run_stage
    from lora_prep.cli.presets import specs
    from lora_prep.dataset import Dataset
    from lora_prep.masks import Margin
    from lora_prep.stages.masks import MakeMasks
    from lora_prep.stages.overlays import DrawOverlays
    from lora_prep.types import Region

    source = click.get_current_context().get_parameter_source("min_similarity")
    if faces != "reference" and source is ParameterSource.COMMANDLINE:
        raise click.UsageError("--min-similarity goes with --faces reference")
    dataset = Dataset.at(options.required(images), masks=out, recursive=recursive)
    detector, segmenter = specs(**models)
    stage = MakeMasks(
        dataset,
        detector,
        segmenter,
        region=Region(region),
        faces=faces,
        min_face=min_face,
        min_similarity=min_similarity if faces == "reference" else None,
        no_face=no_face,
        erode=Margin.parse(erode),
        feather=Margin.parse(feather),
        batch_size=batch_size or 1,
        cache_embeddings=cache_embeddings,
    )
    previews = DrawOverlays(dataset, overlay) if overlay else None
    if previews is not None and running.shard is not None:
        click.echo("--overlay: a shard draws nothing; give it once all are merged", err=True)
    stage.settings()  # a model that is not to be had is said before torch is imported
    if batch_size is None:
        stage = replace(stage, batch_size=default_batch_size(segmenter))

    def finish(outcomes: "Sequence[Outcome]") -> End:
        if previews is None or len(outcomes) < len(stage):  # interrupted
            return End()
        return draw(previews, running)

    run_stage(
        stage,
        dataset.root,
        dataset.masks,
        running,
        finish=finish if previews is not None else None,
    )


def draw(previews: "DrawOverlays", running: options.Running) -> "End":
    """Draw the previews. One that fails, or an interrupt, counts as it does for a mask."""
    from lora_prep.cli.console import End, Verbosity, summary
    from lora_prep.executors.local import LocalExecutor
    from lora_prep.run import run

    report = run(
        previews,
        previews.dataset.root,
        executor=LocalExecutor(running.threads),
        force=running.force,
    )
    counts = {str(status): count for status, count in report.counts.items()}
    problems = [{"key": one.key, "message": one.message} for one in report.problems]
    verbosity = Verbosity(quiet=running.quiet, verbose=running.verbose)
    fields = {"overlays": {"out": str(previews.out), "counts": counts, "problems": problems}}
    interrupted = {"interrupted": True} if report.signal else {}
    lines = summary(report, previews.out, verbosity)
    return End({**fields, **interrupted}, lines, report.exit_code)
