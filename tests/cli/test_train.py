"""`lora-prep train` as a user runs it, on real, tiny pipelines of every family."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from click.testing import Result
from safetensors.torch import load_file

from tests.fakes import tiny_pipelines
from tests.training.trainer import made

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for family in tiny_pipelines.FAMILIES:
        made.model(root, family)
    return root / "models"


@pytest.fixture
def world(models: Path, tmp_path: Path) -> Path:
    (tmp_path / "models").symlink_to(models, target_is_directory=True)
    return made.pictures(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads of so small a model only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written(world: Path, values: dict[str, Any]) -> Path:
    path = world / "run.toml"
    path.write_text(tomli_w.dumps(values))
    return path


def drawn(pipeline: Any, **more: Any) -> torch.Tensor:
    """An image, from noise of its own."""
    image = pipeline(
        prompt="a photo of sks",
        num_inference_steps=2,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
        **more,
    ).images[0]
    return torch.from_numpy(image)


def test_a_model_that_is_not_here_is_asked_for_as_train_takes_it(
    world: Path, lora_prep: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    values = made.values("sd15", model={"base": "nobody/nothing"})
    said = lora_prep("train", written(world, values), "--dry-run", code=2).output
    assert 'base = "DIR" in [model] of' in said
    assert "--model" not in said
    assert "--from" not in said


@pytest.mark.parametrize("family", tiny_pipelines.FAMILIES)
def test_every_family_trains_and_every_reader_gets_the_same_lora(
    family: tiny_pipelines.Family, world: Path, lora_prep: Cli
) -> None:
    # diffusers reads kohya's FLUX.1 single blocks at FLUX.1's own width alone.
    targets = "double.attn" if family == "flux1" else "all.attn"
    if family == "sdxl":
        targets = "all"
    values = made.values(
        family,
        losses={"masked": {}, "inverted_mask_prior": {"weight": 0.5}, "output_preservation": {}},
        preserve={"prompt": "person", "trigger": "sks"},
        lora={"targets": targets, "alpha": 4},
        train={"steps": 2, "ema": 0.5, "accumulate": 2},
        save={"namings": ["diffusers", "comfyui", "kohya"]},
        validation={"prompts": ["a photo of sks"], "steps": 1, "strengths": [0, 1]},
    )
    result = lora_prep("train", written(world, values))
    files = [Path(line) for line in result.stdout.split()]
    assert [file.name for file in files] == [
        "lora.safetensors",
        "lora.comfyui.safetensors",
        "lora.kohya.safetensors",
    ]
    out = world / "out"
    assert (out / "samples/step-000002-0.png").exists()
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    with torch.no_grad():
        base = tiny_pipelines.build(family)
        before = drawn(base)
        base.load_lora_weights(str(files[0]))
        trained = drawn(base)
        assert not torch.allclose(before, trained, atol=1e-4)
        readable = files[1:] if family != "flux1" else files[2:]
        for file in readable:
            other = tiny_pipelines.build(family)
            other.load_lora_weights(str(file))
            assert torch.allclose(drawn(other), trained, atol=2e-3), file.name


def test_what_is_saved_does_what_was_trained(world: Path, lora_prep: Cli) -> None:
    from lora_prep.training.trainer import families, loop
    from lora_prep.training.trainer.plan import plan

    kept: dict[str, Any] = {}
    finish = loop._Run._finish

    def keep(run: Any) -> Any:
        with torch.no_grad():
            kept["model"] = run.family.predict(*arguments(run.family))
        return finish(run)

    def arguments(family: Any) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(1)
        noisy = torch.randn(1, 4, 8, 8, generator=generator)
        text = {"prompt_embeds": torch.randn(1, 77, 32, generator=generator)}
        return noisy, torch.tensor([400]), text, torch.zeros(1, 6)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_finish", keep)
        run = made.config(world, "sd15", lora={"alpha": 2.0})
        done = loop.train(plan(run, world / "models/sd15"), say=lambda _: None)
    pipeline = tiny_pipelines.build("sd15")
    pipeline.load_lora_weights(str(done.files[0]))
    again = families.wrap(pipeline, run.model)
    with torch.no_grad():
        assert torch.equal(again.predict(*arguments(again)), kept["model"])


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(world: Path, lora_prep: Cli) -> None:
    values = made.values(
        "sdxl",
        lora={"targets": "sdxl:b-lora"},
        losses={"diffusion": {}, "keep": {"term": "prior_preservation", "weight": 0.5}},
        data={"priors": "data/priors", "prior_caption": "a person"},
    )
    before = sorted(world.rglob("*"))
    text = lora_prep("train", written(world, values), "--dry-run").output
    for part in ("sdxl", "up.0.attentions 0-1", "3 class images", "64×64: 3", "keep", "weight 0.5"):
        assert part in text, text
    document = json.loads(lora_prep("train", world / "run.toml", "--dry-run", "--json").output)
    assert document["losses"]["keep"] == {"term": "prior_preservation", "weight": 0.5}
    assert document["parameters"] > 0
    assert sorted(world.rglob("*")) == sorted([*before, world / "run.toml"])


def test_mistakes_exit_with_2_before_a_model_is_loaded(world: Path, lora_prep: Cli) -> None:
    values = made.values("sd15")
    path = written(world, {**values, "model": {"base": "nowhere"}})
    assert "there is no folder nowhere" in lora_prep("train", path, code=2).output
    path = written(world, {**values, "lossses": {}})
    assert "did you mean 'losses'" in lora_prep("train", path, code=2).output
    assert "give a CONFIG" in lora_prep("train", code=2).output
    assert "cannot read" in lora_prep("train", world / "none.toml", code=2).output


def test_the_example_is_a_configuration(world: Path, lora_prep: Cli) -> None:
    text = lora_prep("train", "--example").output
    path = world / "example.toml"
    path.write_text(text.replace("stable-diffusion-v1-5/stable-diffusion-v1-5", "models/sd15"))
    (world / "data/faces/0.txt").unlink()
    plan = lora_prep("train", path, "--dry-run").output
    assert "steps      1000 of 1 images" in plan


def test_the_same_command_again_has_nothing_left_to_do(world: Path, lora_prep: Cli) -> None:
    path = written(world, made.values("sd15"))
    first = lora_prep("train", path, "--json")
    assert json.loads(first.stdout)["step"] == 2
    saved = load_file(world / "out/lora.safetensors")
    again = lora_prep("train", path)
    assert "going on after step 2 of 2" in again.stderr
    found = load_file(world / "out/lora.safetensors")
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
