"""Targets, terms with networks, sliders, gradient checkpointing, and what is written."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_prep.embeddings import Embeddings
from lora_prep.errors import DatasetError, UsageError
from lora_prep.journal import hash_file
from lora_prep.training.sliders import SliderRecord
from lora_prep.training.targets import adapter, resolve, select
from lora_prep.training.trainer import families, logs, loop, lora, losses, plots
from lora_prep.training.trainer.config import ModelConfig
from lora_prep.training.trainer.plan import plan
from tests.training.trainer import made

RECOGNISER = Path("tests/assets/tiny_faces/rec_tiny.onnx").absolute()


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


# ------------------------------------------------------------------ targets
@pytest.mark.parametrize(
    ("family", "expression"),
    [("sdxl", "sdxl:b-lora-style"), ("flux2-klein", "double[0:1]"), ("flux1", "single[1:3].attn")],
)
def test_only_the_chosen_blocks_change(world: Path, family: str, expression: str) -> None:
    done = made.train(world, family, lora={"targets": expression})
    chosen = select(resolve(world / "models" / family), expression)
    found = adapter.touches(adapter.read(done.files[0]))
    assert {t.block for t in found} == set(chosen.blocks)
    assert all(t.norm > 0 and t.zero == 0 for t in found)
    noted = metadata(done.files[0])
    assert noted["lora_prep.targets"] == expression
    assert json.loads(noted["lora_prep.blocks"]) == [b.label for b in chosen.blocks]


# ------------------------------------------------------------------ what is written
def test_the_file_says_what_it_is_and_the_plot_has_a_panel_a_term(world: Path) -> None:
    losses = {"masked": {}, "mine": {"term": "output_preservation", "weight": 0.5}}
    preserve = {"prompt": "person", "trigger": "sks"}
    done = made.train(world, "sd15", losses=losses, preserve=preserve, save={"name": "sks"})
    noted = metadata(done.files[0])
    assert done.files[0].name == "sks.safetensors"
    assert json.loads(noted["lora_prep.losses"])["mine"]["term"] == "output_preservation"
    assert json.loads(noted["lora_prep.config"])["train"]["steps"] == 2
    assert noted["ss_network_dim"] == "4"
    assert len(noted["lora_prep.dataset"]) == 64
    lines = logs.read(world / "out")
    assert lines[1]["loss"] == pytest.approx(lines[1]["masked"] + 0.5 * lines[1]["mine"])
    picture = plots.draw(lines)
    assert picture is not None
    assert picture.shape[0] == 5 * plots.HEIGHT  # loss, masked, mine, grad_norm, lr
    assert (world / "out/losses.png").exists()


def test_the_data_sets_digest_changes_with_its_bytes(world: Path) -> None:
    digests = [plan(made.config(world, "sd15"), world / "models/sd15").data.digest()]
    (world / "data/faces/0.txt").write_text("something else")
    digests.append(plan(made.config(world, "sd15"), world / "models/sd15").data.digest())
    assert digests[0] != digests[1]


def test_cached_or_not_checkpointed_or_not_the_result_is_the_same(world: Path) -> None:
    plain = made.train(world, "sd15", data={"cache": False}, save={"out": "a"})
    kept = made.train(world, "sd15", save={"out": "b"})
    again = made.train(world, "sd15", save={"out": "c"})
    saved = made.train(world, "sd15", train={"gradient_checkpointing": True}, save={"out": "d"})
    assert list((world / "data/.lora-prep/latents").rglob("*.safetensors"))
    assert list((world / "data/.lora-prep/texts").rglob("*.safetensors"))
    first, second = load_file(kept.files[0]), load_file(again.files[0])
    assert all(torch.equal(first[k], second[k]) for k in first)
    wanted = [line["loss"] for line in logs.read(kept.files[0].parent)]
    for other in (plain, saved):
        assert [line["loss"] for line in logs.read(other.files[0].parent)] == pytest.approx(wanted)


def test_what_another_encoding_kept_is_made_again(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> list[int]:
        state = world / "data/.lora-prep"
        return [len(list((state / kind).rglob("*.safetensors"))) for kind in ("latents", "texts")]

    made.train(world, "sd15", train={"steps": 1})
    images, texts = kept()
    made.train(world, "sd15", train={"steps": 1}, restart=True)
    assert kept() == [images, texts]
    monkeypatch.setattr(families, "ENCODING", families.ENCODING - 1)
    made.train(world, "sd15", train={"steps": 1}, restart=True)
    assert kept() == [2 * images, 2 * texts]


def test_bfloat16_trains_weights_in_float32(world: Path) -> None:
    kept: dict[str, Any] = {}
    finish = loop._Run._finish

    def keep(run: Any) -> Any:
        kept.update(run.family.pipeline.vae.state_dict())
        return finish(run)

    drawn = {"prompts": ["sks"], "steps": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_finish", keep)
        done = made.train(world, "flux2-klein", model={"dtype": "bfloat16"}, validation=drawn)
    (file,) = (world / "models/flux2-klein/vae").glob("*.safetensors")
    saved = load_file(file)  # float32: no image was encoded by a VAE that went through bfloat16
    assert all(torch.equal(kept[name], tensor) for name, tensor in saved.items())
    tensors = load_file(done.files[0])
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert all(np.isfinite(line["loss"]) for line in logs.read(world / "out"))


# ------------------------------------------------------------------ identity
def with_faces(world: Path, sha256: str) -> None:
    points = np.array([[[22, 24], [40, 24], [31, 34], [24, 44], [38, 44]]], np.float32)
    rows = made.PICTURES
    vector = np.random.default_rng(0).normal(size=(1, 128)).astype(np.float32)
    vector /= np.linalg.norm(vector)
    size = _embedding_size()
    vector = np.resize(vector, (1, size)) / np.linalg.norm(np.resize(vector, (1, size)))
    found = Embeddings(
        names=tuple(f"{i}.png" for i in range(rows)),
        faces=np.zeros(rows, np.int32),
        boxes=np.tile(np.array([[14, 10, 48, 54]], np.float32), (rows, 1)),
        landmarks=np.tile(points, (rows, 1, 1)),
        scores=np.ones(rows, np.float32),
        vectors=np.tile(vector, (rows, 1)).astype(np.float32),
        norms=np.ones(rows, np.float32),
        sha256=tuple(hash_file(world / f"data/faces/{i}.png") for i in range(rows)),
        metadata={"model": "tiny", "model_sha256": sha256, "alignment": "insightface-norm_crop"},
    )
    (world / "data/embeddings.safetensors").write_bytes(found.to_bytes())


def _embedding_size() -> int:
    import onnx

    graph = onnx.load(str(RECOGNISER)).graph
    return int(graph.output[0].type.tensor_type.shape.dim[-1].dim_value)


def test_the_identity_term_pulls_towards_the_reference_and_off_it_does_not(world: Path) -> None:
    from lora_prep.training.identity import load_recogniser

    with_faces(world, load_recogniser(RECOGNISER, check=False).sha256)
    means = {}
    for name, weight in (("on", 30.0), ("off", 1e-9)):
        term = {"weight": weight, "max_timestep": 999}
        made.train(
            world,
            "sd15",
            losses={"diffusion": {}, "identity": term},
            identity={"recogniser": str(RECOGNISER)},
            lora={"targets": "all"},
            train={"steps": 16, "learning_rate": 2e-2},
            save={"out": name},
        )
        means[name] = np.mean([line["identity"] for line in logs.read(world / name)][-6:])
    assert means["on"] < means["off"] - 0.015


def test_face_weighted_is_trained_from_the_faces_of_embed(world: Path) -> None:
    with_faces(world, "0" * 64)
    values = {}
    for name, term in (
        ("plain", {"diffusion": {}}),
        ("face", {"face_weighted": {"face_weight": 3}}),
    ):
        made.train(world, "sd15", losses=term, train={"steps": 1}, save={"out": name})
        (line,) = logs.read(world / name)
        values[name] = line["loss"]
    assert values["face"] != pytest.approx(values["plain"], rel=1e-3)


def test_advice_is_given_once_and_not_as_a_warning_of_python(world: Path) -> None:
    many = {"masked": {}, "inverted_mask_prior": {}, "output_preservation": {}}
    more = {"term": "output_preservation", "weight": 0.1}
    run = made.config(world, "sd15", losses={**many, "more": more}, preserve={"prompt": "a person"})
    (note,) = plan(run, world / "models/sd15").notes
    assert "can destabilise" in note
    loaded = families.load(world / "models/sd15", run.model, torch.device("cpu"), torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = losses.build(run, None, loaded, torch.device("cpu"))
    assert len(built.terms) == 4


def test_references_of_another_recogniser_are_refused(world: Path) -> None:
    with_faces(world, "0" * 64)
    with pytest.raises(DatasetError, match="cannot be compared"):
        made.train(
            world,
            "sd15",
            losses={"diffusion": {}, "identity": {}},
            identity={"recogniser": str(RECOGNISER)},
        )


# ------------------------------------------------------------------ sliders
SLIDERS: dict[str, dict[str, Any]] = {
    "textual": {
        "losses": {"slider": {"strength": 3.0}},
        "slider": {"positive": "smiling", "negative": "sad", "target": "face", "denoise_steps": 3},
        "data": {"images": "data"},
    },
    "pairs": {"losses": {"paired_slider": {}}, "slider": {"pairs": "pairs"}},
}


@pytest.mark.parametrize("kind", SLIDERS)
@pytest.mark.parametrize("family", ["sd15", "flux2-klein"])
def test_sliders_train_and_note_their_range(world: Path, kind: str, family: str) -> None:
    run = {**SLIDERS[kind], "train": {"gradient_checkpointing": True}}
    run["slider"] = {**run["slider"], "trained_range": [-2, 2]}
    done = made.train(world, family, **run)
    record = SliderRecord.from_metadata(metadata(done.files[0]))
    assert record is not None
    assert (record.low, record.high) == (-2.0, 2.0)
    assert record.kind == ("visual" if kind == "pairs" else "textual")
    assert any(bool(t.any()) for k, t in load_file(done.files[0]).items() if "lora_B" in k)


def test_a_textual_slider_needs_no_images(world: Path) -> None:
    values = made.values("sd15", **SLIDERS["textual"])
    del values["data"]["images"]
    from lora_prep.training.trainer import config as run_config

    config = run_config.from_dict(values, "run.toml", world)
    done = loop.train(plan(config, world / "models/sd15"), say=lambda _: None)
    assert done.files


# ------------------------------------------------------------------ what cannot be
@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"losses": {"maskd": {}}}, "did you mean 'masked'"),
        ({"losses": {"masked": {"flor": 1}}}, "did you mean 'floor'"),
        ({"losses": {"masked": {}, "diffusion": {}}}, "count twice"),
        ({"losses": {"diffusion": {}, "identity": {}}}, r"needs a table \[identity\]"),
        ({"losses": {"diffusion": {}, "output_preservation": {}}}, r"\[preserve\]"),
        ({"losses": {"diffusion": {}, "prior_preservation": {}}}, "run lora-prep priors"),
        ({"losses": {"face_weighted": {"face_weight": 1.0}}}, "run lora-prep embed"),
        ({"losses": {"slider": {}}}, r"\[slider\]"),
        ({"losses": {"slider": {}, "masked": {}}, "slider": {"positive": "x"}}, "count twice"),
        (
            {
                "losses": {"slider": {}, "output_preservation": {}},
                "slider": {"positive": "x"},
                "preserve": {"prompt": "x"},
            },
            "own term alone",
        ),
        ({"slider": {"positive": "x"}}, "neither losses.slider"),
        ({"lora": {"targets": "double[0:3]"}}, "no double blocks"),
        ({"lora": {"targets": "sdxl:b-lora-style"}}, "was made for sdxl"),
        ({"data": {"priors": "data/priors"}, "train": {"batch_size": 3}}, "has to be even"),
        ({"data": {"bucket_step": 20}}, "multiple of 8"),
        ({"train": {"optimizer": "adamw8bit"}}, "pip install bitsandbytes"),
        ({"data": {"images": "nowhere"}}, "there is no folder"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_loaded(
    world: Path, tables: dict[str, Any], message: str
) -> None:
    for weights in (world / "models/sd15").rglob("*.safetensors"):
        assert weights.exists()
    with pytest.raises((UsageError, DatasetError), match=message):
        plan(made.config(world, "sd15", **tables), world / "models/sd15")


def test_a_loss_that_is_no_number_stops_the_run(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no longer a number"):
        made.train(
            world, "sd15", train={"learning_rate": 1e30, "clip": 0, "steps": 4}, log={"every": 1}
        )


def test_other_families_are_named(world: Path) -> None:
    index = world / "other/model_index.json"
    index.parent.mkdir()
    index.write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    with pytest.raises(UsageError, match=r"StableDiffusion3Pipeline: .*lora-prep export"):
        families.family_of(index.parent)


# ------------------------------------------------------------------ the families' forwards
@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux1", "flux2-klein"])
def test_latents_go_back_to_what_the_vae_made(world: Path, family: Any) -> None:
    settings = ModelConfig(base="x", text_tokens=16)
    loaded = families.load(world / "models" / family, settings, torch.device("cpu"), torch.float32)
    moments = loaded.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    means = moments.chunk(2, 1)[0]
    certain = torch.cat([means, torch.zeros_like(means)], 1)
    latents = loaded.latents(certain, torch.Generator())
    assert torch.allclose(loaded.unscaled(latents), means, atol=1e-4)
    run = made.config(world, family)
    chosen = select(resolve(world / "models" / family), "all.attn")
    model = getattr(loaded.pipeline, loaded.part)
    text = loaded.encode_text("x")
    t = torch.tensor([0.5] if family.startswith("flux") else [500])
    arguments = (latents, t, text, torch.tensor([[64.0, 64, 0, 0, 64, 64]]))
    with torch.no_grad():
        before = loaded.predict(*arguments)
        lora.add(model, run.lora, chosen, 0)
        for name, weight in lora.weights(model).items():
            if "lora_B" in name:
                weight.fill_(0.1)
        changed = loaded.predict(*arguments)
        with lora.off(model):
            assert torch.equal(loaded.predict(*arguments), before)
        with lora.at(model, 0.0):
            assert torch.allclose(loaded.predict(*arguments), before, atol=1e-5)
        assert torch.equal(loaded.predict(*arguments), changed)
    assert before.shape == latents.shape
    assert not torch.allclose(changed, before, atol=1e-4)
