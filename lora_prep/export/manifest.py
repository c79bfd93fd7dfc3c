"""What an export's folder says about itself: every file of ours, with its hash.

Two hidden files. The manifest lists what a finished export wrote. The journal gets a line before
each write and goes with the export's end, so that after a crash a file is still known as ours by
its content. Both may have been edited or come from somewhere else: a name leads nowhere but into
the folder, and a file is ours by its hash, never by its name alone.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_prep.errors import DatasetError
from lora_prep.types import Json

MANIFEST = ".lora-prep-export.json"
JOURNAL = ".lora-prep-export.pending"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of ours."""

    sha256: str
    made_from: str
    """Hash of all it depends on."""
    stat: tuple[int, int] | None = None
    """Size and modification time in ns, which tell without reading that nothing changed."""
    linked: bool = False
    """It is the source's own file by another name."""
    source: str = ""
    """The absolute path of that file."""

    def is_at(self, path: Path) -> bool:
        """Whether this path still holds what was written there, or is still the link."""
        if self.linked and self.source:
            with suppress(OSError):
                if path.is_symlink() and os.fsdecode(path.readlink()) == self.source:
                    return True
            with suppress(OSError):
                apart = os.path.realpath(path) != os.path.realpath(self.source)
                if (apart or path.is_symlink()) and path.samefile(self.source):
                    return True
        if self.stat is not None and file_stat(path) == self.stat:
            return path.is_file()
        return has_hash(path, {self.sha256})


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder says about itself."""

    trainer: str = ""
    files: Mapping[str, Entry] = field(default_factory=dict)
    pending: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Files that an export was about to write when it died, with their hashes."""
    about: Mapping[str, Json] = field(default_factory=dict)
    """How to read the export back: its configurations, folders, settings."""

    @classmethod
    def read(cls, out: Path) -> "Manifest":
        """The manifest of a folder; an empty one where there is none. Raises DatasetError."""
        path = out / MANIFEST
        try:
            document = json.loads(path.read_bytes())
            files = {_safe(name): _entry(value) for name, value in document["files"].items()}
            trainer, about = document["trainer"], document["about"]
            if not isinstance(trainer, str) or not isinstance(about, dict):
                raise TypeError("`trainer` or `about` is of the wrong type")
            return cls(trainer, files, _journal(out), about)
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DatasetError(
                f"{path} cannot be read ({error}): delete the folder {out}, or export to another"
            ) from error

    def to_bytes(self) -> bytes:
        """As JSON, without what is pending."""
        files = {
            name: {
                "sha256": e.sha256,
                "from": e.made_from,
                "stat": e.stat,
                "linked": e.linked,
                **({"source": e.source} if e.source else {}),
            }
            for name, e in sorted(self.files.items())
        }
        document = {
            "schema": SCHEMA,
            "trainer": self.trainer,
            "about": dict(self.about),
            "files": files,
        }
        return (json.dumps(document, indent=1) + "\n").encode()

    def owns(self, name: str, path: Path) -> bool:
        """Whether the file at this path is one that an export wrote, and nobody changed."""
        entry = self.files.get(name)
        return bool(entry and entry.is_at(path)) or has_hash(path, self.pending.get(name, ()))


def announce(out: Path, name: str, sha256: str) -> None:
    """Own a file before it is there. A line that a crash tears leaves the others readable."""
    line = f"\n{json.dumps([name, sha256])}\n".encode()
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(out / JOURNAL, flags, 0o644)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)
    except OSError as error:
        raise DatasetError(f"{out / JOURNAL} cannot be written: {error.strerror}") from error


def is_safe(name: object) -> bool:
    """Whether this is the name of a file in the folder, and of nothing outside of it."""
    if not isinstance(name, str) or "\0" in name or name in ("", ".", MANIFEST, JOURNAL):
        return False
    path = Path(name)
    return path.as_posix() == name and not path.anchor and ".." not in path.parts


def has_hash(path: Path, hashes: "frozenset[str] | set[str] | tuple[()]") -> bool:
    """Whether a file's content is one of these."""
    if not hashes:
        return False
    try:
        return path.is_file() and file_hash(path) in hashes
    except OSError:
        return False


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def file_stat(path: Path) -> tuple[int, int] | None:
    """Size and modification time in ns; None where there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _safe(name: str) -> str:
    if not is_safe(name):
        raise ValueError(f"{name!r} is no name of a file in the export")
    return name


def _entry(value: Any) -> Entry:
    stat, linked, source = value["stat"], value["linked"], value.get("source", "")
    numbers = stat is None or (
        isinstance(stat, list) and len(stat) == 2 and all(isinstance(x, int) for x in stat)
    )
    texts = all(isinstance(x, str) for x in (value["sha256"], value["from"], source))
    if not numbers or not texts or not isinstance(linked, bool):
        raise TypeError("an entry of `files` is of the wrong type")
    pair = None if stat is None else (stat[0], stat[1])
    return Entry(value["sha256"], value["from"], pair, linked, source)


def _journal(out: Path) -> dict[str, frozenset[str]]:
    """Raises ValueError for names that lead elsewhere. Torn lines say nothing."""
    path = out / JOURNAL
    if path.is_symlink():
        raise ValueError(f"{JOURNAL} is a link")
    found: dict[str, frozenset[str]] = {}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
                name, digest = entry
                if is_safe(name):  # what is not named is not ours
                    found[name] = found.get(name, frozenset()) | {digest}
    return found
