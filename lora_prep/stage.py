"""What a stage is: the contract between the stages, the runner and the executors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from lora_prep.errors import ItemError
from lora_prep.types import Json

Loaded = TypeVar("Loaded")
Computed = TypeVar("Computed")


@dataclass(frozen=True, slots=True)
class Item:
    """A unit of work: files in, files out."""

    key: str
    """Stable name: the first input's path relative to the data set's root."""
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    """All files that a finished item has; for one with a `folder`, the runner knows them."""
    problem: ItemError | None = None
    """Why it cannot be worked on, where the stage knows that beforehand."""
    folder: Path | None = None
    """Where its files go, if their names depend on what is in them: then `Saved` decides on them,
    the journal remembers, and files of ours under an earlier name give way to the new ones."""
    former: tuple[Path, ...] = ()
    """Where this item's files lay under other settings. What it wrote there gives way to `outputs`;
    what others wrote there is none of its business."""
    conditional: Mapping[str, Json] = field(default_factory=dict)
    """Settings that change some items only. Where one did, `Saved.info` (or `ItemError.info`) names
    it with its value: the item is done again once the value is another, and all others stay as they
    are."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a stage made of an item: the content of each of its outputs, or the reason for none.

    For an item with a `folder`: of files in it, by names that no other item has.
    """

    files: Mapping[Path, bytes] = field(default_factory=dict)
    info: dict[str, Json] | None = None
    warnings: tuple[str, ...] = ()
    skipped: str = ""
    """Why the item was left out on request; then there are no files."""


@runtime_checkable
class Worker(Protocol[Loaded, Computed]):
    """A stage at work in one process: it holds the model."""

    def load(self, item: Item, inputs: Sequence[bytes]) -> Loaded:
        """Decode. Called in threads, ahead of the model. May raise ItemError."""
        ...

    def compute(self, batch: Sequence[Loaded]) -> Sequence[Computed | ItemError]:
        """Run the model: one result an item, in order. Never called by two threads at once.

        Raises OutOfMemory where the batch was too large; it is then called with its halves.
        """
        ...

    def save(self, item: Item, computed: Computed) -> Saved:
        """Encode. Called in threads, behind the model; the runner writes. May raise ItemError."""
        ...


@runtime_checkable
class Stage(Protocol):
    """Turns files into files. A frozen dataclass whose fields are its configuration."""

    @property
    def name(self) -> str:
        """Names the journal."""
        ...

    @property
    def batch_size(self) -> int:
        """How many items `compute` gets at most."""
        ...

    def settings(self) -> Mapping[str, Json]:
        """Everything but the inputs' content that changes the outputs, down to the weights."""
        ...

    def __len__(self) -> int:
        """Number of items."""
        ...

    def items(self) -> Iterator[Item]:
        """The items, in order."""
        ...

    def open(self) -> Worker[Any, Any]:
        """Load the model. Called once a process, and only when there is something to do."""
        ...
