"""Every trap is refused or left out, with the reason."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image as PillowImage

from lora_prep import decisions, imageio
from lora_prep.dataset import Dataset
from lora_prep.decisions import Verdict
from lora_prep.errors import ItemError
from lora_prep.export.check import view_of
from lora_prep.export.names import export_stems
from lora_prep.export.pixels import lifted, training_mask
from lora_prep.export.places import Places
from tests.export.conftest import add_pair, tree

GREY = imageio.encode_image(np.full((64, 96, 3), 90, np.uint8), "png")


def black():
    return np.zeros((400, 520), np.uint8)


def write_alpha_mask(path):
    mask = np.full((400, 520, 4), 255, np.uint8)
    mask[:, :100, 3] = 0
    PillowImage.fromarray(mask).save(path)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda mask: mask.unlink(), "it has no mask a.png, and would be trained whole"),
        (lambda mask: mask.write_bytes(mask.read_bytes()[:200]), "a.png: the PNG data is damaged"),
        (lambda mask: mask.write_bytes(b""), "a.png: the file is empty"),
        (lambda mask: mask.write_bytes(imageio.encode_mask(black()[:, 1:])),
         "the mask is 519×400, the image 520×400"),
        (lambda mask: mask.write_bytes(imageio.encode_mask(black())), "the mask is black"),
        (lambda mask: mask.write_bytes(imageio.encode_mask(black() + 1)), "holds 0 and 1"),
        (write_alpha_mask, "shape is in its alpha channel"),
    ],
)  # fmt: skip
def test_a_bad_mask_leaves_its_image_out(harm, said, run, data):
    harm(data / "masks" / "a.png")
    out = run("diffusion-pipe", code=1)
    assert "left out  a.png: " in run.result.output
    assert said in run.result.output
    assert not list(out.glob("images/a.*"))
    assert len(list(out.glob("masks/*.png"))) == 2


def test_a_damaged_image_is_left_out(run, data):
    path = data / "faces" / "a.png"
    path.write_bytes(path.read_bytes()[:-500])
    out = run("ai-toolkit", code=1)
    assert "left out  a.png" in run.result.output
    assert not (out / "masks" / "a.png").exists()


def test_black_masks_pass_with_a_floor(run, data):
    (data / "masks" / "a.png").write_bytes(imageio.encode_mask(black()))
    assert (run("ai-toolkit", "--mask-floor", 0.1) / "images" / "a.png").exists()


def test_nothing_left_is_an_error_and_keeps_the_last_export(run, data):
    out = run("kohya")
    before = tree(out)
    for mask in (data / "masks").iterdir():
        mask.unlink()
    run("kohya", code=2)
    assert "nothing is left to export: all 3 images were left out" in run.result.output
    after = tree(out)
    assert {k: v for k, v in after.items() if not k.startswith(".")} == {
        k: v for k, v in before.items() if not k.startswith(".")
    }


def test_without_masks_on_request(run, data):
    shutil.rmtree(data / "masks")
    out = run("diffusion-pipe", "--no-masks")
    assert "mask_path" not in (out / "dataset.toml").read_text()
    assert len(list((out / "images").glob("*.txt"))) == 3


def test_rejected_images_stay_away(run, data):
    dataset = Dataset.at(data)
    decisions.decide(dataset, dataset.sample("a.png"), Verdict.REJECTED)
    out = run("kohya", code=0)
    assert "left out  a.png: rejected in the review" in run.result.output
    assert not (out / "rgba" / "a.png").exists()


def test_images_that_share_a_mask_are_both_left_out(run, data):
    shutil.copy(data / "faces" / "a.png", data / "faces" / "a.webp")
    run("kohya", code=1)
    assert run.result.output.count("would share its mask") == 2


def test_captions_are_filled_told_and_on_one_line(run, data):
    out = run("kohya", "--caption", "a photo of {trigger}")
    assert (out / "rgba" / "a.txt").read_text() == "ohwx by the sea\n"
    assert (out / "rgba" / "b.txt").read_text() == "a photo of ohwx\n"
    assert "caption filled in for 2: " in run.result.output
    assert not (data / "faces" / "b.txt").exists()


def test_missing_captions_are_refused(data, tmp_path, lora_prep):
    result = lora_prep("export", "--to", "kohya", data, "--out", tmp_path / "x", code=2)
    assert "2 images have no caption" in result.output
    assert not (tmp_path / "x").exists()


def test_class_captions_go_to_the_export_alone(run, data):
    out = run("kohya")
    assert {p.suffix for p in (data / "priors").iterdir()} == {".png"}
    captions = {p.read_text() for p in (out / "class").glob("*.txt")}
    assert captions == {"a photo of a woman\n"}


def test_diffusers_prompt_is_the_caption_that_all_images_have(run, data):
    for image in (data / "faces").glob("*.*"):
        image.with_suffix(".txt").write_text("a photo of ohwx woman", "utf-8")
    plan = (run("diffusers") / "TRAIN.md").read_text("utf-8")
    assert "--instance_prompt 'a photo of ohwx woman'" in plan
    assert "captions that are not used" not in plan
    plan = (run("diffusers", "--caption", "{trigger} x", out="b") / "TRAIN.md").read_text("utf-8")
    assert "--instance_prompt 'ohwx x'" in plan


def test_diffusers_gets_nothing_but_images(run, data):
    out = run("diffusers")
    for folder in ("images", "class"):
        assert {p.suffix for p in (out / folder).iterdir()} <= {".png", ".jpg", ".webp"}
    arguments = json.loads((out / "arguments.json").read_text())
    assert arguments["num_class_images"] == len(list((out / "class").iterdir())) == 2


def test_masks_lie_beside_the_images_never_in_them(run):
    out = run("ai-toolkit")
    assert [p for p in (out / "images").rglob("*") if p.is_dir()] == []
    assert (out / "masks").is_dir()


@pytest.mark.parametrize(
    ("trainer", "options", "said"),
    [
        ("kohya", ("--route", "mask-dir"), "no class image would be trained"),
        ("ai-toolkit", ("--route", "mask-dir"), "--route is for kohya"),
        ("diffusers", ("--resolution", 512, "--resolution", 768), "train at one resolution"),
        ("diffusers", ("--caption", "{stem}"), "one prompt"),
        ("ai-toolkit", ("--slider", "old", "young"), "takes no class images"),
        ("kohya", ("--select", "double[0:2]"), "--select needs --model"),
        ("kohya", ("--model", "flux1-dev", "--select", "double[0:99]"), "double"),
        ("kohya", ("--path-style", "windows"), "--root"),
        ("kohya", ("--relative", "--root", "/x"), "contradict"),
        ("kohya", ("--root", "/a\nb"), "control codes"),
    ],
)
def test_refused_with_a_reason(trainer, options, said, run, tmp_path):
    run(trainer, *options, code=2)
    assert said in run.result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["data", "data/faces", "data/faces/x", "data/masks", "."])
def test_out_must_not_touch_the_source(place, data, lora_prep):
    before = tree(data)
    options = ("--out", data.parent / place, "--trigger", "x", "--class", "y")
    result = lora_prep("export", "--to", "kohya", data, *options, code=2)
    assert "--out" in result.output
    assert tree(data) == before


@pytest.mark.parametrize(
    ("trainer", "options", "said"),
    [
        ("musubi", (), "musubi has no masked loss"),
        ("diffusion-pipe", ("--prior-weight", 2), "no weight for class images"),
        ("kohya", ("--dop", 1), "no output preservation"),
        ("kohya", ("--background-prior", 1), "no prior for what is masked"),
        ("kohya", ("--slider", "a", "b"), "trains no slider from prompts"),
        ("diffusion-pipe", ("--model", "sdxl", "--select", "mid"), "does not read [adapter]"),
        ("diffusion-pipe", ("--model", "klein-9b"), "fill in MODEL, VAE and TEXT_ENCODER"),
        ("simpletuner", (), "fill in FAMILY in config.json (`model_family`), or give --model"),
        ("diffusion-pipe", (), "fill in TYPE and MODEL in training.toml (docs/"),
    ],
)
def test_what_a_trainer_has_no_key_for_is_told(trainer, options, said, run):
    out = run(trainer, *options)
    assert said in run.result.output
    assert said in (out / "TRAIN.md").read_text("utf-8")


def test_blocks_that_a_trainer_cannot_be_told_are_not_called_trained(run):
    out = run("diffusion-pipe", "--model", "sdxl", "--select", "mid")
    text = (out / "TRAIN.md").read_text("utf-8")
    assert "selected blocks, which the trainer is not told of: `mid`" in text
    assert "trained blocks" not in text


def test_names_are_flat_unique_and_safe():
    names = ["a/b.png", "a__b.jpg", "A__B.png", "e\u0301.png", "\xe9.png", "x\n\udc80.png"]
    assert export_stems(names) == ["a__b", "a__b-2", "A__B-3", "e\u0301", "\xe9-2", "x__"]
    assert export_stems(["x-masklabel.png"]) == ["x-masklabel_"]
    assert export_stems(["con.png", 'a?"b.png', "c. .png"], windows=True) == ["_con", "a__b", "c"]
    (long,) = export_stems(["é" * 200 + ".png"])
    assert len(long.encode()) == 150


def test_images_in_sub_folders_get_flat_names(run, data):
    (data / "faces" / "trip").mkdir()
    (data / "masks" / "trip").mkdir()
    shutil.copy(data / "faces" / "a.png", data / "faces" / "trip" / "a.png")
    shutil.copy(data / "masks" / "a.png", data / "masks" / "trip" / "a.png")
    out = run("diffusion-pipe", "--recursive")
    assert (out / "images" / "trip__a.png").is_file()
    assert (out / "masks" / "trip__a.png").is_file()


def test_augmented_pairs_come_along(run, data):
    for folder, source in (("images", "faces"), ("masks", "masks")):
        (data / "augmented" / folder).mkdir(parents=True)
        shutil.copy(data / source / "a.png", data / "augmented" / folder / "a-a000.png")
    (data / "augmented" / "images" / "a-a000.txt").write_text("ohwx by the sea")
    out = run("onetrainer", "--augmented")
    assert len(list((out / "images").glob("*-masklabel.png"))) == 4
    assert (out / "images" / "a-a000.txt").read_text() == "ohwx by the sea\n"


@pytest.mark.parametrize(
    ("root", "style", "path"),
    [
        ("/x/", "posix", "/x/a/b"),
        ("/", "posix", "/a/b"),
        ("", "posix", "a/b"),
        ("", "windows", "a\\b"),
        ("D:\\", "windows", "D:\\a\\b"),
        ("D:/x", "posix", "D:/x/a/b"),
        ("\\\\host\\share", "windows", "\\\\host\\share\\a\\b"),
    ],
)
def test_paths_and_back(root, style, path, tmp_path):
    places = Places(root, style)
    assert places("a", "b") == places("a/b") == path
    assert places.local(path, tmp_path) == tmp_path / "a" / "b"


def test_paths_out_of_the_export_are_not_local(tmp_path):
    assert Places("/x").local("/y/a", tmp_path) is None
    assert Places("/x").local("/xa", tmp_path) is None
    assert Places("").local("../a", tmp_path) is None


def test_a_floor_keeps_white_and_the_order():
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    out = lifted(mask, 0.25)
    assert (out.min(), out.max()) == (64, 255)
    assert (np.diff(out.ravel().astype(int)) >= 0).all()


def test_a_mask_must_be_of_the_upright_images_size():
    mask = imageio.encode_mask(np.full((96, 64), 255, np.uint8))
    with pytest.raises(ItemError, match="64×96"):
        training_mask(mask, GREY, 0)


def test_unreadable_pairs_do_not_stop_the_others(run, data):
    add_pair(data, "z.png", b"no image", np.full((4, 4), 255, np.uint8))
    out = run("simpletuner", code=1)
    assert len(list((out / "masks").iterdir())) == 3


def test_variants_of_rejected_images_stay_away(run, data):
    for folder, source in (("images", "faces"), ("masks", "masks")):
        (data / "augmented" / folder).mkdir(parents=True)
        for name in ("a", "c"):
            shutil.copy(data / source / "a.png", data / "augmented" / folder / f"{name}-a000.png")
    dataset = Dataset.at(data)
    decisions.decide(dataset, dataset.sample("a.png"), Verdict.REJECTED)
    out = run("kohya", "--augmented")
    assert "augmented/a-a000.png: a variant of a.png, which was rejected" in run.result.output
    assert (out / "rgba" / "c-a000.png").exists()


def test_kohya_gets_small_images_enlarged_with_their_colours(run):
    """Its own enlarging of RGBA blackens what the mask hides."""
    out = run("kohya", "--resolution", 1024)
    view = view_of(out)
    seen = view.see("a.png")
    assert seen.image.shape[0] > 400
    assert np.percentile(seen.image[seen.aligned == 0], 5) > 20
    assert np.array_equal(seen.image, view.see("a.png").image)
