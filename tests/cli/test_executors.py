"""--executor, --shard and what goes with them, as every command has them."""

import json
from pathlib import Path

import pytest

STAGES = ("normalize", "detect", "masks", "augment", "priors", "embed")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_options(lora_prep, stage):
    text = lora_prep(stage, "--help").output
    for option in ("--executor", "--workers", "--num-gpus", "--address", "--shard", "--merge"):
        assert option in text


def test_processes_give_the_same_bytes(lora_prep, faces, tmp_path):
    """Masks and augmented pairs, with a file that is no picture among them."""
    (faces / "a-broken.jpg").write_bytes(b"no picture")
    here = tmp_path / "here" / "faces"
    here.parent.mkdir()
    here.mkdir()
    for name, data in files(faces).items():
        (here / name).write_bytes(data)
    several = ["--executor", "processes", "--workers", "2", "--json"]
    documents = []
    for folder, how in ((here, ["--json"]), (faces, several)):
        masks = lora_prep("masks", folder, "--preset", "embedded", *how, code=1)
        pairs = lora_prep("augment", folder, "-n", "1", *how, code=1)
        documents.append([json.loads(result.stdout) for result in (masks, pairs)])
    for one, other in zip(*documents, strict=True):
        assert one["counts"] == other["counts"]
        assert one["items"] == other["items"], "in the same order, too"
    for made in ("masks", "augmented"):
        wanted = files(here.parent / made)
        assert len(wanted) > 5
        assert files(faces.parent / made) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--address", "auto"], "--executor ray"),
        (["--workers", "3"], "--executor processes and ray"),
        (["--num-gpus", "1"], "--executor processes and ray"),
        (["--shard", "0/3"], "from 1/8 to 8/8"),
        (["--shard", "4/3"], "from 1/8 to 8/8"),
        (["--shard", "one"], "write 3/8"),
        (["--shard", "1/3", "--merge"], "--merge goes without --shard"),
        (["--merge"], "there are no shards of masks"),
        (["--merge", "--dry-run"], "--merge has no --dry-run"),
        (["--executor", "ray", "--address", "nonsense"], "cannot reach a Ray cluster at nonsense"),
    ],
)
def test_what_does_not_go_together_is_said(lora_prep, faces, options, message):
    result = lora_prep("masks", faces, "--preset", "embedded", *options, code=2)
    assert message in " ".join(result.output.split())
    assert not (faces.parent / "masks").exists()


def test_without_ray_the_package_is_named(lora_prep, faces, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    result = lora_prep("masks", faces, "--preset", "embedded", "--executor", "ray", code=2)
    assert "pip install 'lora-prep[ray]'" in result.output


def test_class_images_have_no_shards(lora_prep, faces):
    result = lora_prep("priors", faces, "--class", "a person", "--shard", "1/2", code=2)
    assert "shards would not agree" in " ".join(result.output.split())
    result = lora_prep("priors", faces, "--from", faces, "--executor", "processes", code=2)
    assert "one worker has to see them all" in " ".join(result.output.split())
