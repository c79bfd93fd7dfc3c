"""Mutated files of every kind: read or refused, never a traceback, a hang or a flood of memory."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_prep.errors import LoraPrepError
from tools.fuzz import __main__ as fuzz
from tools.fuzz.readers import HOSTILE, READERS, Reader

ROUNDS = {"image": 60, "mask": 60, "config": 40}
PEAK = 64 << 20
"""Bytes; the files have a few kilobytes and at most 100,000 pixels."""


@pytest.mark.parametrize("name", READERS)
def test_mutated_files(name: str) -> None:
    fuzz.at_random(name, READERS[name], seed=8, count=ROUNDS.get(name, 100))


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"image", "mask"}))
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_hostile_words_at_any_place(name: str, data: st.DataObject) -> None:
    reader = READERS[name]
    good = data.draw(st.sampled_from(list(reader.seeds())))
    at = data.draw(st.integers(0, len(good)))
    until = data.draw(st.integers(at, min(len(good), at + 20)))
    word = data.draw(st.sampled_from(HOSTILE) | st.binary(max_size=20))
    reader(reader.mend(good[:at] + word + good[until:]))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"[" * 100_000, b'{"a":' * 50_000])
def test_nothing_nulls_and_bottomless_nesting(name: str, content: bytes) -> None:
    reader = READERS[name]
    reader(content)
    reader(reader.mend(bytes(8) + content))


@pytest.mark.parametrize("name", READERS)
def test_memory_is_bounded(name: str) -> None:
    READERS[name](READERS[name].seeds()[0])  # imports are not counted
    tracemalloc.start()
    try:
        fuzz.at_random(name, READERS[name], seed=9, count=12)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < PEAK


def test_good_files_are_read() -> None:
    """Or all of the above would be satisfied by a reader that refuses everything."""
    for reader in READERS.values():
        for good in reader.seeds():
            reader.read(good)


def test_the_fuzzer_notices_a_reader_that_breaks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def read(data: bytes) -> None:
        if b"null" in data:
            raise LoraPrepError("refused")
        if b"Infinity" in data:
            raise ZeroDivisionError

    broken = Reader(read, lambda: [b"a good file with some length"])
    with pytest.raises(ZeroDivisionError):
        fuzz.at_random("broken", broken, seed=1, count=200)
    assert b"Infinity" in (tmp_path / "crash-broken").read_bytes()
