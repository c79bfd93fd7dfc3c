"""A second export: nothing to do, what changed, what is gone, and what is somebody else's."""

import json
import os
import re
import shutil

import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.errors import DatasetError
from lora_prep.export.manifest import JOURNAL, MANIFEST, Manifest, announce, file_hash
from tests.export.conftest import TRAINERS, tree


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_second_export_changes_nothing(trainer, run):
    out = run(trainer)
    before = tree(out), times(out)
    run(trainer)
    assert "0 files written, 0 removed" in run.result.output
    assert (tree(out), times(out)) == before


def test_what_is_gone_from_the_source_goes_and_nothing_else(run, data):
    out = run("onetrainer")
    mine = out / "images" / "notes.txt"
    mine.write_text("mine")
    (data / "faces" / "a.png").unlink()
    run("onetrainer")
    assert "1 files written, 3 removed" in run.result.output  # TRAIN.md counts the images
    assert not list(out.glob("images/a*"))
    assert mine.read_text() == "mine"
    assert "images/notes.txt" in run.result.output


def test_a_changed_mask_is_exported_anew(run, data):
    out = run("kohya")
    before = tree(out)
    shutil.copy(data / "masks" / "b.png", data / "masks" / "a.png")
    run("kohya")
    changed = {name for name, digest in tree(out).items() if before[name] != digest}
    assert changed == {"rgba/a.png", MANIFEST}


def test_what_was_filled_in_stays(run, data):
    """diffusion-pipe's training names the user's model files."""
    out = run("diffusion-pipe")
    training = out / "training.toml"
    mine = training.read_text().replace("MODEL", "/models/flux")
    training.write_text(mine)
    shutil.copy(data / "masks" / "b.png", data / "masks" / "a.png")
    for _ in range(2):
        run("diffusion-pipe", "--rank", 4, "--check")
        assert "training.toml was edited and is kept" in run.result.output
        assert training.read_text() == mine
    run("diffusion-pipe", "--force")
    assert "MODEL" in training.read_text()
    run("diffusion-pipe", "--rank", 4)
    assert "rank = 4" in training.read_text()


@pytest.mark.parametrize(
    ("trainer", "config", "rank", "key"),
    [
        ("diffusion-pipe", "training.toml", "adapter.rank", "adapter.exclude_modules"),
        ("simpletuner", "config.json", "lora_rank", "peft_lora_target_modules"),
    ],
)
def test_what_does_not_reach_a_kept_configuration_is_named(trainer, config, rank, key, run):
    """Without a word, every block would be trained, whatever --select says."""
    out = run(trainer, "--no-priors")
    assert run.result.output.count("fill in ") == 1
    mine = (out / config).read_text("utf-8")
    for blank, value in {"TYPE": "flux2", "MODEL": "/m", "FAMILY": "flux2"}.items():
        mine = mine.replace(blank, value)
    (out / config).write_text(mine, "utf-8")
    run(trainer, "--no-priors")
    assert f"{config} was edited and is kept" in run.result.output
    assert "this export would" not in run.result.output
    options = ("--no-priors", "--model", "klein-9b", "--select", "double[0:2]", "--rank", 4)
    run(trainer, *options, "--dry-run", code=1)
    run(trainer, *options, code=1)
    told = (run.result.output, (out / "TRAIN.md").read_text("utf-8"))
    for text in told:
        assert f"{config} says `{rank}` is 16: this export would say 4" in text
        assert f"--select: {config} does not have the selected blocks" in text
        assert "fill in" not in text
    assert "trained blocks" not in told[1]
    assert (out / config).read_text("utf-8") == mine
    put = re.search(f"put this into it as `{key}`: (.*)", told[1])[1]
    if trainer == "simpletuner":
        whole = mine.replace("{", f'{{"{key}": {put},', 1)
    else:
        whole = mine.replace("[adapter]", f"[adapter]\nexclude_modules = {put}")
    (out / config).write_text(whole, "utf-8")
    run(trainer, *options)
    assert "--select" not in run.result.output
    assert "- trained blocks: `double[0:2]`" in (out / "TRAIN.md").read_text("utf-8")
    run(trainer, "--no-priors")
    assert f"{config} selects blocks (`{key}`), this export does not" in run.result.output
    (out / config).write_text("[", "utf-8")
    run(trainer, *options, code=1)
    assert f"note: {config} is damaged" in run.result.output
    run(trainer, *options, "--force")
    assert "this export would" not in run.result.output


def test_another_route_leaves_nothing_behind(run):
    out = run("kohya", "--no-priors")
    run("kohya", "--no-priors", "--route", "mask-dir")
    assert not (out / "rgba").exists()
    assert len(list((out / "masks").iterdir())) == 3


def test_other_peoples_files_are_not_replaced(run, tmp_path):
    foreign = tmp_path / "out" / "images" / "a.png"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"mine")
    run("diffusion-pipe", code=2)
    assert "is in the way" in run.result.output
    assert foreign.read_bytes() == b"mine"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["images"]
    run("diffusion-pipe", "--force")
    assert foreign.read_bytes() != b"mine"


def test_an_edited_configuration_is_not_replaced(run):
    out = run("diffusion-pipe")
    config = out / "dataset.toml"
    config.write_text(config.read_text() + "# mine\n")
    run("diffusion-pipe", "--repeats", 2, code=2)
    assert "was changed by hand" in run.result.output
    assert config.read_text().endswith("# mine\n")
    run("diffusion-pipe", "--repeats", 2, "--force")
    assert "num_repeats = 2" in config.read_text()


def test_a_folder_is_for_one_trainer(run):
    run("diffusion-pipe")
    run("kohya", code=2)
    assert "holds an export for diffusion-pipe" in run.result.output


def died(out, *names):
    """The folder as a first export leaves it that died after having written these files."""
    manifest = Manifest.read(out)
    (out / MANIFEST).write_bytes(Manifest(manifest.trainer).to_bytes())
    for name in names:
        announce(out, name, file_hash(out / name))
    with (out / JOURNAL).open("ab") as journal:
        journal.write(b'["images/torn.png", "ab')


def test_an_export_that_died_is_finished(run):
    out = run("ai-toolkit")
    whole = tree(out)
    (out / "images" / "a.png").write_bytes(b"of another version")
    (out / "images" / "gone.png").write_bytes(b"no longer wanted")
    died(out, *Manifest.read(out).files, "images/gone.png")
    run("ai-toolkit")
    after = tree(out)
    assert {**after, MANIFEST: ""} == {**whole, MANIFEST: ""}


def test_files_that_were_changed_after_an_export_died_are_kept(run):
    out = run("ai-toolkit")
    gone = out / "images" / "gone.png"
    gone.write_bytes(b"no longer wanted")
    died(out, *Manifest.read(out).files, "images/gone.png")
    gone.write_bytes(b"mine")
    mask = out / "masks" / "a.png"
    before = mask.read_bytes()
    mask.write_bytes(b"mine")
    run("ai-toolkit", code=2)
    assert "was changed by hand" in run.result.output
    assert mask.read_bytes() == b"mine"
    mask.write_bytes(before)
    run("ai-toolkit")
    assert gone.read_bytes() == b"mine"
    assert not (out / JOURNAL).exists()


def test_a_write_is_announced_before_it_is_done(run, monkeypatch):
    def dies(path, data):
        if path.name == "a.png":
            raise DatasetError("the disk is full")
        write(path, data)

    write = imageio.replace
    monkeypatch.setattr(imageio, "replace", dies)
    out = run("diffusion-pipe", code=2)
    monkeypatch.undo()
    assert "images/a.png" in Manifest.read(out).pending
    run("diffusion-pipe", "--check")


@pytest.mark.parametrize("name", ["../precious.txt", "{precious}", "images/../../precious.txt", ""])
@pytest.mark.parametrize("where", ["files", "journal"])
def test_a_manifest_cannot_name_files_outside(name, where, run, tmp_path):
    out = run("ai-toolkit")
    precious = tmp_path / "precious.txt"
    precious.write_bytes(b"mine")
    name, digest = name.format(precious=precious), file_hash(precious)
    if where == "files":
        document = json.loads((out / MANIFEST).read_text())
        document["files"][name] = {"sha256": digest, "from": "", "stat": None, "linked": True}
        (out / MANIFEST).write_text(json.dumps(document))
        run("ai-toolkit", code=2)
        assert "is no name of a file in the export" in run.result.output
    else:
        announce(out, name, digest)
        run("ai-toolkit")
    assert precious.read_bytes() == b"mine"


def test_nothing_is_removed_through_a_linked_folder(run, data, tmp_path):
    out = run("onetrainer")
    shutil.move(out / "images", tmp_path / "elsewhere")
    (out / "images").symlink_to(tmp_path / "elsewhere")
    before = set(tree(tmp_path / "elsewhere"))
    (data / "faces" / "a.png").unlink()
    run("onetrainer")
    assert set(tree(tmp_path / "elsewhere")) == before


def test_a_linked_journal_is_refused(run, tmp_path):
    out = run("onetrainer")
    (tmp_path / "precious.txt").write_bytes(b"mine")
    (out / JOURNAL).symlink_to(tmp_path / "precious.txt")
    run("onetrainer", "--repeats", 2, code=2)
    assert (tmp_path / "precious.txt").read_bytes() == b"mine"


@pytest.mark.parametrize("how", ["hard", "symlink"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_took_a_links_place_is_kept(gone, how, run, data):
    out = run("diffusion-pipe", "--link", how)
    mine = out / "images" / "a.png"
    mine.unlink()
    mine.write_bytes(b"mine")
    if gone:
        (data / "faces" / "a.png").unlink()
    run("diffusion-pipe", "--link", how, code=0 if gone else 2)
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize("how", ["hard", "symlink"])
def test_a_link_whose_source_is_gone_is_removed(how, run, data):
    out = run("diffusion-pipe", "--link", how)
    (data / "faces" / "a.png").unlink()
    run("diffusion-pipe", "--link", how)
    assert not list(out.glob("images/a*"))


@pytest.mark.parametrize(
    "about",
    [
        {"configs": {}},
        {"shape": {"images": "../x"}},
        {"shape": {"nonsense": 1}},
        {"shape": []},
        {"look": {"nonsense": 1}},
        {"look": {"resolution": 0}},
        {"look": {"max_bucket": "x"}},
        {"configs": {"dataset.toml": "../../x"}},
        {"resolution": "x"},
        {"style": []},
        {"images": 5},
        {"root": None},
    ],
)
@pytest.mark.parametrize("command", [("export", "--check", "--out"), ("preview",)])
def test_an_incomplete_manifest_is_said(command, about, run, lora_prep):
    out = run("diffusion-pipe")
    document = json.loads((out / MANIFEST).read_text())
    document["about"] = about if about == {"configs": {}} else {**document["about"], **about}
    (out / MANIFEST).write_text(json.dumps(document))
    result = lora_prep(*command, out, code=2)
    assert "does not say how to read the export" in result.output


@pytest.mark.parametrize("command", [("export", "--check", "--out"), ("preview",)])
@pytest.mark.parametrize("text", ["[" * 100_000, "5", '{"files": {"a": 1}}', '{"files": []}'])
def test_a_damaged_manifest_is_said(text, command, run, lora_prep):
    out = run("diffusion-pipe")
    (out / MANIFEST).write_text(text)
    assert "cannot be read" in lora_prep(*command, out, code=2).output


def test_a_broken_manifest_is_said(run):
    out = run("ai-toolkit")
    (out / MANIFEST).write_text("{")
    run("ai-toolkit", code=2)
    assert "cannot be read" in run.result.output


def test_a_dry_run_writes_nothing(run, tmp_path):
    run("kohya", "--dry-run", "-v")
    assert "would write  rgba/a.png" in run.result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["hard", "symlink"])
def test_links_take_no_space_and_are_never_written_through(how, run, data):
    source = data / "faces" / "a.png"
    before = source.read_bytes()
    out = run("diffusion-pipe", "--link", how)
    linked = out / "images" / "a.png"
    assert linked.samefile(source)
    assert linked.is_symlink() == (how == "symlink")
    run("diffusion-pipe", "--link", how, "--check")
    assert "0 files written" in run.result.output
    run("diffusion-pipe")
    assert not linked.samefile(source)
    assert linked.read_bytes() == source.read_bytes() == before


def test_a_linked_image_that_changed_is_followed(run, data):
    out = run("diffusion-pipe", "--link", "hard")
    shutil.copy(data / "faces" / "a.png", data / "new.png")
    os.replace(data / "new.png", data / "faces" / "a.png")  # noqa: PTH105
    run("diffusion-pipe", "--link", "hard", "--check")
    assert (out / "images" / "a.png").samefile(data / "faces" / "a.png")


def test_relative_paths_survive_a_move(run, tmp_path, lora_prep):
    out = run("kohya", "--relative")
    text = (out / "dataset.toml").read_text()
    assert 'image_dir = "rgba"' in text
    assert str(tmp_path) not in text
    shutil.move(out, tmp_path / "elsewhere")
    lora_prep("export", "--check", "--out", tmp_path / "elsewhere")


def test_the_manifest_names_every_file(run):
    out = run("simpletuner")
    files = set(json.loads((out / MANIFEST).read_text())["files"])
    assert files == set(tree(out)) - {MANIFEST}
    assert np.all([not name.startswith("/") for name in files])
