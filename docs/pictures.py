"""`python -m docs.pictures`: draw the pictures that the documents show.

Only NASA's photograph of Eileen Collins, which is in the public domain, and painted portraits are
used. The picture of `lora-prep review` is taken by its test, which is run here as well. All are to
be looked at before they are committed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from lora_prep import imageio
from sample_data.photos import photographs
from sample_data.portraits import draw_portrait
from tests.fakes.browser import browser
from tests.fakes.tiny_faces import DETECTING, MASKING

OUT = Path(__file__).absolute().parent / "images"
GAP = 8
ADA = 7
"""Who is painted."""


def main() -> None:
    """All of them."""
    imageio.make_folder(OUT)
    with tempfile.TemporaryDirectory() as folder:
        astronaut(Path(folder) / "astronaut")
        portraits(Path(folder) / "ada")
    review()


def run(*arguments: object) -> None:
    """A command of lora-prep. What it finds wrong with the data is meant to be seen."""
    command = [sys.executable, "-m", "lora_prep", *map(str, arguments)]
    if subprocess.run(command, check=False).returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} failed")


def astronaut(root: Path) -> None:
    """Photograph, mask and overlay of the embedded preset, side by side."""
    photograph = next(photo for photo in photographs() if photo.name == "astronaut.png")
    faces, look = root / "faces", root / "look"
    faces.mkdir(parents=True)
    shutil.copy(photograph.path, faces)
    run("masks", faces, "--preset", "embedded", "--overlay", look)
    image = imageio.decode_image((faces / "astronaut.png").read_bytes())
    mask = imageio.decode_mask((root / "masks" / "astronaut.png").read_bytes())
    overlay = imageio.decode_image((look / "astronaut.jpg").read_bytes())
    half = np.s_[:360, 40:400]
    gap = np.full((360, GAP, 3), 255, np.uint8)
    panels = [image[half], gap, cv2.cvtColor(mask, cv2.COLOR_GRAY2RGB)[half], gap, overlay[half]]
    picture = imageio.encode_image(np.hstack(panels), "jpeg", quality=88)
    imageio.replace(OUT / "astronaut.jpg", picture)


def portraits(root: Path) -> None:
    """A data set of one painted person: its report, and what kohya's two routes make of it."""
    faces = root / "faces"
    faces.mkdir(parents=True)
    shapes = [(512, 512), (640, 480), (480, 640), (512, 768)]
    for i in range(23):
        who = {"identity": ADA} if i not in (4, 13) else {}
        portrait = draw_portrait(
            6_200_100 + i, size=shapes[i % 4], people=1, scale=(0.35, 0.5), max_tilt=15.0, **who
        )
        data = imageio.encode_image(portrait.image, "jpeg")
        (faces / f"ada{i:02}.jpg").write_bytes(data)
    run("embed", faces, *DETECTING)
    run("masks", faces, *MASKING)
    run("captions", faces, "--fill", "a photo of {trigger} woman, {stem}", "--trigger", "ohwx")
    report = root / "report.html"
    run("report", root, "--out", report)
    with browser(1120, 820) as context:
        page = context.new_page()
        page.goto(report.as_uri())
        page.locator("#h-gallery").evaluate("(e) => e.scrollIntoView()")
        page.locator("#grid svg").nth(9).wait_for()
        page.wait_for_timeout(300)
        page.screenshot(path=OUT / "report.png")
    as_jpeg(OUT / "report.png")
    shown = ("--trainer", "diffusion-pipe", "--trainer", "kohya", "--route", "both")
    os.chdir(root.parent)  # for the title
    run("preview", root.name, *shown, "--limit", 2, "--out", OUT / "preview.png")
    as_jpeg(OUT / "preview.png")


def review() -> None:
    """The page of `lora-prep review`, as its test leaves it."""
    test = "tests/e2e/test_review_page.py::test_a_box_around_the_face_of_a_photograph"
    os.chdir(OUT.parents[1])
    keep = {**os.environ, "LORA_PREP_PICTURES": str(OUT)}
    subprocess.run([sys.executable, "-m", "pytest", "-q", test], check=True, env=keep)
    as_jpeg(OUT / "review.png")


def as_jpeg(file: Path) -> None:
    """A picture as a JPEG file with the full resolution of colours, in its place."""
    data = imageio.encode_image(imageio.decode_image(file.read_bytes()), "jpeg", quality=88)
    file.unlink()
    imageio.replace(OUT / f"{file.stem}.jpg", data)


if __name__ == "__main__":
    main()
