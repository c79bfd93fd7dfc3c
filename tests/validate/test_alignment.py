"""Family A: by the journals that the stages write, and by the pictures."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lora_prep.dataset import Dataset
from lora_prep.faces import FaceRecord, faces_path
from lora_prep.journal import Entry, Journal, Stamp, hash_file
from lora_prep.types import Status
from lora_prep.validate import validate
from lora_prep.validate.drift import TURNS, apply_turn, placement
from sample_data.portraits import Portrait, draw_portrait
from tests.validate.made import Data, ellipse, encode, photo


def journal(data: Data, stage: str, key: str, inputs: list[str], outputs: list[str]) -> None:
    """An entry as the runner writes it, of the files as they are."""

    def stamps(names: list[str]) -> dict[str, Stamp]:
        paths = [data.root / name for name in names]
        return {
            n: Stamp(hash_file(p), p.stat().st_size, None)
            for n, p in zip(names, paths, strict=True)
        }

    with Journal(data.root / ".lora-prep" / f"{stage}.jsonl") as entries:
        entries.append(Entry(key, Status.DONE, "f", stamps(inputs), stamps(outputs)))


@pytest.fixture
def masked(data: Data) -> Data:
    """Its masks were made by `lora-prep masks`."""
    for image, mask in (("a.jpg", "a.png"), ("c.webp", "c.png")):
        journal(data, "masks", f"faces/{image}", [f"faces/{image}"], [f"masks/{mask}"])
    return data


def test_what_is_as_it_was_is_fine(masked: Data) -> None:
    assert masked.codes() == {}


def test_an_image_that_changed_after_its_mask(masked: Data) -> None:
    masked.image("a.jpg", encode(photo(mode="L"), "JPEG"))
    assert masked.codes() == {"A001": ["masks/a.png"]}


def test_a_mask_that_was_edited_since_is_not_judged(masked: Data) -> None:
    masked.image("a.jpg", encode(photo(mode="L"), "JPEG"))
    masked.mask("a.png", 255 - ellipse() // 2)
    assert masked.codes() == {}


def test_a_data_set_that_was_moved_is_fine(masked: Data, tmp_path: Path) -> None:
    masked.root.rename(tmp_path / "moved")
    assert Data(tmp_path / "moved").codes() == {}


def test_a_torn_journal_is_no_obstacle(masked: Data) -> None:
    path = masked.root / ".lora-prep" / "masks.jsonl"
    path.write_bytes(b"\xff\x00 torn\n" + path.read_bytes() + b'{"key": "x"')
    masked.image("a.jpg", encode(photo(mode="L"), "JPEG"))
    assert masked.codes() == {"A001": ["masks/a.png"]}


def fail(data: Data, stage: str, key: str, status: Status, **more: object) -> None:
    """An attempt after the first, as the runner records it, that writes nothing."""
    with Journal(data.root / ".lora-prep" / f"{stage}.jsonl") as entries:
        previous = entries.get(key)
        assert previous
        maker = previous.maker or previous
        entries.append(
            replace(maker, **{"status": status, "message": "why", "maker": maker, **more})
        )


@pytest.mark.parametrize("status", [Status.FAILED, Status.SKIPPED])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, {}),  # tried with --force, for example
        ({"inputs": {}, "fingerprint": "g"}, {}),  # it could not be read then
        ({"fingerprint": "g"}, {"A010": ["masks/a.png"]}),
        ({"info": {"no_face": "fail"}}, {"A010": ["masks/a.png"]}),
        ({"maker": None}, {"A010": ["masks/a.png"]}),  # before it was recorded
    ],
)
def test_a_mask_of_an_earlier_attempt_is_judged_by_its_settings(
    masked: Data, status: Status, change: dict[str, object], found: dict[str, list[str]]
) -> None:
    fail(masked, "masks", "faces/a.jpg", status, **change)
    assert masked.codes() == found
    (masked.masks / "a.png").unlink()
    assert masked.codes(select=["A"]) == {}


@pytest.mark.parametrize("fingerprint", ["f", "g"])
def test_a_mask_of_an_older_image_stays_one_after_a_failure(masked: Data, fingerprint: str) -> None:
    image = masked.image("a.jpg", encode(photo(mode="L"), "JPEG"))
    inputs = {"faces/a.jpg": Stamp(hash_file(image), image.stat().st_size, None)}
    for _ in range(2):
        fail(masked, "masks", "faces/a.jpg", Status.FAILED, inputs=inputs, fingerprint=fingerprint)
        assert masked.codes() == {"A001": ["masks/a.png"]}


@pytest.fixture
def augmented(data: Data) -> Data:
    """One variant of a, with its mask and caption."""
    for folder, name in (("images", "a-0.jpg"), ("masks", "a-0.png"), ("images", "a-0.txt")):
        path = data.root / "augmented" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (data.faces / "a.txt").write_text("sks")
    (data.faces / "c.txt").write_text("sks")
    (data.faces / "été 北京.txt").write_text("sks")
    outputs = ["augmented/images/a-0.jpg", "augmented/masks/a-0.png", "augmented/images/a-0.txt"]
    inputs = ["faces/a.jpg", "masks/a.png", "faces/a.txt"]
    journal(data, "augment", "faces/a.jpg", inputs, outputs)
    return data


def test_a_fresh_augmentation_is_fine(augmented: Data) -> None:
    assert augmented.codes() == {}


@pytest.mark.parametrize("name", ["faces/a.jpg", "masks/a.png", "faces/a.txt"])
def test_a_source_that_changed_after_its_augmentation(augmented: Data, name: str) -> None:
    contents = {
        "faces/a.jpg": encode(photo(mode="L"), "JPEG"),
        "masks/a.png": encode(photo(mode="1")),
        "faces/a.txt": b"another",
    }
    (augmented.root / name).write_bytes(contents[name])
    found = augmented.codes(select=["A"], ignore=["A006", "A007"])
    assert found == {"A002": ["augmented/images/a-0.jpg"]}
    fail(augmented, "augment", "faces/a.jpg", Status.FAILED, inputs={})
    assert augmented.codes(select=["A"], ignore=["A006", "A007"]) == found


def test_variants_in_a_folder_of_another_name_are_looked_at_too(augmented: Data) -> None:
    (augmented.root / "augmented").rename(augmented.root / "more")
    state = augmented.root / ".lora-prep"
    text = (state / "augment.jsonl").read_text().replace("augmented/", "more/")
    (state / "augment.jsonl").unlink()
    (state / "augment-more.jsonl").write_text(text)
    assert augmented.codes(select=["A002", "A003"]) == {}
    (augmented.faces / "a.txt").write_text("another")
    assert augmented.codes(select=["A002", "A003"]) == {"A002": ["more/images/a-0.jpg"]}
    (augmented.faces / "a.jpg").unlink()
    assert len(augmented.codes(select=["A003"])["A003"]) == 3


def test_a_parent_that_is_gone(augmented: Data) -> None:
    for path in (*augmented.faces.glob("a.*"), augmented.masks / "a.png"):
        path.unlink()
    found = augmented.codes(select=["A"])
    assert found == {
        "A003": sorted(
            ["augmented/images/a-0.jpg", "augmented/images/a-0.txt", "augmented/masks/a-0.png"]
        )
    }


def test_augmented_images_from_elsewhere(augmented: Data) -> None:
    (augmented.root / "augmented" / "images" / "x.jpg").write_bytes(b"x")
    found = augmented.codes(select=["A"])
    assert found == {"A004": ["augmented/images/x.jpg"], "A005": ["augmented/images/x.jpg"]}


@pytest.fixture(scope="module")
def portraits() -> list[Portrait]:
    return [draw_portrait(700 + n, size=(256, 256), people=1, scale=(0.3, 0.6)) for n in range(6)]


def mask_of(portrait: Portrait) -> np.ndarray:
    return portrait.people[0].head_mask.astype(np.uint8) * 255


def scenes(data: Data, portraits: list[Portrait], masks: list[np.ndarray]) -> Iterator[str]:
    """Put portraits with these masks in the place of what is there."""
    from PIL import Image

    for path in (*data.faces.iterdir(), *data.masks.iterdir()):
        path.unlink()
    for index, (portrait, mask) in enumerate(zip(portraits, masks, strict=True)):
        data.image(f"p{index}.png", encode(Image.fromarray(portrait.image)))
        data.mask(f"p{index}.png", mask)
        yield f"masks/p{index}.png"


def test_true_masks_do_not_drift(data: Data, portraits: list[Portrait]) -> None:
    list(scenes(data, portraits, [mask_of(p) for p in portraits]))
    assert data.codes(drift=True) == {}


@pytest.mark.parametrize("turn", TURNS)
def test_turned_masks_are_found(data: Data, portraits: list[Portrait], turn: str) -> None:
    masks = [np.ascontiguousarray(apply_turn(mask_of(p), turn)) for p in portraits]
    paths = list(scenes(data, portraits, masks))
    found = data.codes(drift=True)
    flagged = {path for code in ("A006", "A007") for path in found.get(code, ())}
    assert len(flagged) >= len(paths) - 1  # one head is nearly symmetric
    assert len(found["A006"]) >= len(paths) // 2
    assert found["A009"] == ["masks"]
    assert data.codes() == {}


@pytest.mark.parametrize("percent", [10, 20])
def test_moved_masks_are_found_with_where_to(portraits: list[Portrait], percent: int) -> None:
    right = 0
    for portrait in portraits:
        mask = mask_of(portrait)
        step = round(np.sqrt((mask > 0).sum()) * percent / 100)
        fit = placement(portrait.image, np.roll(mask, step, axis=1))
        assert fit is not None
        right += abs(fit.shift[0] + percent / 100) < 0.05
    assert right >= len(portraits) - 1


def test_a_moved_mask_is_told_its_way_in_words(data: Data, portraits: list[Portrait]) -> None:
    moved = [np.roll(mask_of(p), (18, -18), axis=(0, 1)) for p in portraits]
    list(scenes(data, portraits, moved))
    issues = validate(Dataset.at(data.root), drift=True, select=["A007"]).issues
    ways = [re.search(r"moved by \d+ % to the right and \d+ % up", i.message) for i in issues]
    assert sum(map(bool, ways)) >= len(portraits) // 2


def test_a_mask_that_misses_the_recorded_face(data: Data, portraits: list[Portrait]) -> None:
    portrait = portraits[0]
    mask = mask_of(portrait)
    list(scenes(data, [portrait], [mask]))
    dataset = Dataset.at(data.root)
    record = FaceRecord(
        "test", hash_file(data.faces / "p0.png"), 256, 256, (portrait.people[0].face,)
    )
    path = faces_path(dataset, dataset.sample("p0.png"))
    path.parent.mkdir(parents=True)
    path.write_bytes(record.to_bytes())
    assert "A008" not in data.codes(drift=True)
    corner = np.zeros_like(mask)
    corner[:40, :40] = 255
    data.mask("p0.png", corner)
    assert "A008" in data.codes(drift=True)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (40, 40)])
def test_odd_pictures_are_no_obstacle(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    for level in (0, 255):
        assert placement(image, np.full(size, level, np.uint8)) is None
    dot = np.zeros(size, np.uint8)
    dot[0, 0] = 255
    assert placement(image, dot) is None


def test_drift_says_nothing_of_masks_of_another_size(data: Data) -> None:
    data.mask("a.png", ellipse((32, 32)))
    assert list(data.codes(drift=True, select=["A", "M002"])) == ["M002"]


def test_unchanged_files_are_not_read_again(masked: Data) -> None:
    path = masked.root / ".lora-prep" / "masks.jsonl"
    image, mask = masked.faces / "a.jpg", masked.masks / "a.png"
    path.unlink()
    with Journal(path) as entries:
        seen = [(f, f.stat()) for f in (image, mask)]
        stamps = [
            Stamp("not the hash", s.st_size, (s.st_ino, s.st_mtime_ns, s.st_ctime_ns))
            for _, s in seen
        ]
        entries.append(
            Entry(
                "faces/a.jpg",
                Status.DONE,
                "f",
                {"faces/a.jpg": stamps[0]},
                {"masks/a.png": stamps[1]},
            )
        )
    assert masked.codes(select=["A"]) == {}
    image.write_bytes(image.read_bytes())
    assert masked.codes(select=["A"]) == {"A001": ["masks/a.png"]}
