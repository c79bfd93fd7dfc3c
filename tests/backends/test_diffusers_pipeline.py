"""Real, tiny pipelines: what is told before loading, and what is drawn."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from lora_prep.backends import download
from lora_prep.backends.diffusers_pipeline import (
    Description,
    DiffusersPainter,
    PipelineSpec,
    Request,
    Sampling,
    find,
    to_image,
)
from lora_prep.errors import BackendError, UsageError
from tests.fakes import loopback
from tests.fakes.tiny_pipelines import FAMILIES, build, saved

REQUESTS = [Request("a dog", 1), Request("a cat", 2), Request("a person", 3)]


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("sd15", tmp_path_factory.mktemp("pipelines") / "sd15")


def painter(folder: Path, batch_size: int, **options) -> DiffusersPainter:
    return DiffusersPainter(
        PipelineSpec(folder, device="cpu", **options), Sampling(64, 64, 2), batch_size
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_draws_the_same_bytes_alone_and_in_company(family, tmp_path):
    pipeline = painter(saved(family, tmp_path), batch_size=3)
    together = pipeline.draw(REQUESTS)
    alone = [pipeline.draw([request])[0] for request in reversed(REQUESTS)][::-1]
    assert [image.shape for image in together] == [(64, 64, 3)] * 3
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert len({image.tobytes() for image in together}) == 3, "each has a seed of its own"


def test_the_prompt_counts(sd15):
    pipeline = painter(sd15, 1)
    dog, cat = (pipeline.draw([Request(word, 1)])[0] for word in ("a dog", "a cat"))
    assert not np.array_equal(dog, cat)


def test_told_without_loading(sd15):
    about = Description(sd15)
    assert (about.steps, about.size) == (50, 64)


def test_identity_follows_the_weights_and_not_the_place(sd15, tmp_path):
    moved = Path(shutil.copytree(sd15, tmp_path / "moved"))
    assert Description(moved).identity() == Description(sd15).identity()
    other = saved("sd15", tmp_path / "other", seed=1)
    assert Description(other).identity() != Description(sd15).identity()


@pytest.mark.parametrize(
    "extra",
    [
        "sd_xl_base_1.0.safetensors",
        "notes.txt",
        "vae_1_0/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
    ],
)
def test_files_that_nobody_loads_do_not_count(sd15, tmp_path, extra):
    folder = Path(shutil.copytree(sd15, tmp_path / "copy"))
    (folder / extra).parent.mkdir(exist_ok=True)
    (folder / extra).write_bytes(b"x" * 100)
    assert Description(folder).identity() == Description(sd15).identity()


@pytest.mark.parametrize(
    "path",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_each_file_that_is_loaded_counts(sd15, tmp_path, path):
    folder = Path(shutil.copytree(sd15, tmp_path / "copy"))
    with (folder / path).open("ab") as file:
        file.write(b" ")
    assert Description(folder).identity() != Description(sd15).identity()


def test_a_byte_in_the_middle_of_the_weights_counts(sd15, tmp_path):
    """A LoRA merged into the attention changes neither end of the file."""
    folder = Path(shutil.copytree(sd15, tmp_path / "copy"))
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    content = bytearray(4 << 20)
    path.write_bytes(content)
    before = Description(folder).identity()
    content[len(content) // 2] = 1
    path.write_bytes(content)
    assert Description(folder).identity() != before


def test_each_shard_counts(tmp_path):
    pipeline = build("sd15")
    pipeline.save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted((tmp_path / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    before = Description(tmp_path).identity()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"passed over")
    assert Description(tmp_path).identity() == before
    shards[-1].write_bytes(shards[-1].read_bytes() + b" ")
    assert Description(tmp_path).identity() != before
    shards[-1].unlink()
    with pytest.raises(BackendError, match="fetch it again"):
        Description(tmp_path).identity()


@pytest.mark.parametrize("broken", ["", '{"sample_size": 6', "[]", "\xff"])
def test_a_torn_configuration_is_no_bug(sd15, tmp_path, broken):
    folder = Path(shutil.copytree(sd15, tmp_path / "torn"))
    (folder / "unet" / "config.json").write_bytes(broken.encode("latin-1"))
    with pytest.raises(BackendError, match="fetch it again"):
        _ = Description(folder).size
    (folder / "model_index.json").write_bytes(broken.encode("latin-1"))
    with pytest.raises(BackendError, match="fetch it again"):
        Description(folder).identity()


def test_another_scheduler_gives_another_image_and_an_unfit_one_is_refused(sd15, tmp_path):
    (own,) = painter(sd15, 1).draw(REQUESTS[:1])
    (other,) = painter(sd15, 1, scheduler="dpm++").draw(REQUESTS[:1])
    assert not np.array_equal(own, other)
    flux = saved("flux1", tmp_path)
    with pytest.raises(UsageError, match="FlowMatchEulerDiscreteScheduler"):
        painter(flux, 1, scheduler="ddim")


def test_what_a_pipeline_cannot_do_is_said(tmp_path):
    about = Description(saved("flux2-klein", tmp_path))
    with pytest.raises(UsageError, match="--negative-prompt"):
        about.check(Sampling(64, 64, 2, negative_prompt="blurry"))
    with pytest.raises(UsageError, match="multiples of 16"):
        about.check(Sampling(72, 64, 2))


def test_nan_is_no_image():
    pixels = np.full((4, 4, 3), 0.5, np.float32)
    assert np.array_equal(to_image(pixels), np.full((4, 4, 3), 128, np.uint8))
    pixels[1, 2, 0] = np.nan
    assert "NaN" in to_image(pixels)


def test_nan_from_broken_weights_is_told(tmp_path):
    broken = build("sd15")
    broken.unet.conv_out.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path)
    assert "NaN" in painter(tmp_path, 1).draw(REQUESTS[:1])[0]


def test_a_damaged_pipeline_is_no_bug(sd15, tmp_path):
    folder = Path(shutil.copytree(sd15, tmp_path / "damaged"))
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackendError, match="cannot be loaded"):
        painter(folder, 1)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "NoSuchPipeline"}))
    with pytest.raises(BackendError, match="has no NoSuchPipeline"):
        painter(folder, 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("model.safetensors", "single file"),
        ("nowhere", "no folder nowhere"),
        ("owner/name", "HF_HUB_OFFLINE"),
    ],
)
def test_no_model(model, message, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackendError, match=message):
        find(model)
    with pytest.raises(BackendError, match="model_index"):
        find(str(tmp_path))


@pytest.mark.parametrize("hub", [loopback.closed, loopback.silent])
def test_a_hub_that_cannot_be_reached_is_given_up_at_once(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    found = hub()
    with found if hub is loopback.silent else nullcontext(found) as url:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        address = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
        with pytest.raises(BackendError, match=rf"{url} does not give it.*--model DIR.*--from DIR"):
            find("owner/name")


def test_a_whole_copy_in_the_hubs_cache_needs_no_hub(sd15, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    snapshot = Path(shutil.copytree(sd15, repository / "snapshots" / "abc"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert find("owner/name") == snapshot
    for torn in ("{", "[]", '{"weight_map": ["a"]}'):
        (snapshot / "unet" / "x.index.json").write_text(torn)
        with pytest.raises(BackendError, match="not wholly"):
            find("owner/name")
    (snapshot / "unet" / "x.index.json").unlink()
    next((snapshot / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(BackendError, match="not wholly"):
        find("owner/name")
