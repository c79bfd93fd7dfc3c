"""A small data set with masks, and the page over it."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.dataset import Dataset
from lora_prep.review.session import Session
from tests.fakes.review_server import Served, serving

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Three images with a bright disc, and masks of every weight."""
    root = tmp_path / "data"
    (root / "faces").mkdir(parents=True)
    (root / "masks").mkdir()
    for number, name in enumerate("abc"):
        image = np.full((HEIGHT, WIDTH, 3), (40, 60, 90), np.uint8)
        cv2.circle(image, (30 + 10 * number, 30), 14, (230, 180, 120), cv2.FILLED)
        (root / "faces" / f"{name}.png").write_bytes(imageio.encode_image(image, "png"))
        (root / "masks" / f"{name}.png").write_bytes(imageio.encode_mask(weights(number)))
    return Dataset.at(root)


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


def on_disk(dataset: Dataset, name: str) -> np.ndarray:
    return imageio.decode_mask((dataset.masks / name).read_bytes())


@pytest.fixture
def session(data: Dataset) -> Session:
    return Session(data)


@pytest.fixture
def page(session: Session) -> Iterator[Served]:
    with serving(session) as served:
        yield served
