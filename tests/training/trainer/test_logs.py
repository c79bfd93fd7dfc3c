"""The log of a run: what is written, and what is made of a damaged one."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_prep.errors import DatasetError
from lora_prep.training.trainer import logs

LINE = {"step": 1, "loss": 2.0, "lr": 0.1}


def log(out: Path, start: int = 0, every: int = 1) -> logs.Log:
    return logs.Log(out, every, start, tensorboard=False)


def test_lines_of_later_steps_and_of_no_step_are_dropped_when_a_run_goes_on(tmp_path: Path) -> None:
    lines = [
        json.dumps(LINE),
        "dear diary",
        "[" * 100_000,
        '{"step": true, "loss": 1}',
        '{"step": 2, "loss": [1]}',
        '{"loss": 1}',
        "\ufffd",
        json.dumps({**LINE, "step": 2, "loss": "nan"}),
        json.dumps({**LINE, "step": 3}),
        '{"step": 4, "lo',
    ]
    (tmp_path / logs.FILE).write_text("\n".join(lines))
    log(tmp_path, start=2).add(3, {"loss": torch.tensor(1.5)}, lr=0.1)
    found = logs.read(tmp_path)
    assert [(line["step"], line["loss"]) for line in found] == [(1, 2.0), (2, "nan"), (3, 1.5)]


def test_steps_are_written_every_so_many_and_the_last_ones_are_at_hand(tmp_path: Path) -> None:
    writer = log(tmp_path, every=2)
    for step in (1, 2, 3):
        writer.add(step, {"loss": torch.tensor(float(step))}, seconds=0.5)
    assert [line["step"] for line in logs.read(tmp_path)] == [1, 2]
    assert [line["loss"] for line in writer.recent] == [1.0, 2.0]
    writer.flush()
    assert logs.read(tmp_path)[-1] == {"step": 3, "loss": 3.0, "seconds": 0.5}


def test_a_loss_that_is_no_number_is_written_down_before_it_stops(tmp_path: Path) -> None:
    writer = log(tmp_path, every=5)
    writer.add(1, {"loss": torch.tensor(1.0), "masked": torch.tensor(1.0)})
    writer.add(2, {"loss": torch.tensor(float("nan")), "masked": torch.tensor(float("-inf"))})
    with pytest.raises(DatasetError, match="no longer a number at step 2"):
        writer.flush()
    assert logs.read(tmp_path)[1] == {"step": 2, "loss": "nan", "masked": "-inf"}


def test_tensorboard_gets_every_value_and_no_step_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards: list[Any] = []

    class SummaryWriter:
        """The part of torch's that is called; tensorboard itself is not needed to test with."""

        def __init__(self, log_dir: str, purge_step: int) -> None:
            self.log_dir, self.purge_step = log_dir, purge_step
            self.scalars: list[tuple[str, float, int]] = []
            self.flushed = 0
            boards.append(self)

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            self.scalars.append((tag, scalar_value, global_step))

        def flush(self) -> None:
            self.flushed = len(self.scalars)

    module = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    writer = logs.Log(tmp_path, 2, 5, tensorboard=True)
    for step in (6, 7):
        writer.add(step, {"loss": torch.tensor(2.0), "masked": torch.tensor(1.0)}, lr=0.1)
    writer.flush()
    (board,) = boards
    assert (board.log_dir, board.purge_step) == (str(tmp_path / "tensorboard"), 6)
    assert board.scalars == [(n, v, s) for s in (6, 7) for n, v in (("loss", 2.0), ("masked", 1.0))]
    assert board.flushed == 4
