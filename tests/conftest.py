"""Fixtures that many tests share. All pictures are drawn here; none is read from the network."""

import tools.typechecker  # noqa: F401 the import hook of jaxtyping looks it up by name

# isort: split
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from lora_prep import imageio
from sample_data.portraits import Portrait, draw_portrait

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def portraits() -> list[Portrait]:
    """A few portraits of one person each, upright and near, 320 × 320 pixels."""
    easy = {"scale": (0.35, 0.55), "max_tilt": 5.0, "max_yaw": 5.0}
    return [draw_portrait(seed, size=(320, 320), people=1, **easy) for seed in range(10)]


@pytest.fixture(scope="session")
def _drawn(portraits: list[Portrait], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for i, portrait in enumerate(portraits):
        suffix = "jpg" if i % 2 else "png"
        kind = "jpeg" if i % 2 else "png"
        (folder / f"p{i:02}.{suffix}").write_bytes(imageio.encode_image(portrait.image, kind))
    return folder


@pytest.fixture
def faces(_drawn: Path, tmp_path: Path) -> Path:
    """A fresh data set's image folder with the portraits in it."""
    return Path(shutil.copytree(_drawn, tmp_path / "data" / "faces"))


@pytest.fixture
def lora_prep() -> Callable[..., "object"]:
    """Run the command line in this process: `lora_prep("masks", folder, code=1)`."""
    from click.testing import CliRunner, Result

    from lora_prep.cli import main

    def call(*args: object, code: int | None = 0) -> Result:
        result = CliRunner().invoke(main, [str(arg) for arg in args])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert code is None or result.exit_code == code, result.output
        return result

    return call
