"""`lora-prep preview`: the picture, the table, and what the exit code says."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sample_data.marked import draw_marked
from tests.trainers.folders import write, write_mask, write_rgba, write_sideways

Run = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of three pictures with their masks."""
    root = tmp_path / "data"
    write(root, [(360, 300), (400, 400), (330, 520)])
    (root / "images").rename(root / "faces")
    return root


def contents(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_masks_that_are_used(data: Path, lora_prep: Run) -> None:
    before = contents(data)
    result = lora_prep("preview", data, "--trainer", "ai-toolkit", "--resolution", 256)
    assert "ai-toolkit        3/3" in result.output
    assert "problem" not in result.output
    assert contents(data) == before


def test_all_trainers_side_by_side(data: Path, tmp_path: Path, lora_prep: Run) -> None:
    out = tmp_path / "new" / "seen.png"
    result = lora_prep("preview", data, "--resolution", 256, "--out", out)
    lines = result.output.splitlines()
    assert [line.split("  ")[0] for line in lines[2:9]] == [
        "diffusion-pipe",
        "ai-toolkit",
        "kohya rgba",
        "onetrainer",
        "simpletuner",
        "musubi",
        "diffusers",
    ]
    assert "musubi-tuner has no masked loss" in result.output
    picture = np.asarray(Image.open(out))
    assert picture.shape[1] > 7 * 288
    columns = picture[100:380, :, :].astype(int)
    green = (columns[:, :, 1] - columns[:, :, 0] > 100).any(axis=0)
    assert all(green[16 + i * 304 : 304 + i * 304].any() for i in range(7))


def test_trainers_without_masks_fail_when_they_are_named(data: Path, lora_prep: Run) -> None:
    lora_prep("preview", data, "--trainer", "musubi", "--resolution", 256, code=1)


def test_a_missing_mask_is_named_and_fails(data: Path, lora_prep: Run) -> None:
    (data / "masks" / "m1.png").unlink()
    result = lora_prep("preview", data, "--trainer", "diffusion-pipe", "--resolution", 256, code=1)
    assert "2/3" in result.output
    assert "unused   diffusion-pipe: m1.png: no mask of this stem" in result.output


def test_routes_of_kohya_differ(data: Path, lora_prep: Run) -> None:
    arguments = ["preview", data, "--trainer", "kohya", "--resolution", 256, "--json"]
    report = json.loads(lora_prep(*arguments, "--route", "both", code=1).stdout)
    rgba, folder = report["views"]
    assert (rgba["title"], folder["title"]) == ("kohya rgba", "kohya mask-dir")
    assert (rgba["good"], folder["good"]) == (True, False)
    assert min(item["agreement"] for item in rgba["items"].values()) >= 0.99
    assert min(item["agreement"] for item in folder["items"].values()) < 0.95
    assert folder["items"]["m1.png"]["agreement"] >= 0.99
    lora_prep(*arguments, "--route", "rgba")


@pytest.mark.parametrize("trainer", ["kohya", "onetrainer", "diffusion-pipe"])
def test_a_data_set_is_shown_as_its_export(
    trainer: str, data: Path, tmp_path: Path, lora_prep: Run
) -> None:
    """Small images, a tall one (kohya's are enlarged, in longer buckets than its own), and one
    that lies on its side, which an export turns upright."""
    (tall,) = write(tmp_path / "tall", [(900, 300)])
    write_sideways(data / "faces" / "m8.png", tall)
    shutil.copy(tmp_path / "tall" / "masks" / "m0.png", data / "masks" / "m8.png")
    for folder, into in (("images", "faces"), ("masks", "masks")):
        (tmp_path / "tall" / folder / "m0.png").rename(data / into / "m9.png")
    out = tmp_path / "out"
    given = ("--resolution", 768, "--json")
    lora_prep("export", "--to", trainer, data, "--out", out, "--trigger", "x", *given)
    shown = [
        json.loads(lora_prep("preview", *arguments, "--json").stdout)["views"][0]["items"]
        for arguments in ((data, "--trainer", trainer, "--resolution", 768), (out,))
    ]
    keys = ("width", "height", "share", "inside", "agreement", "notes")
    before, after = ({n: [i[k] for k in keys] for n, i in items.items()} for items in shown)
    assert before == after
    assert before["m8.png"] == before["m9.png"]


def test_names_of_any_script_and_wrong_masks_on_the_picture(
    data: Path, tmp_path: Path, lora_prep: Run
) -> None:
    """The names differ on the picture, and nothing of one column runs into the next."""
    marked = draw_marked(3, (300, 300))
    for name in ("é", "日"):
        write_sideways(data / "faces" / f"{name}.png", marked)
        write_mask(data / "masks" / f"{name}.png", marked.mask)
    out = tmp_path / "seen.png"
    given = ("--trainer", "diffusion-pipe", "--resolution", 256, "--out", out)
    lora_prep("preview", data, *given, "--as-is", code=1)
    picture = np.asarray(Image.open(out)).astype(int)
    red = (picture[:, :, 0] > 150) & (picture[:, :, 1] < 90)
    rows = np.flatnonzero(red.any(axis=1))
    lines = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    first, second = (red[line[0] : line[-1] + 1] for line in lines if len(line) > 4)
    assert first.shape != second.shape or (first != second).any()


def test_as_is_tells_what_the_folders_lack(data: Path, lora_prep: Run) -> None:
    arguments = ["preview", data, "--trainer", "onetrainer", "--resolution", 256]
    lora_prep(*arguments)
    result = lora_prep(*arguments, "--as-is", code=1)
    assert "m0-masklabel.png beside the image" in result.output


def test_an_exported_folder_by_its_configuration(tmp_path: Path, lora_prep: Run) -> None:
    out = tmp_path / "out"
    for i, marked in enumerate(write(out, [(400, 300), (300, 420)])):
        write_rgba(out / "images" / f"m{i}.png", marked)
    (out / "dataset.toml").write_text(
        "[[datasets]]\nresolution = 256\nenable_bucket = true\n[[datasets.subsets]]\n"
        'image_dir = "images"\nalpha_mask = true\n'
    )
    for given in (out, out / "dataset.toml"):
        report = json.loads(lora_prep("preview", given, "--json").stdout)
        (view,) = report["views"]
        assert view["trainer"] == "kohya"
        assert [item["used"] for item in view["items"].values()] == [True, True]
    lora_prep("preview", out, "--trainer", "kohya")
    result = lora_prep("preview", out, "--trainer", "musubi", code=2)
    assert "is not for musubi" in result.output


def test_names_cannot_forge_lines_and_bad_files_do_not_stop_it(
    data: Path, tmp_path: Path, lora_prep: Run
) -> None:
    (data / "faces" / "a\nproblem  forged: b.png").write_bytes(b"no image")
    out = tmp_path / "seen.png"
    arguments = ["--trainer", "ai-toolkit", "--resolution", 256, "--out", out, "--limit", 1]
    result = lora_prep("preview", data, *arguments, code=1)
    assert "a\\nproblem  forged: b.png: left out, or stops: not an image" in result.output
    assert not any(line.startswith("problem  forged") for line in result.output.splitlines())
    assert Image.open(out).size[1] < 600


def test_masks_among_the_images_as_they_are(tmp_path: Path, lora_prep: Run) -> None:
    folder = tmp_path / "images"
    write(tmp_path, [(300, 300)])
    (tmp_path / "masks").rename(folder / "masks")
    given = ["preview", folder, "--masks", folder / "masks", "--resolution", 256]
    lora_prep(*given, code=2)
    result = lora_prep(*given, "--as-is", "--trainer", "ai-toolkit", code=1)
    assert "the masks are trained as images" in result.output
    lora_prep(*given, "--as-is", "--trainer", "diffusion-pipe")


def test_a_folder_without_images(tmp_path: Path, lora_prep: Run) -> None:
    (tmp_path / "data.toml").write_text("[[datasets]]\nimage_directory = '.'\n")
    result = lora_prep("preview", tmp_path, code=2)
    assert "musubi would find no image in" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no folder"),
        (["{data}", "--trainer", "comfy"], "is not one of"),
        (["{data}", "--out", "{data}/masks/m0.png/x.png"], "--out needs another folder"),
        (["{data}", "--out", "{data}/faces/seen.png"], "--out needs another folder"),
        (["{data}", "--out", "{data}/seen.jpg"], "name it seen.png"),
        (["{data}", "--out", "{data}/plain/seen.png"], "a file is in the way"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, data: Path, lora_prep: Run) -> None:
    (data / "plain").touch()
    filled = [argument.format(data=data) for argument in arguments]
    result = lora_prep("preview", *filled, "--resolution", 256, code=2)
    assert message in result.output
