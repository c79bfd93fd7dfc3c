"""The steps that trainers share, against torch's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from lora_prep.errors import ItemError
from lora_prep.trainers import (
    ai_toolkit,
    diffusion_pipe,
    kohya,
    musubi,
    onetrainer,
    simpletuner,
)
from lora_prep.trainers.pixels import Fit, Shrink, area_or_lanczos, iou, marks, read, to_latents
from lora_prep.trainers.view import Layout


@pytest.mark.parametrize("how", ["nearest-exact", "nearest", "area"])
def test_masks_shrink_as_torch_shrinks_them(how: Shrink) -> None:
    import torch

    mask = np.random.default_rng(1).random((72, 56), np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], (9, 7), mode=how)
    np.testing.assert_allclose(to_latents(mask, how), theirs[0, 0], atol=1e-6)


def test_bilinear_is_torchs_antialiased() -> None:
    import torch

    mask = np.random.default_rng(2).random((72, 56), np.float32)
    batch = torch.from_numpy(mask)[None, None]
    theirs = torch.nn.functional.interpolate(batch, (9, 7), mode="bilinear", antialias=True)
    np.testing.assert_allclose(to_latents(mask, "bilinear"), theirs[0, 0], atol=1e-5)


FITS: dict[str, Callable[[int, int, Layout], Fit]] = {
    "ai-toolkit": lambda w, h, layout: ai_toolkit.bucket(w, h, layout.resolution),
    "kohya": kohya.bucket,
    "onetrainer": onetrainer.bucket,
    "simpletuner": simpletuner.bucket,
    "musubi": musubi.bucket,
}


@pytest.mark.parametrize("trainer", FITS)
@given(
    width=st.integers(1, 9000),
    height=st.integers(1, 9000),
    resolution=st.sampled_from([256, 512, 768, 1024, 1536]),
    buckets=st.booleans(),
    no_upscale=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_picture_covers_its_bucket(
    trainer: str, width: int, height: int, resolution: int, buckets: bool, no_upscale: bool
) -> None:
    layout = Layout(Path(), resolution=resolution, buckets=buckets, no_upscale=no_upscale)
    try:
        fit = FITS[trainer](width, height, layout)
    except ItemError:
        assert no_upscale
        assert trainer == "kohya"
        return
    for side in (0, 1):
        assert fit.size[side] >= 8
        assert fit.size[side] % 8 == 0
        start = (fit.left, fit.top)[side]
        assert start >= 0
        assert start + fit.size[side] <= fit.scaled[side]


@pytest.mark.parametrize(
    ("trainer", "source", "resolution", "size"),
    [
        ("kohya", (1000, 500), 512, (704, 320)),
        ("kohya", (640, 384), 512, (640, 384)),
        ("kohya", (900, 1600), 1024, (576, 1024)),  # no side beyond max_bucket_reso
        ("ai-toolkit", (1920, 1080), 1024, (1344, 768)),
        ("ai-toolkit", (400, 400), 1024, (384, 384)),  # never scaled up beyond its own size
        ("onetrainer", (1000, 1500), 512, (448, 640)),
        ("onetrainer", (800, 800), 1024, (1024, 1024)),
        ("musubi", (1000, 500), 512, (704, 368)),
        ("simpletuner", (1500, 1000), 1024, (1280, 832)),
    ],
)
def test_buckets(
    trainer: str, source: tuple[int, int], resolution: int, size: tuple[int, int]
) -> None:
    assert FITS[trainer](*source, Layout(Path(), resolution=resolution)).size == size


def test_diffusion_pipes_buckets() -> None:
    layout = Layout(Path(), resolution=512)
    assert diffusion_pipe.bucket(800, 800, layout) == (512, 512)
    assert diffusion_pipe.bucket(500, 1100, layout) == (368, 720)
    assert diffusion_pipe.bucket(500, 5000, layout) == (368, 720)
    square = Layout(Path(), resolution=512, buckets=False)
    assert diffusion_pipe.bucket(500, 1100, square) == (512, 512)


def test_kohya_without_upscaling_keeps_small_pictures() -> None:
    layout = Layout(Path(), resolution=1024, no_upscale=True)
    fit = kohya.bucket(500, 400, layout)
    assert (fit.scaled, fit.size) == ((500, 400), (448, 384))
    large = kohya.bucket(3000, 2000, layout)
    assert large.size[0] * large.size[1] <= 1024 * 1024


def test_kohyas_scaling_up_takes_the_colour_from_what_is_transparent() -> None:
    # Pillow multiplies with the alpha before it scales; OpenCV's area averages do not.
    pixels = np.full((40, 40, 4), 200, np.uint8)
    pixels[:, :20, 3] = 0
    picture = PillowImage.fromarray(pixels)
    up, down = area_or_lanczos(picture, (80, 80)), area_or_lanczos(picture, (20, 20))
    assert np.asarray(up)[:, :30, :3].max() == 0
    assert np.asarray(down)[:, :8, :3].min() == 200


def test_what_a_mask_marks_whatever_its_mode(tmp_path: Path) -> None:
    inside = np.zeros((16, 24), bool)
    inside[4:9, 5:20] = True
    grey = inside.astype(np.uint8) * np.uint8(255)
    deep = inside.astype(np.uint16) * np.uint16(300)
    clear = np.dstack([np.full((16, 24, 3), 255, np.uint8), grey])
    modes = {
        "l": PillowImage.fromarray(grey),
        "labels": PillowImage.fromarray(inside.astype(np.uint8)),
        "bilevel": PillowImage.fromarray(grey).convert("1"),
        "deep": PillowImage.fromarray(deep),
        "alpha": PillowImage.fromarray(clear),
        "colour": PillowImage.fromarray(grey).convert("RGB"),
        "palette": PillowImage.fromarray(grey).convert("P"),
    }
    for name, picture in modes.items():
        picture.save(tmp_path / f"{name}.png")
        found = np.asarray(marks(tmp_path / f"{name}.png"))
        np.testing.assert_array_equal(found, grey, err_msg=name)


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_bad_files_are_item_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(ItemError):
        read(path)
    with pytest.raises(ItemError, match=r"cannot read b\.png"):
        read(tmp_path / "b.png")


def test_nothing_to_agree_with_is_no_disagreement() -> None:
    black, white = np.zeros((8, 8), np.float32), np.ones((8, 8), np.float32)
    assert iou(white, black) is None
    assert iou(black, white) == 0
    assert iou(white, white) == 1
