"""`lora-prep augment` at the command line and from the configuration."""

import json

import numpy as np
import pytest

from lora_prep import imageio


@pytest.fixture
def data(tmp_path):
    for folder in ("faces", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 20:44] = 255
    (tmp_path / "data" / "faces" / "x.png").write_bytes(imageio.encode_image(image, "png"))
    (tmp_path / "data" / "masks" / "x.png").write_bytes(imageio.encode_mask(mask))
    return tmp_path / "data"


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.is_file())


def test_variants_lie_beside_the_images(data, lora_prep):
    result = lora_prep("augment", data / "faces", "-n", 2)
    assert names(data / "augmented") == [
        "images/x-a000.png",
        "images/x-a001.png",
        "masks/x-a000.png",
        "masks/x-a001.png",
    ]
    assert "augment: 2 made" in result.stdout
    assert "no variant is mirrored" in result.stderr
    more = json.loads(lora_prep("augment", data / "faces", "-n", 4, "--json").stdout)
    assert (more["counts"]["fresh"], more["counts"]["done"]) == (2, 2)
    assert more["items"][3]["key"] == "faces/x.png#3"
    assert not more["items"][3]["info"]["mirrored"]


def test_fewer_leave_the_others_and_say_so(data, lora_prep):
    assert "more than" not in lora_prep("augment", data / "faces", "-n", 4).stderr
    result = lora_prep("augment", data / "faces", "-n", 1)
    assert "3 variants more than -n 1 asks for" in result.stderr
    assert "x-a001.png" in result.stderr
    assert len(names(data / "augmented" / "images")) == 4


def test_jpeg_of_a_chosen_quality(data, lora_prep):
    sizes = []
    for quality in (60, 95):
        out = data / f"q{quality}"
        run = ("--format", "jpeg", "--quality", quality, "-n", 1)
        lora_prep("augment", data / "faces", "--out", out, *run)
        sizes.append((out / "images" / "x-a000.jpg").stat().st_size)
        assert imageio.decode_mask((out / "masks" / "x-a000.png").read_bytes()).shape == (64, 64)
    assert sizes[0] < sizes[1]


def test_flip_only_mirrors_every_image_once(data, lora_prep):
    result = lora_prep("augment", data, "--preset", "flip-only")
    assert "variants are mirrored" in result.stderr
    made = imageio.decode_image((data / "augmented" / "images" / "x-a000.png").read_bytes())
    image = imageio.decode_image((data / "faces" / "x.png").read_bytes())
    assert np.array_equal(made, image[:, ::-1])
    assert "so -n 1" in lora_prep("augment", data, "--preset", "flip-only", "-n", 2, code=2).output


def test_flip_mirrors_some(data, lora_prep):
    run = lora_prep("augment", data, "--flip", "-n", 12, "--json", "--preset", "light")
    assert {i["info"]["mirrored"] for i in json.loads(run.stdout)["items"]} == {True, False}


def test_the_configuration_may_hold_the_pipeline(data, lora_prep):
    (data / "lora-prep.toml").write_text(
        '[augment]\nformat = "jpeg"\ncount = 1\n'
        '[[augment.pipeline]]\ntransform = "Resize"\nheight = 32\nwidth = 48\np = 1.0\n'
    )
    lora_prep("augment", data / "faces")
    made = imageio.decode_image((data / "augmented" / "images" / "x-a000.jpg").read_bytes())
    assert made.shape == (32, 48, 3)


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_the_configuration_may_name_the_pipelines_file(data, lora_prep, kind):
    table = {"transform": "Resize", "height": 32, "width": 48, "p": 1.0}
    lines = "\n".join(f"{k} = {json.dumps(v)}" for k, v in table.items())
    text = json.dumps([table]) if kind == "json" else f"[[pipeline]]\n{lines}\n"
    (data / f"mine.{kind}").write_text(text)
    (data / "lora-prep.toml").write_text(f'[augment]\npipeline = "mine.{kind}"\ncount = 1\n')
    lora_prep("augment", data / "faces")
    made = imageio.decode_image((data / "augmented" / "images" / "x-a000.png").read_bytes())
    assert made.shape == (32, 48, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pipeline = 3", "a file's name or a list of tables"),
        ("pipeline = []", "the pipeline is empty"),
        ("pipeline = [3]", "a pipeline is a list of tables"),
        ('pipeline = [{transform = "D4"}]', "D4 is refused"),
        ('pipeline = [{transform = "Affine", rotate = 2026-11-24}]', "texts and finite numbers"),
        ('pipeline = "missing.toml"', "cannot read the pipeline"),
        ('pipeline = "lora-prep.toml"', "a pipeline is a list of tables"),
        ('pipeline = "faces/x.png"', "neither TOML nor JSON"),
    ],
)
def test_bad_pipelines_stop_before_anything_is_written(data, lora_prep, text, said):
    (data / "lora-prep.toml").write_text(f"[augment]\n{text}\n")
    assert said in " ".join(lora_prep("augment", data / "faces", code=2).output.split())
    assert not (data / "augmented").exists()


def test_a_missing_mask_is_said_and_no_masks_does_without(data, lora_prep):
    (data / "masks" / "x.png").unlink()
    result = lora_prep("augment", data / "faces", "-n", 1, code=1)
    assert "faces/x.png#0: it has no mask x.png" in result.stdout
    assert "--no-masks" in result.stdout
    lora_prep("augment", data / "faces", "-n", 1, "--no-masks")
    assert names(data / "augmented") == ["images/x-a000.png"]


def test_a_dry_run_writes_nothing(data, lora_prep):
    before = names(data)
    assert "4 to make" in lora_prep("augment", data / "faces", "--dry-run").stdout
    assert names(data) == before


def test_faces_are_not_detected_again(faces, lora_prep):
    for image in sorted(faces.iterdir())[4:]:
        image.unlink()
    lora_prep("masks", faces, "--preset", "embedded", "--no-face", "skip")
    lora_prep("augment", faces, "-n", 1, code=None)
    out = faces.parent / "augmented"
    records = {p: p.read_bytes() for p in (out / ".lora-prep" / "faces").rglob("*.json")}
    assert len(records) == len(list((out / "images").iterdir())) > 2
    stamps = {p: p.stat().st_mtime_ns for p in records}
    lora_prep("masks", out, "--preset", "embedded", "--no-face", "skip", "--force")
    assert stamps == {p: p.stat().st_mtime_ns for p in records}  # a detector would write them anew
