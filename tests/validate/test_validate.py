"""The whole: order, threads, counts, and what a report says."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_prep.dataset import Dataset
from lora_prep.errors import DatasetError
from lora_prep.types import Issue, Severity
from lora_prep.validate import CHUNK, Report, _in_threads, validate
from tests.validate.made import Data, ellipse, encode, photo


def spoil(data: Data, number: int) -> None:
    """Pairs with an issue of each family."""
    for i in range(number):
        data.image(f"x{i:03}.jpg", encode(photo(), "PNG"))
        if i % 2:
            data.mask(f"x{i:03}.png", ellipse() * 0)


def test_the_order_and_the_issues_do_not_depend_on_threads(data: Data) -> None:
    spoil(data, 3 * CHUNK + 1)
    one = validate(Dataset.at(data.root), threads=1)
    assert one == validate(Dataset.at(data.root), threads=5)
    places = [(issue.path, issue.code) for issue in one.issues]
    assert places == sorted(places)
    assert {code for _, code in places} == {"P001", "I006", "M005"}


def test_counts(data: Data) -> None:
    spoil(data, 5)
    report = validate(Dataset.at(data.root))
    assert (report.images, report.pairs) == (8, 5)
    assert (report.errors, report.warnings) == (3 + 2, 5)


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


def test_few_items_are_under_way_at_a_time() -> None:
    taken = 0
    gap = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(200):
            taken += 1
            yield item

    for done, item in enumerate(_in_threads(lambda item: item, items(), 2), 1):
        assert item == done - 1
        gap = max(gap, taken - done)
    assert done == 200
    assert gap <= 3 * 2


def test_an_exception_in_a_thread_surfaces_and_ends_the_threads() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(_in_threads(lambda item: 1 // item, [1, 0, *[1] * 1000], 2))
    assert threading.active_count() == before
