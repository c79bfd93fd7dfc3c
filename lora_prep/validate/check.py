"""What a check is: a stable code, why it matters, and a function that finds it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from lora_prep.types import Issue, Severity

Subject = TypeVar("Subject")

Findings: TypeAlias = Iterable[tuple[str, str]]
"""The path of each offender, relative to the data set's root, and what is wrong with it."""


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

    def __call__(self, subject: Subject) -> Iterator[Issue]:
        """The issues of a subject."""
        for path, message in self.find(subject):
            yield Issue(self.code, self.severity, path, message, self.fix)


def error(
    code: str, title: str, *, reason: str, fix: str
) -> Callable[[Callable[[Subject], Findings]], Check[Subject]]:
    """Make a check of a function. An error: a trainer stops, or trains on something else."""
    return lambda find: Check(code, title, Severity.ERROR, reason, fix, find)


def warning(
    code: str, title: str, *, reason: str, fix: str
) -> Callable[[Callable[[Subject], Findings]], Check[Subject]]:
    """Make a check of a function. A warning: trainers differ, or it is likely a mistake."""
    return lambda find: Check(code, title, Severity.WARNING, reason, fix, find)
