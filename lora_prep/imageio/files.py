"""Put bytes under a name, all of them or none, whatever happens meanwhile.

They go into a hidden file beside the final one first, which is then renamed over it. Not flushed to
the device: after a power loss a name may lead to an empty file, and the journal's hash tells.
"""

import errno
import hashlib
import os
import platform
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from lora_prep.errors import DatasetError

_TOKEN = r"(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]{1,10})-[0-9a-f]{8}"
_token = re.compile(_TOKEN).fullmatch
_part_name = re.compile(rf"\..+\.{_TOKEN}\.part", re.DOTALL).fullmatch

_ADVICE = {
    errno.ENOSPC: "free some space, then run again",
    errno.EDQUOT: "free some space, then run again",
    errno.EFBIG: "lift the limit on file sizes, then run again",
    errno.EROFS: "choose an output folder that can be written to",
    errno.EACCES: "make the folder writable, or choose another one",
    errno.EPERM: "make the folder writable, or choose another one",
    errno.ENOENT: "create the folder first",
    errno.EISDIR: "a folder is in the way: move it",
    errno.EEXIST: "a file is in the way: move it",
    errno.ENOTDIR: "a file is in the way: move it",
    errno.ENAMETOOLONG: "give the file a shorter name",
}


def new_token() -> str:
    """A name for one run: its host, its process and a random part, for `write_part`."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing. Raises DatasetError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def write_part(path: Path, data: bytes, *, token: str) -> Path:
    """Write to a hidden sibling of `path`, which `commit` then puts in place. Returns its path.

    `token` comes from `new_token`, once a run. The folder must exist. Raises DatasetError where
    not all of the data could be written; then nothing is left behind.
    """
    if _token(token) is None:
        raise ValueError(f"{token!r} does not come from new_token()")
    part = path.with_name(f".{_short(path.name)}.{token}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
    except OSError as error:
        _remove(part)
        raise _cannot_write(path, error) from error
    except BaseException:
        _remove(part)
        raise
    return part


def commit(part: Path, path: Path) -> None:
    """Give the part its final name, over whatever was there. Raises DatasetError, the part gone."""
    try:
        part.replace(path)
    except OSError as error:
        _remove(part)
        raise _cannot_write(path, error) from error


def replace(path: Path, data: bytes) -> None:
    """Write a file so that others see the old one or the new one, never a piece. DatasetError."""
    commit(write_part(path, data, token=new_token()), path)


def sweep(folder: Path, *, older_than: float = 3600.0) -> int:
    """Delete the parts in this folder that dead runs left, nothing else. Returns how many.

    Dead is a run of this host whose process is gone, and any run whose part was last written
    `older_than` seconds ago: parts live for milliseconds.
    """
    swept = 0
    with suppress(OSError), os.scandir(folder) as entries:  # tidying up must not stop a run
        for entry in entries:
            name = _part_name(entry.name)
            if name is None:
                continue
            with suppress(OSError):  # another run's sweep was faster, or it is not ours to delete
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > older_than
                gone = name["host"] == _host() and not _is_alive(int(name["pid"]))
                if entry.is_file(follow_symlinks=False) and (old or gone):
                    Path(entry.path).unlink()
                    swept += 1
    return swept


def discard(folder: Path, token: str) -> None:
    """Delete the parts that the run with this token left in a folder."""
    with suppress(OSError):
        for part in folder.glob(f".*.{token}.part"):
            _remove(part)


def _short(name: str) -> str:
    """A long name as its hash: file systems take 255 bytes, and the part's name is longer."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= 200 else hashlib.sha256(encoded).hexdigest()


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # where signal 0 is not a question
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(part: Path) -> None:
    with suppress(OSError):
        part.unlink()


def _cannot_write(path: Path, error: OSError) -> DatasetError:
    advice = _ADVICE.get(error.errno or 0, "see to it, then run again")
    return DatasetError(f"{path}: cannot be written ({error.strerror or error}): {advice}")
