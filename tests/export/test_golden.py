"""Every configuration, to the letter. The golden files were checked against the trainers' facts."""

import json
import tomllib
from pathlib import Path

import pytest
import yaml

from lora_prep.export import schema
from lora_prep.export.configs import Command
from tests.export.conftest import TRAINERS, tree

GOLDEN = Path(__file__).parent / "golden"
FULL = (
    *("--root", '/train/Zoë\'s "best" set', "--repeats", 3, "--prior-repeats", 2),
    *("--prior-weight", 0.5, "--mask-floor", 0.1, "--resolution", 512, "--batch-size", 2),
    *("--rank", 8, "--base", "models/base", "--name", "zoë"),
)
MODELS = {"kohya": ("flux1-dev", "single[0:10]")}
MORE = {
    "ai-toolkit": (
        "--dop",
        0.7,
        "--dop-class",
        "woman",
        "--background-prior",
        0.5,
        "--resolution",
        768,
    ),
    "onetrainer": ("--background-prior", 0.3, "--resolution", 768),
    "kohya": ("--resolution", 768),
    "musubi": ("--resolution", 768),
    "diffusion-pipe": ("--resolution", 768),
    "simpletuner": ("--resolution", 768),
}


def full(run, trainer):
    """An export with nearly everything."""
    model, blocks = MODELS.get(trainer, ("klein-9b", "double[0:2]"))
    options = ("--model", model, "--select", blocks, *MORE.get(trainer, ()))
    return run(trainer, *FULL, *options)


def texts(folder):
    """Configurations and TRAIN.md."""
    return {
        path.name: path.read_text("utf-8")
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.parametrize("trainer", TRAINERS)
def test_configurations_are_just_so(trainer, run):
    assert texts(full(run, trainer)) == texts(GOLDEN / trainer)


def test_kohya_by_mask_folder(run):
    out = run("kohya", "--route", "mask-dir", "--no-priors", "--root", "/train/x")
    assert texts(out) == texts(GOLDEN / "kohya-mask-dir")


def test_windows_paths(run):
    out = run(
        "diffusion-pipe", "--path-style", "windows", "--root", "D:\\train\\o'x", "--no-priors"
    )
    assert texts(out) == texts(GOLDEN / "windows")
    values = tomllib.loads((out / "dataset.toml").read_text("utf-8"))
    assert values["directory"][0]["mask_path"] == "D:\\train\\o'x\\masks"


def test_the_training_of_diffusion_pipe(run):
    """Its alpha is the rank, and a key for it raises; blocks are what is left of what is out."""
    out = run("diffusion-pipe", "--model", "flux1-dev", "--base", "/m/flux", "--alpha", 4)
    text = (out / "training.toml").read_text("utf-8")
    values = tomllib.loads(text)
    assert values["model"] == {"type": "flux", "diffusers_path": "/m/flux", "dtype": "bfloat16"}
    assert values["dataset"] == str(out / "dataset.toml")
    assert not {"alpha", "exclude_modules"} & set(values["adapter"])
    assert "note: --alpha 4: diffusion-pipe's alpha is the rank" in run.result.output
    assert "fill in" not in run.result.output
    assert schema.problems("diffusion-pipe-training", values) == []
    values["adapter"]["alpha"] = 4
    assert schema.problems("diffusion-pipe-training", values)


def test_the_training_of_simpletuner(run):
    """It starts from `config.json` where it is, and makes many options of a list."""
    out = run("simpletuner", "--model", "klein-9b", "--select", "double.1.attn.to_q")
    values = json.loads((out / "config.json").read_text("utf-8"))
    assert values["model_flavour"] == "klein-9b"
    assert values["data_backend_config"] == str(out / "multidatabackend.json")
    assert json.loads(values["peft_lora_target_modules"]) == ["transformer_blocks.1.attn.to_q"]
    assert not any(isinstance(value, (list, dict)) for value in values.values())
    assert f"cd {out}\nsimpletuner train\n" in (out / "TRAIN.md").read_text("utf-8")


def test_what_the_real_parsers_read(run):
    kohya = tomllib.loads((full(run, "kohya") / "dataset.toml").read_text("utf-8"))
    subset, classes = kohya["datasets"][0]["subsets"]
    assert subset["alpha_mask"] is True
    assert subset["image_dir"] == '/train/Zoë\'s "best" set/rgba'
    assert classes["is_reg"] is True


def test_ai_toolkit_and_simpletuner_as_read(run, tmp_path, data, lora_prep):
    for trainer in ("ai-toolkit", "simpletuner"):
        call = ("--trigger", "ohwx", "--class", "a woman")
        lora_prep("export", "--to", trainer, data, "--out", tmp_path / trainer, *call)
    job = yaml.safe_load((tmp_path / "ai-toolkit" / "config.yaml").read_text("utf-8"))
    instance, classes = job["config"]["process"][0]["datasets"]
    assert Path(instance["mask_path"]).parent == Path(instance["folder_path"]).parent
    assert classes["is_reg"] is True
    assert "mask_path" not in classes
    backends = json.loads((tmp_path / "simpletuner" / "multidatabackend.json").read_text("utf-8"))
    by_id = {backend["id"]: backend for backend in backends}
    masks = by_id[by_id["subject-1024"]["conditioning_data"]]
    assert (masks["dataset_type"], masks["conditioning_type"]) == ("conditioning", "mask")
    assert sum(b["dataset_type"] == "text_embeds" and b["default"] for b in backends) == 1
    assert {b["crop_style"] for b in backends if "crop_style" in b} == {"center"}


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("diffusion-pipe", {"resolutions": [512], "directory": [{"path": "x", "masks_path": "m"}]},
         "directory[0].masks_path is no key"),
        ("diffusion-pipe", {"resolutions": [512], "directory": [{}]}, "lacks the key path"),
        ("diffusion-pipe", {"resolutions": 512, "directory": []}, "resolutions has to be a list"),
        ("kohya", {"datasets": [{"subsets": [{"image_dir": "x", "is_reg": "yes"}]}]},
         "is_reg has to be of type bool"),
        ("musubi", {"datasets": [{"image_directory": "x", "cache_directory": "c", "mask": 1}]},
         "datasets[0].mask is no key"),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_trainer_would_ignore(kind, value, said):
    assert any(said in problem for problem in schema.problems(kind, value))


def test_the_recipes_ai_toolkit_keys_are_refused(run):
    job = yaml.safe_load((run("ai-toolkit") / "config.yaml").read_text("utf-8"))
    assert schema.problems("ai-toolkit", job) == []
    job["config"]["process"][0]["train"]["prior_loss_weight"] = 1.0
    (problem,) = schema.problems("ai-toolkit", job)
    assert "prior_loss_weight is no key" in problem


def test_a_slider_of_ai_toolkit(run):
    out = run("ai-toolkit", "--slider", "very old", "very young", "--no-priors")
    process = yaml.safe_load((out / "config.yaml").read_text("utf-8"))["config"]["process"][0]
    assert process["type"] == "concept_slider"
    assert process["slider"] == {
        "positive_prompt": "very old",
        "negative_prompt": "very young",
        "target_class": "a photo of a woman",
    }


def test_a_slider_of_simpletuner_from_pairs(pairs, tmp_path, lora_prep):
    out = tmp_path / "out"
    given = ("--pairs", pairs, "--caption", "a face", "--slider-strength", 0.5, "--check")
    before = tree(pairs)
    result = lora_prep("export", "--to", "simpletuner", *given, "--out", out)
    assert "simpletuner: 4 images" in result.output
    more, less, _ = json.loads((out / "multidatabackend.json").read_text("utf-8"))
    assert (more["slider_strength"], less["slider_strength"]) == (0.5, -0.5)
    assert more["id"] != less["id"]
    assert more["cache_dir_vae"] != less["cache_dir_vae"]
    for side, backend in (("positive", more), ("negative", less)):
        assert backend["instance_data_dir"] == str(out / side)
        assert {p.name for p in (out / side).iterdir()} == {"a.png", "a.txt", "b.png", "b.txt"}
        assert (out / side / "a.png").read_bytes() == (pairs / side / "a.png").read_bytes()
    training = json.loads((out / "config.json").read_text("utf-8"))
    assert training["slider_lora_target"] is True
    assert tree(pairs) == before


@pytest.mark.parametrize(
    ("trainer", "folder", "said"),
    [
        ("kohya", "", "trains no slider from image pairs"),
        ("ai-toolkit", "", "of Stable Diffusion alone"),
        ("simpletuner", "positive", "has no folder positive"),
    ],
)
def test_pairs_are_refused_with_a_reason(trainer, folder, said, pairs, tmp_path, lora_prep):
    given = ("--pairs", pairs / folder, "--caption", "a face", "--out", tmp_path / "out")
    assert said in lora_prep("export", "--to", trainer, *given, code=2).output


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("D:\\train\\x.toml", "D:\\train\\x.toml"),
        ("include_patterns=[r'^a(?:0|1)\\.']", "\"include_patterns=[r'^a(?:0|1)\\.']\""),
        ("a&b", '"a&b"'),
        ("100%PATH%", '"100%%PATH%%"'),
        ("D:\\my set\\", '"D:\\my set\\\\"'),
        ('a "b" | c', '^"a \\^"b\\^" ^| c^"'),
        ("", '""'),
    ],
)
def test_words_survive_cmd(word, written):
    assert Command((word,)).text(windows=True) == written


def test_the_script_for_sd15_is_given_what_it_knows(run):
    options = ("--model", "sd15", "--repeats", 3, "--alpha", 4, "--rank", 8)
    out = run("diffusers", *options)
    values = json.loads((out / "arguments.json").read_text("utf-8"))
    assert values["rank"] == 8
    assert not {"repeats", "lora_alpha"} & set(values)
    assert "note: --repeats: train_dreambooth_lora.py has none" in run.result.output
    assert "note: --alpha: not every version" in run.result.output
