"""`lora-prep preview`."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand
from lora_prep.cli.options import FOLDER
from lora_prep.trainers import TRAINERS, Trainer

if TYPE_CHECKING:
    from lora_prep.trainers.view import Layout, Seen, View
    from lora_prep.types import Json

SHOWN = 20
"""Problems that are listed without --verbose."""

MASKLESS = ("musubi", "diffusers")
"""Trainers without a masked loss: with `all`, they are shown and not held against the data."""


@dataclass
class Column:
    """One trainer's view, and what it makes of each image."""

    title: str
    trainer: Trainer
    view: "View"
    counts: bool = True
    """For the exit code."""
    seen: "dict[str, Seen]" = field(default_factory=dict)
    """By name, without pixels."""

    @property
    def some_used(self) -> bool:
        """Masks of other images are used."""
        return any(seen.used for seen in self.seen.values())

    @property
    def good(self) -> bool:
        """Every mask is used and nothing is wrong."""
        return not self.view.problems() and all(seen.good for seen in self.seen.values())


@click.command(
    "preview",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep preview                            all trainers side by side
  lora-prep preview --trainer ai-toolkit -v    a line for each image
  lora-prep preview data/faces --out seen.png
  lora-prep preview --trainer kohya --route both --out kohya.png
  lora-prep preview out/kohya                  an exported folder
  lora-prep preview out/kohya/dataset.toml     a trainer's own configuration

\b
used    images whose mask counts
share   effective pixel share: how much of the loss of an unmasked image is left
inside  part of the loss that falls on what the mask marks
IoU     of the mask as the trainer lays it over the image, and where it belongs
""",
)
@click.argument("images", type=click.Path(path_type=Path), required=False, metavar="[DATA]")
@click.option(
    "--trainer",
    "trainers",
    type=click.Choice(["all", *TRAINERS]),
    multiple=True,
    help="May be given several times: a column each.  [default: all, or the configuration's]",
)
@click.option("--masks", type=FOLDER, help="The masks.  [default: masks beside the images]")
@options.recursive_option
@click.option(
    "--route",
    type=click.Choice(["rgba", "mask-dir", "both"]),
    default="rgba",
    show_default=True,
    help="How kohya is given the masks.",
)
@click.option(
    "--as-is",
    is_flag=True,
    help="Point the trainer at these very folders, instead of at what `lora-prep export` would "
    "make of them.",
)
@click.option(
    "--resolution",
    type=click.IntRange(64, 8192),
    default=1024,
    show_default=True,
    help="The trainer's, in pixels.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="The trainer's: ai-toolkit drops images without a mask in mixed batches.",
)
@click.option(
    "--mask-min-value",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="ai-toolkit's weight of black.",
)
@click.option(
    "--unmasked-weight",
    type=click.FloatRange(0, 1),
    help="OneTrainer's weight of black.  [default: 0, as lora-prep export sets it; with --as-is "
    "OneTrainer's own, 0.1]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a picture: a row an image, those with problems first, a column a trainer.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 200),
    default=12,
    show_default=True,
    help="Rows of the picture.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("-v", "--verbose", is_flag=True, help="A line for each image, and all problems.")
def command(
    images: Path | None,
    trainers: tuple[str, ...],
    masks: Path | None,
    recursive: bool,
    route: str,
    as_is: bool,
    resolution: int,
    batch_size: int,
    mask_min_value: float,
    unmasked_weight: float | None,
    out: Path | None,
    limit: int,
    as_json: bool,
    verbose: bool,
) -> None:
    """Show what a trainer will see: is the mask used, and where does it lie?

    Each trainer's own look-up, EXIF handling, bucketing, crop and mask scaling, re-implemented;
    no trainer is run. DATA is a data set, an exported folder, or a trainer's configuration file.
    Exits with 1 where a mask would not be used, would lie elsewhere, or the trainer would stop.
    """
    from lora_prep.cli.console import SCHEMA, short
    from lora_prep.imageio import make_folder
    from lora_prep.trainers.kohya import longest_side
    from lora_prep.trainers.view import Layout

    data = options.required(images)
    columns = _configured(data, trainers)
    if not columns:
        if unmasked_weight is None:
            unmasked_weight = 0.1 if as_is else 0.0
        layout = Layout(
            data,
            masks,
            resolution=resolution,
            batch_size=batch_size,
            mask_min_value=mask_min_value,
            unmasked_weight=unmasked_weight,
            recursive=recursive,
            prepared=not as_is,
            max_bucket=1024 if as_is else longest_side(resolution),
        )
        columns = _of_dataset(layout, trainers, route)
    if out:
        _refuse(out, columns)
        make_folder(out.resolve().parent)
    names = _look(columns)
    if out:
        _draw(out, columns, names, limit, short(data))
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **_as_json(columns, names, out)}))
    else:
        for line in _as_text(columns, names, short(data), out, verbose):
            click.echo(line)
    if not all(column.good for column in columns if column.counts):
        sys.exit(1)


def _refuse(out: Path, columns: Sequence[Column]) -> None:
    """A picture that a trainer would take for an image or a mask, or that is no PNG."""
    from lora_prep.errors import UsageError

    if out.suffix.lower() != ".png":
        raise UsageError(f"--out writes a PNG file: name it {out.with_suffix('.png').name}")
    layouts = [column.view.layout for column in columns]
    taken = {f.resolve() for layout in layouts for f in (layout.images, layout.masks) if f}
    if taken & set(out.resolve().parents):
        raise UsageError(
            "--out needs another folder: trainers take every file in the image and mask folders "
            "for an image or a mask"
        )


def _configured(data: Path, wanted: Sequence[str]) -> list[Column]:
    """The views of a trainer's configuration file, or of those in a folder; none: no such file."""
    from lora_prep.errors import DatasetError, UsageError
    from lora_prep.export.check import view_of
    from lora_prep.export.manifest import MANIFEST, Manifest
    from lora_prep.trainers import configs, open_view

    if (data / MANIFEST).is_file():
        manifest = Manifest.read(data)
        if wanted and manifest.trainer not in wanted and "all" not in wanted:
            raise UsageError(f"{data} was exported to {manifest.trainer}; leave --trainer out")
        known = [name for name in TRAINERS if name == manifest.trainer and manifest.about]
        if not known:
            raise DatasetError(f"{data} holds no finished export: run lora-prep export again")
        return [Column(known[0], known[0], view_of(data, manifest))]
    if data.is_file():
        files = [data]
    elif data.is_dir():
        files = [path for _, path in configs.find(data)]
    else:
        return []
    columns = []
    for path in files:
        trainer, layouts = configs.read(path)
        if wanted and trainer not in wanted and "all" not in wanted:
            continue
        for layout in layouts:
            title = trainer if len(layouts) == 1 else f"{trainer} {layout.resolution}"
            if len({entry.images for entry in layouts}) > 1:
                title += f" {layout.images.name}"
            columns.append(Column(title, trainer, open_view(trainer, layout)))
    if files and not columns:
        raise UsageError(f"{data} is not for {', '.join(wanted)}; leave --trainer out")
    return columns


def _of_dataset(layout: "Layout", wanted: Sequence[str], route: str) -> list[Column]:
    from dataclasses import replace

    from lora_prep.dataset import Dataset
    from lora_prep.errors import DatasetError
    from lora_prep.trainers import open_view

    try:
        dataset = Dataset.at(layout.images, masks=layout.masks, recursive=layout.recursive)
        layout = replace(layout, images=dataset.images, masks=dataset.masks)
    except DatasetError:  # such as masks in the image folder: as it is, a trainer may take that
        if layout.prepared or layout.masks is None:
            raise
    everyone = not wanted or "all" in wanted
    columns = []
    for trainer in TRAINERS:
        if not everyone and trainer not in wanted:
            continue
        counts = trainer in wanted or trainer not in MASKLESS
        if trainer != "kohya":
            columns.append(Column(trainer, trainer, open_view(trainer, layout), counts))
            continue
        if route != "mask-dir":
            view = open_view(trainer, replace(layout, alpha_mask=True))
            columns.append(Column("kohya rgba", trainer, view, counts))
        if route != "rgba":
            columns.append(Column("kohya mask-dir", trainer, open_view(trainer, layout), counts))
    return columns


def _look(columns: Sequence[Column]) -> list[str]:
    """Fill the columns; returns the names of all images, those with most problems first."""
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    work = [(column, name) for column in columns for name in _names(column)]
    hidden = not sys.stderr.isatty()
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda job: _light(job[0].view.see(job[1])), work)
        shown = tqdm(results, total=len(work), desc="preview", unit="img", disable=hidden)
        for (column, name), seen in zip(work, shown, strict=True):
            column.seen[name] = seen
    bad = Counter(n for c in columns if c.counts for n, s in c.seen.items() if not s.good)
    names = sorted({name for _, name in work})
    return sorted(names, key=lambda name: -bad[name])


def _names(column: Column) -> list[str]:
    from lora_prep.errors import DatasetError

    if names := column.view.names():
        return names
    raise DatasetError(f"{column.title} would find no image in {column.view.layout.images}")


def _light(seen: "Seen") -> "Seen":
    """Without pixels but for the size, so that thousands can be kept."""
    from dataclasses import replace

    import numpy as np

    nothing = np.zeros((0, 0), np.float32)
    size = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), seen.image.shape)
    return replace(seen, image=size, weights=nothing, aligned=nothing, meant=None)


def _draw(out: Path, columns: Sequence[Column], names: list[str], limit: int, title: str) -> None:
    from lora_prep import imageio
    from lora_prep.cli.console import name as printable
    from lora_prep.trainers import sheet

    shown = [n for n in names if all(n in c.seen for c in columns)][:limit] or names[:limit]
    rows = [sheet.Row(printable(n), [column.view.see(n) for column in columns]) for n in shown]
    total = len(names)
    more = f"{len(rows)} of {total} images" if len(rows) < total else f"{total} images"
    data = sheet.draw(f"{title}: {more}", [column.title for column in columns], rows)
    imageio.replace(out, data)


def _as_text(
    columns: Sequence[Column], names: Sequence[str], title: str, out: Path | None, verbose: bool
) -> Iterator[str]:
    from lora_prep.cli.console import name as printable
    from lora_prep.cli.console import short

    width = max(len(column.title) for column in columns)
    yield f"{title}: {len(names)} images"
    yield f"{'':{width}}       used  share  inside   IoU"
    problems: list[str] = []
    notes: Counter[tuple[str, str]] = Counter()
    for column in columns:
        yield f"{column.title:{width}}  {_figures(column)}"
        problems += [f"problem  {column.title}: {problem}" for problem in column.view.problems()]
        for name in names:
            seen = column.seen.get(name)
            if seen is None:
                continue
            if verbose:
                yield f"  {printable(name)}  {_facts(seen)}"
            if seen.problem:
                problems.append(f"problem  {column.title}: {name}: {seen.problem}")
            elif not seen.used and column.some_used:
                problems.append(f"unused   {column.title}: {name}: {seen.notes[0]}")
                continue
            notes.update((column.title, note) for note in seen.notes)
    shown = problems if verbose else problems[:SHOWN]
    yield from map(printable, shown)
    if len(shown) < len(problems):
        yield f"... and {len(problems) - len(shown)} more (--verbose or --json lists all)"
    for (where, note), count in notes.items():
        which = f"{count} images" if count > 1 else "1 image"
        yield printable(f"note     {where}: {note} ({which})")
    if out:
        yield f"picture -> {short(out)}"


def _figures(column: Column) -> str:
    seen = list(column.seen.values())
    used = f"{sum(s.used for s in seen)}/{len(seen)}"
    shares = [s.share for s in seen]
    inside = [s.inside for s in seen if s.inside is not None]
    agreement = [s.agreement for s in seen if s.agreement is not None and s.used]
    cells = [
        f"{sum(shares) / len(shares):.0%}" if shares else "-",
        f"{sum(inside) / len(inside):.0%}" if inside else "-",
        f"{min(agreement):.2f}" if agreement else "-",
    ]
    return f"{used:>9}  {cells[0]:>5}  {cells[1]:>6}  {cells[2]:>4}"


def _facts(seen: "Seen") -> str:
    from lora_prep.trainers.sheet import caption

    used = f"mask {seen.mask_file.name}" if seen.mask_file else "no mask"
    if not seen.used:
        used = "MASK NOT USED"
    return f"{used} · {caption(seen)}"


def _as_json(columns: Sequence[Column], names: Sequence[str], out: Path | None) -> "Json":
    return {
        "images": len(names),
        "picture": None if out is None else str(out),
        "views": [
            {
                "title": column.title,
                "trainer": column.trainer,
                "good": column.good,
                "problems": column.view.problems(),
                "items": {name: seen.to_json() for name, seen in sorted(column.seen.items())},
            }
            for column in columns
        ],
    }
