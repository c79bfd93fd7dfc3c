"""The whole: order, threads, counts, and what a report says."""

import threading
from pathlib import Path
from typing import Any

import pytest

import lora_prep.validate
from lora_prep.dataset import Dataset
from lora_prep.errors import DatasetError
from lora_prep.types import Issue, Severity
from lora_prep.validate import CHUNK, Report, validate
from lora_prep.validate.pair import Pair
from tests.validate.made import Data, ellipse, encode, photo


def spoil(data: Data, number: int) -> None:
    """Pairs with an issue of each family."""
    for i in range(number):
        data.image(f"x{i:03}.jpg", encode(photo(), "PNG"))
        if i % 2:
            data.mask(f"x{i:03}.png", ellipse() * 0)


def test_the_order_and_the_issues_do_not_depend_on_threads(data: Data) -> None:
    spoil(data, 3 * CHUNK + 1)
    one = validate(Dataset.at(data.root), threads=1, ignore=["I011"])
    assert one == validate(Dataset.at(data.root), threads=5, ignore=["I011"])
    places = [(issue.path, issue.code) for issue in one.issues]
    assert places == sorted(places)
    assert {code for _, code in places} == {"P001", "I006", "M005"}


def test_counts(data: Data) -> None:
    spoil(data, 5)
    report = validate(Dataset.at(data.root), ignore=["I"], select=["P", "M"])
    assert (report.images, report.pairs) == (8, 5)
    assert (report.errors, report.warnings) == (3 + 2, 0)


def test_every_image_is_told_of(data: Data) -> None:
    spoil(data, 2 * CHUNK)
    told: list[int] = []
    validate(Dataset.at(data.root), observe=told.append)
    assert sum(told) == 2 * CHUNK + 3


def test_an_issue_of_two_images_with_one_mask_is_told_once(data: Data) -> None:
    data.image("a.png", encode(photo()))
    data.mask("a.png", ellipse() * 0)
    assert data.codes() == {"P003": ["faces/a.jpg"], "M005": ["masks/a.png"]}


def test_sub_folders(data: Data) -> None:
    data.image("more/x.jpg")
    data.mask("more/x.png")
    assert data.codes(recursive=True) == {}
    (data.masks / "more" / "x.png").unlink()
    assert data.codes(recursive=True) == {"P001": ["faces/more/x.jpg"]}


def test_masks_elsewhere(data: Data, tmp_path: Path) -> None:
    elsewhere = tmp_path / "work" / "drawn"
    elsewhere.parent.mkdir()
    data.masks.rename(elsewhere)
    (elsewhere / "a.png").rename(elsewhere / "x.png")
    report = validate(Dataset.at(data.faces, masks=elsewhere))
    assert [(issue.code, issue.path) for issue in report.issues] == [
        ("P001", "../data/faces/a.jpg"),
        ("P002", "drawn/x.png"),
    ]


def test_nothing_is_written(data: Data) -> None:
    spoil(data, 3)
    before = {path: path.stat().st_mtime_ns for path in data.root.rglob("*")}
    validate(Dataset.at(data.root), deep=True)
    assert {path: path.stat().st_mtime_ns for path in data.root.rglob("*")} == before


def test_a_folder_that_vanished_is_an_error_of_its_own(data: Data) -> None:
    dataset = Dataset.at(data.root)
    data.faces.rename(data.root / "gone")
    with pytest.raises(DatasetError, match="cannot read the folder"):
        validate(dataset)


@pytest.mark.parametrize(
    ("severities", "lenient", "strict"),
    [([], 0, 0), ([Severity.WARNING], 0, 1), ([Severity.WARNING, Severity.ERROR], 1, 1)],
)
def test_the_report_owns_the_exit_code(
    severities: list[Severity], lenient: int, strict: int
) -> None:
    issues = tuple(
        Issue("P001", severity, "a.jpg", "no mask", "draw it") for severity in severities
    )
    report = Report(1, 1, issues)
    assert report.exit_code() == lenient
    assert report.exit_code(strict=True) == strict


def test_few_pairs_are_under_way_at_a_time(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(data, 20 * CHUNK)
    read, told, most = 0, 0, 0
    real = lora_prep.validate.read_pair

    def reading(*arguments: Any) -> Pair:
        nonlocal read, most
        read += 1
        most = max(most, read - told)
        return real(*arguments)

    def tell(count: int) -> None:
        nonlocal told
        told += count

    monkeypatch.setattr("lora_prep.validate.read_pair", reading)
    validate(Dataset.at(data.root), threads=2, observe=tell)
    assert read == told == 20 * CHUNK + 3
    assert CHUNK < most <= (3 * 2 + 1) * CHUNK


def test_an_exception_in_a_thread_surfaces_and_ends_the_threads(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(data, 3 * CHUNK)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lora_prep.validate.read_pair", broken)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        validate(Dataset.at(data.root), threads=2)
    assert threading.active_count() == before
