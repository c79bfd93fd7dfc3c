import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_prep.errors import UsageError
from lora_prep.training.sliders import SliderRecord
from lora_prep.training.targets import adapter

Run = Callable[..., Any]


def tensors(rank: int = 4, alpha: float = 1.0) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {}
    for i in (0, 1):
        stem = f"lora_unet_double_blocks_{i}_img_attn_proj"
        found[f"{stem}.lora_down.weight"] = torch.randn(rank, 6)
        found[f"{stem}.lora_up.weight"] = torch.randn(5, rank)
        found[f"{stem}.alpha"] = torch.tensor(alpha)
    return found


@pytest.fixture
def slider(tmp_path: Path) -> Path:
    record = SliderRecord(-2.0, 2.0, "textual", "old", "young", "a face")
    path = tmp_path / "age.safetensors"
    save_file(tensors(), path, {"ss_network_dim": "4", **record.to_metadata()})
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.safetensors"
    save_file(tensors(), path, {"ss_network_dim": "4"})
    return path


def test_info_reads_the_range_back(slider: Path, lora_prep: Run) -> None:
    out = lora_prep("slider", "info", slider).stdout
    assert "weights   -2 to 2, recorded in the file by the training (from prompts)" in out
    assert "positive  old (at 2)" in out
    assert "negative  young (at -2)" in out
    assert "target    a face" in out
    assert "rank      4, alpha 1 (alpha/rank 0.25)" in out
    assert "double 0-1" in out


def test_info_as_json(slider: Path, lora_prep: Run) -> None:
    found = json.loads(lora_prep("slider", "info", slider, "--weight", 3, "--json").stdout)
    assert found["range"] == [-2.0, 2.0]
    assert found["kind"] == "textual"
    assert found["rank"] == [4]
    assert found["scale"] == [0.25]
    assert found["blocks"] == "double 0-1"
    assert found["modules"] == 2
    assert "above the range" in found["warning"]


@pytest.mark.parametrize(
    ("weight", "strict", "code", "words"),
    [
        (1.5, True, 0, "weight 1.5 lies in the range"),
        (2.5, False, 0, "warning: weight 2.5 is above the range of this slider, -2 to 2"),
        (2.5, True, 1, "warning: weight 2.5 is above"),
        (-3, True, 1, "warning: weight -3 is below"),
    ],
)
def test_a_weight_outside_is_warned_of(
    slider: Path, lora_prep: Run, weight: float, strict: bool, code: int, words: str
) -> None:
    options = ["--strict"] if strict else []
    assert (
        words in lora_prep("slider", "info", slider, "--weight", weight, *options, code=code).output
    )


def test_the_documented_slider(tmp_path: Path, lora_prep: Run) -> None:
    path = tmp_path / "klein_slider_anatomy_v1.5.safetensors"
    save_file(tensors(), path)
    out = lora_prep("slider", "info", path, "--weight", 0.8, "--strict", code=1).output
    assert "2 to 4, as documented by its author for v1.5, not recorded in the file" in out
    assert "no visible effect" in out
    assert "weight 0.8 is below the range of this slider, 2 to 4" in out
    assert "lies in the range" in lora_prep("slider", "info", path, "--weight", 3).output


def test_the_files_own_range_comes_before_the_documented_one(
    tmp_path: Path, lora_prep: Run
) -> None:
    path = tmp_path / "klein_slider_anatomy.safetensors"
    save_file(tensors(), path, SliderRecord(0.0, 5.0).to_metadata())
    out = lora_prep("slider", "info", path).output
    assert "weights   0 to 5, recorded in the file" in out
    assert "its author documents 2 to 4 for v1.5" in out


def test_a_file_that_says_nothing(plain: Path, lora_prep: Run) -> None:
    assert "weights   not recorded" in lora_prep("slider", "info", plain).stdout
    out = lora_prep("slider", "info", plain, "--weight", 1, "--strict", code=1).output
    assert "cannot be told" in out
    assert "set-range" in out


def test_set_range_keeps_everything_else(plain: Path, tmp_path: Path, lora_prep: Run) -> None:
    out = tmp_path / "new" / "ranged.safetensors"
    lora_prep(
        "slider", "set-range", plain, "--min", -3, "--max", 3, "--positive", "old", "--out", out
    )
    before, after = load_file(plain), load_file(out)
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata.pop("ss_network_dim") == "4"
    assert SliderRecord.from_metadata(metadata) == SliderRecord(-3.0, 3.0, "stated", "old")
    assert "-3 to 3, recorded in the file, set by hand" in lora_prep("slider", "info", out).stdout


def test_set_range_replaces_an_old_range_whole(slider: Path, lora_prep: Run) -> None:
    asked = ("slider", "set-range", slider, "--min", 0, "--max", 1, "--out", slider)
    assert "exists already" in lora_prep(*asked, code=2).output
    lora_prep(*asked, "--force")
    metadata = adapter.read(slider).metadata
    assert SliderRecord.from_metadata(metadata) == SliderRecord(0.0, 1.0, "stated")


def test_a_merged_file_is_noted(slider: Path, plain: Path, tmp_path: Path, lora_prep: Run) -> None:
    out = tmp_path / "merged.safetensors"
    lora_prep("lora", "merge", slider, plain, "--out", out)
    assert "one of its parts at strength 1" in lora_prep("slider", "info", out).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--min", 2, "--max", 2), "from a lower to a higher number, not 2 to 2"),
        (("--min", "nan", "--max", 2), "lower to a higher"),
    ],
)
def test_impossible_ranges(
    plain: Path, tmp_path: Path, lora_prep: Run, arguments: tuple[object, ...], words: str
) -> None:
    out = tmp_path / "out.safetensors"
    assert words in lora_prep("slider", "set-range", plain, *arguments, "--out", out, code=2).output
    assert not out.exists()


def test_broken_files(plain: Path, tmp_path: Path, lora_prep: Run) -> None:
    broken = tmp_path / "broken.safetensors"
    save_file(tensors(), broken, {"lora_prep.slider.range": "2 to 4"})
    out = lora_prep("slider", "info", broken, code=2).output
    assert "broken.safetensors" in out
    assert "two numbers" in out
    assert "set-range" in out
    lora_prep("slider", "set-range", broken, "--min", 2, "--max", 4, "--out", broken, "--force")
    assert "2 to 4" in lora_prep("slider", "info", broken).stdout
    lora_prep("slider", "info", tmp_path / "missing.safetensors", code=2)
    assert "is a number" in lora_prep("slider", "info", plain, "--weight", "inf", code=2).output


def test_a_record_is_refused_before_training() -> None:
    with pytest.raises(UsageError, match="not 4 to 2"):
        SliderRecord(4.0, 2.0)
