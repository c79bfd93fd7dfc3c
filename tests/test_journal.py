"""The journal survives what happens to files."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_prep.journal import Entry, Journal, Stamp
from lora_prep.types import Status

STAMPS = st.builds(
    Stamp,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    size=st.integers(0, 2**40),
    stat=st.none() | st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)),
    before=st.none() | st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)),
)
TEXT = st.text(max_size=30)
MADE = st.builds(
    Entry,
    key=TEXT,
    status=st.sampled_from(Status),
    fingerprint=TEXT,
    inputs=st.dictionaries(TEXT, STAMPS, max_size=2),
    outputs=st.dictionaries(TEXT, STAMPS, max_size=2),
    code=TEXT,
    message=TEXT,
    info=st.none() | st.dictionaries(TEXT, st.integers(), min_size=1, max_size=2),
    warnings=st.lists(TEXT, max_size=2).map(tuple),
)
ENTRIES = st.builds(replace, MADE, maker=st.none() | MADE)


def entry(key: str, status: Status = Status.DONE) -> Entry:
    return Entry(key, status, "f", {}, {})


@given(ENTRIES)
def test_an_entry_survives_its_line(value):
    assert Entry.from_line(value.to_line()) == value
    assert value.to_line().count("\n") == 1


@given(st.binary(max_size=80))
def test_other_lines_are_refused_politely(line):
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        Entry.from_line(line)


def test_the_last_entry_of_an_item_wins(tmp_path):
    path = tmp_path / "state" / "x.jsonl"
    with Journal(path) as journal:
        journal.append(entry("a", Status.FAILED))
        journal.append(entry("b"))
        journal.append(entry("a"))
    with Journal(path) as journal:
        assert [(e.key, e.status) for e in journal] == [("a", Status.DONE), ("b", Status.DONE)]
        assert journal.get("c") is None
        assert len(journal) == 2


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_passed_over(tmp_path, cut):
    path = tmp_path / "x.jsonl"
    with Journal(path) as journal:
        journal.append(entry("a"))
        journal.append(entry("b"))
    os.truncate(path, path.stat().st_size - cut)
    with Journal(path) as journal:
        assert journal.get("a") == entry("a")
        assert journal.get("b") is None or cut == 1
        journal.append(entry("c"))
    with Journal(path) as journal:
        assert journal.get("a") == entry("a")
        assert journal.get("c") == entry("c")


def test_foreign_lines_are_passed_over(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xff\xfe\n[]\n{}\n\n" + entry("a").to_line().encode() + b'{"key": 1}\n')
    with Journal(path) as journal:
        assert [e.key for e in journal] == ["a"]


def test_long_entries_are_read_back(tmp_path):
    long = Entry("a", Status.FAILED, "f", {}, {}, message="x" * 100_000)
    with Journal(tmp_path / "x.jsonl") as journal:
        journal.append(long)
        journal.append(entry("b"))
        assert journal.get("a") == long


def test_a_journal_of_many_runs_is_compacted(tmp_path):
    path = tmp_path / "x.jsonl"
    with Journal(path) as journal:
        for i in range(400):
            journal.append(entry(f"k{i % 10}", Status.FAILED if i < 390 else Status.DONE))
    with Journal(path) as journal:
        assert [(e.key, e.status) for e in journal] == [(f"k{i}", Status.DONE) for i in range(10)]
    assert len(path.read_text().splitlines()) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_stamp_knows_its_file(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    stamp = Stamp.of_output(b"abc", path)
    assert stamp.matches(path)
    copy = tmp_path / "y"
    copy.write_bytes(b"abc")
    assert stamp.matches(copy)
    copy.write_bytes(b"abd")
    assert not stamp.matches(copy)
    copy.write_bytes(b"abcd")
    assert not stamp.matches(copy)


def test_a_file_that_was_just_written_is_not_trusted_by_its_dates(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert Stamp.of_input(b"abc", path.stat()).stat is None
