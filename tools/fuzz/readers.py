"""Every reader of a file that somebody else may have written, with files to mutate.

A reader may give anything or raise one of its `refusals`. Any other exception is a bug, and so is
more memory or time than the input justifies.
"""

import json
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lora_prep import decisions, imageio
from lora_prep.dataset import Dataset
from lora_prep.embeddings import Embeddings, read_embeddings
from lora_prep.errors import LoraPrepError
from lora_prep.export import manifest as export
from lora_prep.faces import FaceRecord
from lora_prep.imageio import pngmask
from lora_prep.journal import NOT_AN_ENTRY, Entry, Journal, Stamp
from lora_prep.types import Face, Status
from lora_prep.validate import WHOLE_CHECKS, trash
from lora_prep.validate import manifest as checked
from lora_prep.validate.listing import Listing
from lora_prep.validate.pair import Reading
from lora_prep.validate.whole import Whole

MAX_PIXELS = 100_000


@dataclass(frozen=True)
class Reader:
    """One reader."""

    read: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    """Good files."""
    refusals: tuple[type[BaseException], ...] = (LoraPrepError,)
    mend: Callable[[bytes], bytes] = bytes
    """Makes checksums and lengths right again, so that damage gets past them."""

    def __call__(self, data: bytes) -> object:
        """Read, and pass over a refusal."""
        with suppress(*self.refusals):
            return self.read(data)
        return None


def _in_a_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A reader of files for bytes; always the same file, in a folder of its own."""

    @cache
    def folder() -> Path:
        return Path(tempfile.mkdtemp(prefix="fuzz-"))

    def reader(data: bytes) -> object:
        path = folder() / name
        path.write_bytes(data)
        return read(path)

    return reader


# ---------------------------------------------------------------------------- good files
def _pictures() -> list[bytes]:
    rows = np.linspace(0, 255, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)
    return [imageio.encode_image(rows, kind) for kind in ("png", "jpeg")] + _masks()


def _masks() -> list[bytes]:
    mask = np.zeros((40, 48), np.uint8)
    mask[8:30, 10:40] = 255
    return [imageio.encode_mask(mask), imageio.encode_mask(mask[:1, :1])]


def _embeddings() -> list[bytes]:
    vectors = np.eye(2, 4, dtype=np.float32)
    made = Embeddings(
        names=("a.png", "b.png"),
        faces=np.zeros(2, np.int32),
        boxes=np.ones((2, 4), np.float32),
        landmarks=np.ones((2, 5, 2), np.float32),
        scores=np.ones(2, np.float32),
        vectors=vectors,
        norms=np.ones(2, np.float32),
        sha256=("a" * 64, "b" * 64),
        metadata={"model": "m"},
    )
    return [made.to_bytes()]


def _lines() -> list[bytes]:
    stamp = Stamp("a" * 64, 3, (1, 2, 3))
    entry = Entry(
        "i.png", Status.DONE, "f", {"i.png": stamp}, {"masks/i.png": stamp}, info={"n": 1}
    )
    return [entry.to_line().encode()]


def _records() -> list[bytes]:
    face = Face((1.0, 2.0, 30.0, 40.0), 0.9, ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5)))
    return [FaceRecord("d", "a" * 64, 64, 48, (face,)).to_bytes()]


def _decisions() -> list[bytes]:
    stamp = ["a" * 64, 3, [1, 2, 3]]
    value = {"verdict": "accepted", "edited": True, "image": stamp, "mask": stamp, "when": "now"}
    return [json.dumps({"schema": 1, "images": {"i.png": value}}).encode()]


def _checked() -> list[bytes]:
    """Lines of thirteen pairs: fewer are not compared with one another."""
    head = json.dumps({"lora-prep": checked.Manifest.open(None, Reading()).settings})
    lines = [head]
    for number in range(13):
        values = [f"faces/{number}.png", 7 + (number << 40), f"masks/{number}.png", 0.25, False]
        line = [[[f"{number}.png", 3, 1, 2, 3]], values, [["I001", "faces/i.png", "damaged"]]]
        lines.append(f"{number}.png\t{json.dumps(line)}")
    return ["\n".join([*lines, ""]).encode()]


def _moves() -> list[bytes]:
    return [b'{"code": "P002", "from": "masks/a.png", "to": ".lora-prep/trash/1/masks/a.png"}\n']


def _exports() -> list[bytes]:
    entry = export.Entry("a" * 64, "b" * 64, (3, 4), linked=True, source="/data/i.png")
    about = {"configurations": ["train.toml"], "folders": {"i": 1}}
    return [export.Manifest("kohya", {"img/i.png": entry}, about=about).to_bytes()]


def _configurations() -> list[bytes]:
    return [
        b'[dataset]\nimages = "data/faces"\nmasks = "data/masks"\nrecursive = true\n',
        b'[masks]\nregion = "head"\nmin-face = 48\n[augment]\ncount = 3\nmin-kept = 0.5\n',
        b"[validate]\nstrict = true\n[run]\n",
    ]


def _loras() -> list[bytes]:
    def file(metadata: Any, *names: str) -> bytes:
        size, header = 16, {"__metadata__": metadata}
        for i, name in enumerate(names):
            offsets = [i * size, (i + 1) * size]
            header[name] = {"dtype": "F32", "shape": [2, 2], "data_offsets": offsets}
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + bytes(size * len(names))

    place = "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_"
    kohya = "lora_unet_output_blocks_3_1_transformer_blocks_0_attn1_to_q."
    return [
        file({"lora_adapter_metadata": "{}"}, f"{place}A.weight", f"{place}B.weight"),
        file({}, f"{kohya}lora_down.weight", f"{kohya}lora_up.weight"),
    ]


# ---------------------------------------------------------------------------- mending
def _mended_png(data: bytes) -> bytes:
    chunks, at = [data[:8]], 8
    while at + 12 <= len(data) and data[:4] == b"\x89PNG":
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at:end] + zlib.crc32(data[at + 4 : end]).to_bytes(4, "big"))
        at = end + 4
    return b"".join(chunks) if len(chunks) > 1 else data


def _mended_safetensors(data: bytes) -> bytes:
    """The header's length, taken to be up to the last closing brace."""
    end = data.rfind(b"}") + 1 or len(data)
    return struct.pack("<Q", max(end - 8, 0)) + data[8:]


# ---------------------------------------------------------------------------- the readers
def _picture(data: bytes) -> None:
    imageio.read_header(data, max_pixels=MAX_PIXELS)
    image = imageio.decode_image(data, max_pixels=MAX_PIXELS)
    assert image.shape[0] * image.shape[1] <= MAX_PIXELS


def _mask(data: bytes) -> None:
    """Both mask readers; where the quick one believes a file, the decoder has to see the same."""
    levels = pngmask.read_levels(data, max_pixels=MAX_PIXELS)
    quick = pngmask.runs_to_mask(data, max_pixels=MAX_PIXELS)
    assert levels is None or quick is not None
    mask = imageio.decode_mask(data, max_pixels=MAX_PIXELS)
    if levels is not None:
        assert np.bincount(mask.ravel(), minlength=256).tolist() == list(levels.counts)
    if quick is not None:
        assert np.array_equal(quick, mask)


def _journal(path: Path) -> None:
    with Journal(path, read_only=True) as journal:
        for entry in journal:
            assert journal.get(entry.key) == entry


def _remembered(path: Path) -> None:
    """What `validate` believes of its last run, and makes of it."""
    folder = path.parent / "faces"
    if not folder.exists():
        folder.mkdir()
        (folder / "0.png").write_bytes(_pictures()[0])
    whole = Whole(Listing.of(Dataset.at(folder)))
    manifest = checked.Manifest.open(path, Reading())
    for name, line in manifest.known.items():
        stamps = None
        with suppress(ValueError, TypeError, RecursionError):  # as they would have to be
            stamps = json.loads(line)[0]
        if result := manifest.get(name, stamps):
            whole.add(result.digest)
    for check in WHOLE_CHECKS:
        list(check.find(whole))


def _configuration(path: Path) -> None:
    from click import Context

    from lora_prep.cli import main
    from lora_prep.cli.config import ConfiguredCommand, option_defaults, read_config

    config = read_config(path)
    for name in config.commands:
        command = main.get_command(Context(main), name)
        if isinstance(command, ConfiguredCommand):
            option_defaults(config, command)


def _lora(path: Path) -> None:
    from lora_prep.training.targets import adapter

    for touch in adapter.touches(adapter.read(path)):
        assert touch.modules


def _header(path: Path) -> None:
    from lora_prep.training.targets import meta

    meta.read_header(path)


READERS = {
    "image": Reader(_picture, _pictures, mend=_mended_png),
    "mask": Reader(_mask, _masks, mend=_mended_png),
    "embeddings": Reader(
        _in_a_file("embeddings.safetensors", read_embeddings), _embeddings, mend=_mended_safetensors
    ),
    "journal-line": Reader(Entry.from_line, _lines, NOT_AN_ENTRY),
    "journal": Reader(_in_a_file("masks.jsonl", _journal), _lines),
    "faces": Reader(FaceRecord.from_bytes, _records, (KeyError, TypeError, ValueError)),
    "decisions": Reader(_in_a_file("review.json", decisions._load), _decisions),
    "checked": Reader(_in_a_file(checked.FILE_NAME, _remembered), _checked),
    "trash": Reader(_in_a_file(trash.MANIFEST, trash._moved), _moves),
    "export": Reader(
        _in_a_file(export.MANIFEST, lambda path: export.Manifest.read(path.parent)), _exports
    ),
    "config": Reader(_in_a_file("lora-prep.toml", _configuration), _configurations),
    "lora-header": Reader(_in_a_file("h.safetensors", _header), _loras, mend=_mended_safetensors),
    "lora": Reader(_in_a_file("lora.safetensors", _lora), _loras, mend=_mended_safetensors),
}


# ---------------------------------------------------------------------------- mutation
HOSTILE = (
    b"Infinity", b"1e999", b"-1", b"NaN", b"null", b"[[", b"{}", b'"', b"1" * 5000, b"[" * 20_000,
    b"../../x", b"/etc/passwd", b"\0", b"\xff\xfe", b"\\u0000", b"9" * 25, b"\x7f\xff\xff\xff",
)  # fmt: skip
"""What readers trip over."""


def mutations(
    data: bytes, seed: int, count: int, mend: Callable[[bytes], bytes] = bytes
) -> Iterator[bytes]:
    """Damaged copies: bytes changed, cut, repeated, hostile words; every other one mended."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        copy = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, len(copy) + 1))
            length = int(rng.choice([0, 1, 1, 2, 4, 16]))
            match int(rng.integers(0, 4)):
                case 0:
                    copy[at : at + length] = rng.bytes(length)
                case 1:
                    copy[at : at + length] = HOSTILE[int(rng.integers(0, len(HOSTILE)))]
                case 2:
                    copy[at:at] = copy[at : at + 16]
                case _:
                    del copy[at : at + 4 * length]
        yield mend(bytes(copy)) if number % 2 else bytes(copy)
