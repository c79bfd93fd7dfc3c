"""Rows of the table that `python -m benchmarks` prints, whichever benchmark they come from.

A benchmark calls `record` for each figure that the documents quote. By itself that does nothing:
only where the whole table is made does a row go into the file that RECORD names.
"""

import contextlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

RECORD = "LORA_PREP_BENCH_ROWS"
"""Environment variable: the file that rows are appended to."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside that of a peer, or beside a limit, from the same run."""

    part: str
    what: str
    unit: str
    """Of both figures; says for itself where more is better."""
    ours: float
    peer: str
    """Who else, or which limit."""
    theirs: float | None
    """None: the limit is in the name of the peer."""
    target: str = ""
    """What was aimed at, as `≤ 1.05`."""

    @property
    def ratio(self) -> float | None:
        """Ours over theirs."""
        return self.ours / self.theirs if self.theirs else None

    def cells(self) -> tuple[str, ...]:
        """The columns of the table."""
        theirs = "" if self.theirs is None else number(self.theirs)
        ratio = "" if self.ratio is None else number(self.ratio)
        what = f"{self.part}: {self.what}"
        return what, self.unit, number(self.ours), self.peer, theirs, ratio, self.target


def record(
    part: str,
    what: str,
    unit: str,
    ours: float,
    peer: str,
    theirs: float | None,
    target: str = "",
) -> None:
    """Add a row to the table, if one is being made."""
    if file := os.environ.get(RECORD):
        row = Row(part, what, unit, float(ours), peer, theirs and float(theirs), target)
        with Path(file).open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(row)) + "\n")


def recorded(path: Path) -> list[Row]:
    """The rows in a file; none where there is no such file."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def table(rows: Iterable[Row]) -> Iterator[str]:
    """The rows in Markdown."""
    yield "| what | unit | ours | peer or limit | its figure | ours / its | aimed at |"
    yield "|---|---|--:|---|--:|--:|---|"
    for row in rows:
        yield f"| {' | '.join(row.cells())} |"


def number(value: float) -> str:
    """Three digits, without an exponent where that is readable."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


def processor() -> str:
    """What the machine's processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
