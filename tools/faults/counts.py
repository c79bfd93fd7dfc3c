"""What a scenario counts, and what must be nought."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lora_prep.embeddings import from_bytes
from tools.faults.cases import Case, parts


@dataclass
class Counts:
    """What happened in one scenario. All but the first two have to be 0."""

    scenario: str
    disturbed: int = 0
    """Runs that were disturbed."""
    unfinished: int = 0
    """Of these, runs that were in the middle: some outputs were there, or none, but not all."""
    partial: int = 0
    """Files under a final name that were not what an undisturbed run makes."""
    left: int = 0
    """Part files that lay about after the run that followed."""
    different: int = 0
    """Files that were missing, too many or other bytes after the run that followed."""
    lost: int = 0
    """Inputs that were not as before."""
    unclear: list[str] = field(default_factory=list)
    """Ends without a clear message: tracebacks, wrong exit codes."""

    @property
    def faults(self) -> int:
        """What went wrong, all together."""
        return self.partial + self.left + self.different + self.lost + len(self.unclear)

    def look(self, case: Case, data: Path, wanted: Mapping[str, bytes]) -> None:
        """Right after the disturbance: is anything partial?"""
        found = visible(case.made(data))
        self.disturbed += 1
        self.unfinished += found.keys() != wanted.keys()
        self.partial += sum(
            wanted.get(name) != content for name, content in found.items() if name != case.summary
        )
        self.partial += case.summary in found and not readable(found[case.summary])

    def compare(self, case: Case, data: Path, wanted: Mapping[str, bytes]) -> None:
        """After the run that followed: is all as if nothing had happened?"""
        found = case.made(data)
        self.left += len(parts(data))
        self.different += sum(
            found.get(name) != wanted.get(name)
            for name in found.keys() | wanted.keys()
            if not name.endswith(".part")
        )

    def expect(self, what: str, said: str, *, ok: bool) -> None:
        """Note an end that is not `ok`, or that shows a traceback."""
        if not ok or "Traceback" in said:
            self.unclear.append(f"{what}: {said.strip()[-2000:]}")

    def keep(self, before: Mapping[str, bytes], data: Path) -> None:
        """Compare the inputs with what they were."""
        now = inputs(data)
        self.lost += sum(now.get(name) != before.get(name) for name in before.keys() | now.keys())


def readable(data: bytes) -> bool:
    """Whether an embeddings file is whole, of however many images."""
    try:
        from_bytes(data)
    except ValueError:
        return False
    return True


def visible(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Without the hidden part files."""
    return {n: content for n, content in files.items() if not n.rpartition("/")[2].startswith(".")}


def inputs(data: Path) -> dict[str, bytes]:
    """The images and their captions."""
    return {path.name: path.read_bytes() for path in (data / "faces").iterdir()}
