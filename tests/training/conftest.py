"""What several tests of the training read."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from lora_prep.cli import main
from tests.fakes import tiny_faces


@pytest.fixture(scope="session")
def embedded(_drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Portraits, and what `lora-prep embed` writes of them. Only to be read."""
    root = tmp_path_factory.mktemp("embedded")
    (root / "faces").mkdir()
    for path in _drawn.iterdir():
        (root / "faces" / path.name).write_bytes(path.read_bytes())
    models = [*tiny_faces.DETECTING, "--recogniser-model", str(tiny_faces.PACK)]
    everybody = ["--min-similarity", "0"]  # the portraits are of many people, taken for one here
    done = CliRunner().invoke(main, ["embed", str(root / "faces"), *models, *everybody, "--quiet"])
    assert done.exit_code == 0, done.output
    return root
