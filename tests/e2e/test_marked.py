"""Masks that are drawn into their pictures still lie there after all that is done to both."""

import cv2
import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.dataset import Dataset
from lora_prep.masks import iou
from sample_data.marked import draw_marked, marker, write_marked

VARIANTS = {"light": 20, "standard": 20, "strong": 20, "flip-only": 1}
BUCKETS = [(512, 640), (320, 448)]
"""Sizes, height and width, that a trainer would scale such pictures to: larger and smaller ones."""


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marked")
    write_marked(folder, 2)
    return folder


def in_bucket(pixels, size):
    """Fill the bucket and cut off what hangs over, as trainers do."""
    height, width = pixels.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    scaled = cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=kind)
    top, left = (scaled.shape[0] - size[0]) // 2, (scaled.shape[1] - size[1]) // 2
    return scaled[top : top + size[0], left : left + size[1]]


def overlaps(folder):
    """IoU of marker and mask of every pair, as it is and in each bucket."""
    found = []
    for sample in Dataset.at(folder):
        image = imageio.decode_image(sample.image.read_bytes())
        mask = imageio.decode_mask(sample.mask.read_bytes())
        assert set(np.unique(mask)) == {0, 255}
        found.append(iou(marker(image), mask > 0))
        found += [iou(marker(in_bucket(image, s)), in_bucket(mask, s) > 127) for s in BUCKETS]
    return found


@pytest.mark.parametrize("preset", VARIANTS)
def test_normalize_augment_and_buckets_keep_masks_on_their_markers(
    marked, tmp_path, lora_prep, preset
):
    lora_prep("normalize", marked / "photos", "--out", tmp_path / "faces")
    masks, count = marked / "masks", VARIANTS[preset]
    out, run = tmp_path / "out", ("--preset", preset, "-n", count, "-q")
    lora_prep("augment", tmp_path / "faces", "--masks", masks, "--out", out, *run)
    found = overlaps(out)
    assert len(found) == 2 * count * (1 + len(BUCKETS))
    assert min(found) >= 0.99


def test_jpeg_blurs_the_marker_no_further(marked, tmp_path, lora_prep):
    lora_prep("normalize", marked / "photos", "--out", tmp_path / "faces")
    out, run = tmp_path / "out", ("--format", "jpeg", "--quality", 90, "-n", 4, "-q")
    lora_prep("augment", tmp_path / "faces", "--masks", marked / "masks", "--out", out, *run)
    assert min(overlaps(out)) >= 0.985


def test_the_marker_itself_sees_a_mask_that_is_two_pixels_off():
    marked = draw_marked(0)
    assert iou(marker(marked.image), marked.mask) == 1
    assert iou(marker(marked.image), np.roll(marked.mask, 1, axis=1)) < 0.99
