from pathlib import Path

import pytest
import torch

from tests.fakes import tiny_pipelines
from tests.training.trainer import made


@pytest.fixture(scope="session")
def _models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trainer")
    for family in tiny_pipelines.FAMILIES:
        made.model(root, family)
    return root / "models"


@pytest.fixture
def world(_models: Path, tmp_path: Path) -> Path:
    """Pictures, and the four tiny models."""
    (tmp_path / "models").symlink_to(_models, target_is_directory=True)
    return made.pictures(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in another order round differently; and a fork must not have torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
