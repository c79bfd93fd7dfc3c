"""`lora-prep detect`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand

if TYPE_CHECKING:
    from lora_prep.types import Outcome


@click.command(
    "detect",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep detect data/faces
  lora-prep detect data/faces --detector cascade --json
""",
)
@options.images_argument
@options.recursive_option
@options.preset_option("Model: best = insightface buffalo_l, fast = buffalo_sc.")
@options.detector_options
@options.running_options
def command(
    images: Path | None,
    recursive: bool,
    running: options.Running,
    **models: Any,
) -> None:
    """Find the faces of each image and list them.

    Boxes and landmarks are in pixels of the upright image. They are kept under .lora-prep/faces
    beside the image folder, and `lora-prep masks` uses them instead of detecting again.
    """
    from lora_prep.cli.console import run_stage
    from lora_prep.cli.presets import detector_spec
    from lora_prep.dataset import Dataset
    from lora_prep.stages.detect import DetectFaces

    dataset = Dataset.at(options.required(images), recursive=recursive)
    stage = DetectFaces(dataset, detector_spec(**models))
    run_stage(
        stage,
        dataset.root,
        dataset.state / "faces",
        running,
        table=None if running.dry_run else table,
    )


def table(outcomes: "Sequence[Outcome]") -> Iterator[str]:
    """One line a face."""
    from lora_prep.cli.console import name

    width = max((len(name(o.key)) for o in outcomes), default=0)
    yield f"{'image':{width}}  {'size':>11}  face  score  {'box (x0 y0 x1 y1)':24}  landmarks"
    for outcome in outcomes:
        if outcome.info is None:
            continue
        size = "×".join(str(n) for n in outcome.info["size"])
        start = f"{name(outcome.key):{width}}  {size:>11}"
        faces = outcome.info["faces"]
        if not faces:
            yield f"{start}     -"
        for i, face in enumerate(faces, 1):
            box = " ".join(f"{v:5.0f}" for v in face["box"])
            landmarks = "yes" if face["landmarks"] else "no"
            yield f"{start}  {i:4}  {face['score']:5.2f}  {box:24}  {landmarks}"
    counts = [len(o.info["faces"]) for o in outcomes if o.info is not None]
    yield f"{sum(counts)} faces in {len(counts)} images, {counts.count(0)} of them without one"
