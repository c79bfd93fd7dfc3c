"""What is remembered of files that have not changed: the same issues, and fewer reads."""

import os
import time
from pathlib import Path

import pytest

import lora_prep.validate
from lora_prep.dataset import Dataset
from lora_prep.validate import Report, cache_path, validate
from lora_prep.validate.manifest import SETTLED_NS
from tests.validate.made import Data, ellipse, encode, photo


@pytest.fixture
def settled(data: Data, monkeypatch: pytest.MonkeyPatch) -> Data:
    """Files that are old enough to be trusted, with an issue or two."""
    data.mask("a.png", ellipse() * 0)
    data.image("tab\tand\nline.jpg")
    data.mask("tab\tand\nline.png")
    now = time.time_ns() + 2 * SETTLED_NS
    monkeypatch.setattr("lora_prep.validate.manifest.time.time_ns", lambda: now)
    return data


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are read."""
    read: list[str] = []
    real = lora_prep.validate.read_pair

    def reading(listing: object, image: str, *rest: object) -> object:
        read.append(image)
        return real(listing, image, *rest)

    monkeypatch.setattr("lora_prep.validate.read_pair", reading)
    return read


def check(data: Data, **options: object) -> Report:
    dataset = Dataset.at(data.root)
    return validate(dataset, cache=cache_path(dataset), **options)


def test_what_has_not_changed_is_not_read_again(settled: Data, reads: list[str]) -> None:
    first = check(settled)
    assert len(reads) == 4
    assert check(settled) == first
    assert len(reads) == 4


def test_what_has_changed_is(settled: Data, reads: list[str]) -> None:
    check(settled)
    reads.clear()
    settled.mask("a.png")
    assert [i.code for i in check(settled).issues] == []
    assert reads == ["a.jpg"]


def test_a_change_that_keeps_size_and_date_is_seen(settled: Data, reads: list[str]) -> None:
    check(settled)
    path = settled.masks / "c.png"
    seen = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    reads.clear()
    assert "M001" in {i.code for i in check(settled).issues}
    assert reads == ["c.webp"]


def test_selection_needs_no_second_reading_but_depth_does(settled: Data, reads: list[str]) -> None:
    check(settled)
    reads.clear()
    assert check(settled, select=["I001"]).issues == ()
    assert [i.code for i in check(settled, select=["M00"]).issues] == ["M005"]
    assert reads == []
    check(settled, deep=True)
    assert len(reads) == 4


def test_young_files_and_links_are_not_trusted(data: Data, reads: list[str]) -> None:
    check(data)
    check(data)
    assert len(reads) == 6


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe\n", b"{}\n", b"torn"])
def test_a_damaged_memory_costs_time_alone(settled: Data, reads: list[str], junk: bytes) -> None:
    first = check(settled)
    path = cache_path(Dataset.at(settled.root))
    for content in (junk, path.read_bytes()[:-30], path.read_bytes().replace(b"M005", b"M00")):
        path.write_bytes(content)
        assert {i.path for i in check(settled).issues} <= {i.path for i in first.issues}
    path.unlink()
    assert check(settled) == first


def test_a_folder_that_cannot_be_written_is_no_obstacle(settled: Data) -> None:
    (settled.root / ".lora-prep").write_text("in the way")
    assert [i.code for i in check(settled).issues] == ["M005"]


def test_no_part_is_left(settled: Data, tmp_path: Path) -> None:
    check(settled)
    assert [p.name for p in (settled.root / ".lora-prep").iterdir()] == ["validate.jsonl"]
    assert check(settled, ignore=["M"]).issues == ()
    settled.image("new.png", encode(photo()))
    assert "P001" in {i.code for i in check(settled).issues}
