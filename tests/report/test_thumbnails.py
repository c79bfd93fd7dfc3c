"""Small pictures: the mask on them is the mask on the disk."""

import io
import re

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from lora_prep import masks
from lora_prep.masks import Margin
from lora_prep.report.thumbnails import MOST_LINES, outline, picture, shade, uneroded
from tests.report.made import ellipse, photo


def filled(path: str, width: int, height: int) -> np.ndarray:
    """What a path encloses, drawn sixteen times as fine."""
    canvas = np.zeros((height * 16, width * 16), np.uint8)
    for part in path.split("Z")[:-1]:
        numbers = np.array([float(n) for n in re.findall(r"-?[\d.]+", part)]).reshape(-1, 2)
        cv2.fillPoly(canvas, [np.rint(numbers * 16).astype(np.int32)], 255)
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA) >= 128


def decoded(data: bytes) -> PillowImage.Image:
    return PillowImage.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("size", "shape"), [((96, 128), (48, 64)), ((300, 100), (64, 21)), ((20, 30), (20, 30))]
)
def test_pictures_fit_the_size_and_are_never_enlarged(size, shape):
    made = picture(photo(1, size), ellipse(size), 64)
    assert (made.height, made.width) == shape
    assert decoded(made.jpeg).size == decoded(made.shade).size == (shape[1], shape[0])


def test_the_picture_is_the_image():
    made = picture(photo(3), None, 128)
    difference = np.abs(np.asarray(decoded(made.jpeg)).astype(int) - photo(3))
    assert difference.mean() < 6
    assert made.shade == b""
    assert made.line == made.wider == ""


def test_the_shade_is_as_opaque_as_the_weight_is_low():
    mask = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    alpha = np.asarray(decoded(shade(mask)).convert("RGBA"))
    assert (alpha[..., :3] == 0).all()
    assert np.abs(alpha[..., 3].astype(int) - (255 - mask)).max() <= 9
    assert alpha[0, 0, 3] == 255
    assert alpha[0, 255, 3] == 0


@pytest.mark.parametrize("size", [(96, 128), (960, 1280)])
def test_the_line_encloses_the_mask(size):
    mask = ellipse(size)
    made = picture(photo(0, size), mask, 128)
    small = cv2.resize(mask, (128, 96), interpolation=cv2.INTER_AREA) >= 128
    assert masks.iou(filled(made.line, 128, 96), small) > 0.97


def test_a_mask_that_is_all_white_is_outlined_at_the_border():
    line = outline(np.ones((4, 6), np.bool_), 1.0, 1.0)
    assert filled(line, 6, 4).mean() > 0.6


def test_noise_does_not_fill_the_page():
    noise = np.random.default_rng(0).random((256, 256)) < 0.5
    assert outline(noise, 1.0, 1.0).count("M") <= MOST_LINES


@pytest.mark.parametrize("margin", ["2%", "8%", "12px"])
def test_widening_puts_the_edge_back(margin):
    before = ellipse((400, 500), 0.6) > 0
    eroded = masks.erode(before, Margin.parse(margin).radius(before))
    again = uneroded(eroded, Margin.parse(margin))
    assert masks.iou(eroded, before) < 0.97
    assert masks.iou(again, before) > 0.99


def test_pixels_are_those_of_the_mask_that_was_eroded():
    before = ellipse((400, 500), 0.6) > 0
    eroded = masks.erode(before, 6.0)
    half = cv2.resize(eroded.view(np.uint8) * 255, (250, 200), interpolation=cv2.INTER_AREA) >= 128
    truth = cv2.resize(before.view(np.uint8) * 255, (250, 200), interpolation=cv2.INTER_AREA) >= 128
    assert masks.iou(uneroded(half, Margin.parse("12px"), 0.5), truth) > 0.98


@pytest.mark.parametrize("margin", ["0", "-3%", "-4px"])
def test_nothing_is_put_back_where_nothing_was_taken_off(margin):
    assert uneroded(ellipse() > 0, Margin.parse(margin)) is None


def test_an_empty_mask_has_no_edge():
    made = picture(photo(0), np.zeros((96, 128), np.uint8), 64, before=Margin.parse("2%"))
    assert made.line == made.wider == ""
    assert np.asarray(decoded(made.shade).convert("RGBA"))[..., 3].min() == 255
