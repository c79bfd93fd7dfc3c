"""A folder with a tiny model, prepared pictures, and configurations to train on them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lora_prep import imageio
from lora_prep.training.trainer import config as run_config
from lora_prep.training.trainer import loop
from lora_prep.training.trainer.config import Config
from lora_prep.training.trainer.plan import plan
from tests.fakes import tiny_pipelines

PICTURES = 3


def pictures(root: Path) -> Path:
    """Images with captions, masks of the left half, class images, and pairs."""
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    for kind in ("data/faces", "data/masks", "data/priors", "pairs/positive", "pairs/negative"):
        (root / kind).mkdir(parents=True)
    for i in range(PICTURES):
        image = np.full((64, 64, 3), 70 + 30 * i, np.uint8)
        cv2.circle(image, (20, 20 + 10 * i), 12, (220, 40, 60), -1)
        png = imageio.encode_image(image, "png")
        (root / f"data/faces/{i}.png").write_bytes(png)
        (root / f"data/faces/{i}.txt").write_text(f"a photo of sks {i}")
        (root / f"data/masks/{i}.png").write_bytes(imageio.encode_mask(mask))
        (root / f"data/priors/{i}.png").write_bytes(imageio.encode_image(255 - image, "png"))
        (root / f"pairs/positive/{i}.png").write_bytes(png)
        soft = imageio.encode_image(cv2.blur(image, (9, 9)), "png")
        (root / f"pairs/negative/{i}.png").write_bytes(soft)
    return root


def model(root: Path, family: tiny_pipelines.Family) -> Path:
    """The family's tiny model, made where it is not there yet."""
    folder = root / "models" / family
    if not folder.exists():
        tiny_pipelines.saved(family, folder)
    return folder


def change_the_middle(file: Path) -> None:
    """One byte of a large file of weights, far from both ends: as a LoRA in its attention does."""
    size = file.stat().st_size
    assert size > 3 << 16
    with file.open("r+b") as weights:
        weights.seek(size // 2)
        (byte,) = weights.read(1)
        weights.seek(size // 2)
        weights.write(bytes([byte ^ 1]))


def values(family: str, **tables: dict[str, Any]) -> dict[str, Any]:
    """A configuration; `tables` replace or add to its own, key by key (losses as a whole)."""
    found: dict[str, Any] = {
        "model": {"base": f"models/{family}", "text_tokens": 16},
        "data": {"images": "data", "resolution": 64, "bucket_step": 64},
        "lora": {"rank": 4, "targets": "all.attn"},
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 1e-2},
        "losses": {"masked": {}},
        "save": {"out": "out", "every": 0},
    }
    for name, table in tables.items():
        found[name] = table if name == "losses" else {**found.get(name, {}), **table}
    return found


def config(root: Path, family: str, **tables: dict[str, Any]) -> Config:
    return run_config.from_dict(values(family, **tables), "run.toml", root)


def train(root: Path, family: str, *, restart: bool = False, **tables: dict[str, Any]) -> loop.Done:
    run = config(root, family, **tables)
    return loop.train(plan(run, root / "models" / family), restart=restart, say=lambda _: None)
