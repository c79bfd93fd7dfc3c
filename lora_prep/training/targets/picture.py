"""The grid of a model's blocks: as text, SVG or PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lora_prep.errors import UsageError
from lora_prep.training.targets.families import Model
from lora_prep.training.targets.names import Block
from lora_prep.training.targets.select import Selection

CELL, GAP, LABEL, LINE, MARGIN = 18, 3, 150, 26, 14
"""Pixels."""

_SHADES = " ░▒▓█"
_OFF, _ON = (226, 228, 233), (30, 98, 208)
WRAP = 40
"""Blocks in a line."""


@dataclass(frozen=True, slots=True)
class Row:
    """Blocks that stand side by side."""

    label: str
    cells: tuple[tuple[Block, float], ...]
    """Each block and how much of it is hit, 0 to 1."""


def rows(blocks: Sequence[Block], weight: Mapping[Block, float]) -> list[Row]:
    """The grid: a row for each group, and for each level of a U-Net."""
    lines: dict[str, list[tuple[Block, float]]] = {}
    for block in blocks:
        lines.setdefault(block.label.rpartition(".")[0], []).append((block, weight.get(block, 0.0)))
    found = []
    for label, cells in lines.items():
        for start in range(0, len(cells), WRAP):
            found.append(Row("" if start else label, tuple(cells[start : start + WRAP])))
    return found


def coverage(selection: Selection) -> list[Row]:
    """The grid of a selection: how many of each block's layers it hits."""
    model: Model = selection.model
    hit: dict[Block, int] = {}
    for layer in selection.layers:
        hit[layer.block] = hit.get(layer.block, 0) + 1
    return rows(model.blocks, {b: n / len(model.by_block[b]) for b, n in hit.items()})


def as_text(grid: Sequence[Row]) -> str:
    """For a terminal: █ all layers, ░▒▓ some, · none; numbers of the first and last block."""
    width = max((len(row.label) for row in grid), default=0)
    lines = []
    for row in grid:
        cells = "".join("·" if w <= 0 else _SHADES[max(1, int(w * 4))] for _, w in row.cells)
        first, last = row.cells[0][0].numbers[-1], row.cells[-1][0].numbers[-1]
        lines.append(f"{row.label:{width}}  {first:>2} {cells} {last}")
    return "\n".join(lines)


def write(grid: Sequence[Row], path: Path, title: str) -> None:
    """Draw the grid into a .png or .svg file. Raises UsageError for other endings."""
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise UsageError(f"{path}: pictures are written as .png or .svg")
    try:
        if suffix == ".svg":
            path.write_text(as_svg(grid, title), "utf-8")
        else:
            _write_png(grid, path, title)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error


def _size(grid: Sequence[Row]) -> tuple[int, int]:
    longest = max((len(row.cells) for row in grid), default=1)
    width = max(2 * MARGIN + LABEL + longest * (CELL + GAP), 480)
    return width, 2 * MARGIN + LINE * (len(grid) + 1)


def _colour(weight: float) -> tuple[int, int, int]:
    if weight <= 0:
        return _OFF
    share = 0.35 + 0.65 * min(weight, 1.0)
    r, g, b = (round(off + (on - off) * share) for off, on in zip(_OFF, _ON, strict=True))
    return r, g, b


def _boxes(grid: Sequence[Row]) -> list[tuple[int, int, Block, float]]:
    return [
        (MARGIN + LABEL + i * (CELL + GAP), MARGIN + LINE * (line + 1), block, weight)
        for line, row in enumerate(grid)
        for i, (block, weight) in enumerate(row.cells)
    ]


def as_svg(grid: Sequence[Row], title: str) -> str:
    """The grid as an SVG document; pointing at a block shows its name."""
    width, height = _size(grid)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 12}" font-weight="bold">{escape(title)}</text>',
    ]
    for line, row in enumerate(grid):
        y = MARGIN + LINE * (line + 1) + 13
        parts.append(f'<text x="{MARGIN}" y="{y}">{escape(row.label)}</text>')
    for x, y, block, weight in _boxes(grid):
        parts.append(
            f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="3" '
            f'fill="rgb{_colour(weight)}"><title>{block.label}: {weight:.0%}</title></rect>'
        )
        fill = "white" if weight > 0 else "#667"
        parts.append(
            f'<text x="{x + CELL / 2}" y="{y + 13}" font-size="10" text-anchor="middle" '
            f'fill="{fill}">{block.numbers[-1]}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _write_png(grid: Sequence[Row], path: Path, title: str) -> None:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", _size(grid), "white")
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), title, fill="black")
    for line, row in enumerate(grid):
        draw.text((MARGIN, MARGIN + LINE * (line + 1) + 3), row.label, fill="black")
    for x, y, block, weight in _boxes(grid):
        draw.rounded_rectangle((x, y, x + CELL, y + CELL), 3, fill=_colour(weight))
        draw.text(
            (x + CELL / 2, y + CELL / 2),
            str(block.numbers[-1]),
            fill="white" if weight > 0 else (100, 104, 120),
            anchor="mm",
        )
    image.save(path)
