"""The export's folder: what is ours in it, what is not, and files that appear at once.

The manifest knows every file that an export wrote. So a second export writes only what changed,
removes what is no longer wanted, and touches nothing else.
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
from lora_prep.errors import UsageError
from lora_prep.export.manifest import (
    JOURNAL,
    MANIFEST,
    Entry,
    Manifest,
    announce,
    file_hash,
    file_stat,
)
from lora_prep.export.plan import Link
from lora_prep.types import Json


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

    def __post_init__(self) -> None:
        self.before = Manifest.read(self.out)
        if self.before.trainer not in ("", self.trainer):
            raise UsageError(
                f"{self.out} holds an export for {self.before.trainer}: give each trainer a folder "
                "of its own"
            )

    def begin(self, names: Iterable[str]) -> None:
        """Refuse to write over others' files, before anything is written.

        Raises UsageError where one of them is there and not ours, or was edited since.
        """
        if self.force:
            return
        for name in sorted(set(names)):
            path = self.out / name
            if not os.path.lexists(path) or self.before.owns(name, path):
                continue
            if name not in self.before.files and name not in self.before.pending:
                raise UsageError(
                    f"{path} is in the way, and no export wrote it: move it, give another --out, "
                    "or --force to replace it"
                )
            raise UsageError(
                f"{path} was changed by hand since the export: move it away to keep it, or "
                "give --force to replace it"
            )

    def is_edited(self, name: str) -> bool:
        """Whether a file that an export wrote was changed by hand since."""
        path = self.out / name
        return name in self.before.files and path.is_file() and not self.before.owns(name, path)

    def keep(self, name: str) -> None:
        """Leave a file as it is, and still remember what it was when an export wrote it."""
        self.files[name] = self.before.files[name]

    def is_fresh(self, names: Iterable[str], made_from: str, source: Path) -> bool:
        """Whether these files are there, made from just this; then they are kept."""
        entries = {name: self.before.files.get(name) for name in names}
        for name, entry in entries.items():
            if entry is None or entry.made_from != made_from:
                return False
            path = self.out / name
            if name in self.before.pending or not path.is_file() or not entry.is_at(path):
                return False
            if entry.linked and not path.samefile(source):
                return False
        self.files.update({name: entry for name, entry in entries.items() if entry})
        return True

    def put(self, name: str, data: bytes, made_from: str) -> None:
        """Write a file, where it is not just so already."""
        path, digest = self.out / name, hashlib.sha256(data).hexdigest()
        if not path.is_file() or path.is_symlink() or file_hash(path) != digest or _shared(path):
            self._write(name, data, digest)
        self.files[name] = Entry(digest, made_from, file_stat(path))

    def link(self, name: str, source: Path, data: bytes, how: Link, made_from: str) -> None:
        """Give a source file another name here; copy it where that is not possible."""
        path = self.out / name
        if how == "copy":
            self.put(name, data, made_from)
            return
        same = path.exists() and path.samefile(source) and path.is_symlink() == (how == "symlink")
        digest = hashlib.sha256(data).hexdigest()
        if not same and self._may_write(name, digest) and not _linked(source, path, how):
            self.changed.pop()
            self.put(name, data, made_from)
            return
        self.files[name] = Entry(digest, made_from, None, True, os.path.realpath(source))

    def drop(self, names: Iterable[str]) -> None:
        """Take files back that this export wrote or kept."""
        for name in names:
            del self.files[name]
            if name not in self.changed:
                continue  # of an earlier export: `finish` removes it
            self.changed.remove(name)
            if name in self.before.files:
                self.removed.append(name)
            if not self.dry_run:
                (self.out / name).unlink(missing_ok=True)
                with suppress(OSError):  # others' files in it
                    (self.out / name).parent.rmdir()

    def finish(self, about: Mapping[str, Json]) -> None:
        """Remove what an earlier export wrote and this one did not; write the manifest."""
        real = Path(os.path.realpath(self.out))
        for name in sorted({*self.before.files, *self.before.pending} - {*self.files}):
            path = self.out / name
            inside = Path(os.path.realpath(path.parent)).is_relative_to(real)
            if not inside or not os.path.lexists(path) or not self.before.owns(name, path):
                continue
            self.removed.append(name)
            if not self.dry_run:
                path.unlink()
                with suppress(OSError):  # others' files in it
                    path.parent.rmdir()
        if not self.dry_run:
            self._write_manifest(self.files, about)
            (self.out / JOURNAL).unlink(missing_ok=True)

    def strangers(self, folders: Iterable[str]) -> list[str]:
        """Files in these folders that no export wrote: the trainer may take them for data."""
        found = []
        for folder in sorted(set(folders)):
            place = self.out / folder
            if place.is_dir():
                names = (f"{folder}/{p.name}" for p in place.iterdir() if p.is_file())
                found += sorted(n for n in names if n not in self.files and "/." not in n)
        return found

    def _write(self, name: str, data: bytes, digest: str) -> None:
        if self._may_write(name, digest):
            imageio.replace(self.out / name, data)

    def _may_write(self, name: str, digest: str) -> bool:
        """Note a change, and own its file before it is there; False in a dry run."""
        self.changed.append(name)
        if self.dry_run:
            return False
        imageio.make_folder((self.out / name).parent)
        if not self.before.trainer and len(self.changed) == 1:
            self._write_manifest({}, {})
        announce(self.out, name, digest)
        return True

    def _write_manifest(self, files: Mapping[str, Entry], about: Mapping[str, Json]) -> None:
        data = Manifest(self.trainer, files, about=about).to_bytes()
        path = self.out / MANIFEST
        with suppress(OSError):
            if path.read_bytes() == data:
                return
        imageio.replace(path, data)


def fingerprint(*parts: Any) -> str:
    """A hash of values and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


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
