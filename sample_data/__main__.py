"""`python -m sample_data`: write the sample data."""

import json
from pathlib import Path

import click
import cv2
import numpy as np

from lora_prep import imageio
from lora_prep.errors import LoraPrepError
from lora_prep.types import BoolMask
from sample_data import photos
from sample_data.formats import write_variants
from sample_data.portraits import Portrait, draw_portrait
from sample_data.sheet import contact_sheet

OUT = click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write to; made where missing.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Write sample data. The same command writes the same files."""


@main.command("photos")
@OUT
def photos_command(out: Path) -> None:
    """Copy the photographs that installed packages ship."""
    try:
        written = photos.collect(out)
    except LoraPrepError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(written)} photographs in {out}")


@main.command()
@OUT
def demo(out: Path) -> None:
    """Copy the photographs, and add variants that need normalising."""
    try:
        written = photos.collect_demo(out)
    except LoraPrepError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(written)} photographs in {out}")


@main.command()
@OUT
@click.option("-n", "--count", default=40, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0))
@click.option("--size", default=512, show_default=True, type=click.IntRange(64), help="Pixels.")
def portraits(out: Path, count: int, seed: int, size: int) -> None:
    """Paint portraits into OUT/faces, and write the truth into OUT/truth.

    Every third portrait is a JPEG, the others are PNG. Every picture has a seed of its own: SEED
    and those that follow it.
    """
    facts = {}
    for folder in ("faces", "truth/face", "truth/head", "truth/person"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number in range(seed, seed + count):
        portrait = draw_portrait(number, size=(size, size))
        name = f"portrait{number:05d}"
        write_portrait(out, name, ".jpg" if number % 3 == 0 else ".png", portrait)
        facts[name] = [
            {"identity": person.identity, "visible": person.visible, **person.face.to_json()}
            for person in portrait.people
        ]
    (out / "truth" / "truth.json").write_text(json.dumps(facts, indent=1) + "\n")
    click.echo(f"{count} portraits in {out / 'faces'}")


@main.command()
@OUT
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0))
def formats(out: Path, seed: int) -> None:
    """Write one portrait in every odd format, and variants.json that lists them."""
    variants = write_variants(out, draw_portrait(seed, size=(240, 200)))
    facts = {
        variant.path.name: {"what": variant.what, "tolerance": variant.tolerance}
        for variant in variants
    }
    (out / "variants.json").write_text(json.dumps(facts, indent=1) + "\n")
    click.echo(f"{len(variants)} files in {out}")


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def sheet(folder: Path, out: Path) -> None:
    """Put every picture of FOLDER on one page."""
    try:
        imageio.replace(out, imageio.encode_image(contact_sheet(folder), "png"))
    except LoraPrepError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"contact sheet: {out}")


def write_portrait(out: Path, name: str, suffix: str, portrait: Portrait) -> None:
    """Write a portrait to OUT/faces, and the union of its people's masks to OUT/truth."""
    _write(out / "faces" / (name + suffix), cv2.cvtColor(portrait.image, cv2.COLOR_RGB2BGR))
    people = portrait.people
    for region, masks in (
        ("face", [person.face_mask for person in people]),
        ("head", [person.head_mask for person in people]),
        ("person", [person.person_mask for person in people]),
    ):
        _write(out / "truth" / region / f"{name}.png", _white(masks))


def _white(masks: list[BoolMask]) -> np.ndarray:
    union: BoolMask = np.any(masks, axis=0)
    return union.astype(np.uint8) * 255


def _write(path: Path, pixels: np.ndarray) -> None:
    if not cv2.imwrite(str(path), pixels):
        raise click.ClickException(f"{path} could not be written: is the disk full or read-only?")


if __name__ == "__main__":
    main(prog_name="python -m sample_data")
