"""Real photographs that installed packages ship, copied out of them and never committed."""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from lora_prep.errors import DatasetError
from sample_data.formats import save_16_bit_rgb, save_cmyk, save_turned


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph in an installed package."""

    name: str
    path: Path
    faces: int
    """Faces of people, counted by eye, from any angle."""
    source: str
    """Where it comes from and on what terms."""


_SCIKIT_IMAGE = ("skimage", "scikit-image", "data")
_MATPLOTLIB = ("matplotlib", "matplotlib", "mpl-data/sample_data")
_INSIGHTFACE = ("insightface", "insightface", "data/images")

# (module, distribution, folder), file, faces, source
_PHOTOS = (
    (_SCIKIT_IMAGE, "astronaut.png", 1, "Eileen Collins, NASA; public domain"),
    (_MATPLOTLIB, "grace_hopper.jpg", 1, "Grace Hopper, US Navy; public domain"),
    (
        _INSIGHTFACE,
        "t1.jpg",
        6,
        "a television series' press picture that insightface tests with; all rights are its"
        " owner's: look at it here, do not pass it on",
    ),
    (
        _INSIGHTFACE,
        "Tom_Hanks_54745.png",
        1,
        "from a research data set that insightface tests with; all rights are its owner's:"
        " look at it here, do not pass it on",
    ),
    (_SCIKIT_IMAGE, "coffee.png", 0, "Rachel Michetti; CC0"),
    (_SCIKIT_IMAGE, "chelsea.png", 0, "Stéfan van der Walt; CC0"),
    (_SCIKIT_IMAGE, "rocket.jpg", 0, "SpaceX; CC0"),
)


def photographs() -> list[Photo]:
    """The photographs: four with faces, three without.

    The packages are found without importing them, and nothing is downloaded. Raises DatasetError
    for a package or a file that is not there.
    """
    photos = []
    for (module, distribution, folder), name, faces, source in _PHOTOS:
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise DatasetError(
                f"{name} comes with the package {distribution}, which is not installed:"
                f" install it with `pip install {distribution}`"
            )
        path = Path(next(iter(spec.submodule_search_locations))) / folder / name
        if not path.is_file():
            raise DatasetError(
                f"the installed {distribution} has no {folder}/{name}: install the version that"
                " constraints.txt names"
            )
        photos.append(Photo(name, path, faces, f"{distribution}: {source}"))
    return photos


def collect(out: Path) -> list[Path]:
    """Copy the photographs into a folder, byte for byte; gives the files' paths."""
    out.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(photo.path, out / photo.name)) for photo in photographs()]


def collect_demo(out: Path) -> list[Path]:
    """Like `collect`, and three variants that have to be normalised before training.

    `astronaut_turned.jpg` lies on its side with EXIF orientation 6 and a (made-up) GPS position,
    `coffee_16bit.png` has 16 bits a channel, `chelsea_cmyk.jpg` is CMYK.
    """
    paths = {path.stem: path for path in collect(out)}
    turned = out / "astronaut_turned.jpg"
    save_turned(turned, _pixels(paths["astronaut"]), orientation=6, gps=True)
    deep = out / "coffee_16bit.png"
    save_16_bit_rgb(deep, _pixels(paths["coffee"]))
    printed = out / "chelsea_cmyk.jpg"
    save_cmyk(printed, _pixels(paths["chelsea"]))
    return [*paths.values(), turned, deep, printed]


def _pixels(path: Path) -> np.ndarray:
    with PillowImage.open(path) as image:
        return np.asarray(image.convert("RGB"))
