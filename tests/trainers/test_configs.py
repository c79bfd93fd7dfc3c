"""Configurations as the trainers accept them, read for what becomes of the masks."""

import json
from pathlib import Path

import pytest

from lora_prep.errors import DatasetError
from lora_prep.trainers import open_view
from lora_prep.trainers.configs import find, read
from lora_prep.trainers.view import Layout

DIFFUSION_PIPE = """
resolutions = [512]
enable_ar_bucket = true
min_ar = 0.5
max_ar = 2.0
num_ar_buckets = 7
frame_buckets = [1]
[[directory]]
path = '/d/images'
mask_path = '/d/masks'
num_repeats = 1
[[directory]]
path = '/d/class'
"""

KOHYA = """
[general]
caption_extension = ".txt"
[[datasets]]
resolution = 512
batch_size = 1
enable_bucket = true
  [[datasets.subsets]]
  image_dir = "/d/rgba"
  alpha_mask = true
  [[datasets.subsets]]
  image_dir = "/d/class"
  is_reg = true
"""

KOHYA_MASKS = """
[[datasets]]
resolution = [640, 640]
enable_bucket = true
bucket_no_upscale = true
  [[datasets.subsets]]
  image_dir = "images"
  conditioning_data_dir = "masks"
"""

AI_TOOLKIT = """
config:
  process:
    - datasets:
        - {folder_path: /d/images, mask_path: /d/masks, mask_min_value: 0.1, caption_ext: txt,
           resolution: [512, 768]}
        - {folder_path: /d/class, is_reg: true, caption_ext: txt, resolution: [512]}
      train: {batch_size: 2, reg_weight: 1.0}
"""

CONCEPTS = """
[{"__version":2,"name":"subj","path":"/d/ot","type":"STANDARD","seed":0,"balancing":1.0,
  "balancing_strategy":"REPEATS","loss_weight":1.0,"image":{"enable_crop_jitter":false},
  "text":{"prompt_source":"sample"}},
 {"path":"/d/class","type":"PRIOR_PREDICTION"}]
"""

SIMPLETUNER = json.dumps(
    [
        {
            "id": "subject",
            "type": "local",
            "instance_data_dir": "/d/images",
            "conditioning_data": "masks",
            "resolution": 512,
            "resolution_type": "pixel_area",
            "crop_style": "center",
        },
        {
            "id": "masks",
            "type": "local",
            "dataset_type": "conditioning",
            "conditioning_type": "mask",
            "instance_data_dir": "/d/masks",
        },
        {"id": "texts", "dataset_type": "text_embeds", "cache_dir": "/d/cache"},
    ]
)

MUSUBI = """
[general]
resolution = [512, 512]
enable_bucket = true
[[datasets]]
image_directory = "/d/images"
cache_directory = "/d/cache"
num_repeats = 1
"""

IMAGES, MASKS = Path("/d/images"), Path("/d/masks")


@pytest.mark.parametrize(
    ("name", "text", "trainer", "layouts"),
    [
        ("a.toml", DIFFUSION_PIPE, "diffusion-pipe", [Layout(IMAGES, MASKS, 512)]),
        (
            "a.toml",
            KOHYA,
            "kohya",
            [Layout(Path("/d/rgba"), resolution=512, alpha_mask=True, class_images=True)],
        ),
        (
            "a.yaml",
            AI_TOOLKIT,
            "ai-toolkit",
            [Layout(IMAGES, MASKS, r, batch_size=2, mask_min_value=0.1) for r in (512, 768)],
        ),
        ("a.json", CONCEPTS, "onetrainer", [Layout(Path("/d/ot"), Path("/d/ot"))]),
        ("a.json", SIMPLETUNER, "simpletuner", [Layout(IMAGES, MASKS, 512)]),
        ("a.toml", MUSUBI, "musubi", [Layout(IMAGES, resolution=512)]),
    ],
)
def test_configs_as_the_trainers_accept_them(
    name: str, text: str, trainer: str, layouts: list[Layout], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert read(path) == (trainer, layouts)
    assert find(tmp_path) == [(trainer, path)]


def test_kohyas_mask_folder_and_paths_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(KOHYA_MASKS)
    _, (layout,) = read(tmp_path / "a.toml")
    assert (layout.images, layout.masks) == (tmp_path / "images", tmp_path / "masks")
    assert (layout.resolution, layout.no_upscale, layout.alpha_mask) == (640, True, False)


def test_onetrainers_settings_name_their_concepts(tmp_path: Path) -> None:
    (tmp_path / "concepts.json").write_text(CONCEPTS)
    settings = {
        "concept_file_name": "training_concepts/concepts.json",
        "masked_training": True,
        "unmasked_weight": 0.05,
        "normalize_masked_area_loss": True,
        "resolution": "768",
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(settings))
    assert find(tmp_path) == [("onetrainer", path)]
    _, (layout,) = read(path)
    assert layout == Layout(Path("/d/ot"), Path("/d/ot"), 768, unmasked_weight=0.05, normalize=True)
    path.write_text(json.dumps({**settings, "masked_training": False}))
    _, (layout,) = read(path)
    assert open_view("onetrainer", layout).problems()


def test_keys_that_diffusion_pipe_ignores_leave_it_without_masks(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(DIFFUSION_PIPE.replace("mask_path", "masked_loss = true\nmasks_path"))
    _, layouts = read(path)
    assert [layout.masks for layout in layouts] == [None, None]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.toml",
            "[[dataset.image_config]]\npath = 'a'\nmasks_path = 'b'\nmasked_loss = true\n",
            "KeyError: 'directory'",
        ),
        ("a.toml", DIFFUSION_PIPE.replace("resolutions = [512]", ""), "KeyError: 'resolutions'"),
        ("a.toml", KOHYA.replace("resolution = 512", ""), "KeyError: 'resolution'"),
        ("a.toml", KOHYA.replace("image_dir", "image_folder"), "KeyError: 'image_dir'"),
        ("a.toml", "= 1", "cannot parse"),
        ("a.yaml", "a: [", "cannot parse"),
        ("a.json", "\x00", "cannot parse"),
        ("a.json", "[]", "no data configuration"),
        ("a.json", '[{"path": 3, "type": "STANDARD"}, 4]', "would stop at it"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "cannot parse"),
    ],
)
def test_what_the_trainer_would_refuse(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        read(path)
