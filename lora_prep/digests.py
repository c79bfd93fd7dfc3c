"""SHA-256 of model files: what tells one model from another."""

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex. Unchanged files are read once a process.

    A file in the model hub's cache is a link to a blob that is named by its SHA-256 (large files
    are; who fetched it compared them), so that one is not read at all. Raises OSError.
    """
    if path.is_symlink():
        blob = path.readlink()
        if blob.parent.name == "blobs" and is_sha256(blob.name):
            return blob.name
    info = path.stat()
    return _read(path.resolve(), info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)


def sha256_of_files(folder: Path, paths: Iterable[Path]) -> str:
    """One for several files of a folder and their names in it, in 32 digits. Raises OSError.

    They are read side by side: a pipeline has tens of gigabytes, and a core hashes one or two of
    them in a second.
    """
    known = list(paths)
    total = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for path, digest in zip(known, pool.map(sha256, known), strict=True):
            total.update(f"{path.relative_to(folder).as_posix()}\0{digest}\0".encode())
    return total.hexdigest()[:32]


def is_sha256(name: str) -> bool:
    """Whether a text is a SHA-256 in hex."""
    return re.fullmatch("[0-9a-f]{64}", name) is not None


@lru_cache(1024)
def _read(path: Path, *_stat: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
