"""Train the pack: python -m tools.tiny_models.faces --out DIR."""

import hashlib
import time
from pathlib import Path

import click
import cv2
import torch

from tools.tiny_models.faces import detector, recogniser


@click.command()
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Of the weights and the batches.")
@click.option("--workers", default=2, show_default=True, help="Processes that draw portraits.")
@click.option("--detector-only", is_flag=True)
@click.option("--recogniser-only", is_flag=True)
def main(out: Path, seed: int, workers: int, detector_only: bool, recogniser_only: bool) -> None:
    """Paint portraits, train a detector and a recogniser on them, write both as ONNX."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    if not recogniser_only:
        pictures = detector.draw_training_pictures(detector.PICTURES, workers)
        found = detector.train(pictures, seed=seed, steps=detector.STEPS)
        detector.export(found, out / detector.FILE_NAME)
    if not detector_only:
        crops, people = recogniser.draw_training_crops(recogniser.IDENTITIES, workers)
        known = recogniser.train(crops, people, seed=seed, steps=recogniser.STEPS)
        recogniser.export(known, out / recogniser.FILE_NAME)
    print(f"{time.monotonic() - start:.0f} s")
    for path in sorted(out.glob("*.onnx")):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


if __name__ == "__main__":
    main()
