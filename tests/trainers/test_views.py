"""Masks that trainers keep where they belong, and the ways in which each of them loses them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from lora_prep.trainers import TRAINERS, Trainer, open_view, see
from lora_prep.trainers.view import Layout, View
from sample_data.marked import draw_marked
from tests.trainers.folders import (
    SIZES,
    overlap,
    write,
    write_mask,
    write_rgba,
    write_sideways,
)

MASKED: tuple[Trainer, ...] = ("diffusion-pipe", "ai-toolkit", "kohya", "onetrainer", "simpletuner")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    write(tmp_path)
    return Layout(tmp_path / "images", tmp_path / "masks", resolution=384)


def exported(trainer: Trainer, layout: Layout) -> Layout:
    """The layout once the masks lie where the trainer looks for them."""
    for mask in sorted((layout.images.parent / "masks").iterdir()):
        picture = np.asarray(PillowImage.open(mask))
        if trainer == "onetrainer":
            write_mask(layout.images / f"{mask.stem}-masklabel.png", picture > 0)
        if trainer == "kohya":
            image = np.asarray(PillowImage.open(layout.images / mask.name))
            both = PillowImage.fromarray(np.dstack([image, picture]))
            both.save(layout.images / mask.name, compress_level=1)
    if trainer == "kohya":
        return replace(layout, alpha_mask=True)
    return layout


@pytest.mark.parametrize("trainer", MASKED)
@pytest.mark.parametrize("prepared", [False, True])
def test_the_mask_stays_on_what_it_marks(trainer: Trainer, prepared: bool, layout: Layout) -> None:
    if prepared:
        layout = replace(layout, prepared=True, alpha_mask=trainer == "kohya")
    else:
        layout = exported(trainer, layout)
    view = open_view(trainer, layout)
    assert view.names() == [f"m{i}.png" for i in range(len(SIZES))]
    assert view.problems() == []
    for name in view.names():
        seen = view.see(name)
        assert seen.good, seen.problem
        assert overlap(seen) >= 0.99
        assert seen.agreement is not None
        assert seen.agreement >= 0.99
        height, width = seen.image.shape[:2]
        assert seen.weights.shape == (height // 8, width // 8)
        assert seen.inside is not None
        floor = 0.1 if trainer == "onetrainer" else 0.0
        covered = float(seen.aligned.mean())
        assert seen.share == pytest.approx(floor + (1 - floor) * covered, abs=0.015)
        assert seen.inside == pytest.approx(covered / seen.share, abs=0.07)


@pytest.mark.parametrize("trainer", ["musubi", "diffusers"])
def test_trainers_without_a_masked_loss_train_on_everything(
    trainer: Trainer, layout: Layout
) -> None:
    seen = see(trainer, layout, "m0.png")
    assert not seen.used
    assert not seen.good
    assert seen.share == 1
    assert "no masked loss" in seen.notes[0]
    assert seen.inside == pytest.approx(float(np.mean(seen.meant)), abs=0.01)


def test_kohyas_mask_folder_is_stretched_where_the_image_is_cut(layout: Layout) -> None:
    view = open_view("kohya", layout)
    assert view.problems() == []
    overlaps = {name: overlap(view.see(name)) for name in view.names()}
    assert overlaps["m2.png"] >= 0.99  # a square, as its bucket is
    cut = [value for name, value in overlaps.items() if name != "m2.png"]
    assert 0.8 < min(cut) < 0.94
    for name in view.names():
        seen = view.see(name)
        assert seen.agreement == pytest.approx(overlaps[name], abs=0.01)
        assert seen.good == (overlaps[name] >= 0.95), name
        assert any("stretched" in note for note in seen.notes) == (name != "m2.png")


def test_kohya_asserts_about_missing_extra_and_misfitting_masks(layout: Layout) -> None:
    masks = layout.masks
    assert masks
    write_mask(masks / "stray.png", np.ones((8, 8), bool))
    (view,) = open_view("kohya", layout).problems()
    assert "extra conditioning data for 1 images (stray)" in view
    (masks / "m0.png").unlink()
    assert "missing conditioning data for 1 images (m0.png)" in "".join(
        open_view("kohya", layout).problems()
    )
    assert "AssertionError" in see("kohya", layout, "m0.png").problem
    write_mask(masks / "m1.png", np.ones((8, 8), bool))
    assert "size of conditioning image is not match" in see("kohya", layout, "m1.png").problem


def test_kohyas_masks_need_the_flag_and_refuse_class_images(layout: Layout) -> None:
    without = see("kohya", replace(layout, masked_loss=False), "m0.png")
    assert not without.used
    assert without.share == 1
    (problem,) = open_view("kohya", replace(layout, class_images=True)).problems()
    assert "RGBA" in problem


def test_kohyas_alpha_goes_together_with_class_images_and_needs_no_flag(layout: Layout) -> None:
    layout = replace(exported("kohya", layout), class_images=True, masked_loss=False, masks=None)
    view = open_view("kohya", layout)
    assert view.problems() == []
    assert view.see("m0.png").good
    opaque = draw_marked(1)
    PillowImage.fromarray(opaque.image).save(layout.images / "m0.png")
    assert not view.see("m0.png").used
    assert not see("kohya", replace(layout, alpha_mask=False), "m1.png").used


def test_kohya_blackens_what_the_mask_leaves_out_of_small_pictures(tmp_path: Path) -> None:
    marked = draw_marked(0, (300, 300))
    write_rgba(tmp_path / "m.png", marked)
    seen = see("kohya", Layout(tmp_path, alpha_mask=True, resolution=512), "m.png")
    assert seen.image[:60].max() == 0
    assert any("bucket_no_upscale" in note for note in seen.notes)
    large = see(
        "kohya", Layout(tmp_path, alpha_mask=True, resolution=512, no_upscale=True), "m.png"
    )
    assert large.image[:60].min() > 0
    assert large.notes == ()
    assert overlap(large) >= 0.99


def test_ai_toolkit_trains_on_masks_below_the_image_folder(tmp_path: Path) -> None:
    write(tmp_path, [(300, 300)])
    inside = open_view("ai-toolkit", Layout(tmp_path, tmp_path / "masks", resolution=256))
    assert inside.names() == ["images/m0.png", "masks/m0.png"]
    assert "trained as images" in inside.problems()[0]
    beside = Layout(tmp_path / "images", tmp_path / "masks", resolution=256)
    assert open_view("ai-toolkit", beside).problems() == []


def test_ai_toolkit_without_a_mask_alone_and_among_others(layout: Layout) -> None:
    assert layout.masks
    (layout.masks / "m1.png").unlink()
    alone = see("ai-toolkit", layout, "m1.png")
    assert (alone.used, alone.share, alone.problem) == (False, 1.0, "")
    among = see("ai-toolkit", replace(layout, batch_size=2), "m1.png")
    assert among.share == 0
    assert not among.good
    assert "nothing of it is learned" in among.problem
    assert see("ai-toolkit", replace(layout, batch_size=2), "m0.png").good


def test_ai_toolkits_order_of_endings(layout: Layout) -> None:
    assert layout.masks
    PillowImage.new("L", (525, 750), 255).save(layout.masks / "m0.jpg")
    seen = see("ai-toolkit", layout, "m0.png")
    assert seen.mask_file == layout.masks / "m0.jpg"
    assert seen.share == 1
    (layout.masks / "m0.jpg").unlink()
    (layout.masks / "m0.png").rename(layout.masks / "m0.PNG")
    assert not see("ai-toolkit", layout, "m0.png").used
    assert see("diffusion-pipe", layout, "m0.png").used


def test_ai_toolkits_least_weight_and_its_mean_of_one(layout: Layout) -> None:
    seen = see("ai-toolkit", replace(layout, mask_min_value=0.25), "m0.png")
    assert float(seen.weights.min()) == pytest.approx(0.25)
    assert float(seen.weights.max()) == 1
    assert seen.share * seen.scale == pytest.approx(1)


def test_black_masks(layout: Layout) -> None:
    assert layout.masks
    write_mask(layout.masks / "m0.png", np.zeros((750, 525), bool))
    assert see("ai-toolkit", layout, "m0.png").problem.startswith("NaN")
    floor = see("ai-toolkit", replace(layout, mask_min_value=0.1), "m0.png")
    assert floor.problem == ""
    seen = see("diffusion-pipe", layout, "m0.png")
    assert seen.share == 0
    assert "next to nothing of this image is learned" in seen.problem


def test_ai_toolkits_alpha_needs_an_image_that_has_one(tmp_path: Path) -> None:
    marked = draw_marked(3, (300, 400))
    write_rgba(tmp_path / "a.png", marked)
    PillowImage.fromarray(marked.image).save(tmp_path / "b.png")
    layout = Layout(tmp_path, alpha_mask=True, resolution=256)
    seen = see("ai-toolkit", layout, "a.png")
    assert seen.good
    assert overlap(seen) >= 0.99
    assert "not RGBA" in see("ai-toolkit", layout, "b.png").problem


@pytest.mark.parametrize(
    "trainer", ["diffusion-pipe", "kohya", "ai-toolkit", "onetrainer", "simpletuner"]
)
def test_a_picture_that_lies_on_its_side(trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name, size in (("wide", (300, 420)), ("square", (360, 360))):
        marked = draw_marked(7, size)
        marked.mask[: size[0] // 8] = True  # something that shows which way is up
        marked.image[: size[0] // 8] = (40, 200, 60)
        write_sideways(tmp_path / "images" / f"{name}.png", marked)
        masks = "images" if trainer == "onetrainer" else "masks"
        postfix = "-masklabel" if trainer == "onetrainer" else ""
        write_mask(tmp_path / masks / f"{name}{postfix}.png", marked.mask)
    layout = Layout(tmp_path / "images", tmp_path / "masks", resolution=256)
    wide, square = see(trainer, layout, "wide.png"), see(trainer, layout, "square.png")
    if trainer in ("diffusion-pipe", "kohya"):
        assert "Error" in wide.problem
        assert "size" in wide.problem or "shape" in wide.problem
        assert overlap(square) < 0.7
        assert square.agreement == pytest.approx(overlap(square), abs=0.02)
        assert "is not what the mask marks" in square.problem
        assert any("EXIF orientation 6" in note for note in square.notes)
    else:
        assert wide.good
        assert square.good
        assert min(overlap(wide), overlap(square)) >= 0.99


def mask_of_mode(mode: str, inside: np.ndarray) -> PillowImage.Image:
    grey = inside.astype(np.uint8) * np.uint8(255)
    match mode:
        case "deep":
            return PillowImage.fromarray(inside.astype(np.uint16) * np.uint16(65535))
        case "deep grey":
            return PillowImage.fromarray(inside * np.uint16(30_000) + np.uint16(300))
        case "alpha":
            white = np.full((*inside.shape, 3), 255, np.uint8)
            return PillowImage.fromarray(np.dstack([white, grey]))
        case "labels":
            return PillowImage.fromarray(inside.astype(np.uint8))
        case "label palette":
            picture = PillowImage.fromarray(inside.astype(np.uint8))
            picture.putpalette([255, 0, 0, 0, 200, 0])
            return picture
        case "1" | "P" | "L" | "RGB":
            return PillowImage.fromarray(grey).convert(mode)
    raise ValueError(mode)


@pytest.mark.parametrize(
    ("mode", "good", "share"),
    [
        ("L", True, None),
        ("P", True, None),
        ("1", True, None),
        ("RGB", True, None),
        ("deep", True, None),  # clipped, which is the same for black and white
        ("deep grey", False, 1.0),  # clipped: all of it is white
        ("alpha", False, 1.0),
        ("labels", False, 0.0),
        ("label palette", True, None),  # inverted, as its colours say
    ],
)
def test_modes_through_diffusion_pipe(
    mode: str, good: bool, share: float | None, tmp_path: Path
) -> None:
    (marked,) = write(tmp_path, [(400, 400)])
    path = tmp_path / "masks" / "m0.png"
    path.unlink()
    mask_of_mode(mode, marked.mask).save(path)
    layout = Layout(tmp_path / "images", tmp_path / "masks", resolution=256)
    seen = see("diffusion-pipe", layout, "m0.png")
    assert seen.used
    assert seen.good == good, seen.problem
    expected = float(marked.mask.mean()) if share is None else share
    if mode == "label palette":
        expected = 1 - expected
        assert overlap(seen) < 0.01
    assert seen.share == pytest.approx(expected, abs=0.01)
    assert bool(seen.notes) == (mode not in ("L", "1", "RGB"))
    if mode == "labels":
        assert 0 < float(seen.weights.max()) <= 0.004


def test_diffusion_pipes_mask_of_another_size_missing_and_twice(layout: Layout) -> None:
    assert layout.masks
    write_mask(layout.masks / "m0.png", np.ones((8, 8), bool))
    problem = see("diffusion-pipe", layout, "m0.png").problem
    assert "ValueError" in problem
    assert "(8, 8) was not the same as image shape (750, 525)" in problem
    (layout.masks / "m1.png").rename(layout.masks / "other.png")
    missing = see("diffusion-pipe", layout, "m1.png")
    assert (missing.used, missing.share, missing.problem) == (False, 1.0, "")
    PillowImage.open(layout.masks / "m2.png").save(layout.masks / "m2.webp", lossless=True)
    twice = see("diffusion-pipe", layout, "m2.png")
    assert "left to chance" in twice.notes[0]
    nowhere = replace(layout, masks=layout.images / "no")
    assert "Invalid mask_path" in open_view("diffusion-pipe", nowhere).problems()[0]


def test_diffusion_pipe_leaves_out_images_without_a_caption(layout: Layout) -> None:
    assert see("diffusion-pipe", layout, "m0.png").notes == ()
    (layout.images / "m0.txt").unlink()
    assert "no caption" in see("diffusion-pipe", layout, "m0.png").notes[0]


def test_onetrainer_looks_beside_the_image_only(layout: Layout) -> None:
    seen = see("onetrainer", layout, "m0.png")
    assert not seen.used
    assert "m0-masklabel.png" in seen.notes[0]
    exported("onetrainer", layout)
    view = open_view("onetrainer", layout)
    assert view.names() == [f"m{i}.png" for i in range(len(SIZES))]
    assert view.see("m0.png").mask_file == layout.images / "m0-masklabel.png"
    off = open_view("onetrainer", replace(layout, masked_loss=False))
    assert not off.see("m0.png").used
    assert off.problems()


def test_onetrainers_floor_and_normalisation(layout: Layout) -> None:
    exported("onetrainer", layout)
    seen = see("onetrainer", replace(layout, unmasked_weight=0.3), "m0.png")
    assert float(seen.weights.min()) == pytest.approx(0.3)
    assert seen.scale == 1
    whole = see("onetrainer", replace(layout, normalize=True), "m0.png")
    assert whole.scale * whole.share == pytest.approx(1)


def test_onetrainers_sixteen_bits_are_white_from_255_on(tmp_path: Path) -> None:
    (marked,) = write(tmp_path, [(400, 400)])
    half = (marked.mask * 32767 + 300).astype(np.uint16)
    PillowImage.fromarray(half).save(tmp_path / "images" / "m0-masklabel.png")
    seen = see("onetrainer", Layout(tmp_path / "images", resolution=256), "m0.png")
    assert seen.share == 1
    assert "16 bits" in seen.notes[0]
    assert not seen.good


def test_simpletuner_wants_the_image_s_own_name(layout: Layout) -> None:
    assert layout.masks
    image = PillowImage.open(layout.images / "m0.png")
    image.save(layout.images / "m0.jpg")
    (layout.images / "m0.png").unlink()
    view: View = open_view("simpletuner", layout)
    assert "m0.jpg" in view.problems()[0]
    assert "stops" in view.see("m0.jpg").problem
    assert not view.see("m0.jpg").used
    (layout.masks / "m0.png").rename(layout.masks / "m0.jpg")
    assert open_view("simpletuner", layout).problems() == []
    assert see("simpletuner", layout, "m0.jpg").good


def test_simpletuner_cuts_near_squares_at_full_size(tmp_path: Path) -> None:
    write(tmp_path, [(802, 800), (800, 800)])
    view = open_view("simpletuner", Layout(tmp_path / "images", tmp_path / "masks", 512))
    near, exact = view.see("m0.png"), view.see("m1.png")
    assert near.image.shape == exact.image.shape == (512, 512, 3)
    assert near.share > 2 * exact.share
    assert "without being scaled down" in near.notes[0]
    assert exact.notes == ()
    assert overlap(near) >= 0.99


@pytest.mark.parametrize("trainer", TRAINERS)
def test_damaged_files_are_problems(trainer: Trainer, tmp_path: Path) -> None:
    write(tmp_path, [(300, 300), (300, 300)])
    layout = Layout(tmp_path / "images", tmp_path / "masks", resolution=256)
    if trainer in ("onetrainer", "kohya"):
        layout = replace(layout, prepared=True, alpha_mask=True)
    (tmp_path / "images" / "m0.png").write_bytes(b"nothing")
    data = (tmp_path / "masks" / "m1.png").read_bytes()
    (tmp_path / "masks" / "m1.png").write_bytes(data[: len(data) // 2])
    image = see(trainer, layout, "m0.png")
    assert image.problem
    assert not image.image.size
    mask = see(trainer, layout, "m1.png")
    assert not mask.good
    assert bool(mask.problem) == (trainer in MASKED)
