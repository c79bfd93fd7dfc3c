"""A stage over text files whose contents say what happens to the process that works on them."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_prep.errors import DatasetError, ItemError
from lora_prep.stage import Item, Saved


@dataclass(frozen=True)
class Hazards:
    """`in/x.txt` to `out/x.txt` in capitals; can be sent to other processes.

    `!kill` kills the worker each time, `!kill-once` the first time, `!bug`, `!disk` and `!fail`
    raise, `!slow` takes `slow` seconds. Each worker leaves its process id in `pids`.
    """

    root: Path
    batch_size: int = 2
    slow: float = 1.0
    name: str = "hazards"

    def settings(self) -> dict[str, str]:
        return {"stage": "hazards/1"}

    def __len__(self) -> int:
        return len(list(self.root.glob("in/*.txt")))

    def items(self) -> Iterator[Item]:
        for path in sorted(self.root.glob("in/*.txt")):
            yield Item(f"in/{path.name}", (path,), (self.root / "out" / path.name,))

    def open(self) -> "Working":
        folder = self.root / "pids"
        folder.mkdir(exist_ok=True)
        (folder / str(os.getpid())).touch()
        return Working(self.root, self.slow)


@dataclass(frozen=True)
class Working:
    root: Path
    slow: float

    def load(self, item: Item, inputs: Sequence[bytes]) -> tuple[str, str]:
        return item.key, inputs[0].decode()

    def compute(self, batch: Sequence[tuple[str, str]]) -> list[str | ItemError]:
        return [self._one(key, text) for key, text in batch]

    def save(self, item: Item, computed: str) -> Saved:
        return Saved(dict.fromkeys(item.outputs, computed.encode()))

    def _one(self, key: str, text: str) -> str | ItemError:
        mark = self.root / f"{Path(key).name}.seen"
        match text:
            case "!kill":
                with mark.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            case "!kill-once" if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            case "!bug":
                raise ZeroDivisionError("a bug")
            case "!disk":
                raise DatasetError("the disk is full")
            case "!fail":
                return ItemError("will not", code="shy")
            case "!slow":
                time.sleep(self.slow)
        return text.upper()
