"""Files of a prepared folder, with errors that name them."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from lora_prep import imageio
from lora_prep.errors import DatasetError, ItemError

T = TypeVar("T")

HEAD = 1 << 18
"""Bytes of a JPEG file in which its header is looked for at first."""

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def read_bytes(path: Path) -> bytes:
    """All bytes of a file. Raises DatasetError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def decoded(path: Path, data: bytes, decode: Callable[[bytes], T]) -> T:
    """`decode(data)`. Raises DatasetError with the file's name for its ItemError."""
    try:
        return decode(data)
    except ItemError as error:
        raise DatasetError(f"{path}: {error}") from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright image; of JPEG and PNG without reading the pixels.

    Raises DatasetError.
    """
    try:
        head = _without_pixels(path)
        header = imageio.read_header(head)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ItemError:  # the header is longer, or this is no image
        header = decoded(path, read_bytes(path), imageio.read_header)
    return header.width, header.height


def _without_pixels(path: Path) -> bytes:
    """Enough of a file for its header."""
    with path.open("rb", buffering=0) as file:
        start = file.read(len(_PNG))
        if start == _PNG:
            return start + _png_chunks(file, os.fstat(file.fileno()).st_size)
        rest = file.read(HEAD) if start.startswith(_JPEG) else file.readall()
        return start + rest


def _png_chunks(file: BinaryIO, size: int) -> bytes:
    """All chunks but the pixels: the orientation may stand behind them."""
    parts = []
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if length > size:
            break
        if kind in (b"IDAT", b"fdAT"):
            parts.append(bytes(4) + kind + zlib.crc32(kind).to_bytes(4, "big"))
            file.seek(length + 4, os.SEEK_CUR)
        else:
            parts.append(head + file.read(length + 4))
    return b"".join(parts)


def _unreadable(path: Path, error: OSError) -> DatasetError:
    return DatasetError(f"cannot read {path}: {error.strerror}")
