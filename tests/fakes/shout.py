"""A stage over text files, small enough to see what the runner does with it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_prep.errors import ItemError, OutOfMemory
from lora_prep.stage import Item, Saved


@dataclass
class Calls:
    """What happened, for tests to look at."""

    opened: int = 0
    loaded: list[str] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    waiting: int = 0
    most_waiting: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Shout:
    """`in/x.txt` to `out/x.txt` in capitals. The text `!fail` fails, `!skip` is skipped."""

    root: Path
    mark: str = ""
    batch_size: int = 2
    fits: int = 1000
    """Batches larger than this run out of memory."""
    calls: Calls = field(default_factory=Calls)
    on_compute: Callable[[Sequence[str]], None] = lambda _: None
    name: str = "shout"
    more_outputs: tuple[str, ...] = ()
    manner: str = "shyly"
    """How the text `!manner` is said; to others it does not matter."""

    def settings(self) -> dict[str, str]:
        return {"mark": self.mark}

    def __len__(self) -> int:
        return len(list(self.root.glob("in/*.txt")))

    def items(self) -> Iterator[Item]:
        for path in sorted(self.root.glob("in/*.txt")):
            outputs = [self.root / folder / path.name for folder in ("out", *self.more_outputs)]
            name, manner = f"in/{path.name}", {"manner": self.manner}
            yield Item(name, (path,), tuple(outputs), conditional=manner)

    def open(self) -> "Shouting":
        self.calls.opened += 1
        return Shouting(self)


@dataclass(frozen=True)
class Shouting:
    stage: Shout

    def load(self, item: Item, inputs: Sequence[bytes]) -> str:
        calls = self.stage.calls
        text = inputs[0].decode()
        with calls.lock:
            calls.loaded.append(item.key)
            calls.threads.add(threading.get_ident())
            calls.waiting += 1
            calls.most_waiting = max(calls.most_waiting, calls.waiting)
        if text == "!bad-load":
            raise ItemError("cannot be decoded", code="unreadable")
        if text == "!bug":
            raise ZeroDivisionError("a bug")
        return text

    def compute(self, batch: Sequence[str]) -> list[str | ItemError]:
        self.stage.calls.batches.append(list(batch))
        if len(batch) > self.stage.fits:
            raise OutOfMemory("no room")
        self.stage.on_compute(batch)
        failed = ItemError("will not shout", code="shy")
        return [failed if text == "!fail" else text.upper() + self.stage.mark for text in batch]

    def save(self, item: Item, computed: str) -> Saved:
        with self.stage.calls.lock:
            self.stage.calls.waiting -= 1
        if computed.startswith("!SKIP"):
            return Saved(skipped="asked to")
        if computed.startswith("!MANNER"):
            manner = self.stage.manner
            if manner == "not at all":
                return Saved(skipped="asked to", info={"manner": manner})
            return Saved(dict.fromkeys(item.outputs, manner.encode()), {"manner": manner})
        if computed.startswith("!WARN"):
            return Saved(dict.fromkeys(item.outputs, computed.encode()), warnings=("look out",))
        return Saved(dict.fromkeys(item.outputs, computed.encode()), info={"length": len(computed)})
