"""Faces as vectors on disk: `embeddings.safetensors` at the data set's root, one row a face.

Every column is a tensor of its own, texts too: their UTF-8 bytes one after the other, with where
each begins. So the file's header is short however many rows there are, any safetensors reader
opens it, and nothing in it can be executed.

    tensor                 type           what
    vectors                F32 (n, d)     embeddings of length 1
    norms                  F32 (n)        their length before; arcface's is small for a poor picture
    boxes, landmarks       F32 (n, 4), (n, 5, 2)    pixels of the upright image
    scores                 F32 (n)        the detector's confidence
    faces                  I32 (n)        index of the face in its image, in the detector's order
    similarities           F32 (n)        cosine to the reference; left out where there is none
    hashes                 U64 (n)        difference hash of the image; left out where not known
    names, names_offsets   U8, I64 (n+1)  image file, relative to the image folder
    sha256                 U8 (n, 32)     of the image file
    faceless, faceless_offsets, faceless_sha256     the images without a face, likewise
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt64

from lora_prep.errors import DatasetError
from lora_prep.types import Face

FORMAT = "lora-prep/embeddings/1"
"""Under `format` in the metadata."""

MAX_BYTES = 4 << 30
"""Larger files are refused; a million faces of 512 numbers are 2.2 GB."""

MAX_HEADER = 1 << 20

NO_SAFETENSORS = "it is no safetensors file, or only a piece of one"

UNIT = 1e-3
"""How far a vector's length may be from 1."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "U8": np.dtype("u1"),
}
_COLUMNS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "vectors": ("F32", ("n", "d")),
    "norms": ("F32", ("n",)),
    "boxes": ("F32", ("n", 4)),
    "landmarks": ("F32", ("n", 5, 2)),
    "scores": ("F32", ("n",)),
    "faces": ("I32", ("n",)),
    "similarities": ("F32", ("n",)),
    "hashes": ("U64", ("n",)),
    "names": ("U8", ("bytes of names",)),
    "names_offsets": ("I64", ("n+1",)),
    "sha256": ("U8", ("n", 32)),
    "faceless": ("U8", ("bytes of faceless",)),
    "faceless_offsets": ("I64", ("m+1",)),
    "faceless_sha256": ("U8", ("m", 32)),
}
_OPTIONAL = {"similarities", "hashes", "faceless", "faceless_offsets", "faceless_sha256"}


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Faces of a data set, ordered by image and by the detector's order within it."""

    names: tuple[str, ...]
    """Image file of each row, relative to the image folder."""
    faces: Int[np.ndarray, " n"]
    """Index of the face in its image (detector's order), int32."""
    boxes: Float[np.ndarray, "n 4"]
    """x0, y0, x1, y1 in pixels of the upright image."""
    landmarks: Float[np.ndarray, "n 5 2"]
    """In the order of `Face.landmarks`."""
    scores: Float[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n d"]
    """float32, unit length: their products are cosines. 512 numbers for arcface, 128 for sface."""
    norms: Float[np.ndarray, " n"]
    """Length of each vector before."""
    sha256: tuple[str, ...]
    """Of each row's image file."""
    metadata: Mapping[str, str]
    """model, model_sha256, alignment, detector, license, date, lora_prep, reference, ..."""
    similarities: Float[np.ndarray, " n"] | None = None
    """Cosine to the reference."""
    hashes: UInt64[np.ndarray, " n"] | None = None
    """Difference hash of each row's image (see `identity.difference_hash`)."""
    faceless: tuple[str, ...] = ()
    """Images that were looked at and have no face."""
    faceless_sha256: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.names)

    def face(self, row: int) -> Face:
        """A row's face as the detector gave it."""
        x0, y0, x1, y1 = (float(v) for v in self.boxes[row])
        a, b, c, d, e = ((float(x), float(y)) for x, y in self.landmarks[row])
        return Face((x0, y0, x1, y1), float(self.scores[row]), (a, b, c, d, e))

    def to_bytes(self) -> bytes:
        """The file's content; equal values give equal bytes."""
        tensors: dict[str, np.ndarray | None] = {
            "vectors": self.vectors,
            "norms": self.norms,
            "boxes": self.boxes,
            "landmarks": self.landmarks,
            "scores": self.scores,
            "faces": self.faces,
            "similarities": self.similarities,
            "hashes": self.hashes,
            **_texts("names", self.names),
            "sha256": _digests(self.sha256),
            **_texts("faceless", self.faceless),
            "faceless_sha256": _digests(self.faceless_sha256),
        }
        header: dict[str, Any] = {
            "__metadata__": dict(sorted({**self.metadata, "format": FORMAT}.items()))
        }
        blocks, end = [], 0
        # Wide types first, so that each tensor begins at a multiple of its items' size.
        for name in sorted(tensors, key=lambda n: (-_DTYPES[_COLUMNS[n][0]].itemsize, n)):
            values = tensors[name]
            if values is None:
                continue
            kind = _COLUMNS[name][0]
            data = np.ascontiguousarray(values, _DTYPES[kind])
            begin, end = end, end + data.nbytes
            header[name] = {"dtype": kind, "shape": data.shape, "data_offsets": [begin, end]}
            blocks.append(data.tobytes())
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return b"".join([len(text).to_bytes(8, "little"), text, *blocks])


def joined(parts: Iterable[Embeddings], metadata: Mapping[str, str]) -> Embeddings:
    """The rows of all parts, in order, without similarities.

    Raises ValueError where there is no part, or their vectors differ in length.
    """
    parts = list(parts)
    hashes = [part.hashes for part in parts if part.hashes is not None]
    widths = {part.vectors.shape[1] for part in parts if len(part)}
    # A part without a row need not know the model's dimension.
    rows = [p.vectors for p in parts if len(p) or not widths]
    return Embeddings(
        names=tuple(name for part in parts for name in part.names),
        faces=np.concatenate([part.faces for part in parts]),
        boxes=np.concatenate([part.boxes for part in parts]),
        landmarks=np.concatenate([part.landmarks for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        vectors=np.concatenate(rows),
        norms=np.concatenate([part.norms for part in parts]),
        sha256=tuple(digest for part in parts for digest in part.sha256),
        metadata=metadata,
        hashes=np.concatenate(hashes) if len(hashes) == len(parts) else None,
        faceless=tuple(name for part in parts for name in part.faceless),
        faceless_sha256=tuple(digest for part in parts for digest in part.faceless_sha256),
    )


def read_embeddings(path: Path) -> Embeddings:
    """The faces that `lora-prep embed` wrote.

    Raises DatasetError that says what is wrong where the file is missing or too large, no
    safetensors file, not of this format, has a column too few or of another shape, or numbers that
    cannot be: not finite, vectors that are not of length 1, cosines above 1, no SHA-256.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _wrong(path, f"its {size:,} bytes are more than the limit of {MAX_BYTES:,}")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"there is no {path}: make it with `lora-prep embed`") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return from_bytes(data)
    except ValueError as error:
        raise _wrong(path, str(error)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone: the file's beginning is read. Raises OSError, or ValueError."""
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > MAX_HEADER:
            raise ValueError(NO_SAFETENSORS)
        try:
            metadata = json.loads(file.read(length))["__metadata__"]
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"its header is no safetensors header ({error!r})") from error
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not texts")
    return metadata


def from_bytes(data: bytes) -> Embeddings:
    """What `to_bytes` wrote. Raises ValueError, saying what is wrong, on any other input."""
    tensors, metadata = _parse(data)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"it is {metadata.get('format') or 'a safetensors file of something else'}, "
            f"not {FORMAT}"
        )
    _check_columns(tensors)
    names = _from_texts("names", tensors)
    faceless = _from_texts("faceless", tensors) if "faceless_offsets" in tensors else ()
    absent = np.zeros((0, 32), np.uint8)
    embeddings = Embeddings(
        names=names,
        faces=tensors["faces"],
        boxes=tensors["boxes"],
        landmarks=tensors["landmarks"],
        scores=tensors["scores"],
        vectors=tensors["vectors"],
        norms=tensors["norms"],
        sha256=_from_digests(tensors["sha256"]),
        metadata=metadata,
        similarities=tensors.get("similarities"),
        hashes=tensors.get("hashes"),
        faceless=faceless,
        faceless_sha256=_from_digests(tensors.get("faceless_sha256", absent)),
    )
    _check_values(embeddings)
    return embeddings


def with_metadata(embeddings: Embeddings, **more: str) -> Embeddings:
    """The same rows with entries added to the metadata, or replaced."""
    return replace(embeddings, metadata={**embeddings.metadata, **more})


def _wrong(path: Path, what: str) -> DatasetError:
    return DatasetError(f"{path}: {what}. Move it away and run `lora-prep embed` again")


# ---------------------------------------------------------------------------- the container
def _parse(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a safetensors file, the tensors as views of `data`."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise ValueError(NO_SAFETENSORS)
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        tensors = {
            name: _tensor(data, 8 + length, name, about)
            for name, about in header.items()
            if name in _COLUMNS  # others are of a later version, or somebody else's
        }
    except json.JSONDecodeError as error:
        raise ValueError("its header is damaged") from error
    except (
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(f"its header is no safetensors header ({error!r})") from error
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not texts")
    return tensors, metadata


def _tensor(data: bytes, start: int, name: str, about: Any) -> np.ndarray:
    begin, end = (int(n) for n in about["data_offsets"])
    shape = [int(n) for n in about["shape"]]
    if about["dtype"] != _COLUMNS[name][0]:
        raise ValueError(f"{name} is of type {about['dtype']}, not {_COLUMNS[name][0]}")
    dtype = _DTYPES[about["dtype"]]
    count = math.prod(shape)
    if min([0, begin, *shape]) < 0 or count * dtype.itemsize != end - begin:
        raise ValueError(f"{name} has {end - begin} bytes for the shape {shape}")
    if start + end > len(data):
        raise ValueError(f"it is cut off: {name} is not all there")
    return np.frombuffer(data, dtype, count, start + begin).reshape(shape)


def _check_columns(tensors: Mapping[str, np.ndarray]) -> None:
    missing = sorted(_COLUMNS.keys() - _OPTIONAL - tensors.keys())
    if missing:
        raise ValueError(f"the tensor {missing[0]} is missing")
    if len({name for name in tensors if name.startswith("faceless")}) not in (0, 3):
        raise ValueError("of the tensors faceless, faceless_offsets and faceless_sha256 one misses")
    sizes: dict[str, int] = {}
    for name, (_, shape) in _COLUMNS.items():
        if name not in tensors:
            continue
        found = tensors[name].shape
        if len(found) != len(shape):
            raise ValueError(f"{name} has the shape {list(found)}, not {list(shape)}")
        for n, symbol in zip(found, shape, strict=True):
            if isinstance(symbol, str) and symbol.endswith("+1"):
                symbol, n = symbol.removesuffix("+1"), n - 1
            wanted = sizes.setdefault(symbol, n) if isinstance(symbol, str) else symbol
            if n != wanted:
                raise ValueError(
                    f"{name} has the shape {list(found)}, which does not fit the {wanted} of the "
                    "others"
                )


def _check_values(rows: Embeddings) -> None:
    numbers = (rows.vectors, rows.norms, rows.boxes, rows.landmarks, rows.scores)
    names = ("vectors", "norms", "boxes", "landmarks", "scores")
    for name, values in zip(names, numbers, strict=True):
        finite = np.isfinite(values).reshape(len(rows), -1).all(1) if len(rows) else np.ones(0)
        if not finite.all():
            row = int(np.argmin(finite))
            raise ValueError(f"{name} has a number that is not finite, for {rows.names[row]}")
    with np.errstate(over="ignore"):  # too long is refused below
        lengths = np.linalg.norm(rows.vectors, axis=1)
    bad = np.flatnonzero(abs(lengths - 1) > UNIT)
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"the vector of {rows.names[row]} has the length {lengths[row]:.3g}, not 1"
        )
    if (rows.norms <= 0).any() or (rows.faces < 0).any():
        raise ValueError("norms or face numbers are below 0")
    if rows.similarities is not None and not (abs(rows.similarities) <= 1 + UNIT).all():
        raise ValueError("similarities are not cosines: not all are between -1 and 1")
    for name in (*rows.names, *rows.faceless):
        if PurePosixPath(name).is_absolute() or ".." in name.split("/"):
            raise ValueError(f"the name {name!r} leads out of the image folder")
    if len(set(zip(rows.names, rows.faces.tolist(), strict=True))) != len(rows):
        raise ValueError("a face is there twice")


# ---------------------------------------------------------------------------- texts
def _texts(name: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Texts as their bytes one after the other, and where each begins."""
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {
        name: np.frombuffer(b"".join(encoded), np.uint8),
        f"{name}_offsets": offsets,
    }


def _from_texts(name: str, tensors: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    data, offsets = tensors[name].tobytes(), tensors[f"{name}_offsets"]
    if offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
        raise ValueError(f"{name}_offsets do not fit {name}")
    ends = offsets.tolist()
    return tuple(
        data[begin:end].decode("utf-8", "surrogateescape") for begin, end in pairwise(ends)
    )


def _digests(texts: Iterable[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(texts)), np.uint8).reshape(-1, 32)


def _from_digests(values: np.ndarray) -> tuple[str, ...]:
    text = values.tobytes().hex()
    return tuple(text[i : i + 64] for i in range(0, len(text), 64))
