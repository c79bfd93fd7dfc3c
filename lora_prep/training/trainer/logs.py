"""A line of JSON for each step, in tensorboard too where that is asked for."""

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_prep import imageio
from lora_prep.errors import DatasetError

FILE = "log.jsonl"


class Log:
    """Collects steps on the device and writes them every so many: reading them waits for it."""

    def __init__(self, out: Path, every: int, start: int, *, tensorboard: bool) -> None:
        """Go on after `start` steps: lines of later ones, from before a crash, are dropped."""
        self.path, self.every = out / FILE, every
        self._pending: list[tuple[int, dict[str, Any], Tensor]] = []
        self.recent: deque[dict[str, Any]] = deque(maxlen=every)
        """The last lines, for whoever shows progress."""
        lines = [json.dumps(line) for line in read(out) if line["step"] <= start]
        imageio.make_folder(out)
        imageio.replace(self.path, "".join(f"{line}\n" for line in lines).encode())
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def add(self, step: int, values: Mapping[str, Tensor], **numbers: float) -> None:
        """What a step gave: scalars on the device, and numbers that are known anyway."""
        names = list(values)
        stacked = torch.stack([values[name].detach().float() for name in names])
        self._pending.append((step, {"names": names, **numbers}, stacked))
        if step % self.every == 0:
            self.flush()

    def flush(self) -> None:
        """Write what was collected. Raises DatasetError where a loss is no longer a number."""
        lines = []
        broken = 0
        for step, line, stacked in self._pending:
            values = dict(zip(line.pop("names"), stacked.tolist(), strict=True))
            finite = all(abs(v) < float("inf") for v in values.values())  # NaN is not, either
            broken = broken or (0 if finite else step)
            rounded = {k: v if abs(v) < float("inf") else str(v) for k, v in values.items()}
            whole = {"step": step, **rounded, **line}
            self.recent.append(whole)
            lines.append(json.dumps(whole) + "\n")
            for name, value in values.items():
                if self._board:
                    self._board.add_scalar(name, value, step)
        self._pending.clear()
        self._append("".join(lines))
        if self._board:
            self._board.flush()
        if broken:
            raise DatasetError(
                f"the loss is no longer a number at step {broken} ({self.path}): lower "
                "train.learning_rate, or set train.clip, and begin anew with --restart"
            )

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise DatasetError(f"cannot write {self.path}: {error.strerror}") from error


def read(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a line that was cut off or damaged is passed over."""
    try:
        text = (out / FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if is_line(found):
            lines.append(found)
    return lines


def is_line(value: Any) -> bool:
    """Whether a value is what `Log` writes: a step, and numbers by name."""
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    return all(type(v) in (int, float) or v in ("nan", "inf", "-inf") for v in value.values())
