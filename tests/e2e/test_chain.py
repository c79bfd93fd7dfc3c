"""`lora-prep run`: the whole chain, and again with one image changed, edited, deleted, added."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_prep import imageio
from sample_data.portraits import draw_portrait
from tests.fakes.tiny_faces import DET_SIZE, PACK, SAM2, SAM2_CONFIG

SEEDS = range(6_100_000, 6_100_004)

CONFIG = f"""
[dataset]
images = "data/faces"
masks = "data/masks"

[captions]
fill = "a photo of {{trigger}}, {{stem}}"
trigger = "ohwx"

[embed]
detector = "insightface"
face-model = "{PACK}"
det-size = {DET_SIZE}

[masks]
detector = "insightface"
face-model = "{PACK}"
det-size = {DET_SIZE}
segmenter = "sam2"
sam2-model = "{SAM2}"
sam2-config = "{SAM2_CONFIG}"

[augment]
preset = "light"
count = 2
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i, seed in enumerate(SEEDS):
        draw(tmp_path / "photos" / f"p{i}.png", seed)
    (tmp_path / "lora-prep.toml").write_text(CONFIG)
    return tmp_path


def draw(path: Path, seed: int) -> None:
    portrait = draw_portrait(seed, size=(256, 256), people=1, identity=7, scale=(0.4, 0.55))
    path.write_bytes(imageio.encode_image(portrait.image, "png"))


def files(folder: Path) -> dict[str, bytes]:
    """All that the chain made or reads; the journals hold dates."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".lora-prep" not in path.parts
    }


def counts(output: str) -> dict[str, dict[str, int]]:
    """How many items of each step ended how."""
    found = {}
    for step in json.loads(output)["steps"]:
        items = (step["document"] or {}).get("counts") or {}
        found[step["name"]] = {status: n for status, n in items.items() if n}
    return found


def test_only_what_must_be_redone_is_redone(
    project: Path, lora_prep: Callable[..., object]
) -> None:
    result = lora_prep("run", "--photos", "photos", "--json")
    document = json.loads(result.stdout)
    wanted = ["normalize", "captions", "embed", "masks", "augment", "validate"]
    assert [step["name"] for step in document["steps"]] == wanted
    assert counts(result.stdout)["masks"] == {"done": 4}
    assert counts(result.stdout)["augment"] == {"done": 8}
    data = project / "data"
    first = files(data)
    assert {name.partition("/")[0] for name in first} == {
        "faces",
        "masks",
        "augmented",
        "embeddings.safetensors",
    }

    again = counts(lora_prep("run", "--photos", "photos", "--json").stdout)
    assert again["normalize"] == again["masks"] == again["embed"] == {"fresh": 4}
    assert again["augment"] == {"fresh": 8}
    assert files(data) == first

    draw(data / "faces" / "p0.png", 6_100_010)  # changed
    edited = data / "masks" / "p1.png"
    mask = imageio.decode_mask(edited.read_bytes())
    mask[:8] = 255
    edited.write_bytes(imageio.encode_mask(mask))  # edited by hand
    (data / "faces" / "p2.png").unlink()  # deleted
    draw(data / "faces" / "p4.png", 6_100_011)  # added
    after = counts(lora_prep("run", "--json", code=None).stdout)
    assert after["masks"] == {"done": 2, "kept": 1, "fresh": 1}
    assert after["embed"] == {"done": 2, "fresh": 2}
    assert after["augment"] == {"done": 6, "fresh": 2}  # p0 and p4 new, p1 by its mask, p3 fresh
    last = files(data)
    assert imageio.decode_mask(last["masks/p1.png"])[:8].min() == 255
    same = {name for name in first if first[name] == last.get(name)}
    assert {"masks/p3.png", "masks/p2.png"} <= same
    assert first["masks/p0.png"] != last["masks/p0.png"]
    assert "masks/p4.png" in last
    assert (data / "faces" / "p4.txt").read_text() == "a photo of ohwx, p4\n"


def test_what_is_left_of_a_deleted_image_is_reported(
    project: Path, lora_prep: Callable[..., object]
) -> None:
    lora_prep("run", "--photos", "photos", "--quiet")
    (project / "data" / "faces" / "p2.png").unlink()
    result = lora_prep("run", "--json", code=1)
    (validate,) = (s for s in json.loads(result.stdout)["steps"] if s["name"] == "validate")
    found = Counter(Path(issue["path"]).name for issue in validate["document"]["issues"])
    assert found["p2.png"]
    assert validate["exit_code"] == 1


def test_a_step_that_cannot_run_ends_the_chain(
    project: Path, lora_prep: Callable[..., object]
) -> None:
    config = CONFIG.replace(f'sam2-model = "{SAM2}"', 'sam2-model = "gone.pt"')
    (project / "lora-prep.toml").write_text(config)
    result = lora_prep("run", "--photos", "photos", code=2)
    assert "gone.pt" in result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["masks", *["stopped", "(exit", "code", "2)"]] in [[n, *w[2:]] for n, *w in lines if n]
    assert ["augment", "not", "begun"] in lines
    assert not (project / "data" / "augmented").exists()
    assert (project / "data" / "embeddings.safetensors").exists()


def test_what_was_chosen_on_the_command_line_is_not_undone_without_a_word(
    project: Path, lora_prep: Callable[..., object]
) -> None:
    lora_prep("normalize", "photos", "--out", "data/faces")
    lora_prep("masks", "--region", "head")
    warning = (
        "masks: 4 were made with other settings or models than lora-prep.toml gives: made again, "
        "but for what was edited by hand. To keep what was chosen on the command line, write it "
        "into [masks] there"
    )
    assert warning in lora_prep("run", "--step", "masks", "--dry-run").output
    made = lora_prep("run", "--step", "masks").output
    assert warning in made.split("masks: 4 made")[0]
    assert "other settings" not in lora_prep("run", "--step", "masks").output
    said = lora_prep("masks", "--region", "head").output
    assert "masks: 4 were made with other settings or models: made again" in said


def test_steps_can_be_named(project: Path, lora_prep: Callable[..., object]) -> None:
    lora_prep("run", "data", "--photos", "photos", "--step", "normalize", "--step", "captions")
    assert {Path(name).suffix for name in files(project / "data")} == {".png", ".txt"}


def test_dry_run_writes_nothing(project: Path, lora_prep: Callable[..., object]) -> None:
    lora_prep("run", "--photos", "photos", "--step", "normalize")
    before = files(project / "data")
    lora_prep("run", "--dry-run", "--step", "masks", "--step", "captions")
    assert files(project / "data") == before


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_dry_run_from_photographs_goes_through(
    project: Path, lora_prep: Callable[..., object]
) -> None:
    before = everything(project)
    result = lora_prep("run", "--photos", "photos", "--dry-run")
    assert "normalize-faces: would be: 4 to make" in result.output
    assert "masks: would be: as many as normalize makes" in result.output
    document = json.loads(
        lora_prep("run", "--photos", "photos", "--dry-run", "--json", code=0).stdout
    )
    assert len(document["steps"]) == 6
    assert document["not_begun"] == []
    assert everything(project) == before


def test_a_dry_run_writes_no_report_and_asks_no_check_of_what_is_not_made(
    project: Path, lora_prep: Callable[..., object]
) -> None:
    before = everything(project)
    steps = ("--step", "masks", "--step", "validate", "--step", "report")
    result = lora_prep("run", "photos", "--dry-run", "--masks", "m", *steps)
    assert "masks-m: would be: 4 to make" in result.output
    assert "validate: would be: a check of what the steps before it make" in result.output
    assert everything(project) == before
    alone = lora_prep("run", "photos", "--dry-run", "--step", "validate", code=1)
    assert "0 pairs of 4 images" in alone.output


def test_a_preset_goes_to_the_steps_that_have_it(
    project: Path, lora_prep: Callable[..., object]
) -> None:
    (project / "lora-prep.toml").write_text('[masks]\nno-face = "white"\nmin-face = 100000\n')
    steps = ("--step", "masks", "--step", "augment")
    lora_prep("run", "photos", "--masks", "m", "--preset", "embedded", *steps)
    assert len(list((project / "m").iterdir())) == 4


def test_a_missing_folder_is_said(project: Path, lora_prep: Callable[..., object]) -> None:
    assert "there is no folder" in lora_prep("run", "nowhere", "--step", "masks", code=2).output
