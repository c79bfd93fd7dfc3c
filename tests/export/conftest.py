"""A small data set with everything in it, and exports of it."""

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from lora_prep import imageio
from sample_data.marked import draw_marked

TRAINERS = (
    "diffusion-pipe",
    "ai-toolkit",
    "kohya",
    "onetrainer",
    "simpletuner",
    "musubi",
    "diffusers",
)
MASKED = TRAINERS[:5]

ODD = 'Zoë\'s "best" 1'
"""A stem with a space, quotes and an accent."""


def jpeg_on_its_side(image):
    """As cameras store it: lying, with EXIF orientation 6."""
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    lying = PillowImage.fromarray(image).transpose(PillowImage.Transpose.ROTATE_90)
    lying.save(data, "JPEG", quality=95, subsampling=0, exif=exif)
    return data.getvalue()


def add_pair(root, name, image_bytes, mask, caption=None):
    """An image with its mask."""
    (root / "faces" / name).write_bytes(image_bytes)
    stem = Path(name).stem
    (root / "masks" / f"{stem}.png").write_bytes(imageio.encode_mask(mask))
    if caption is not None:
        (root / "faces" / f"{stem}.txt").write_text(caption, "utf-8")


@pytest.fixture(scope="session")
def _data(tmp_path_factory):
    root = tmp_path_factory.mktemp("source") / "data"
    for folder in ("faces", "masks", "priors"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(["a.png", "b.jpg", f"{ODD}.webp"]):
        marked = draw_marked(seed, (400, 520))
        mask = marked.mask.astype(np.uint8) * np.uint8(255)
        if name == "b.jpg":
            data = jpeg_on_its_side(marked.image)
        else:
            kind = "png" if name.endswith("png") else "webp"
            data = imageio.encode_image(marked.image, kind, lossless=True)
        add_pair(root, name, data, mask, "ohwx by\nthe sea" if seed == 0 else None)
    for seed in (7, 8):
        image = draw_marked(seed, (64, 64)).image
        name = f"{seed}-{hashlib.sha1(image.tobytes()).hexdigest()}.png"
        (root / "priors" / name).write_bytes(imageio.encode_image(image, "png"))
    return root


@pytest.fixture
def data(_data, tmp_path):
    """Three marked pictures (PNG; a JPEG on its side; WebP with an odd name), two class images."""
    return Path(shutil.copytree(_data, tmp_path / "data"))


@pytest.fixture
def pairs(tmp_path):
    """Two pairs, the low ends darker."""
    root = tmp_path / "pairs"
    for side, light in (("positive", 1.0), ("negative", 0.5)):
        (root / side).mkdir(parents=True)
        for seed, name in enumerate("ab"):
            image = np.rint(draw_marked(seed, (64, 64)).image * light).astype(np.uint8)
            (root / side / f"{name}.png").write_bytes(imageio.encode_image(image, "png"))
    return root


@pytest.fixture
def run(data, tmp_path, lora_prep):
    """`run("kohya", "--no-priors")`: export the data set; returns the folder."""

    def call(trainer, *options, out="out", code=0):
        place = tmp_path / out
        given = ("--trigger", "ohwx", "--class", "a photo of a woman")
        call.result = lora_prep(
            "export", "--to", trainer, data, "--out", place, *given, *options, code=code
        )
        return place

    return call


def tree(folder):
    """Every file below a folder, by its hash."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
