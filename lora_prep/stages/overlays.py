"""Draw previews of the masks that are there: what is trained on stays, the rest is dimmed."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_prep import imageio, masks
from lora_prep.dataset import Dataset
from lora_prep.errors import ItemError, UsageError
from lora_prep.faces import faces_path, recorded_faces
from lora_prep.stage import Item, Saved
from lora_prep.types import Face, Image, Json, Mask


@dataclass(frozen=True)
class DrawOverlays:
    """Images and their masks, whoever made them, to JPEGs to look at. No model is asked."""

    dataset: Dataset
    out: Path
    batch_size: int = 1

    def __post_init__(self) -> None:
        out = Path(os.path.realpath(self.out))
        taken = {Path(os.path.realpath(f)) for f in (self.dataset.masks, self.dataset.images)}
        if taken & {out, *out.parents}:
            raise UsageError(
                "--overlay needs a folder of its own: trainers take every file in the image and "
                "mask folders for an image or a mask"
            )

    @property
    def name(self) -> str:
        """`overlays`, or `overlays-<folder>` for masks in another folder."""
        folder = self.dataset.masks.name
        return "overlays" if folder == "masks" else f"overlays-{folder}"

    def settings(self) -> dict[str, Json]:
        """The revision of how they are drawn, and the folder.

        A preview in another folder says nothing of one here: it may be of a later mask.
        """
        real = Path(os.path.realpath(self.out))
        out = Path(os.path.relpath(real, os.path.realpath(self.dataset.root)))
        return {"stage": "overlays/2", "out": out.as_posix()}

    def __len__(self) -> int:
        return sum(1 for _ in self.items())

    def items(self) -> Iterator[Item]:
        """One item an image that has a mask. A record of its faces is an input, too."""
        place = Path(os.path.realpath(self.out))
        for sample in self.dataset:
            if sample.mask.is_file() and not self.dataset.sharers(sample):
                record = faces_path(self.dataset, sample)
                inputs = (sample.image, sample.mask, *((record,) if record.is_file() else ()))
                outputs = (place / f"{sample.stem}.jpg",)
                yield Item(self.dataset.key(sample.image), inputs, outputs)

    def open(self) -> "Drawing":
        """Ready at once."""
        return Drawing()


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, its mask, and the faces known whose middle is masked."""

    image: Image
    mask: Mask
    faces: Sequence[Face]


class Drawing:
    """Previews being drawn."""

    def load(self, item: Item, inputs: Sequence[bytes]) -> Pair:
        """Decode them."""
        data, of_mask, *records = inputs
        image, mask = imageio.decode_image(data), imageio.decode_mask(of_mask)
        if image.shape[:2] != mask.shape:
            (height, width), (rows, columns) = image.shape[:2], mask.shape
            raise ItemError(
                f"the mask has {columns}×{rows} pixels, the image {width}×{height}: see "
                "`lora-prep validate`",
                code="size-mismatch",
            )
        known = [face for record in records for face in recorded_faces(record, data)]
        return Pair(image, mask, [face for face in known if _is_masked(face, mask)])

    def compute(self, batch: Sequence[Pair]) -> list[Pair]:
        """Nothing: drawing goes on in threads."""
        return list(batch)

    def save(self, item: Item, pair: Pair) -> Saved:
        """The preview."""
        picture = masks.overlay(pair.image, pair.mask, pair.faces)
        return Saved({item.outputs[0]: imageio.encode_image(picture, "jpeg")})


def _is_masked(face: Face, mask: Mask) -> bool:
    height, width = mask.shape
    x, y = face.centre
    return 0 <= x < width and 0 <= y < height and bool(mask[int(y), int(x)])
