"""The contact sheet shows each picture."""

import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.errors import DatasetError
from sample_data.sheet import CELL, LABEL, contact_sheet


def test_every_picture_stands_above_its_name(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (99, 0, 99)]
    for i, colour in enumerate(colours):
        picture = np.full((40 if i == 4 else 60, 60, 3), colour, np.uint8)
        (tmp_path / f"p{i}.png").write_bytes(imageio.encode_image(picture, "png"))
    sheet = contact_sheet(tmp_path)
    side, wide = CELL - 8, 4 * CELL
    heights = [side + LABEL + 8, side * 40 // 60 + LABEL + 8]
    assert sheet.shape == (sum(heights), wide, 3)
    for i, colour in enumerate(colours):
        row, column = divmod(i, 4)
        top = heights[0] * row + 4
        high = side if i < 4 else side * 40 // 60
        there = sheet[top : top + high, column * CELL + 4 : column * CELL + 4 + side]
        assert (there == colour).all()
        label = sheet[top + high + 1 : top + high + LABEL, column * CELL : (column + 1) * CELL]
        assert (label < 200).any()


def test_an_empty_folder_is_told_so(tmp_path):
    with pytest.raises(DatasetError, match="no picture"):
        contact_sheet(tmp_path)
