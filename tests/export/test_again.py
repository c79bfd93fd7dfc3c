"""A second export: nothing to do, what changed, what is gone, and what is somebody else's."""

import json
import os
import shutil

import numpy as np
import pytest

from lora_prep.export.files import MANIFEST, Manifest
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


def test_an_export_that_died_is_finished(run):
    out = run("ai-toolkit")
    whole = tree(out)
    manifest = Manifest.read(out)
    names = frozenset(manifest.files)
    dead = Manifest(manifest.trainer, {}, names | {"images/gone.png"}, {})
    (out / MANIFEST).write_bytes(dead.to_bytes())
    (out / "images" / "a.png").write_bytes(b"half")
    (out / "images" / "gone.png").write_bytes(b"half")
    run("ai-toolkit")
    after = tree(out)
    assert {k: v for k, v in after.items() if k != MANIFEST} == {
        k: v for k, v in whole.items() if k != MANIFEST
    }


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
