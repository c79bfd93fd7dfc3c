"""Job arrays on a shared folder: shards at once, a merge that misses nothing, fresh afterwards."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_prep.journal import exclusive

MASKS = ("--preset", "embedded")


def command(faces: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "lora_prep", "masks", str(faces), *MASKS, *options]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_three_at_once_merged_and_fresh(faces, tmp_path, lora_prep):
    (faces / "broken.png").write_bytes(b"no picture")
    whole = Path(shutil.copytree(faces.parent, tmp_path / "whole")) / "faces"
    lora_prep("masks", whole, *MASKS, code=1)

    shards = [
        subprocess.Popen(
            command(faces, "--shard", f"{i}/3", "--json"), stdout=subprocess.PIPE, text=True
        )
        for i in (1, 2, 3)
    ]
    documents = [json.loads(shard.communicate(timeout=120)[0]) for shard in shards]
    assert sum(document["total"] for document in documents) == 11
    assert all(document["total"] for document in documents)
    assert sorted(shard.returncode for shard in shards) == [0, 0, 1], "one has the broken file"
    assert files(faces.parent / "masks") == files(whole.parent / "masks")

    result = lora_prep("masks", faces, *MASKS, code=2)
    assert "shards 1/3, 2/3, 3/3 of masks are not merged yet" in " ".join(result.output.split())
    again = json.loads(
        lora_prep("masks", faces, *MASKS, "--shard", "1/3", "--json", code=None).stdout
    )
    assert again["counts"]["done"] == 0, "a shard that is run again has nothing to do"

    merged = json.loads(lora_prep("masks", faces, *MASKS, "--merge", "--json", code=1).stdout)
    assert merged["merged"]
    assert merged["counts"]["done"] == 10
    assert merged["counts"]["failed"] == 1
    assert not list((faces.parent / ".lora-prep/shards").rglob("*.jsonl"))
    after = json.loads(lora_prep("masks", faces, *MASKS, "--json", code=1).stdout)
    assert after["counts"]["fresh"] == 10
    assert after["counts"]["done"] == 0
    # Once more in shards: all of it is fresh by the stage's journal, and complete all the same.
    for i in (1, 2):
        document = lora_prep("masks", faces, *MASKS, "--shard", f"{i}/2", "--json", code=None)
        assert json.loads(document.stdout)["counts"]["done"] == 0
    assert json.loads(lora_prep("masks", faces, *MASKS, "--merge", "--json", code=1).stdout)[
        "merged"
    ]


def test_a_missing_shard_is_named_and_nothing_is_merged(faces, lora_prep):
    for i in (1, 3):
        lora_prep("masks", faces, *MASKS, "--shard", f"{i}/3")
    lora_prep("masks", faces, *MASKS, "--region", "head", "--shard", "3/3")
    made = len(files(faces.parent / "masks"))
    result = lora_prep("masks", faces, *MASKS, "--merge", code=1)
    lines = result.output.splitlines()
    assert lines[0].startswith(f"shard 2/3: missing: {10 - made} items (faces/")
    assert lines[1].startswith("shard 3/3: other settings: ")
    assert "not merged" in lines[-2]
    assert lines[-1] == "run --shard 2/3, --shard 3/3 again with these options"
    assert not (faces.parent / ".lora-prep/masks.jsonl").exists()

    for i in (2, 3):
        lora_prep("masks", faces, *MASKS, "--shard", f"{i}/3")
    assert (
        "masks: merged, 3 shards, 10 items: 10 made"
        in lora_prep("masks", faces, *MASKS, "--merge").output
    )
    assert json.loads(lora_prep("masks", faces, *MASKS, "--json").stdout)["counts"]["fresh"] == 10


def test_a_merge_that_was_killed_is_done_again(faces, lora_prep, monkeypatch):
    for i in (1, 2):
        lora_prep("masks", faces, *MASKS, "--shard", f"{i}/2")
    with monkeypatch.context() as patch:
        patch.setattr("lora_prep.shards.shutil.rmtree", lambda _: sys.exit(9))  # just before
        lora_prep("masks", faces, *MASKS, "--merge", code=9)
    lora_prep("masks", faces, *MASKS, "--merge")
    assert json.loads(lora_prep("masks", faces, *MASKS, "--json").stdout)["counts"]["fresh"] == 10


def test_who_may_work_at_the_same_time(faces, lora_prep):
    state = faces.parent / ".lora-prep"
    with exclusive(state):  # a normal run
        result = lora_prep("masks", faces, *MASKS, "--shard", "1/2", code=2)
        assert "another lora-prep is working on" in result.output
    with exclusive(state, shared=True):  # another shard
        lora_prep("masks", faces, *MASKS, "--shard", "1/2")
        for options in ([], ["--merge"]):
            result = lora_prep("masks", faces, *MASKS, *options, code=2)
            assert "another lora-prep is working on" in result.output
        with exclusive(state / "shards/masks/1-of-2"):  # the same shard
            result = lora_prep("masks", faces, *MASKS, "--shard", "1/2", code=2)
            assert "another lora-prep is working on" in result.output


def test_two_divisions_are_not_mixed(faces, lora_prep):
    lora_prep("masks", faces, *MASKS, "--shard", "1/1")
    lora_prep("masks", faces, *MASKS, "--shard", "1/2")
    result = lora_prep("masks", faces, *MASKS, "--merge", code=2)
    assert "shards of 1 and of 2" in " ".join(result.output.split())


def test_variants_of_an_image_stay_together(faces, lora_prep):
    keys: dict[str, set[int]] = {}
    for i in (1, 2, 3):
        result = lora_prep(
            "augment", faces, "--no-masks", "-n", "3", "--shard", f"{i}/3", "--dry-run", "--json"
        )
        for item in json.loads(result.stdout)["items"]:
            keys.setdefault(item["key"].partition("#")[0], set()).add(i)
    assert len(keys) == 10
    assert all(len(shards) == 1 for shards in keys.values())


@pytest.mark.parametrize("name", ["masks", "augment"])
def test_a_dry_run_of_a_shard_writes_nothing(faces, lora_prep, name):
    more = MASKS if name == "masks" else ("--no-masks",)
    lora_prep(name, faces, *more, "--shard", "2/3", "--dry-run")
    assert not (faces.parent / ".lora-prep").exists()
