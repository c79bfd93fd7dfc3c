import tomllib
from pathlib import Path

import pytest

from lora_prep.errors import UsageError
from lora_prep.training import from_config
from lora_prep.training.trainer import config as run_config
from lora_prep.training.trainer import slide
from lora_prep.training.trainer.example import EXAMPLE
from tests.training.trainer import made


def read(text: str, folder: Path) -> run_config.Config:
    path = folder / "run.toml"
    path.write_text(text)
    return run_config.read(path)


SMALL = '[model]\nbase = "m"\n[save]\nout = "o"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL + "[trian]\nsteps = 3", r"no table \[trian\]: did you mean 'train'"),
        (SMALL + "[train]\nstep = 3", r"\[train\].*no key 'step': did you mean 'steps'"),
        (SMALL + "[train]\nsteps = 3.5", r"train.steps is 3.5: it wants a whole number"),
        (SMALL + "[train]\nsteps = true", r"train.steps is True: it wants a whole number"),
        (SMALL + "[train]\nsteps = 0", r"train.steps is 0: it has to be 1 or more"),
        (SMALL + "[train]\nlearning_rate = nan", r"train.learning_rate is nan"),
        (SMALL + '[train]\noptimizer = "adamw8bits"', r"did you mean 'adamw8bit'"),
        (SMALL + "[lora]\nalpha = 0", r"lora.alpha is 0.0: it has to be above 0"),
        ("[save]\nout = 'o'", r"\[model\] is missing"),
        ("[model]\n[save]\nout = 'o'", r"\[model\]: base is missing"),
        ("[model]\nbase='m'\n[save]\nout='o'\nname='a/b'", r"save.name is 'a/b'"),
        ("[model]\nbase='m'\n[save]\nout='o'\nnamings=['civitai']", r"it can be diffusers"),
        ("[model", r"is not valid TOML"),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read(text, tmp_path)


def test_the_example_is_whole_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    config = read(EXAMPLE, tmp_path)
    assert config.data.images == tmp_path / "data/faces"
    assert config.save.out == tmp_path / "output"
    assert set(config.terms()) == {"masked", "inverted_mask_prior"}
    from_config(config.losses)
    # What is commented out is right, too, once it is not.
    loose = "\n".join(
        line[2:]
        if line.startswith(("# [", "# prompt", "# weight", "# priors", "# prior_caption"))
        and "slider" not in line
        else line
        for line in EXAMPLE.splitlines()
    )
    assert "preserve" in tomllib.loads(loose)


def test_the_fingerprint_changes_with_what_is_learned_and_with_nothing_else(tmp_path: Path) -> None:
    base = made.config(tmp_path, "sd15").fingerprint()
    for same in ({"save": {"name": "x"}}, {"log": {"every": 2}}, {"train": {"steps": 9}}):
        assert made.config(tmp_path, "sd15", **same).fingerprint() == base
    for other in (
        {"train": {"seed": 1}},
        {"lora": {"rank": 8}},
        {"losses": {"masked": {"floor": 0.1}}},
        {"data": {"resolution": 128}},
        {"train": {"decay": "cosine"}},
    ):
        assert made.config(tmp_path, "sd15", **other).fingerprint() != base
    falling = {"decay": "linear", "steps": 5}
    longer = {"decay": "linear", "steps": 9}
    assert (
        made.config(tmp_path, "sd15", train=falling).fingerprint()
        != made.config(tmp_path, "sd15", train=longer).fingerprint()
    )


def test_wherever_it_is_called_from_a_run_is_the_same_and_says_paths_as_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    file = tmp_path / "runs/run.toml"
    file.write_text(
        '[model]\nbase = "m"\n[data]\nimages = "../data"\nmasks = "/elsewhere/masks"\n'
        '[save]\nout = "./out"\n[slider]\npairs = "pairs"\n[losses.paired_slider]\n'
    )
    monkeypatch.chdir(tmp_path)
    here = run_config.read(Path("runs/run.toml"))
    monkeypatch.chdir(tmp_path / "runs")
    there = run_config.read(Path("run.toml"))
    assert here.data.images == Path("runs/../data")
    assert there.data.images == Path("../data")
    written = here.as_json()
    assert written == there.as_json()
    assert (written["data"]["images"], written["data"]["masks"]) == ("../data", "/elsewhere/masks")
    assert (written["save"]["out"], written["slider"]["pairs"]) == ("./out", "pairs")
    assert here.fingerprint() == there.fingerprint()
    assert "written" not in written
    with pytest.raises(UsageError, match=r"no table \[written\]"):
        read('[model]\nbase = "m"\n[save]\nout = "o"\n[written]\n', tmp_path)


def test_pairs_in_the_configurations_own_folder_have_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = SMALL + '[slider]\npairs = "."\n[losses.paired_slider]\n'
    (tmp_path / "run.toml").write_text(text)
    config = run_config.read(Path("run.toml"))
    assert config.slider is not None
    assert slide.record(config.slider).positive == f"{tmp_path.name}/positive"
