"""What was found in which files, so that files that have not changed are not read again.

One line of JSON a pair in `.lora-prep/validate.jsonl`: the size and dates of its files, and what
the checks of a pair said. It is a cache: deleting it costs time alone, and a line that is torn, or
of another version or other settings, is passed over.
"""

import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lora_prep import __version__, imageio
from lora_prep.errors import DatasetError
from lora_prep.faces import faces_path
from lora_prep.types import Issue, Json
from lora_prep.validate.check import Check
from lora_prep.validate.listing import Listing
from lora_prep.validate.pair import Pair, Reading
from lora_prep.validate.whole import Digest

REVISION = 1
"""To be raised when a check of pairs finds something else than it did."""

SETTLED_NS = 2_000_000_000
"""A file younger than this may change within one tick of its clock."""

FILE_NAME = "validate.jsonl"


@dataclass(frozen=True, slots=True)
class Result:
    """What was found in a pair: by check, in the order in which they are listed."""

    digest: Digest
    found: tuple[tuple[str, str, str], ...]
    """Code, path and message."""


@dataclass
class Manifest:
    """The results of the last run, and those of this one."""

    path: Path | None
    """None: nothing is remembered."""
    settings: str
    known: Mapping[str, bytes] = field(default_factory=dict)
    """The lines of the last run, by the image's name; parsed when asked for."""

    @classmethod
    def open(cls, path: Path | None, reading: Reading) -> "Manifest":
        """Read the last run's results."""
        settings = f"{__version__}/{REVISION}/{reading.deep:d}{reading.drift:d}{reading.resolution}"
        known: dict[str, bytes] = {}
        if path is not None:
            with suppress(OSError), path.open("rb") as file:
                if file.readline().rstrip(b"\n") == _head(settings):
                    for line in file:
                        name, tab, rest = line.partition(b"\t")
                        if tab and rest.endswith(b"]\n"):
                            known[name.decode("utf-8", "surrogateescape")] = rest
        return cls(path, settings, known)

    def get(self, name: str, stamps: Json) -> Result | None:
        """What is known of a pair whose files have these dates."""
        line = self.known.get(_escaped(name))
        if line is None or stamps is None:
            return None
        try:
            then, digest, found = json.loads(line)
            if then != stamps:
                return None
            return Result(_digest(*digest), tuple((str(c), str(p), str(m)) for c, p, m in found))
        except (ValueError, TypeError, RecursionError):
            return None

    def save(self, results: Iterable[tuple[str, Json, Result]]) -> Iterator[Result]:
        """Pass the results through, and write them down when all went through."""
        part = None
        if self.path is not None:
            with suppress(DatasetError, OSError):  # a folder that is not ours to write to
                imageio.make_folder(self.path.parent)
                part = self.path.with_name(f".{self.path.name}.{imageio.new_token()}.part")
                part.write_bytes(_head(self.settings) + b"\n")
        if part is None or self.path is None:
            yield from (result for _, _, result in results)
            return
        try:
            with part.open("ab", buffering=1 << 20) as file:
                for name, stamps, result in results:
                    if stamps is not None:
                        file.write(_line(name, stamps, result))
                    yield result
            part.replace(self.path)
        except OSError:
            return
        finally:
            part.unlink(missing_ok=True)


def stamps(listing: Listing, image: str, mask: str | None) -> Json:
    """Size and dates of the files of a pair.

    None where they cannot be relied on: a link, a file that was written just now, or none at all.
    """
    dataset = listing.dataset
    paths = [dataset.images / image]
    if mask is not None:
        paths.append(dataset.masks / mask)
    if caption := listing.captions.get(image):
        paths.append(dataset.images / caption)
    now, found = time.time_ns(), []
    for path in paths:
        try:
            seen = os.lstat(path)
        except OSError:
            return None
        if stat.S_ISLNK(seen.st_mode) or abs(now - seen.st_ctime_ns) < SETTLED_NS:
            return None
        found.append([path.name, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino])
    if listing.has_faces:
        with suppress(OSError):
            seen = os.lstat(faces_path(dataset, dataset.sample(image)))
            found.append(["faces", seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino])
    return found


def result_of(pair: Pair, checks: Sequence[Check[Pair]]) -> Result:
    """What all checks say of a pair."""
    found = tuple((c.code, path, message) for c in checks for path, message in c.find(pair))
    return Result(Digest.of(pair), found)


def issues(result: Result, checks: Mapping[str, Check[Pair]]) -> Iterator[Issue]:
    """The issues of the checks that are on."""
    for code, path, message in result.found:
        if check := checks.get(code):
            yield Issue(code, check.severity, path, message, check.fix)


def _digest(image: Json, hashed: Json, mask: Json, coverage: Json, drifts: Json) -> Digest:
    """What `_line` wrote; raises ValueError on values of other kinds, which it never writes."""
    hash_fits = hashed is None or (type(hashed) is int and 0 <= hashed < 1 << 64)
    coverage_fits = coverage is None or (type(coverage) is float and 0 <= coverage <= 1)
    texts = isinstance(image, str) and (mask is None or isinstance(mask, str))
    if not (hash_fits and coverage_fits and texts and (drifts is None or type(drifts) is bool)):
        raise ValueError("not what was remembered")
    return Digest(image, hashed, mask, coverage, drifts)


def _head(settings: str) -> bytes:
    return json.dumps({"lora-prep": settings}).encode()


def _line(name: str, stamps: Json, result: Result) -> bytes:
    digest = result.digest
    values = [digest.image, digest.hash, digest.mask, digest.coverage, digest.drifts]
    text = json.dumps([stamps, values, result.found], separators=(",", ":"))
    return f"{_escaped(name)}\t{text}\n".encode("utf-8", "surrogateescape")


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
