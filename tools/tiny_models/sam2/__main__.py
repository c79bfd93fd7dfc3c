"""`python -m tools.tiny_models.sam2 --out DIR`: draw portraits, train, write the model."""

import tempfile
from pathlib import Path

import click
import torch

from tools.tiny_models.sam2 import model as tiny
from tools.tiny_models.sam2.portraits import drawn
from tools.tiny_models.sam2.train import Plan, to_stderr, train


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--steps", default=Plan().steps, show_default=True)
@click.option("--portraits", default=8000, show_default=True, help="How many to draw.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of torch.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path(tempfile.gettempdir()) / "tiny-sam2-portraits",
    show_default=True,
    help="Where drawn portraits are kept, .25 MB each.",
)
def main(out: Path, steps: int, portraits: int, seed: int, threads: int, cache: Path) -> None:
    """Train a tiny SAM2 on painted portraits: tiny_sam2.pt and tiny_sam2.yaml."""
    torch.set_num_threads(threads)
    to_stderr(f"drawing {portraits} portraits into {cache}")
    weights = train(drawn(cache, portraits), Plan(steps=steps, seed=seed), to_stderr)
    tiny.save(weights, out)


main()
