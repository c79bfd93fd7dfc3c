"""`lora-prep normalize` through its command line."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

ORIENTATION, GPS = 0x0112, 0x8825


@pytest.fixture
def photos(tmp_path, portraits):
    """One upright picture, the same stored on its side with GPS data, and a caption."""
    folder = tmp_path / "photos"
    folder.mkdir()
    upright = Image.fromarray(portraits[0].image[:, :200])
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif.get_ifd(GPS)[1] = "N"
    upright.save(folder / "plain.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(
        folder / "turned.JPG", exif=exif, quality=100, subsampling=0
    )
    (folder / "turned.txt").write_text("a photo of sks person\n")
    upright.convert("CMYK").save(folder / "print.jpeg", quality=100)
    upright.save(folder / "moving.gif")
    return folder


def test_copies_are_what_every_trainer_reads_alike(photos, tmp_path, lora_prep):
    out = tmp_path / "data" / "faces"
    lora_prep("normalize", photos, "--out", out)
    assert sorted(p.name for p in out.iterdir()) == [
        "moving.png",
        "plain.png",
        "print.jpeg",
        "turned.JPG",
        "turned.txt",
    ]
    assert (out / "turned.txt").read_text() == "a photo of sks person\n"
    wanted = np.asarray(Image.open(photos / "plain.png"), np.int16)
    for name in ("plain.png", "print.jpeg", "turned.JPG"):
        with Image.open(out / name) as image:
            assert (image.mode, image.size) == ("RGB", (200, 320)), name
            assert not image.getexif()
            assert np.abs(np.asarray(image, np.int16) - wanted).mean() < 4, name
        ignoring_exif = cv2.imread(str(out / name), cv2.IMREAD_UNCHANGED)
        assert ignoring_exif.shape == (320, 200, 3)


def test_the_originals_are_not_touched(photos, tmp_path, lora_prep):
    before = {p.name: p.read_bytes() for p in photos.iterdir()}
    lora_prep("normalize", photos, "--out", tmp_path / "out")
    assert before == {p.name: p.read_bytes() for p in photos.iterdir()}
    assert not (photos.parent / "photos" / ".lora-prep").exists()


def test_never_in_place(photos, lora_prep):
    result = lora_prep("normalize", photos, "--out", photos, code=2)
    assert "never changed in place" in result.output


def test_two_images_for_one_name_are_refused(photos, tmp_path, lora_prep):
    Image.open(photos / "plain.png").save(photos / "moving.png")
    result = lora_prep("normalize", photos, "--out", tmp_path / "out", code=1)
    assert "moving.gif and moving.png would share a mask and a caption" in result.output
    assert not (tmp_path / "out" / "moving.png").exists()


def test_never_in_place_by_another_name_for_the_folder(photos, tmp_path, lora_prep):
    before = {p.name: p.read_bytes() for p in photos.iterdir()}
    (tmp_path / "link").symlink_to(photos)
    for out in (tmp_path / "link", photos / ".." / "photos"):
        result = lora_prep("normalize", photos, "--out", out, "--force", code=2)
        assert "never changed in place" in result.output
    assert before == {p.name: p.read_bytes() for p in photos.iterdir()}


def test_a_second_source_never_takes_the_place_of_the_first(photos, tmp_path, lora_prep):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (30, 40), "red").save(other / "plain.png")
    out = tmp_path / "out"
    lora_prep("normalize", photos, "--out", out)
    first = (out / "plain.png").read_bytes()
    result = lora_prep("normalize", other, "--out", out, code=1)
    assert "plain.png is already made from photos/plain.png" in result.output
    assert (out / "plain.png").read_bytes() == first


def test_an_empty_caption_is_fresh(photos, tmp_path, lora_prep):
    (photos / "turned.txt").write_text("")
    lora_prep("normalize", photos, "--out", tmp_path / "out")
    result = lora_prep("normalize", photos, "--out", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["counts"]["fresh"] == 4


def test_a_changed_caption_is_copied_again(photos, tmp_path, lora_prep):
    out = tmp_path / "out"
    lora_prep("normalize", photos, "--out", out)
    (photos / "turned.txt").write_text("new words\n")
    result = lora_prep("normalize", photos, "--out", out, "--json")
    assert json.loads(result.stdout)["counts"]["done"] == 1
    assert (out / "turned.txt").read_text() == "new words\n"
