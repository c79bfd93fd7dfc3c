"""What a check is: a stable code, why it matters, and a function that finds it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeAlias, TypeVar

from lora_prep.errors import UsageError
from lora_prep.types import Issue, Severity

Subject = TypeVar("Subject")

Findings: TypeAlias = Iterable[tuple[str, str]]
"""The path of each offender, relative to the data set's root, and what is wrong with it."""


class Level(StrEnum):
    """What turns a check on, unless it is selected by its code."""

    DEFAULT = "default"
    """Always on: cheap and certain."""
    DEEP = "deep"
    """--deep: every image is decoded."""
    DRIFT = "drift"
    """--drift: the mask's border is compared with the edges in the picture."""
    OFF = "select"
    """Only by --select: a matter of taste."""


@dataclass(frozen=True, slots=True)
class Check(Generic[Subject]):
    """One thing that can be wrong, with the function that finds it in a `Subject`."""

    code: str
    """Stable: a letter for the family and three digits. A code is never used for anything else."""
    title: str
    severity: Severity
    reason: str
    """What a trainer does when it is left as it is."""
    fix: str
    find: Callable[[Subject], Findings]
    level: Level = Level.DEFAULT

    def __call__(self, subject: Subject) -> Iterator[Issue]:
        """The issues of a subject."""
        for path, message in self.find(subject):
            yield Issue(self.code, self.severity, path, message, self.fix)


def error(
    code: str, title: str, *, reason: str, fix: str, level: Level = Level.DEFAULT
) -> Callable[[Callable[[Subject], Findings]], Check[Subject]]:
    """Make a check of a function. An error: a trainer stops, or trains on something else."""
    return lambda find: Check(code, title, Severity.ERROR, reason, fix, find, level)


def warning(
    code: str, title: str, *, reason: str, fix: str, level: Level = Level.DEFAULT
) -> Callable[[Callable[[Subject], Findings]], Check[Subject]]:
    """Make a check of a function. A warning: trainers differ, or it is likely a mistake."""
    return lambda find: Check(code, title, Severity.WARNING, reason, fix, find, level)


def chosen(
    checks: Sequence[Check[Any]],
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    deep: bool = False,
    drift: bool = False,
) -> frozenset[str]:
    """The codes of the checks to run.

    `select` and `ignore` hold codes, or the beginnings of codes: `M`, `M0`, `M005`; `ALL` is every
    check. With `select`, those and no others, whatever their level; without, the default ones, and
    with `deep` and `drift` those of that level. `ignore` takes away. Raises UsageError for what is
    the beginning of no code.
    """
    codes = [check.code for check in checks]
    levels = {Level.DEFAULT, *([Level.DEEP] * deep), *([Level.DRIFT] * drift)}
    on = {check.code for check in checks if check.level in levels}
    wanted = _matching(codes, select) if select else on
    return frozenset(wanted - _matching(codes, ignore))


def _matching(codes: Sequence[str], prefixes: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for text in prefixes:
        for prefix in (part.strip().upper() for part in text.split(",")):
            matches = codes if prefix == "ALL" else [c for c in codes if c.startswith(prefix)]
            if not prefix or not matches:
                families = ", ".join(dict.fromkeys(code[0] for code in codes))
                raise UsageError(
                    f"{prefix or text!r} is the beginning of no code: give codes as "
                    f"`lora-prep validate --list` shows them, a family ({families}), or ALL"
                )
            found.update(matches)
    return found
