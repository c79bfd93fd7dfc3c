"""What was done, with which settings and from which bytes: one JSON line an item.

The line is written before the outputs appear under their final names. So an output that exists was
journalled, whatever killed the run in between; and a file whose content is not in the journal was
made or edited by somebody else.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

from lora_prep import imageio
from lora_prep.errors import DatasetError
from lora_prep.offsets import Offsets
from lora_prep.types import Json, Status

SETTLED_NS = 2_000_000_000
"""A file younger than this may change within one tick of its clock: it is hashed each time."""

FSYNC_SECONDS = 1.0

NOT_AN_ENTRY = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
)
"""What reading a torn or foreign line raises."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file's content by hash, and by what the file system says of it (quicker to ask)."""

    sha256: str
    size: int
    stat: tuple[int, ...] | None
    """Inode, modification and change time in ns; None where it cannot be relied on."""
    before: tuple[int, ...] | None = None
    """For outputs: inode and modification time of the file of ours that this one replaces: death
    between the journal line and the renaming leaves that file in place."""

    def is_untouched(self, path: Path) -> bool:
        """Whether the file system says that the file has not changed. Reads nothing."""
        found = path.stat()
        return found.st_size == self.size and self._has_signature(found)

    def was_not_replaced(self, path: Path) -> bool:
        """Whether the file is still the one that this output was to replace."""
        return self.before is not None and _signature(path.stat(), 2) == self.before

    def renewed(self, path: Path) -> "Stamp":
        """The stamp of an output with the same content and other dates."""
        return Stamp(self.sha256, self.size, _signature(path.stat(), 2))

    def _has_signature(self, found: os.stat_result) -> bool:
        return self.stat is not None and _signature(found, len(self.stat)) == self.stat

    def matches(self, path: Path) -> bool:
        """Whether the file has this content. Reads it only where the file system leaves a doubt."""
        found = path.stat()
        if found.st_size != self.size:
            return False
        return self._has_signature(found) or hash_file(path) == self.sha256

    @classmethod
    def of_input(cls, data: bytes, seen: os.stat_result) -> "Stamp":
        """Stamp of an input that was read as `data` after `seen` was asked."""
        settled = abs(time.time_ns() - seen.st_ctime_ns) > SETTLED_NS
        return cls(_sha256(data), len(data), _signature(seen, 3) if settled else None)

    @classmethod
    def of_output(cls, data: bytes, part: Path, replaces: Path | None = None) -> "Stamp":
        """Stamp of an output that was written as the file `part` and has yet to be renamed.

        `replaces` is the file of ours that lies under the final name, if one does. Renaming sets
        the change time, so that is left out.
        """
        before = _signature(replaces.stat(), 2) if replaces else None
        return cls(_sha256(data), len(data), _signature(part.stat(), 2), before)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the journal knows of an item."""

    key: str
    status: Status
    fingerprint: str
    """Hash of the settings and the inputs' content."""
    inputs: Mapping[str, Stamp]
    """By path relative to the root."""
    outputs: Mapping[str, Stamp]
    """What was last written to each path, by this attempt or an earlier one."""
    code: str = ""
    message: str = ""
    info: dict[str, Json] | None = None
    warnings: tuple[str, ...] = ()
    maker: "Entry | None" = None
    """The attempt that wrote the outputs, where this one wrote none."""

    def to_line(self) -> str:
        """One line of JSON, with its end of line."""
        return json.dumps(self._to_json(), separators=(",", ":")) + "\n"

    def _to_json(self) -> dict[str, Json]:
        value: dict[str, Json] = {
            "key": self.key,
            "status": self.status,
            "fingerprint": self.fingerprint,
            "inputs": {path: _stamp_to_json(s) for path, s in self.inputs.items()},
            "outputs": {path: _stamp_to_json(s) for path, s in self.outputs.items()},
        }
        for name in ("code", "message", "info", "warnings"):
            if getattr(self, name):
                value[name] = getattr(self, name)
        if self.maker:
            value["maker"] = self.maker._to_json()
        return value

    @classmethod
    def from_line(cls, line: bytes | str) -> "Entry":
        """The entry on a line. Raises one of `NOT_AN_ENTRY` on any other input."""
        return cls._from_json(json.loads(line))

    @classmethod
    def _from_json(cls, value: Json) -> "Entry":
        return cls(
            key=str(value["key"]),
            status=Status(value["status"]),
            fingerprint=str(value["fingerprint"]),
            inputs={str(p): _stamp_from_json(s) for p, s in value["inputs"].items()},
            outputs={str(p): _stamp_from_json(s) for p, s in value["outputs"].items()},
            code=str(value.get("code", "")),
            message=str(value.get("message", "")),
            info=value.get("info"),
            warnings=tuple(str(w) for w in value.get("warnings", ())),
            maker=cls._from_json(value["maker"]) if value.get("maker") else None,
        )


class Journal:
    """The journal of one stage on one data set: an append-only file of entries, the last one wins.

    Only the offset of each entry is held in memory; entries are read back when asked for. A journal
    that is opened `read_only` (it has to exist) may be written by another process meanwhile. What
    is not in it is asked of `base`, where one is given: what was done before this one was begun.
    """

    def __init__(
        self, path: Path, *, read_only: bool = False, base: "Journal | None" = None
    ) -> None:
        self.path = path
        self._read_only = read_only
        self._base = base
        if not read_only:
            imageio.make_folder(path.parent)
        with self._writing():
            self._file: FileIO = path.open("rb" if read_only else "a+b", buffering=0)
        self._offsets = Offsets()
        """Of each item's last entry, by its key."""
        self._writers = Offsets()
        """Of the last entry that wrote it, by the path of an output."""
        self._synced = time.monotonic()
        lines = self._index()
        if lines > 2 * len(self._offsets) + 100 and not read_only:
            self._compact()

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Entry]:
        """The last entry of each item, in the order in which the items were first done."""
        return map(self._read, self._offsets)

    @property
    def is_layered(self) -> bool:
        """Whether there is a base below."""
        return self._base is not None

    def __contains__(self, key: str) -> bool:
        """Whether an item has an entry here, whatever the base has."""
        return self._own(key) is not None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def get(self, key: str) -> Entry | None:
        """The last entry of an item."""
        return self._own(key) or (self._base.get(key) if self._base else None)

    def _own(self, key: str) -> Entry | None:
        offset = self._offsets.get(key)
        entry = None if offset is None else self._read(offset)
        return entry if entry and entry.key == key else None

    def writers(self, key: str, outputs: Iterable[str]) -> dict[str, Entry]:
        """The entries of other items that last wrote to these paths, relative to the root."""
        own = self._offsets.get(key)
        others = ((path, self._writer(path, own)) for path in outputs)
        entries = ((path, self.get(other)) for path, other in others if other and other != key)
        return {path: entry for path, entry in entries if entry}

    def _writer(self, path: str, own: int | None) -> str | None:
        """The key of the item that last wrote to a path; None where its entry lies at `own`."""
        offset = self._writers.get(path)
        if offset is not None and offset == own:
            return None
        entry = None if offset is None else self._read(offset)
        if entry and path in entry.outputs:
            return entry.key
        return self._base._writer(path, None) if self._base else None

    def _note(self, entry: Entry, offset: int) -> None:
        self._offsets[entry.key] = offset
        if entry.status is Status.DONE:
            for path in entry.outputs:
                self._writers[path] = offset

    def append(self, entry: Entry) -> None:
        """Record an entry. It survives the process at once, and the machine after a second."""
        data = entry.to_line().encode()
        with self._writing():
            offset = self._file.seek(0, os.SEEK_END)
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._note(entry, offset)
        if time.monotonic() - self._synced > FSYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        """Make everything durable and close the file."""
        if not self._read_only:
            self._sync()
        self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DatasetError(
                f"cannot write {self.path}: {error.strerror}. Nothing is lost: mend that, and run "
                "the same command again"
            ) from error

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _read(self, offset: int) -> Entry:
        self._file.seek(offset)
        chunks = []
        while chunk := self._file.read(4096):
            head, newline, _ = chunk.partition(b"\n")
            chunks.append(head)
            if newline:
                break
        return Entry.from_line(b"".join(chunks))

    def _index(self) -> int:
        """Fill the offsets; returns the number of lines. A torn or foreign line is passed over."""
        offset = lines = 0
        torn = False
        with self.path.open("rb") as file:
            for line in file:
                lines += 1
                with suppress(*NOT_AN_ENTRY):
                    self._note(Entry.from_line(line), offset)
                offset += len(line)
                torn = not line.endswith(b"\n")
        if torn and not self._read_only:
            self._file.write(b"\n")
        return lines

    def _compact(self) -> None:
        """Rewrite the file with the last entry of each item alone."""
        part = self.path.with_name(f".{self.path.name}.part")
        with part.open("wb") as file:
            for entry in self:
                file.write(entry.to_line().encode())
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        part.replace(self.path)
        self._file = self.path.open("a+b", buffering=0)
        self._offsets, self._writers = Offsets(), Offsets()
        self._index()


@contextmanager
def exclusive(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a folder for this process; the lock ends with the process, however it ends.

    `shared`: together with others that hold it so. Raises DatasetError where another process holds
    it otherwise. File systems without locks are not locked.
    """
    imageio.make_folder(folder)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetError(
                f"another lora-prep is working on {folder.parent}; wait until it has finished"
            ) from error
        except OSError:
            pass  # a network file system without locks
        yield
    finally:
        os.close(handle)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _signature(found: os.stat_result, length: int) -> tuple[int, ...]:
    return (found.st_ino, found.st_mtime_ns, found.st_ctime_ns)[:length]


def _stamp_to_json(stamp: Stamp) -> list[Json]:
    return [stamp.sha256, stamp.size, stamp.stat, *([stamp.before] if stamp.before else [])]


def _stamp_from_json(value: Json) -> Stamp:
    sha256, size, stat, *rest = value
    before = rest[0] if rest else None
    return Stamp(str(sha256), int(size), _integers(stat), _integers(before))


def _integers(value: Json) -> tuple[int, ...] | None:
    return None if value is None else tuple(int(v) for v in value)
