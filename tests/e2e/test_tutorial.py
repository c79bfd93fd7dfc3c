"""The tutorial, followed step by step: every command in it is run as it stands there."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_prep import imageio
from lora_prep.captions import check
from lora_prep.dataset import Dataset
from sample_data.portraits import draw_portrait
from tests.fakes.tiny_faces import DET_SIZE, PACK, SAM2, SAM2_CONFIG
from tests.fakes.tiny_pipelines import saved

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
FACES = f'detector = "insightface"\nface-model = "{PACK}"\ndet-size = {DET_SIZE}\n'
SEEDS = (6_200_000, 6_200_002, 6_200_003, 6_200_004)


def steps() -> Iterator[list[str]]:
    """The commands, and what is written into lora-prep.toml as `["toml", text]`."""
    text = TUTORIAL.read_text("utf-8")
    for kind, block in re.findall(r"^```(sh|toml)\n(.*?)^```", text, re.DOTALL | re.M):
        if kind == "toml":
            yield [kind, block]
        else:
            yield from (shlex.split(line) for line in block.splitlines())


def written_into(tables: str, block: str) -> str:
    """A configuration with a block's keys below the names of their tables."""
    for name, keys in re.findall(r"^(\[.*?\]\n)(.*?)(?=^\[|\Z)", block, re.DOTALL | re.M):
        assert tables.count(name) == 1
        tables = tables.replace(name, name + keys)
    return tables


def dates(root: Path) -> dict[Path, int]:
    """When each file was written that lora-prep does not keep for itself."""
    files = [p for p in root.rglob("*") if p.is_file() and ".lora-prep" not in p.parts]
    return {path: path.stat().st_mtime_ns for path in files}


def test_every_step_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_prep: Callable[..., object]
) -> None:
    (tmp_path / "photos").mkdir()
    for i, seed in enumerate(SEEDS):
        portrait = draw_portrait(seed, size=(512, 512), people=1, identity=7, scale=(0.35, 0.5))
        data = imageio.encode_image(portrait.image, "jpeg")
        (tmp_path / "photos" / f"img{i:03}.jpg").write_bytes(data)
    before = {p.name: p.read_bytes() for p in (tmp_path / "photos").iterdir()}
    model = saved("sd15", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    said = {}
    for program, *arguments in steps():
        if program == "cd":
            monkeypatch.chdir(Path.cwd() / arguments[0])
            continue
        if program == "toml":
            config = tmp_path / "ada" / "lora-prep.toml"
            config.write_text(written_into(config.read_text("utf-8"), arguments[0]), "utf-8")
            continue
        assert program == "lora-prep"
        made = dates(tmp_path / "ada")
        result = lora_prep(*arguments)  # fails on any exit code but 0
        said[" ".join(arguments[:1])] = result.output
        if arguments[0] == "init":  # small models in the place of those that are downloaded
            small = f"[embed]\nmin-similarity = 0.1\n{FACES}[masks]\n{FACES}"
            small += f'segmenter = "sam2"\nsam2-model = "{SAM2}"\nsam2-config = "{SAM2_CONFIG}"\n'
            small += f'[priors]\nmodel = "{model}"\ncount = 2\nsteps = 2\ndevice = "cpu"\n'
            small += "[captions]\n[augment]\n[export]\n"
            place = '[dataset]\nimages = "data/faces"\nmasks = "data/masks"\n'
            (tmp_path / "ada" / "lora-prep.toml").write_text(place + small)
    data = tmp_path / "ada" / "data"
    counted = dict(re.findall(r"^(\w+): (.*) in [\d.]+ s ->", said["run"], re.M))
    assert set(counted) == {"embed", "masks", "augment", "priors"}
    assert all(re.fullmatch(r"\d+ fresh", counts) for counts in counted.values()), counted
    assert "0 files written, 0 removed" in said["run"]
    assert dates(tmp_path / "ada") == made, "run in the end makes nothing anew"
    stems = {f"img{i:03}" for i in range(len(SEEDS))}
    assert {p.stem for p in (data / "masks").iterdir()} == stems
    assert {p.stem for p in (tmp_path / "ada" / "look").iterdir()} == stems
    assert len(list((data / "augmented" / "masks").iterdir())) == 2 * len(SEEDS)
    assert len(list((data / "priors").iterdir())) == 2
    faults = [f.fault for f in check(Dataset.at(data), "ohwx")]
    assert set(faults) == {"duplicate"}  # the template gives all of them the same
    assert re.search(rf"^masks +{len(SEEDS)}", said["status"], re.M)
    assert (data / "report.html").stat().st_size > 10_000
    assert (tmp_path / "ada" / "train" / "TRAIN.md").exists()
    assert {p.name: p.read_bytes() for p in (tmp_path / "photos").iterdir()} == before
