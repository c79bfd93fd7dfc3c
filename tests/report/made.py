"""A data set with some of everything, and what belongs to it."""

import hashlib
import json
from pathlib import Path

import numpy as np

from lora_prep import imageio
from lora_prep.dataset import Dataset
from lora_prep.embeddings import Embeddings
from lora_prep.faces import FaceRecord, faces_path
from lora_prep.journal import Entry, Journal, Stamp
from lora_prep.types import Face, Status

SIZE = (96, 128)
"""Height and width."""

LANDMARKS = ((50.0, 40.0), (70.0, 40.0), (60.0, 50.0), (52.0, 60.0), (68.0, 60.0))


def photo(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Smooth colours with a sharp square in them."""
    height, width = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    image = (np.stack([x, y, (x + y + seed / 7) % 1], -1) * 200).astype(np.uint8)
    image[height // 3 : height // 2, width // 3 : width // 2] = (seed * 40 % 256, 30, 220)
    return image


def ellipse(size: tuple[int, int] = SIZE, radius: float = 0.4) -> np.ndarray:
    """A hard-edged mask."""
    x, y = np.meshgrid(np.linspace(-1, 1, size[1]), np.linspace(-1, 1, size[0]))
    return np.where(x**2 + y**2 < radius**2, 255, 0).astype(np.uint8)


def add(root: Path, name: str, seed: int = 0, *, mask: bool = True, caption: str = "") -> Path:
    """An image below `faces`, with its mask and caption. Returns the image's path."""
    path = root / "faces" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    path.write_bytes(imageio.encode_image(photo(seed), kind))
    if mask:
        target = root / "masks" / Path(name).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(imageio.encode_mask(ellipse()))
    if caption:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def face(x0: float = 40, side: float = 40) -> Face:
    """A face at a place."""
    return Face((x0, 30.0, x0 + side, 30.0 + 1.25 * side), 0.9, LANDMARKS)


def remember_faces(root: Path, name: str, *faces: Face) -> None:
    """What `lora-prep detect` would write."""
    dataset = Dataset.at(root, recursive=True)
    sample = dataset.sample(name)
    sha256 = hashlib.sha256(sample.image.read_bytes()).hexdigest()
    path = faces_path(dataset, sample)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FaceRecord("some detector", sha256, SIZE[1], SIZE[0], faces).to_bytes())


def embed(root: Path, rows: dict[str, list[tuple[float, int]]], faceless: tuple[str, ...] = ()):
    """What `lora-prep embed` would write: for each image, (similarity, hash) of each face."""
    names = [name for name, faces in rows.items() for _ in faces]
    cosines = np.array([c for faces in rows.values() for c, _ in faces], np.float32)
    hashes = np.array([h for faces in rows.values() for _, h in faces], np.uint64)
    vectors = np.zeros((len(names), 8), np.float32)
    vectors[:, 0], vectors[:, 1] = cosines, np.sqrt(1 - cosines**2)
    boxes = [face(10 + 8 * i).box for faces in rows.values() for i in range(len(faces))]
    digests = {n: hashlib.sha256((root / "faces" / n).read_bytes()).hexdigest() for n in rows}
    made = Embeddings(
        names=tuple(names),
        faces=np.array([i for faces in rows.values() for i in range(len(faces))], np.int32),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        landmarks=np.array([LANDMARKS] * len(names), np.float32).reshape(-1, 5, 2),
        scores=np.full(len(names), 0.9, np.float32),
        vectors=vectors,
        norms=np.full(len(names), 20, np.float32),
        sha256=tuple(digests[name] for name in names),
        metadata={
            "model": "arcface some.onnx",
            "images": "faces",
            "min_similarity": "0.28",
            "reference": json.dumps([{"image": names[0], "face": 0}]) if names else "[]",
            "reference_kind": "given",
        },
        similarities=cosines,
        hashes=hashes,
        faceless=faceless,
        faceless_sha256=tuple(
            hashlib.sha256((root / "faces" / n).read_bytes()).hexdigest() for n in faceless
        ),
    )
    (root / "embeddings.safetensors").write_bytes(made.to_bytes())


def record_mask(root: Path, name: str, **info: object) -> None:
    """A line in the journal: lora-prep made this mask."""
    dataset = Dataset.at(root, recursive=True)
    sample = dataset.sample(name)
    stamps = [
        Stamp.of_input(path.read_bytes(), path.stat()) for path in (sample.image, sample.mask)
    ]
    keys = [dataset.key(path) for path in (sample.image, sample.mask)]
    entry = Entry(
        keys[0], Status.DONE, "f", {keys[0]: stamps[0]}, {keys[1]: stamps[1]}, info=dict(info)
    )
    with Journal(dataset.state / "masks.jsonl") as journal:
        journal.append(entry)


def record_variant(root: Path, parent: str, number: int, path: str, **info: object) -> None:
    """An augmented pair and its line in the journal; `path` is relative to the root."""
    mask = path.replace("/images/", "/masks/")
    for place, data in (
        (path, imageio.encode_image(photo(number), "png")),
        (mask, imageio.encode_mask(ellipse())),
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(data)
    stamps = {p: Stamp.of_input((root / p).read_bytes(), (root / p).stat()) for p in (path, mask)}
    about = {"parent": f"faces/{parent}", "variant": number, **info}
    entry = Entry(f"faces/{parent}#{number}", Status.DONE, "f", {}, stamps, info=about)
    with Journal(root / ".lora-prep" / "augment.jsonl") as journal:
        journal.append(entry)
