"""What each trainer makes of its export, by its own look-up, crop and resize."""

import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.export.check import check, view_of
from lora_prep.masks import iou
from sample_data.marked import marker
from tests.export.conftest import MASKED, ODD, TRAINERS, add_pair, tree


@pytest.mark.parametrize("trainer", MASKED)
def test_masks_lie_on_what_they_mark(trainer, run):
    view = view_of(run(trainer, "--resolution", 512))
    names = view.names()
    assert len(names) == 3
    assert {name.rpartition(".")[0] for name in names} == {"a", "b", ODD}
    assert view.problems() == []
    for name in names:
        seen = view.see(name)
        assert seen.good, (name, seen.problem)
        assert iou(marker(seen.image), seen.aligned >= 0.5) >= 0.99, name


def test_kohyas_mask_folder_misaligns_and_check_tells(run):
    """520 × 400 is no bucket: the trap is the trainer's, and no export can mend it."""
    out = run("kohya", "--route", "mask-dir", "--no-priors", "--resolution", 512)
    view = view_of(out)
    seen = view.see("a.png")
    assert seen.used
    assert iou(marker(seen.image), seen.aligned >= 0.5) < 0.99
    assert any("stretched" in note for note in seen.notes)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_check_is_content_with_what_export_wrote(trainer, run):
    found = check(run(trainer, "--resolution", 512))
    assert found.problems == []
    assert found.images == 3
    assert found.masked == (3 if trainer in MASKED else 0)


def test_nothing_in_the_source_changes(run, data):
    before = tree(data)
    for trainer in ("kohya", "diffusion-pipe", "onetrainer"):
        run(trainer, "--check", out=trainer)
    assert tree(data) == before


def test_an_image_on_its_side_is_written_upright(run, data):
    out = run("diffusion-pipe")
    source = imageio.read_header((data / "faces" / "b.jpg").read_bytes())
    written = imageio.read_header((out / "images" / "b.jpg").read_bytes())
    assert (source.orientation, written.orientation) == (6, 1)
    assert (written.width, written.height) == (520, 400)
    assert "written anew for 1: b.jpg" in run.result.output


def test_images_that_need_no_change_are_copied_byte_for_byte(run, data):
    out = run("ai-toolkit")
    assert (out / "images" / "a.png").read_bytes() == (data / "faces" / "a.png").read_bytes()


def test_the_rgba_file_holds_image_and_mask(run, data):
    import io

    from PIL import Image

    out = run("kohya", "--resolution", 256)
    with Image.open(io.BytesIO((out / "rgba" / "a.png").read_bytes())) as picture:
        assert picture.mode == "RGBA"
        pixels = np.asarray(picture)
    image = imageio.decode_image((data / "faces" / "a.png").read_bytes())
    mask = imageio.decode_mask((data / "masks" / "a.png").read_bytes())
    assert np.array_equal(pixels[..., :3], image)
    assert np.array_equal(pixels[..., 3], mask)


def test_the_floor_is_in_the_masks_or_in_the_key(run):
    black = {}
    for trainer in ("diffusion-pipe", "ai-toolkit"):
        view = view_of(run(trainer, "--mask-floor", 0.2, out=trainer))
        mask = imageio.decode_mask((view.layout.masks / "a.png").read_bytes())
        black[trainer] = int(mask.min())
        assert mask.max() == 255
        assert np.quantile(view.see("a.png").weights, 0.1) == pytest.approx(0.2, abs=0.01)
    assert black == {"diffusion-pipe": 51, "ai-toolkit": 0}


def test_a_white_mask_passes(run, data):
    image = imageio.decode_image((data / "faces" / "a.png").read_bytes())
    white = np.full(image.shape[:2], 255, np.uint8)
    add_pair(data, "white.png", imageio.encode_image(image, "png"), white)
    for trainer in ("kohya", "onetrainer"):
        assert check(run(trainer, out=trainer)).problems == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda out: (out / "masks" / "a.png").unlink(), "masks/a.png is gone"),
        (lambda out: (out / "images" / "b.jpg").write_bytes(b"x"), "images/b.jpg is not as it was"),
        (lambda out: (out / "images" / "new.png").write_bytes((out / "images/a.png").read_bytes()),
         "images/new.png is not of this export"),
        (lambda out: (out / "dataset.toml").write_text("x ="), "dataset.toml cannot be read"),
        (lambda out: (out / "dataset.toml").write_text(
            (out / "dataset.toml").read_text().replace("mask_path", "masks_path")),
         "directory[0].masks_path is no key"),
        (lambda out: (out / "dataset.toml").write_text(
            (out / "dataset.toml").read_text().replace("/masks", "/elsewhere")),
         "which is not there"),
    ],
)  # fmt: skip
def test_check_finds_what_is_wrong(harm, said, run, lora_prep):
    out = run("diffusion-pipe")
    harm(out)
    result = lora_prep("export", "--check", "--out", out, code=1)
    assert said in result.output
