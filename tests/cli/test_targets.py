import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_prep.training.targets import resolve
from lora_prep.training.targets.meta import public_config

Run = Callable[..., Any]


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA of rank 2 on Klein's first four double blocks; the last of them was never trained."""
    tensors = {}
    for layer in resolve("klein-9b").layers:
        if layer.block.group == "double" and layer.block.numbers[0] < 4:
            trained = layer.block.numbers[0] < 3
            tensors[f"transformer.{layer.name}.lora_A.weight"] = torch.ones(2, 8)
            tensors[f"transformer.{layer.name}.lora_B.weight"] = torch.full((8, 2), float(trained))
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, {"title": "test"})
    return path


def test_a_dry_run_says_modules_size_and_grid(lora_prep: Run) -> None:
    text = lora_prep("targets", "klein-9b", "--select", "double[0:8]").stdout
    assert "96 modules in double 0-7" in text
    assert "19.92M parameters" in text
    assert "double   0 ████████ 7" in text
    assert r'target_modules=r"^transformer_blocks\.' in text


def test_json_holds_everything(lora_prep: Run) -> None:
    result = lora_prep(
        "targets", "klein-9b", "--select", "klein-9b:recipe-content", "--for", "all", "--json"
    )
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    assert document["model"]["blocks"] == {"double": 8, "single": 24}
    assert len(document["modules"]) == 24
    assert document["presets"][0]["verified"] is False
    assert document["for"]["ai-toolkit"]["exact"] is True
    assert document["for"]["kohya"]["value"] is None
    assert (
        "single_blocks" in document["for"]["diffusion-pipe"]["value"]["adapter"]["exclude_modules"]
    )
    assert "not verified" in result.stderr


def test_a_known_models_blocks_and_the_list(lora_prep: Run) -> None:
    assert "presets: sdxl:b-lora-content" in lora_prep("targets", "sdxl").stdout
    listed = json.loads(lora_prep("targets", "--list", "--json").stdout)
    assert len(listed["models"]) == 12
    assert "klein-9b:recipe-style" in lora_prep("targets", "--list").stdout


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture(lora_prep: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"grid.{suffix}"
    lora_prep("targets", "klein-9b", "--select", "single[0:12]", "--picture", path)
    if suffix == "svg":
        text = path.read_text()
        assert text.count("<title>single.") == 24
        assert text.count(": 100%</title>") == 12
    else:
        with Image.open(path) as image:
            colours = {colour: n for n, colour in image.convert("RGB").getcolors(1 << 20)}
        assert colours[(30, 98, 208)] > 12 * 150
        assert colours[(226, 228, 233)] > 20 * 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["klein-9b", "--select", "double[0:9]"], "out of range"),
        (["klein-9b", "--select", "to_q,to_k,to_v,to_out.0"], "nothing in single 0-23"),
        (["klein-9b", "--select", "double", "--for", "x"], "no consumer"),
        (["klein-9b", "--for", "peft"], "need --select"),
        (["klein-9b", "--picture", "grid.gif"], ".png or .svg"),
        (["nothing"], "known are"),
        ([], "give a MODEL"),
        (["--check", "missing.safetensors"], "no safetensors file"),
    ],
)
def test_what_is_wrong_is_said(lora_prep: Run, arguments: list[str], message: str) -> None:
    assert message in lora_prep("targets", *arguments, code=2).stderr


def test_a_hub_id_without_a_network_is_said(
    lora_prep: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = lora_prep("targets", "somebody/a-model", code=2).stderr
    assert "HF_HUB_OFFLINE" in error
    assert "klein-9b" in error


@pytest.mark.parametrize("command", [("targets", "--check"), ("lora", "check")])
def test_check_tells_what_a_lora_touches(
    lora_prep: Run, lora: Path, command: tuple[str, str]
) -> None:
    text = lora_prep(*command, lora).stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("double.")}
    assert set(rows) == {"double.0", "double.1", "double.2", "double.3"}
    assert "zero: not touched" in rows["double.3"]
    assert "33.3%" in rows["double.0"]
    assert "double   0 ███· 3" in text


def test_check_with_a_model_and_a_selection(lora_prep: Run, lora: Path) -> None:
    text = lora_prep("targets", "klein-9b", "--check", lora, "--select", "double").stdout
    assert "not in the file: double 4-7, single 0-23" in text
    assert "touches nothing else" in text
    strays = lora_prep("targets", "--check", lora, "--select", "double.0", code=1).stdout
    assert "touches double.1, double.2, too" in strays
    document = json.loads(lora_prep("targets", "--check", lora, "--json").stdout)
    assert [row["norm"] for row in document["blocks"]][3] == 0


def test_a_lora_that_does_nothing_fails_the_check(lora_prep: Run, lora: Path) -> None:
    save_file({k: torch.zeros_like(t) for k, t in load_file(lora).items()}, lora)
    assert "does nothing" in lora_prep("targets", "--check", lora, code=1).stdout


def test_split_and_merge_give_the_file_back(lora_prep: Run, lora: Path, tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    lora_prep("lora", "split", lora, "--select", "double[1:3]", "--out", a, "--rest", b)
    assert len(load_file(a)) == 48
    lora_prep("lora", "merge", a, b, "--out", c)
    before, after = load_file(lora), load_file(c)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def sparse(path: Path, **modules: tuple[int, int, int]) -> Path:
    """A LoRA of rank 1: layer (dots as __) -> number of blocks, inputs, outputs."""
    tensors = {}
    for layer, (count, inputs, outputs) in modules.items():
        head, _, rest = layer.replace("__", ".").partition(".")
        for i in range(count):
            stem = f"transformer.{head}.{i}.{rest}"
            tensors[f"{stem}.lora_A.weight"] = torch.ones(1, inputs)
            tensors[f"{stem}.lora_B.weight"] = torch.ones(outputs, 1)
    save_file(tensors, path)
    return path


def klein(path: Path, width: int, doubles: int, singles: int) -> Path:
    """A Klein LoRA on a few layers, most of which FLUX.1 has as well."""
    return sparse(
        path,
        transformer_blocks__attn__to_q=(doubles, width, width),
        transformer_blocks__attn__add_q_proj=(doubles, width, width),
        single_transformer_blocks__attn__to_out=(singles, 4 * width, width),
    )


@pytest.mark.parametrize(("width", "doubles", "singles"), [(4096, 8, 24), (3072, 5, 20)])
def test_parts_of_a_sparse_lora_stay_of_its_model(
    lora_prep: Run, tmp_path: Path, width: int, doubles: int, singles: int
) -> None:
    whole, a, b, c = (tmp_path / f"{n}.safetensors" for n in "wabc")
    klein(whole, width, doubles, singles)
    lora_prep("lora", "split", whole, "--select", "double", "--out", a, "--rest", b)
    for part in (a, b):
        found = json.loads(lora_prep("lora", "check", part, "--json").stdout)
        assert found["model"]["family"] == "flux2"
    lora_prep("lora", "merge", b, a, "--out", c)
    assert set(load_file(c)) == set(load_file(whole))
    model = resolve(c)
    assert (model.family, model.counts) == ("flux2", {"double": doubles, "single": singles})
    assert model.variant == ("klein-9b" if width == 4096 else "klein-4b")


def test_a_file_that_does_not_tell_its_model_merges_with_what_it_can_be(
    lora_prep: Run, tmp_path: Path
) -> None:
    open_ = sparse(tmp_path / "open.safetensors", transformer_blocks__attn__to_q=(8, 3072, 3072))
    one = sparse(tmp_path / "one.safetensors", single_transformer_blocks__proj_out=(9, 99, 99))
    two = klein(tmp_path / "two.safetensors", 4096, 8, 24)
    out = tmp_path / "out.safetensors"
    lora_prep("lora", "merge", open_, one, "--out", out)
    assert resolve(out).family == "flux1"
    refused = lora_prep("lora", "merge", open_, two, "--out", tmp_path / "x.safetensors", code=2)
    assert "open.safetensors is for flux1 or qwen-image, " in refused.stderr
    assert "two.safetensors is for flux2" in refused.stderr
    assert "--model" in refused.stderr
    qwen = ("--model", "qwen-image", "--force")
    lora_prep("lora", "merge", open_, "--out", out, *qwen)
    assert resolve(out).family == "qwen-image"
    lora_prep("lora", "split", open_, "--select", "double.0", "--out", out, *qwen)
    assert resolve(out).family == "qwen-image"


def test_a_preset_of_a_model_that_the_file_does_not_tell(lora_prep: Run, tmp_path: Path) -> None:
    part = sparse(tmp_path / "a.safetensors", transformer_blocks__attn__to_q=(4, 3072, 3072))
    split = ("lora", "split", part, "--select", "klein-9b:recipe-style", "--out")
    out = tmp_path / "b.safetensors"
    refused = lora_prep(*split, out, code=2).stderr
    assert "flux1 or flux2 or qwen-image" in refused
    assert "say it with --model" in refused
    lora_prep(*split, out, "--model", "klein-9b")
    assert resolve(out).family == "flux2"


def test_files_are_not_replaced_unasked(lora_prep: Run, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    split = ("lora", "split", lora, "--select", "double.0", "--out")
    lora_prep(*split, out)
    assert "exists already" in lora_prep(*split, out, code=2).stderr
    lora_prep(*split, out, "--force")
    assert "given twice" in lora_prep(*split, lora, "--force", code=2).stderr
    merge = ("lora", "merge", lora, "--out", tmp_path / "m.safetensors", "--strength")
    assert "strengths" in lora_prep(*merge, "1", "--strength", "2", code=2).stderr
    assert "a number" in lora_prep(*merge, "nan", code=2).stderr


def test_a_known_model_needs_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys\n"
        "from lora_prep.training.targets import emit_all, resolve, select\n"
        "emit_all(select(resolve('flux2-dev'), 'double[0:8]'))\n"
        "print([m for m in ('torch', 'diffusers', 'peft', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_models_folder_goes_before_the_known_model_of_its_name(
    lora_prep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sd15"
    (folder / "transformer").mkdir(parents=True)
    result = lora_prep("targets", "sd15", "--json")
    known = json.loads(result.stdout)["model"]
    assert known == json.loads(lora_prep("targets", "sd15", "--json").stdout)["model"]
    assert "the folder of that name here is no diffusers model" in result.stderr
    assert known["family"] != "flux2"
    config = json.dumps(public_config("klein-9b"))
    (folder / "transformer" / "config.json").write_text(config, "utf-8")
    result = lora_prep("targets", "sd15", "--json")
    assert json.loads(result.stdout)["model"]["variant"] == "klein-9b"
    assert "sd15 is the folder here" in result.stderr
