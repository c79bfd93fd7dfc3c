"""The runner's promises, seen through a small stage over text files and the local executor."""

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_prep.attempt import Attempt
from lora_prep.errors import DatasetError, ItemError, OutOfMemory
from lora_prep.executors.local import LocalExecutor
from lora_prep.imageio import new_token
from lora_prep.journal import Journal, exclusive
from lora_prep.run import Report, plan, run
from lora_prep.stage import Item, Saved
from lora_prep.types import Outcome, Status
from tests.fakes.shout import Shout, Shouting


def write(root: Path, **texts: str) -> None:
    (root / "in").mkdir(exist_ok=True)
    for name, text in texts.items():
        (root / "in" / f"{name}.txt").write_text(text)


def shout(root: Path, *, threads: int = 2, force: bool = False, **options) -> tuple[Report, Shout]:
    stage = Shout(root, **options)
    return run(stage, root, executor=LocalExecutor(threads), force=force), stage


def outputs(root: Path, folder: str = "out") -> dict[str, str]:
    return {p.stem: p.read_text() for p in sorted((root / folder).glob("[!.]*"))}


def test_makes_every_output_in_order_with_its_facts(tmp_path):
    write(tmp_path, a="x", b="yy", c="zzz")
    seen: list[Outcome] = []
    report = run(Shout(tmp_path), tmp_path, executor=LocalExecutor(2), observe=seen.append)
    assert outputs(tmp_path) == {"a": "X", "b": "YY", "c": "ZZZ"}
    assert report.counts == Counter({Status.DONE: 3})
    assert report.exit_code == 0
    assert [(o.key, o.info) for o in seen] == [
        ("in/a.txt", {"length": 1}),
        ("in/b.txt", {"length": 2}),
        ("in/c.txt", {"length": 3}),
    ]


def test_second_run_does_nothing_and_loads_no_model(tmp_path):
    write(tmp_path, a="x", b="y")
    shout(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    report, stage = shout(tmp_path)
    assert report.counts == Counter({Status.FRESH: 2})
    assert (stage.calls.opened, stage.calls.loaded) == (0, [])
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}


def test_only_what_changed_is_made_again(tmp_path):
    write(tmp_path, a="x", b="y", c="z", d="q")
    shout(tmp_path)
    write(tmp_path, b="new", e="added")
    (tmp_path / "out/c.txt").unlink()
    report, stage = shout(tmp_path)
    assert sorted(stage.calls.loaded) == ["in/b.txt", "in/c.txt", "in/e.txt"]
    assert report.counts == Counter({Status.DONE: 3, Status.FRESH: 2})
    assert outputs(tmp_path) == {"a": "X", "b": "NEW", "c": "Z", "d": "Q", "e": "ADDED"}


def test_content_counts_even_when_size_and_modification_time_stay_the_same(tmp_path):
    write(tmp_path, a="one")
    path = tmp_path / "in/a.txt"
    times = path.stat()
    shout(tmp_path)
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    shout(tmp_path)
    assert outputs(tmp_path) == {"a": "TWO"}


def test_touching_a_file_makes_nothing(tmp_path):
    write(tmp_path, a="x")
    shout(tmp_path)
    os.utime(tmp_path / "in/a.txt")
    report, stage = shout(tmp_path)
    assert report.counts == Counter({Status.FRESH: 1})
    assert stage.calls.opened == 0


def test_changed_settings_make_everything_again(tmp_path):
    write(tmp_path, a="x", b="y")
    shout(tmp_path)
    report, _ = shout(tmp_path, mark="!")
    assert report.counts == Counter({Status.DONE: 2})
    assert outputs(tmp_path) == {"a": "X!", "b": "Y!"}


def test_a_moved_dataset_stays_fresh(tmp_path):
    (tmp_path / "here").mkdir()
    write(tmp_path / "here", a="x", b="y")
    shout(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    report, _ = shout(tmp_path / "there")
    assert report.counts == Counter({Status.FRESH: 2})


def test_an_output_asked_for_later_is_made(tmp_path):
    write(tmp_path, a="x")
    shout(tmp_path)
    report, _ = shout(tmp_path, more_outputs=("extra",))
    assert report.counts == Counter({Status.DONE: 1})
    assert outputs(tmp_path, "extra") == {"a": "X"}
    report, _ = shout(tmp_path)
    assert report.counts == Counter({Status.FRESH: 1})


def test_failures_are_reported_and_the_run_goes_on(tmp_path):
    write(tmp_path, a="!bad-load", b="ok", c="!fail", d="fine")
    report, _ = shout(tmp_path)
    assert outputs(tmp_path) == {"b": "OK", "d": "FINE"}
    assert [(o.key, o.code, o.message) for o in report.problems] == [
        ("in/a.txt", "unreadable", "cannot be decoded"),
        ("in/c.txt", "shy", "will not shout"),
    ]
    assert report.exit_code == 1


def test_failures_are_tried_again(tmp_path):
    write(tmp_path, a="!fail", b="ok")
    shout(tmp_path)
    write(tmp_path, a="better")
    report, stage = shout(tmp_path)
    assert stage.calls.loaded == ["in/a.txt"]
    assert report.exit_code == 0


def test_a_vanished_input_is_a_failed_item(tmp_path):
    write(tmp_path, a="x", b="y")
    stage = Shout(tmp_path)
    items = list(stage.items())
    (tmp_path / "in/a.txt").unlink()
    object.__setattr__(stage, "items", lambda: iter(items))
    report = run(stage, tmp_path, executor=LocalExecutor(2))
    assert [(o.key, o.code) for o in report.problems] == [("in/a.txt", "unreadable")]
    assert outputs(tmp_path) == {"b": "Y"}


def test_a_failure_names_the_older_result_that_is_still_there(tmp_path):
    write(tmp_path, a="x")
    shout(tmp_path)
    write(tmp_path, a="!fail")
    report, _ = shout(tmp_path)
    assert report.problems[0].warnings == ("an older result is still there: out/a.txt",)
    write(tmp_path, a="good again")
    report, _ = shout(tmp_path)
    assert report.counts == Counter({Status.DONE: 1})
    assert outputs(tmp_path) == {"a": "GOOD AGAIN"}


def test_skipped_items_write_nothing_and_stay_skipped(tmp_path):
    write(tmp_path, a="!skip", b="x")
    report, _ = shout(tmp_path)
    assert report.counts == Counter({Status.SKIPPED: 1, Status.DONE: 1})
    report, stage = shout(tmp_path)
    assert report.counts == Counter({Status.SKIPPED: 1, Status.FRESH: 1})
    assert stage.calls.opened == 0
    assert report.exit_code == 0


def test_warnings_are_reported_without_failing(tmp_path):
    write(tmp_path, a="!warn")
    report, _ = shout(tmp_path)
    assert [o.warnings for o in report.problems] == [("look out",)]
    assert report.exit_code == 0


@pytest.mark.parametrize("edit", ["edited by hand", "x"])
def test_a_hand_edit_is_never_overwritten(tmp_path, edit):
    write(tmp_path, a="x", b="y")
    shout(tmp_path)
    (tmp_path / "out/a.txt").write_text(edit)
    for mark in ("", "!", "!"):
        report, _ = shout(tmp_path, mark=mark)
        assert report.counts[Status.KEPT] == 1
        assert outputs(tmp_path)["a"] == edit
    report, _ = shout(tmp_path, mark="!", force=True)
    assert report.counts == Counter({Status.DONE: 2})
    assert outputs(tmp_path) == {"a": "X!", "b": "Y!"}


def test_a_file_that_was_there_before_is_never_overwritten(tmp_path):
    write(tmp_path, a="x", b="y")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").write_text("mine")
    report, _ = shout(tmp_path)
    assert outputs(tmp_path) == {"a": "mine", "b": "Y"}
    assert report.counts == Counter({Status.KEPT: 1, Status.DONE: 1})


def test_a_hand_edit_put_back_after_force_is_still_kept(tmp_path):
    write(tmp_path, a="x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").write_text("mine")
    shout(tmp_path, force=True)
    (tmp_path / "out/a.txt").write_text("mine")
    report, _ = shout(tmp_path, mark="!")
    assert report.counts == Counter({Status.KEPT: 1})
    assert outputs(tmp_path) == {"a": "mine"}


def test_a_file_written_by_somebody_else_during_the_run_is_kept(tmp_path):
    write(tmp_path, a="x")

    def meanwhile(batch):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/a.txt").write_text("theirs")

    report, _ = shout(tmp_path, on_compute=meanwhile)
    assert report.counts == Counter({Status.KEPT: 1})
    assert outputs(tmp_path) == {"a": "theirs"}


def test_death_between_journal_and_rename_is_mended(tmp_path, monkeypatch):
    write(tmp_path, a="x")
    shout(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("lora_prep.imageio.commit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shout(tmp_path, mark="!")
    assert outputs(tmp_path)["a"] == "X"
    report, _ = shout(tmp_path, mark="!")
    assert report.counts == Counter({Status.DONE: 1})
    assert outputs(tmp_path) == {"a": "X!"}


def test_an_unexpected_error_surfaces_with_the_items_name(tmp_path):
    write(tmp_path, a="x", b="!bug")
    with pytest.raises(ZeroDivisionError) as caught:
        shout(tmp_path)
    assert caught.value.__notes__ == ["while working on in/b.txt"]


def test_out_of_memory_halves_the_batch_and_no_result_changes(tmp_path):
    texts = {f"n{i}": f"text {i}" for i in range(7)}
    write(tmp_path, **texts)
    report, stage = shout(tmp_path, batch_size=5, fits=2)
    assert report.counts == Counter({Status.DONE: 7})
    assert outputs(tmp_path) == {name: text.upper() for name, text in texts.items()}
    assert [len(b) for b in stage.calls.batches] == [5, 3, 2, 2, 1, 2], "what fits is remembered"


def test_out_of_memory_on_a_single_item_fails_that_item(tmp_path):
    write(tmp_path, a="x")
    report, _ = shout(tmp_path, fits=0)
    assert [(o.code, o.message) for o in report.problems] == [
        ("out-of-memory", "no room, even for this image alone")
    ]


def test_one_item_too_large_for_the_memory_makes_no_later_batch_smaller(tmp_path):
    write(tmp_path, **{**dict.fromkeys("abcdefgh", "x"), "b": "huge"})

    def fill(batch):
        if "huge" in batch:
            raise OutOfMemory("no room")

    report, stage = shout(tmp_path, batch_size=4, on_compute=fill)
    assert [o.key for o in report.problems] == ["in/b.txt"]
    assert [len(b) for b in stage.calls.batches] == [4, 2, 1, 1, 2, 4]


@pytest.fixture
def heard(caplog, monkeypatch) -> pytest.LogCaptureFixture:
    """What lora-prep says, though a command of another test may have taken the logger over."""
    monkeypatch.setattr(logging.getLogger("lora_prep"), "propagate", True)
    return caplog


def test_one_item_that_fits_only_alone_makes_later_batches_smaller_for_a_while(tmp_path, heard):
    write(tmp_path, **{f"n{i:02}": "huge" if i == 1 else "x" for i in range(48)})

    def fill(batch):
        if "huge" in batch and len(batch) > 1:
            raise OutOfMemory("no room")

    report, stage = shout(tmp_path, batch_size=8, on_compute=fill)
    assert report.counts == Counter({Status.DONE: 48})
    sizes = [len(b) for b in stage.calls.batches]
    assert sizes[:8] == [8, 4, 2, 1, 1, 1, 1, 2]
    assert sizes[-2:] == [8, 8]
    (record,) = heard.records
    wanted = "out of memory at a batch of 8: going on with 1, and with more once that goes well"
    assert record.message.startswith(wanted)


def test_a_memory_that_is_too_small_is_tried_again_ever_less_often(tmp_path, heard):
    write(tmp_path, **{f"n{i:03}": "x" for i in range(300)})
    report, stage = shout(tmp_path, batch_size=4, fits=2)
    assert report.counts == Counter({Status.DONE: 300})
    failed = [k for k, b in enumerate(stage.calls.batches) if len(b) > 2]
    assert 3 < len(failed) < 8
    gaps = [after - before for before, after in pairwise(failed)]
    assert all(after > 1.5 * before for before, after in pairwise(gaps))
    assert len(heard.records) == 1


def test_a_setting_that_some_items_depend_on_makes_only_those_again(tmp_path):
    write(tmp_path, a="x", b="!manner")
    shout(tmp_path)
    report, stage = shout(tmp_path, manner="coldly")
    assert report.counts == Counter({Status.FRESH: 1, Status.DONE: 1})
    assert outputs(tmp_path) == {"a": "X", "b": "coldly"}
    planned = plan(Shout(tmp_path, manner="softly"), tmp_path)
    assert [(o.key, o.status, o.code) for o in planned] == [
        ("in/a.txt", Status.FRESH, ""),
        ("in/b.txt", Status.DONE, "other-settings"),
    ]
    for counts in ({Status.FRESH: 1, Status.SKIPPED: 1},) * 2:
        report, stage = shout(tmp_path, manner="not at all")
        assert report.counts == Counter(counts)
    assert stage.calls.opened == 0
    report, _ = shout(tmp_path, manner="softly")
    assert report.counts == Counter({Status.FRESH: 1, Status.DONE: 1})
    assert outputs(tmp_path)["b"] == "softly"


def test_few_items_are_held_at_a_time(tmp_path):
    write(tmp_path, **{f"n{i:03}": "text" for i in range(200)})
    _, stage = shout(tmp_path, batch_size=4, threads=2)
    assert stage.calls.most_waiting <= 3 * (4 + 2)
    assert len(stage.calls.batches) == 50


def test_loading_happens_in_other_threads(tmp_path):
    write(tmp_path, **{f"n{i:03}": "text" for i in range(50)})
    _, stage = shout(tmp_path, threads=3)
    assert threading.get_ident() not in stage.calls.threads
    assert len(stage.calls.threads) <= 3


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.sampled_from(["x", "yy", "!fail", "!skip", "!bad-load"]), max_size=12),
    threads=st.integers(1, 4),
    batch_size=st.integers(1, 5),
)
def test_threads_and_batches_change_nothing(tmp_path_factory, texts, threads, batch_size):
    results = []
    for options in (
        {"threads": 1, "batch_size": 1},
        {"threads": threads, "batch_size": batch_size},
    ):
        root = tmp_path_factory.mktemp("data")
        write(root, **{f"n{i:02}": text for i, text in enumerate(texts)})
        (root / "out").mkdir()
        report, _ = shout(root, **options)
        results.append((report.counts, outputs(root), [o.key for o in report.problems]))
    assert results[0] == results[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_what_is_in_flight(tmp_path, number):
    write(tmp_path, **{f"n{i:03}": "text" for i in range(100)})

    def interrupt(batch):
        if len(stage.calls.batches) == 3:
            os.kill(os.getpid(), number)

    stage = Shout(tmp_path, on_compute=interrupt)
    report = run(stage, tmp_path, executor=LocalExecutor(2))
    assert report.signal == number
    assert report.exit_code == 128 + number
    assert len(stage.calls.batches) == 3
    assert len(outputs(tmp_path)) == report.counts[Status.DONE] == 6
    report, again = shout(tmp_path)
    assert report.counts == Counter({Status.DONE: 94, Status.FRESH: 6})
    assert len(again.calls.loaded) == 94


def test_two_runs_at_once_are_refused(tmp_path):
    write(tmp_path, a="x")
    messages = []

    def second(batch):
        with pytest.raises(DatasetError) as caught:
            shout(tmp_path)
        messages.append(str(caught.value))

    shout(tmp_path, on_compute=second)
    assert messages == [f"another lora-prep is working on {tmp_path}; wait until it has finished"]
    with exclusive(tmp_path / ".lora-prep"):
        pass


def test_plan_says_what_a_run_would_do_and_writes_nothing(tmp_path):
    write(tmp_path, a="x", b="y", c="z")
    shout(tmp_path)
    write(tmp_path, b="changed", d="new")
    (tmp_path / "out/c.txt").write_text("edited")
    files = sorted(p for p in tmp_path.rglob("*"))
    said = {o.key: o.status for o in plan(Shout(tmp_path), tmp_path)}
    assert said == {
        "in/a.txt": Status.FRESH,
        "in/b.txt": Status.DONE,
        "in/c.txt": Status.KEPT,
        "in/d.txt": Status.DONE,
    }
    assert sorted(p for p in tmp_path.rglob("*")) == files


def test_plan_of_a_new_dataset_makes_no_folder(tmp_path):
    write(tmp_path, a="x")
    assert [o.status for o in plan(Shout(tmp_path), tmp_path)] == [Status.DONE]
    assert not (tmp_path / ".lora-prep").exists()


def test_left_over_parts_of_a_dead_run_are_swept(tmp_path):
    write(tmp_path, a="x")
    (tmp_path / "out").mkdir()
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    left = tmp_path / "out" / f".a.txt.{new_token().split('-')[0]}-{dead}-0a1b2c3d.part"
    left.write_text("half")
    shout(tmp_path)
    assert not left.exists()
    assert outputs(tmp_path) == {"a": "X"}


def test_the_journal_knows_how_each_item_ended(tmp_path):
    write(tmp_path, a="x", b="!fail", c="!skip")
    shout(tmp_path)
    with Journal(tmp_path / ".lora-prep/shout.jsonl") as journal:
        assert {e.key: e.status for e in journal} == {
            "in/a.txt": Status.DONE,
            "in/b.txt": Status.FAILED,
            "in/c.txt": Status.SKIPPED,
        }


def test_files_that_were_touched_are_read_once_more_and_no_further(tmp_path, monkeypatch):
    write(tmp_path, a="x")
    old = time.time() - 60
    shout(tmp_path)
    os.utime(tmp_path / "in/a.txt", (old, old))
    monkeypatch.setattr("lora_prep.journal.SETTLED_NS", 0)
    read = []
    monkeypatch.setattr(
        "lora_prep.attempt.Attempt._read",
        lambda self, item, _read=Attempt._read: read.append(item.key) or _read(self, item),
    )
    for _ in range(3):
        report, _ = shout(tmp_path)
        assert report.counts == Counter({Status.FRESH: 1})
    assert read == ["in/a.txt"]


def test_a_plan_beside_a_run_leaves_its_journal_alone(tmp_path):
    write(tmp_path, **{f"n{i:03}": "text" for i in range(120)})
    shout(tmp_path, mark="1")
    shout(tmp_path, mark="2")  # from here on a journal that is opened for writing is compacted

    done = 0

    def meanwhile(batch):
        nonlocal done
        done += len(batch)
        if done > 105:  # before, there are too few lines
            list(plan(Shout(tmp_path, mark="3"), tmp_path))

    shout(tmp_path, mark="3", on_compute=meanwhile)
    report, _ = shout(tmp_path, mark="3")
    assert report.counts == Counter({Status.FRESH: 120})


def test_an_interrupt_before_the_model_is_loaded_loads_none(tmp_path):
    write(tmp_path, a="x", b="y")
    stage = Shout(tmp_path)
    items = list(stage.items())

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        yield from items

    object.__setattr__(stage, "items", interrupted)
    report = run(stage, tmp_path, executor=LocalExecutor(2))
    assert (report.exit_code, stage.calls.opened) == (130, 0)


@pytest.mark.parametrize("obstacle", [".lora-prep", ".lora-prep/shout.jsonl/x", "out"])
def test_what_cannot_be_written_is_said(tmp_path, obstacle):
    write(tmp_path, a="x")
    (tmp_path / obstacle).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / obstacle).write_text("in the way")
    with pytest.raises(DatasetError, match="cannot"):
        shout(tmp_path)


def test_an_older_result_put_back_by_hand_is_kept(tmp_path):
    write(tmp_path, a="x")
    shout(tmp_path)
    older = (tmp_path / "out/a.txt").read_text()
    shout(tmp_path, mark="!")
    (tmp_path / "out/a.txt").write_text(older)
    report, _ = shout(tmp_path, mark="!")
    assert report.counts == Counter({Status.KEPT: 1})
    assert outputs(tmp_path) == {"a": "X"}


class Renamed(Shout):
    """All items write to one output, as images of one stem do."""

    def items(self):
        for item in super().items():
            yield Item(item.key, item.inputs, (self.root / "out" / "one.txt",))


def test_the_result_of_a_renamed_input_is_replaced(tmp_path):
    write(tmp_path, a="old")
    run(Renamed(tmp_path), tmp_path, executor=LocalExecutor(2))
    (tmp_path / "in/a.txt").rename(tmp_path / "in/b.txt")
    write(tmp_path, b="new")
    report = run(Renamed(tmp_path), tmp_path, executor=LocalExecutor(2))
    assert report.counts == Counter({Status.DONE: 1})
    assert outputs(tmp_path) == {"one": "NEW"}


def test_two_inputs_never_take_turns_at_one_output(tmp_path):
    write(tmp_path, a="first")
    run(Renamed(tmp_path), tmp_path, executor=LocalExecutor(2))
    write(tmp_path, b="second")
    for _ in range(2):
        report = run(Renamed(tmp_path), tmp_path, executor=LocalExecutor(2), force=True)
        assert [(o.key, o.code) for o in report.problems] == [("in/b.txt", "shared-name")]
        assert outputs(tmp_path) == {"one": "FIRST"}


def test_a_link_to_nowhere_is_left_alone(tmp_path):
    write(tmp_path, a="x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").symlink_to(tmp_path / "unmounted/a.txt")
    report, _ = shout(tmp_path)
    assert report.counts == Counter({Status.KEPT: 1})
    assert (tmp_path / "out/a.txt").is_symlink()


def test_nothing_is_left_behind_by_an_error(tmp_path):
    write(tmp_path, **{f"n{i:02}": "!bug" if i == 5 else "text" for i in range(10)})
    with pytest.raises(ZeroDivisionError):
        shout(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


@dataclass(frozen=True)
class ShoutByContent(Shout):
    """`in/x.txt` to `out/x-<TEXT>.txt`: the names depend on what is made."""

    def items(self) -> Iterator[Item]:
        for item in super().items():
            yield Item(item.key, item.inputs, (), folder=self.root / "out")

    def open(self) -> "ShoutingByContent":
        self.calls.opened += 1
        return ShoutingByContent(Shouting(replace(self, more_outputs=())), self)


@dataclass(frozen=True)
class ShoutingByContent:
    inner: Shouting
    stage: ShoutByContent

    def load(self, item: Item, inputs: Sequence[bytes]) -> str:
        return self.inner.load(item, inputs)

    def compute(self, batch: Sequence[str]) -> Sequence[str | ItemError]:
        return self.inner.compute(batch)

    def save(self, item: Item, text: str) -> Saved:
        name = f"{Path(item.key).stem}-{text}.txt"
        return Saved({item.folder / name: text.encode()})


def by_content(root: Path, *, force: bool = False, **options) -> Report:
    return run(ShoutByContent(root, **options), root, executor=LocalExecutor(2), force=force)


def test_names_that_depend_on_the_content_are_remembered(tmp_path):
    write(tmp_path, a="x", b="y")
    assert by_content(tmp_path).counts == Counter({Status.DONE: 2})
    assert outputs(tmp_path) == {"a-X": "X", "b-Y": "Y"}
    assert by_content(tmp_path).counts == Counter({Status.FRESH: 2})
    (tmp_path / "out/a-X.txt").unlink()
    assert by_content(tmp_path).counts == Counter({Status.DONE: 1, Status.FRESH: 1})
    assert outputs(tmp_path) == {"a-X": "X", "b-Y": "Y"}


def test_a_new_name_replaces_the_old_one_unless_it_was_edited(tmp_path):
    write(tmp_path, a="x", b="y")
    by_content(tmp_path)
    (tmp_path / "out/other.txt").write_text("theirs")
    (tmp_path / "out/b-Y.txt").write_text("edited")
    report = by_content(tmp_path, mark="!")
    assert report.counts == Counter({Status.DONE: 1, Status.KEPT: 1})
    assert outputs(tmp_path) == {"a-X!": "X!", "b-Y": "edited", "other": "theirs"}
    by_content(tmp_path, mark="?", force=True)
    assert outputs(tmp_path) == {
        **{"a-X?": "X?", "b-Y?": "Y?"},
        **{"b-Y": "edited", "other": "theirs"},
    }


def test_another_persons_file_under_the_new_name_is_left(tmp_path):
    write(tmp_path, a="x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a-X.txt").write_text("theirs")
    assert by_content(tmp_path).counts == Counter({Status.KEPT: 1})
    assert outputs(tmp_path) == {"a-X": "theirs"}
