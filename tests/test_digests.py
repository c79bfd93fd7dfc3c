"""SHA-256 of model files: read whole, once, and side by side."""

import hashlib
import os
from pathlib import Path

import pytest

from lora_prep import digests


def of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    assert digests.sha256(path) == of(b"1")
    path.write_bytes(b"22")
    assert digests.sha256(path) == of(b"22")


def test_another_file_in_its_place_is_read_though_size_and_date_are_the_same(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    for place, content in ((path, b"1"), (other, b"2")):
        place.write_bytes(content)
        os.utime(place, (1_000_000_000, 1_000_000_000))
    assert digests.sha256(path) == of(b"1")
    other.replace(path)
    assert digests.sha256(path) == of(b"2")


def test_reads_an_unchanged_file_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = digests._read.cache_info()
    assert digests.sha256(path) == digests.sha256(path)
    assert digests._read.cache_info().misses == before.misses + 1


def test_takes_the_name_of_a_blob_in_the_hubs_cache(tmp_path: Path) -> None:
    name = "ab" * 32
    blob = tmp_path / "blobs" / name
    blob.parent.mkdir()
    blob.write_bytes(b"not what the name says: so it was not read")
    link = tmp_path / "weights.pt"
    link.symlink_to(blob)
    assert digests.sha256(link) == name


def test_reads_a_file_behind_any_other_link(tmp_path: Path) -> None:
    target, link = tmp_path / ("ab" * 32), tmp_path / "link"
    target.write_bytes(b"1")
    link.symlink_to(target)
    assert digests.sha256(link) == of(b"1")


def test_of_files_every_byte_and_name_counts_and_not_the_place(tmp_path: Path) -> None:
    content = bytes(1 << 20)

    def together(folder: str, middle: bytes = b"", name: str = "b") -> str:
        root = tmp_path / folder
        root.mkdir()
        for file in ("a", name):
            (root / file).write_bytes(content)
        if middle:
            with (root / "a").open("r+b") as file:
                file.seek(len(content) // 2)
                file.write(middle)
        return digests.sha256_of_files(root, sorted(root.iterdir()))

    first = together("one")
    assert together("two") == first
    assert together("three", middle=b"1") != first
    assert together("four", name="c") != first
    with pytest.raises(OSError, match="missing"):
        digests.sha256_of_files(tmp_path, [tmp_path / "missing"])
