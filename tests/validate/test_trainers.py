"""Family T, and what the other families say with --deep."""

import hashlib
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from lora_prep.dataset import Dataset
from lora_prep.faces import FaceRecord, faces_path
from lora_prep.types import Face
from lora_prep.validate import validate
from lora_prep.validate.latents import Grid, lost_to_bucket
from tests.validate.made import Data, ellipse, encode, photo


def scene(data: Data, mask: np.ndarray, name: str = "x") -> None:
    """A pair as large as the mask."""
    height, width = mask.shape
    data.image(f"{name}.png", encode(photo((width, height))))
    data.mask(f"{name}.png", mask)


def block(height: int, width: int, y: int, x: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + side, x : x + side] = 255
    return mask


@pytest.mark.parametrize(
    ("mask", "resolution", "codes"),
    [
        (block(256, 256, 120, 120, 16), 1024, ["T002"]),  # across four cells of 16
        (block(256, 256, 128, 128, 16), 1024, []),
        (block(256, 256, 124, 124, 9), 1024, ["T001"]),
        (block(256, 256, 120, 120, 48), 1024, []),
        (block(1024, 1024, 512, 512, 32), 1024, []),
        (block(1024, 1024, 504, 504, 24), 256, ["T001"]),
    ],
)
def test_small_masks(data: Data, mask: np.ndarray, resolution: int, codes: list[str]) -> None:
    scene(data, mask)
    assert list(data.codes(resolution=resolution, select=["T001", "T002"])) == codes


def test_thin_masks_vanish_however_long(data: Data) -> None:
    lines = np.zeros((512, 512), np.uint8)
    cv2.circle(lines, (256, 256), 200, 255, 2)
    scene(data, lines)
    assert data.codes(select=["T"]) == {"T001": ["masks/x.png"]}


def test_faint_masks_are_measured_by_their_own_brightest(data: Data) -> None:
    scene(data, block(256, 256, 128, 128, 64) // 4)
    assert data.codes(select=["T"]) == {}


@pytest.mark.parametrize(
    ("size", "box", "lost"),
    [
        ((100, 100), (0, 0, 100, 100), 0.0),
        ((400, 100), (0, 0, 100, 100), 1.0),
        ((400, 100), (150, 0, 250, 100), 0.0),
        ((400, 100), (50, 0, 150, 100), 0.5),
        ((100, 400), (0, 50, 100, 150), 0.5),
    ],
)
def test_what_a_bucket_cuts_off(
    size: tuple[int, int], box: tuple[float, float, float, float], lost: float
) -> None:
    assert lost_to_bucket(*size, box)[0] == pytest.approx(lost)


def test_a_face_at_the_end_of_a_panorama(data: Data) -> None:
    scene(data, block(100, 400, 20, 10, 60))
    scene(data, block(100, 400, 20, 170, 60), "centre")
    assert data.codes(select=["T"]) == {"T003": ["faces/x.png"]}


def record(data: Data, name: str, *boxes: tuple[float, float, float, float]) -> None:
    """As `lora-prep detect` writes it."""
    dataset = Dataset.at(data.root)
    content = (data.faces / name).read_bytes()
    width, height = Image.open(data.faces / name).size
    faces = tuple(Face(box, 0.9) for box in boxes)
    sha256 = hashlib.sha256(content).hexdigest()
    path = faces_path(dataset, dataset.sample(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FaceRecord("test", sha256, width, height, faces).to_bytes())


def test_recorded_faces_count_and_only_those_of_this_very_file(data: Data) -> None:
    scene(data, block(200, 200, 50, 50, 100))
    record(data, "x.png", (10, 10, 50, 60), (100, 100, 120, 120))
    assert data.codes(select=["T"]) == {"T004": ["faces/x.png"]}
    record(data, "x.png", (10, 10, 90, 90), (100, 100, 120, 120))
    assert data.codes(select=["T"]) == {}
    assert data.codes(select=["T"], resolution=100) == {"T004": ["faces/x.png"]}
    data.image("x.png", encode(photo((200, 200), "L")))
    assert data.codes(select=["T"], resolution=100) == {}


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("a.npz", True),
        ("a_0064x0048_sdxl.npz", True),
        ("other.npz", False),
        ("_latent_cache/a_0123.safetensors", True),
        ("cache/metadata/x.arrow", True),
    ],
)
def test_caches_older_than_what_they_hold(data: Data, name: str, owner: bool) -> None:
    path = data.faces / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"latents")
    os.utime(path, (2e9, 2e9))
    assert data.codes(select=["T"]) == {}
    os.utime(path, (1e9, 1e9))
    place = f"faces/{name.split('/')[0]}"
    assert data.codes(select=["T"]) == ({"T005": [place]} if owner else {})


def test_one_new_latent_hides_no_stale_one(data: Data) -> None:
    for stem in ("a", "c", "été 北京"):
        path = data.faces / "_latent_cache" / f"{stem}_01.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"latents")
        os.utime(path, (2e9, 2e9))
    (data.faces / "_latent_cache" / "aa_01.safetensors").write_bytes(b"of nobody")
    assert data.codes(select=["T005"]) == {}
    os.utime(data.faces / "_latent_cache" / "a_01.safetensors", (1e9, 1e9))
    (issue,) = validate(Dataset.at(data.root), select=["T005"]).issues
    assert (issue.path, issue.message) == (
        "faces/_latent_cache",
        "it has older latents of faces/a.jpg",
    )
    newer = data.faces / "_latent_cache" / "a_02.safetensors"
    newer.write_bytes(b"of other settings")
    os.utime(newer, (2e9, 2e9))
    assert data.codes(select=["T005"]) == {}


def test_latents_in_sub_folders_are_of_the_images_beside_them(data: Data) -> None:
    data.image("sub/x.jpg")
    data.mask("sub/x.png")
    path = data.faces / "sub" / "_latent_cache" / "x_01.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"latents")
    os.utime(path, (1e9, 1e9))
    found = data.codes(select=["T005"], recursive=True)
    assert found == {"T005": ["faces/sub/_latent_cache"]}


def test_what_is_written_at_every_start_hides_no_stale_cache(data: Data) -> None:
    for name, when in (("latents/shard_0.bin", 1e9), ("iteration_order/x.arrow", 2e9)):
        path = data.faces / "cache" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        os.utime(path, (when, when))
    assert data.codes(select=["T005"]) == {"T005": ["faces/cache"]}


def test_twins(data: Data) -> None:
    content = (data.faces / "a.jpg").read_bytes()
    data.image("b.jpg", content)
    data.mask("b.png")
    assert data.codes(ignore=[]) == {"I011": ["faces/b.jpg"]}


def test_of_twins_the_one_with_a_mask_and_a_caption_stays(data: Data) -> None:
    content = (data.faces / "a.jpg").read_bytes()
    data.image("A copy.jpg", content)  # the first by name
    (data.faces / "a.txt").write_text("ohwx")
    assert data.codes(select=["I011"], ignore=[]) == {"I011": ["faces/A copy.jpg"]}
    data.mask("A copy.png")
    assert data.codes(select=["I011"], ignore=[]) == {"I011": ["faces/A copy.jpg"]}


def test_files_of_one_size_are_no_twins(data: Data) -> None:
    content = (data.faces / "a.jpg").read_bytes()
    at = content.index(b"a.jpg")  # the comment
    data.image("b.jpg", content[:at] + b"b" + content[at + 1 :])
    data.mask("b.png")
    assert data.codes(ignore=[]) == {}


def noise(seed: int, size: tuple[int, int] = (200, 160)) -> Image.Image:
    """A smooth picture that looks like no other."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    return Image.fromarray(cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC))


def test_near_twins_need_deep(data: Data) -> None:
    for name, picture in (
        ("p1.jpg", encode(noise(1), "JPEG", quality=95)),
        ("p2.jpg", encode(noise(1).resize((150, 120)), "JPEG", quality=70)),
        ("p3.png", encode(noise(2))),
        ("p4.png", encode(noise(3))),
    ):
        data.image(name, picture)
    assert data.codes(select=["I"]) == {"I012": ["faces/p2.jpg"]}
    assert "I012" not in data.codes()
    assert "I012" in data.codes(deep=True)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (255 - ellipse(), True),
        (255 - ellipse() // 2, False),  # no black: it is meant
        (ellipse(), False),
        (np.pad(ellipse()[8:-8], ((8, 8), (0, 0)), constant_values=255), True),
    ],
)
def test_inverted_masks(data: Data, mask: np.ndarray, found: bool) -> None:
    data.mask("a.png", mask)
    assert ("M012" in data.codes()) == found


@pytest.mark.parametrize(("specks", "found"), [(0, False), (2, False), (3, True)])
def test_specks_need_deep(data: Data, specks: int, found: bool) -> None:
    mask = block(256, 256, 100, 100, 100)
    for index in range(specks):
        mask[20 : 22 + index, 20 + 40 * index : 24 + 40 * index] = 255
    scene(data, mask)
    assert "M014" not in data.codes()
    assert ("M014" in data.codes(deep=True)) == found


def test_unusual_coverage_needs_deep_and_a_dozen(data: Data) -> None:
    for index in range(10):
        scene(data, block(256, 256, 60, 60, 60 + index), f"x{index}")
    scene(data, block(256, 256, 0, 0, 256) - block(256, 256, 0, 0, 20), "wide")
    assert "M013" not in data.codes()
    assert data.codes(select=["M013"]) == {"M013": ["masks/wide.png"]}
    for index in range(5):
        (data.faces / f"x{index}.png").unlink()
    assert data.codes(select=["M013"]) == {}


def test_grid_scales_down_and_never_up() -> None:
    assert Grid.of(100, 100, 1024).scale == 1.0
    assert Grid.of(2048, 2048, 1024).cell(8) == 16.0
