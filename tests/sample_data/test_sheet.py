"""The contact sheet shows each picture."""

import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.errors import DatasetError
from sample_data.sheet import CELL, LABEL, contact_sheet


def test_every_picture_has_its_cell(tmp_path):
    for i, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (99, 0, 99)]):
        picture = np.full((40 + 30 * i, 60, 3), colour, np.uint8)
        (tmp_path / f"p{i}.png").write_bytes(imageio.encode_image(picture, "png"))
    sheet = contact_sheet(tmp_path)
    assert sheet.shape == (2 * (CELL + LABEL), 4 * CELL, 3)
    for i, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (99, 0, 99)]):
        row, column = divmod(i, 4)
        middle = sheet[row * (CELL + LABEL) + CELL // 2, column * CELL + CELL // 2]
        assert tuple(middle) == colour


def test_an_empty_folder_is_told_so(tmp_path):
    with pytest.raises(DatasetError, match="no picture"):
        contact_sheet(tmp_path)
