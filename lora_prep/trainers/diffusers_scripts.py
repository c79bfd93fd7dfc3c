"""The DreamBooth LoRA scripts of diffusers, after their source of August 2026 (58eb52c).

They have no masked loss. Images are turned upright, their shorter side is scaled to the resolution
and a square is cut out: from the middle with `--center_crop`, which is shown here, otherwise from
anywhere.
"""

from dataclasses import dataclass
from functools import cached_property

from lora_prep.dataset import file_names
from lora_prep.errors import ItemError
from lora_prep.trainers.folders import Folders, belongs
from lora_prep.trainers.pixels import (
    Picture,
    bilinear,
    cover,
    half_up,
    read,
    stopped,
    unmasked,
    upright,
)
from lora_prep.trainers.view import Layout, Seen

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class DiffusersScripts:
    """The scripts' view."""

    layout: Layout

    @cached_property
    def folders(self) -> Folders:
        """Its folders."""
        return Folders(self.layout)

    def names(self) -> list[str]:
        """They open every file in the folder."""
        return self.folders.names(SUFFIXES)

    def problems(self) -> list[str]:
        """Files that are no images stop them."""
        if self.layout.prepared:
            return []
        others = sorted(set(file_names(self.layout.images)) - set(self.names()))
        return [f"stops: every file is opened as an image, {others[0]} too"] if others else []

    def see(self, name: str) -> Seen:
        """Without a mask, whatever there is."""
        try:
            image = upright(read(self.layout.images / name))
        except ItemError as error:
            return stopped(f"stops: {error}")
        side = self.layout.resolution
        fit = cover(image.size, (side, side), half_up)

        def cut(picture: Picture) -> Picture:
            return fit(picture, bilinear)

        note = "the scripts of diffusers have no masked loss: everything is trained"
        meant = belongs(self.folders.any_mask(name), image, cut)
        return unmasked(cut(image.convert("RGB")), note=note, meant=meant)
