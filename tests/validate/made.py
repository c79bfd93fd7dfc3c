"""Small pictures, and a data set to damage."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lora_prep.dataset import Dataset
from lora_prep.validate import validate

SIZE = (64, 48)


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photo(size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    """Smooth colours, different everywhere."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    rgb = np.stack([x, y, (x + y) / 2], -1)
    return Image.fromarray((rgb * 255).astype(np.uint8)).convert(mode)


def ellipse(size: tuple[int, int] = SIZE) -> np.ndarray:
    """A hard-edged mask, 0 and 255."""
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    return np.where(x**2 + y**2 < 0.4, 255, 0).astype(np.uint8)


@dataclass(frozen=True)
class Data:
    """A data set being made."""

    root: Path

    @property
    def faces(self) -> Path:
        return self.root / "faces"

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    def image(self, name: str, content: bytes | None = None) -> Path:
        """Write an image; a JPEG if nothing else is given."""
        path = self.faces / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:  # a comment makes each file another one
            content = encode(photo(), "JPEG", comment=name.encode("utf-8", "surrogateescape"))
        path.write_bytes(content)
        return path

    def mask(self, name: str, content: bytes | np.ndarray | None = None) -> Path:
        """Write a mask; an array as PNG."""
        pixels = ellipse() if content is None else content
        path = self.masks / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            pixels if isinstance(pixels, bytes) else encode(Image.fromarray(pixels), "PNG")
        )
        return path

    def codes(self, **options: Any) -> dict[str, list[str]]:
        """The codes that are found, with the paths. The pictures are twins: I011 is ignored."""
        options.setdefault("ignore", ["I011"])
        recursive = options.pop("recursive", False)
        found: dict[str, list[str]] = {}
        for issue in validate(Dataset.at(self.root, recursive=recursive), **options).issues:
            found.setdefault(issue.code, []).append(issue.path)
        return found
