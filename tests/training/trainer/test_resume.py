"""Interrupted, killed, or shared among processes: the same LoRA, bit for bit."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_prep.errors import DatasetError, UsageError
from lora_prep.training.trainer import checkpoint, logs
from tests.training.trainer import made

RUN: dict[str, Any] = {
    "losses": {"masked": {}, "inverted_mask_prior": {"weight": 0.5}},
    "train": {"steps": 8, "ema": 0.9, "warmup": 3, "decay": "cosine", "caption_dropout": 0.3},
    "lora": {"dropout": 0.2},
    "data": {"flip": True},
    "log": {"every": 1},
}


def forked(work: Callable[[], None]) -> int:
    """A real process with everything imported already; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:  # the child must never go back into pytest
        os._exit(1)
    os._exit(0)


def table(out: Path) -> list[dict[str, Any]]:
    lines = logs.read(out)
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def weights(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_killed_and_resumed_equals_an_undisturbed_run(world: Path) -> None:
    whole = made.train(world, "sd15", **RUN, save={"out": "whole", "every": 2})
    killed = {"save": {"out": "killed", "every": 2}}
    pid = forked(lambda: made.train(world, "sd15", **RUN, **killed))
    deadline = time.monotonic() + 200
    while len(logs.read(world / "killed")) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert not (world / "killed/lora.safetensors").exists()
    assert checkpoint.find(world / "killed")
    resumed = made.train(world, "sd15", **RUN, **killed)
    assert same(weights(whole.files[0]), weights(resumed.files[0]))
    assert table(world / "whole") == table(world / "killed")
    last = [checkpoint.find(world / name)[-1] for name in ("whole", "killed")]
    for part in ("adapter", "average"):
        assert same(*(load_file(folder / f"{part}.safetensors") for folder in last))


def test_other_settings_do_not_go_on(world: Path) -> None:
    made.train(world, "sd15")
    with pytest.raises(UsageError, match=r"trained with other settings.*--restart"):
        made.train(world, "sd15", train={"learning_rate": 2e-3})
    made.train(world, "sd15", train={"learning_rate": 2e-3}, restart=True)
    (broken,) = checkpoint.find(world / "out")
    (broken / "optimizer.pt").write_bytes(b"half")
    with pytest.raises(DatasetError, match=r"is damaged.*Delete it"):
        made.train(world, "sd15", train={"learning_rate": 2e-3, "steps": 3})


def test_two_processes_do_what_one_does_with_twice_the_batches(world: Path) -> None:
    run: dict[str, Any] = {**RUN, "train": {"steps": 3}, "lora": {"dropout": 0.0}}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def work(rank: int) -> Callable[[], None]:
        def process() -> None:
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(True)
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
            os.environ.update({**address, **place})  # as `accelerate launch` does
            made.train(world, "sd15", **run, save={"out": "two"})

        return process

    pids = [forked(work(rank)) for rank in range(2)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    one = made.train(
        world, "sd15", **{**run, "train": {"steps": 3, "accumulate": 2}}, save={"out": "one"}
    )
    two = weights(world / "two/lora.safetensors")
    for name, tensor in weights(one.files[0]).items():
        assert torch.allclose(tensor, two[name], atol=2e-4), name
    ours, theirs = table(world / "one"), table(world / "two")
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_ctrl_c_keeps_a_checkpoint_and_the_rest_equals_an_undisturbed_run(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_prep.training.trainer import optimise

    whole = made.train(world, "sd15", **RUN, save={"out": "whole"})
    rate = optimise.set_rate

    def press(optimizer: Any, step: int, config: Any) -> float:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return rate(optimizer, step, config)

    monkeypatch.setattr(optimise, "set_rate", press)
    stopped = made.train(world, "sd15", **RUN, save={"out": "stopped"})
    assert stopped.interrupted
    assert stopped.checkpoint == world / "stopped/checkpoints/step-000005"
    assert json.loads((stopped.checkpoint / "state.json").read_text())["step"] == 5
    resumed = made.train(world, "sd15", **RUN, save={"out": "stopped"})
    assert same(weights(whole.files[0]), weights(resumed.files[0]))


def test_a_restart_deletes_checkpoints_and_nothing_else(tmp_path):
    folder = tmp_path / checkpoint.FOLDER
    (folder / "step-000010").mkdir(parents=True)
    (folder / "step-000010" / "state.json").write_text("{}")
    (folder / "sdxl.safetensors").write_bytes(b"mine")
    checkpoint.remove(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["sdxl.safetensors"]
