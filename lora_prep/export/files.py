"""The export's folder: what is ours in it, what is not, and files that appear at once.

A manifest names every file that an export wrote, with its hash. So a second export writes only what
changed, removes what is no longer wanted, and touches nothing else. Before anything is written the
manifest says what will be; a run that died half-way leaves no file that nobody owns.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_prep import imageio
from lora_prep.errors import DatasetError, UsageError
from lora_prep.export.plan import Link
from lora_prep.types import Json

MANIFEST = ".lora-prep-export.json"
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


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder says about itself."""

    trainer: str = ""
    files: Mapping[str, Entry] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()
    """Files that an export was about to write when it died."""
    about: Mapping[str, Json] = field(default_factory=dict)
    """How to read the export back: its configurations, folders, settings."""

    @classmethod
    def read(cls, out: Path) -> "Manifest":
        """The manifest of a folder; an empty one where there is none. Raises DatasetError."""
        path = out / MANIFEST
        try:
            document = json.loads(path.read_bytes())
            files = {
                name: Entry(
                    str(e["sha256"]), str(e["from"]), e["stat"] and tuple(e["stat"]), e["linked"]
                )
                for name, e in document["files"].items()
            }
            pending = frozenset(document["pending"])
            return cls(document["trainer"], files, pending, document["about"])
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{path} cannot be read ({error}): delete the folder {out}, or export to another"
            ) from error

    def to_bytes(self) -> bytes:
        """As JSON."""
        files = {
            name: {"sha256": e.sha256, "from": e.made_from, "stat": e.stat, "linked": e.linked}
            for name, e in sorted(self.files.items())
        }
        document = {
            "schema": SCHEMA,
            "trainer": self.trainer,
            "about": dict(self.about),
            "pending": sorted(self.pending),
            "files": files,
        }
        return (json.dumps(document, indent=1) + "\n").encode()


@dataclass
class Folder:
    """An export being written. `changed` and `removed` say what was, or would be, done."""

    out: Path
    trainer: str
    dry_run: bool = False
    force: bool = False
    before: Manifest = field(init=False)
    files: dict[str, Entry] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    _announced: frozenset[str] = frozenset()
    """Files of this export, until the manifest on disk names them."""

    def __post_init__(self) -> None:
        self.before = Manifest.read(self.out)
        if self.before.trainer not in ("", self.trainer):
            raise UsageError(
                f"{self.out} holds an export for {self.before.trainer}: give each trainer a folder "
                "of its own"
            )

    def begin(self, names: Iterable[str]) -> None:
        """Say which files will be written; refuse to write over those of others.

        Raises UsageError where one of them is there and not ours, or was edited since.
        """
        names = set(names)
        for name in sorted(names):
            path = self.out / name
            if not os.path.lexists(path) or self.force:
                continue
            entry = self.before.files.get(name)
            if entry is None and name not in self.before.pending:
                raise UsageError(
                    f"{path} is in the way, and no export wrote it: move it, give another --out, "
                    "or --force to replace it"
                )
            if entry and name not in self.before.pending and self._edited(path, entry):
                raise UsageError(
                    f"{path} was changed by hand since the export: move it away to keep it, or "
                    "give --force to replace it"
                )
        self._announced = frozenset(names)

    def is_fresh(self, names: Iterable[str], made_from: str, source: Path) -> bool:
        """Whether these files are there, made from just this; then they are kept."""
        entries = {name: self.before.files.get(name) for name in names}
        for name, entry in entries.items():
            if entry is None or entry.made_from != made_from:
                return False
            path = self.out / name
            if name in self.before.pending or not path.is_file() or self._edited(path, entry):
                return False
            if entry.linked and not path.samefile(source):
                return False
        self.files.update({name: entry for name, entry in entries.items() if entry})
        return True

    def put(self, name: str, data: bytes, made_from: str) -> None:
        """Write a file, where it is not just so already."""
        path, digest = self.out / name, hashlib.sha256(data).hexdigest()
        if not path.is_file() or path.is_symlink() or file_hash(path) != digest or _shared(path):
            self._write(name, data)
        self.files[name] = Entry(digest, made_from, self._stat(path))

    def link(self, name: str, source: Path, data: bytes, how: Link, made_from: str) -> None:
        """Give a source file another name here; copy it where that is not possible."""
        path = self.out / name
        if how == "copy":
            self.put(name, data, made_from)
            return
        same = path.exists() and path.samefile(source) and path.is_symlink() == (how == "symlink")
        if not same and self._may_write(name) and not _linked(source, path, how):
            self.changed.pop()
            self.put(name, data, made_from)
            return
        digest = hashlib.sha256(data).hexdigest()
        self.files[name] = Entry(digest, made_from, None, linked=True)

    def finish(self, about: Mapping[str, Json]) -> None:
        """Remove what an earlier export wrote and this one did not; write the manifest."""
        for name in sorted({*self.before.files, *self.before.pending} - {*self.files}):
            path, entry = self.out / name, self.before.files.get(name)
            if not os.path.lexists(path) or (entry and self._edited(path, entry)):
                continue
            self.removed.append(name)
            if not self.dry_run:
                path.unlink()
                with suppress(OSError):  # others' files in it
                    path.parent.rmdir()
        if not self.dry_run:
            self._write_manifest(self.files, frozenset(), about)

    def strangers(self, folders: Iterable[str]) -> list[str]:
        """Files in these folders that no export wrote: the trainer may take them for data."""
        found = []
        for folder in sorted(set(folders)):
            place = self.out / folder
            if place.is_dir():
                names = (f"{folder}/{p.name}" for p in place.iterdir() if p.is_file())
                found += sorted(n for n in names if n not in self.files and "/." not in n)
        return found

    def _write(self, name: str, data: bytes) -> None:
        if self._may_write(name):
            imageio.replace(self.out / name, data)

    def _may_write(self, name: str) -> bool:
        """Note a change, and own its file before it is there; False in a dry run."""
        self.changed.append(name)
        if self.dry_run:
            return False
        imageio.make_folder((self.out / name).parent)
        if self._announced:
            pending = self.before.pending | self._announced
            self._write_manifest(self.before.files, pending, self.before.about)
            self._announced = frozenset()
        return True

    def _write_manifest(
        self, files: Mapping[str, Entry], pending: frozenset[str], about: Mapping[str, Json]
    ) -> None:
        data = Manifest(self.trainer, files, pending, about).to_bytes()
        path = self.out / MANIFEST
        with suppress(OSError):
            if path.read_bytes() == data:
                return
        imageio.replace(path, data)

    def _edited(self, path: Path, entry: Entry) -> bool:
        """Whether a file of ours is not as it was written. Links change with their source."""
        if entry.linked:
            return False
        if not path.is_file():
            return os.path.lexists(path)
        if entry.stat is not None and self._stat(path) == entry.stat:
            return False
        return file_hash(path) != entry.sha256

    @staticmethod
    def _stat(path: Path) -> tuple[int, int] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns


def fingerprint(*parts: Any) -> str:
    """A hash of values and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _shared(path: Path) -> bool:
    """A copy must not be a source's own file, which an earlier export linked."""
    return path.stat().st_nlink > 1


def _linked(source: Path, path: Path, how: Link) -> bool:
    part = path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.link")
    try:
        part.unlink(missing_ok=True)
        if how == "hard":
            os.link(os.path.realpath(source), part)
        else:
            part.symlink_to(os.path.realpath(source))
        part.replace(path)
        part.unlink(missing_ok=True)  # renaming a name of the same file onto it does nothing
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        return False
    return True
