import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from sample_data import photos
from sample_data.__main__ import main
from sample_data.portraits import draw_portrait


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_portraits_come_with_their_truth(tmp_path: Path) -> None:
    run("portraits", "--out", str(tmp_path), "-n", "4", "--seed", "8", "--size", "96")
    faces = sorted((tmp_path / "faces").iterdir())
    assert [path.name for path in faces] == [
        "portrait00008.png",
        "portrait00009.jpg",
        "portrait00010.png",
        "portrait00011.png",
    ]
    truth = json.loads((tmp_path / "truth" / "truth.json").read_text())
    for seed, path in enumerate(faces, start=8):
        portrait = draw_portrait(seed, size=(96, 96))
        stored = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        assert np.abs(stored.astype(float) - portrait.image).mean() < (1 if seed != 9 else 12)
        masks = {
            region: cv2.imread(
                str(tmp_path / "truth" / region / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED
            )
            for region in ("face", "head", "person")
        }
        for region, mask in masks.items():
            assert mask.shape == (96, 96)
            drawn = np.any([getattr(p, f"{region}_mask") for p in portrait.people], axis=0)
            assert (mask == drawn * 255).all()
        assert [entry["identity"] for entry in truth[path.stem]] == [
            person.identity for person in portrait.people
        ]
        assert truth[path.stem][0]["box"] == pytest.approx(portrait.people[0].face.box, abs=0.01)


def test_photos_demo_and_formats_are_written(tmp_path: Path) -> None:
    run("photos", "--out", str(tmp_path / "photos"))
    run("demo", "--out", str(tmp_path / "demo"))
    run("formats", "--out", str(tmp_path / "formats"))
    assert len(list((tmp_path / "photos").iterdir())) == 7
    assert len(list((tmp_path / "demo").iterdir())) == 10
    listed = json.loads((tmp_path / "formats" / "variants.json").read_text())
    written = {path.name for path in (tmp_path / "formats").iterdir()}
    assert written == {*listed, "variants.json"}


def test_a_missing_package_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda _: None)
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "pip install scikit-image" in result.output
    assert "Traceback" not in result.output
