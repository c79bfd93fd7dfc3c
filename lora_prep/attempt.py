"""One attempt at one item: the steps that executors call, wherever they run."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic

from lora_prep import imageio
from lora_prep.batching import BatchSize
from lora_prep.dataset import CAPTION_SUFFIX, STATE_FOLDER
from lora_prep.errors import ItemError, OutOfMemory
from lora_prep.journal import Entry, Stamp, hash_file
from lora_prep.stage import Item, Loaded, Stage, Worker
from lora_prep.types import Json, Status

MAX_BYTES = 1 << 30
"""Larger files are refused: they are no photographs, and are read whole."""


@dataclass(frozen=True, slots=True)
class Task:
    """An item on its way to an executor, with what the journal knows of it."""

    item: Item
    previous: Entry | None
    others: Mapping[str, Entry] = field(default_factory=dict)
    """Entries of other items that last wrote to this item's outputs, by relative path."""


@dataclass(frozen=True, slots=True)
class Existing:
    """An output that exists."""

    sha256: str
    ours: bool
    """Written by lora-prep, and as it was written."""


@dataclass(frozen=True, slots=True)
class Finished:
    """An item on its way back: what to record, and the part files to rename."""

    item: Item
    entry: Entry
    status: Status
    parts: tuple[tuple[Path, Path, str], ...] = ()
    """Part file, final path, and hash of what was at the final path when the item was checked."""
    news: bool = True
    """Whether the journal does not have the entry yet."""
    superseded: tuple[tuple[Path, str], ...] = ()
    """Files of ours under names that the item no longer has, and their hashes."""


@dataclass(frozen=True, slots=True)
class Checked(Generic[Loaded]):
    """An item that has to be worked on."""

    task: Task
    blobs: tuple[bytes, ...]
    inputs: Mapping[str, Stamp]
    found: Mapping[Path, Existing]
    loaded: Loaded | None = None


class Attempt:
    """The steps of one item, for executors: they need no driver, and it can be pickled."""

    def __init__(self, stage: Stage, root: Path, *, force: bool = False) -> None:
        self.root = root
        self.force = force
        self.token = imageio.new_token()
        self._settings = _digest(dict(stage.settings()))
        self._batch = BatchSize(stage.batch_size)

    def twin(self) -> "Attempt":
        """The same for another worker: no part file of one has the name of another's.

        So what a worker still writes that was given up for dead harms nobody.
        """
        twin = copy(self)
        twin.token = f"{self._family}-{secrets.token_hex(4)}"
        twin._batch = BatchSize(self._batch.most)
        return twin

    @property
    def _family(self) -> str:
        """What the tokens of all twins begin with: host and process of the driver."""
        return self.token.rpartition("-")[0]

    def discard(self, folder: Path) -> None:
        """Delete the parts in a folder that this attempt and its twins have left."""
        imageio.discard(folder, f"{self._family}-*")

    def suits(self, item: Item, entry: Entry) -> bool:
        """Whether an item's entry was made with these settings."""
        return entry.fingerprint == self._fingerprint(entry.inputs) and _chosen(item, entry)

    def check(self, task: Task) -> Checked[Any] | Finished:
        """Compare an item with the journal; read its inputs where there is work to do."""
        item, previous = task.item, task.previous
        try:
            if item.problem:
                raise item.problem
            found = self._outputs_found(task)
            if found is None:
                return self._kept(task)
            unread = previous.inputs if previous and self._untouched(item, previous) else None
            if previous and unread and self._fresh(item, previous, unread, found):
                return Finished(item, previous, _still(previous), news=False)
            stamps, blobs = self._read(item)
            if previous and not unread and self._fresh(item, previous, stamps, found):
                return Finished(item, self._renewed(previous, stamps, found), _still(previous))
            return Checked(task, tuple(blobs), stamps, found)
        except ItemError as error:
            return self.failed(task, error)

    def load(self, worker: Worker[Any, Any], checked: Checked[Any]) -> Checked[Any] | Finished:
        """Decode an item's inputs."""
        try:
            with _naming(checked.task.item):
                loaded = worker.load(checked.task.item, checked.blobs)
        except ItemError as error:
            return self.failed(checked.task, error, checked)
        return Checked(checked.task, (), checked.inputs, checked.found, loaded)

    def compute(
        self, worker: Worker[Any, Any], batch: Sequence[Checked[Any]]
    ) -> list[tuple[Checked[Any], Any]]:
        """Run the model on a batch, in parts where the device's memory asks for it."""
        computed: list[tuple[Checked[Any], Any]] = []
        while part := batch[len(computed) :][: self._batch.size]:
            try:
                with _naming(*(c.task.item for c in part)):
                    results = worker.compute([c.loaded for c in part])
            except OutOfMemory as error:
                if len(part) > 1:
                    self._batch.failed(len(part))
                    continue
                self._batch.failed_alone()
                reason = ItemError(f"{error}, even for this image alone", code="out-of-memory")
                results = [reason]
            else:
                self._batch.went_well(len(part))
            computed += zip(part, results, strict=True)
        return computed

    def save(self, worker: Worker[Any, Any], checked: Checked[Any], computed: Any) -> Finished:
        """Encode an item's result and write it as part files beside the final paths."""
        item = checked.task.item
        if isinstance(computed, ItemError):
            return self.failed(checked.task, computed, checked)
        try:
            with _naming(item):
                saved = worker.save(item, computed)
        except ItemError as error:
            return self.failed(checked.task, error, checked)
        if saved.skipped:
            return self._ended(
                checked.task, Status.SKIPPED, checked, saved.skipped, saved.info, saved.warnings
            )
        outputs: dict[str, Stamp] = {}
        parts: list[tuple[Path, Path, str]] = []
        paths = tuple(saved.files) if item.folder else item.outputs
        for path in paths:
            data = saved.files[path]
            imageio.make_folder(path.parent)
            part = imageio.write_part(path, data, token=self.token)
            existing = checked.found.get(path)
            replaces = path if existing and existing.ours else None
            outputs[self.relative(path)] = Stamp.of_output(data, part, replaces)
            parts.append((part, path, existing.sha256 if existing else ""))
        former = {self.relative(path) for path in item.former}
        earlier = {p: s for p, s in _written(checked.task.previous).items() if p not in former}
        entry = Entry(
            item.key,
            Status.DONE,
            self._fingerprint(checked.inputs),
            checked.inputs,
            outputs if item.folder else {**earlier, **outputs},
            info=saved.info,
            warnings=saved.warnings,
        )
        superseded = tuple(
            (path, existing.sha256)
            for path, existing in checked.found.items()
            if path not in paths and (existing.ours or path in item.former)
        )
        return Finished(item, entry, Status.DONE, tuple(parts), superseded=superseded)

    def failed(self, task: Task, error: ItemError, checked: Checked[Any] | None = None) -> Finished:
        """The end of an item that cannot be worked on."""
        return self._ended(task, Status.FAILED, checked, str(error), error.info, code=error.code)

    def _ended(
        self,
        task: Task,
        status: Status,
        checked: Checked[Any] | None,
        message: str,
        info: dict[str, Json] | None = None,
        warnings: tuple[str, ...] = (),
        code: str = "",
    ) -> Finished:
        places = (*task.item.outputs, *self._former(task))
        left = [self.relative(p) for p in places if os.path.exists(p)]  # noqa: PTH110 never raises
        if left and status in (Status.FAILED, Status.SKIPPED):
            warnings = (*warnings, f"an older result is still there: {', '.join(left)}")
        inputs = checked.inputs if checked else {}
        entry = Entry(
            task.item.key,
            status,
            self._fingerprint(inputs),
            inputs,
            _written(task.previous),
            code=code,
            message=message,
            info=info,
            warnings=warnings,
            maker=_maker(task.previous),
        )
        return Finished(task.item, entry, status)

    def _kept(self, task: Task) -> Finished:
        message = "not written by lora-prep, or edited since: left as it is (--force replaces it)"
        return self._ended(task, Status.KEPT, None, message, code="kept")

    def _outputs_found(self, task: Task) -> dict[Path, Existing] | None:
        """The outputs that exist, and the former ones; None where one is not ours to replace.

        Raises ItemError where another item, whose input still exists, writes to the same path.
        """
        found: dict[Path, Existing] = {}
        for path in (*task.item.outputs, *self._former(task)):
            try:
                existing = self._existing(task, path)
            except OSError as error:
                raise ItemError(
                    f"cannot read {path}: {error.strerror}", code="unreadable"
                ) from error
            if existing is None:
                continue
            if not existing.ours and not self.force:
                return None
            found[path] = existing
        return found

    def _former(self, task: Task) -> list[Path]:
        """The files that this item wrote under other settings, where they lie yet."""
        written = _written(task.previous)
        return [
            path
            for path in task.item.former
            if self.relative(path) in written and os.path.exists(path)  # noqa: PTH110 never raises
        ]

    def _existing(self, task: Task, path: Path) -> Existing | None:
        relative = self.relative(path)
        stamp = task.previous.outputs.get(relative) if task.previous else None
        try:
            empty = path.stat().st_size == 0
        except (FileNotFoundError, NotADirectoryError):
            return Existing("", ours=False) if path.is_symlink() else None
        if empty and path.suffix != CAPTION_SUFFIX:
            return None  # what a crash of the machine leaves; nobody edits a mask to nothing
        if stamp and stamp.matches(path):
            return Existing(stamp.sha256, ours=True)
        sha256 = hash_file(path)
        private = STATE_FOLDER in Path(relative).parts
        ours = private or (stamp is not None and stamp.was_not_replaced(path))
        return Existing(sha256, ours or self._is_left_by_another(task, relative, sha256))

    def _is_left_by_another(self, task: Task, relative: str, sha256: str) -> bool:
        """Whether another item wrote this very file, and its input is gone: renamed, for example.

        Raises ItemError where its input is still there: both would write to the same path.
        """
        other = task.others.get(relative)
        if other is None or other.outputs[relative].sha256 != sha256:
            return False
        if (self.root / other.key).exists():
            raise ItemError(
                f"{relative} is already made from {other.key}: rename one of the two, or choose "
                "another output folder",
                code="shared-name",
            )
        return True

    def _renewed(
        self, previous: Entry, inputs: Mapping[str, Stamp], found: Mapping[Path, Existing]
    ) -> Entry:
        """The entry with the dates that its files have now, so that next time none is read."""
        outputs = dict(previous.outputs)
        for path in found:
            outputs[self.relative(path)] = outputs[self.relative(path)].renewed(path)
        return replace(previous, inputs=inputs, outputs=outputs)

    def _untouched(self, item: Item, previous: Entry) -> bool:
        """Whether the file system says that no input was touched since the journal's entry."""
        if list(previous.inputs) != [self.relative(p) for p in item.inputs]:
            return False
        try:
            return all(
                stamp.is_untouched(path)
                for path, stamp in zip(item.inputs, previous.inputs.values(), strict=True)
            )
        except OSError:
            return False

    def _read(self, item: Item) -> tuple[dict[str, Stamp], list[bytes]]:
        stamps, blobs = {}, []
        for path in item.inputs:
            try:
                with path.open("rb") as file:
                    seen = os.fstat(file.fileno())
                    if seen.st_size > MAX_BYTES:
                        raise ItemError(
                            f"{seen.st_size:,} bytes are more than the limit of {MAX_BYTES:,}",
                            code="too-large",
                        )
                    data = file.read()
            except OSError as error:
                raise ItemError(f"cannot be read: {error.strerror}", code="unreadable") from error
            stamps[self.relative(path)] = Stamp.of_input(data, seen)
            blobs.append(data)
        return stamps, blobs

    def _fresh(
        self,
        item: Item,
        previous: Entry,
        inputs: Mapping[str, Stamp],
        found: Mapping[Path, Existing],
    ) -> bool:
        if self.force or previous.fingerprint != self._fingerprint(inputs):
            return False
        if not _chosen(item, previous):
            return False
        if previous.status is Status.SKIPPED:
            return True
        written = {path: previous.outputs.get(self.relative(path)) for path in item.outputs}
        if any(path in found for path in item.former):
            return False
        return previous.status is Status.DONE and all(
            stamp is not None and path in found and found[path].sha256 == stamp.sha256
            for path, stamp in written.items()
        )

    def _fingerprint(self, inputs: Mapping[str, Stamp]) -> str:
        return _digest([self._settings, *(stamp.sha256 for stamp in inputs.values())])

    def relative(self, path: Path) -> str:
        """A path as the journal has it: relative to the root, with forward slashes."""
        return Path(os.path.relpath(path, self.root)).as_posix()


def _chosen(item: Item, entry: Entry) -> bool:
    """Whether those of the item's conditional settings that changed the entry are as they were."""
    facts = entry.info or {}
    return all(facts.get(name, value) == value for name, value in item.conditional.items())


def _still(previous: Entry) -> Status:
    """What to call an item that is as it was."""
    return Status.SKIPPED if previous.status is Status.SKIPPED else Status.FRESH


def _written(previous: Entry | None) -> Mapping[str, Stamp]:
    return previous.outputs if previous else {}


def _maker(previous: Entry | None) -> Entry | None:
    """The attempt that wrote what `_written` says."""
    return previous if previous and previous.status is Status.DONE else previous and previous.maker


@contextmanager
def _naming(*items: Item) -> Iterator[None]:
    """Add the items' names to an exception that nobody expected."""
    try:
        yield
    except (ItemError, OutOfMemory):
        raise
    except Exception as error:
        error.add_note("while working on " + ", ".join(item.key for item in items))
        raise


def _digest(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
