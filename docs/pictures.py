"""`python -m docs.pictures`: draw the pictures that the documents show.

Only NASA's photograph of Eileen Collins, which is in the public domain, is used.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from lora_prep import imageio
from sample_data.photos import photographs

OUT = Path(__file__).parent / "images"
GAP = 8


def main() -> None:
    """Photograph, mask and overlay of the embedded preset, side by side."""
    photograph = next(photo for photo in photographs() if photo.name == "astronaut.png")
    with tempfile.TemporaryDirectory() as folder:
        faces, look = Path(folder) / "faces", Path(folder) / "look"
        faces.mkdir()
        shutil.copy(photograph.path, faces)
        command = [sys.executable, "-m", "lora_prep", "masks", faces, "--preset", "embedded"]
        subprocess.run([*command, "--overlay", look], check=True)
        image = imageio.decode_image((faces / "astronaut.png").read_bytes())
        mask = imageio.decode_mask((Path(folder) / "masks" / "astronaut.png").read_bytes())
        overlay = imageio.decode_image((look / "astronaut.jpg").read_bytes())
    half = np.s_[:360, 40:400]
    gap = np.full((360, GAP, 3), 255, np.uint8)
    panels = [image[half], gap, cv2.cvtColor(mask, cv2.COLOR_GRAY2RGB)[half], gap, overlay[half]]
    imageio.make_folder(OUT)
    imageio.replace(
        OUT / "astronaut.jpg", imageio.encode_image(np.hstack(panels), "jpeg", quality=88)
    )


if __name__ == "__main__":
    main()
