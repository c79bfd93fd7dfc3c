"""Interrupted, killed, or shared among processes: the same LoRA, bit for bit."""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from lora_prep import imageio
from lora_prep.errors import DatasetError, UsageError
from lora_prep.training.trainer import checkpoint, logs
from tests.training.trainer import made
from tests.training.trainer.test_trainer import with_faces

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


def plain(name: str) -> str:
    """A weight's name without that of the adapter."""
    return name.replace(".default", "")


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
    saved = weights(resumed.files[0])  # the moving average, and not the last step's weights
    average = load_file(last[1] / "average.safetensors")
    assert all(torch.equal(saved[f"unet.{plain(n)}"], t) for n, t in average.items())
    assert not same(average, load_file(last[1] / "adapter.safetensors"))


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
    assert stopped.signal == signal.SIGINT
    assert stopped.checkpoint == world / "stopped/checkpoints/step-000005"
    assert json.loads((stopped.checkpoint / "state.json").read_text())["step"] == 5
    resumed = made.train(world, "sd15", **RUN, save={"out": "stopped"})
    assert same(weights(whole.files[0]), weights(resumed.files[0]))


def test_a_schedulers_sigterm_reaches_the_workers_too_and_exits_with_143(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_prep.cli import main
    from lora_prep.training.trainer import optimise

    run = made.values("sd15", train={"steps": 9}, data={"workers": 1})
    (world / "run.toml").write_text(tomli_w.dumps(run))
    rate = optimise.set_rate

    def press(optimizer: Any, step: int, config: Any) -> float:
        if step == 1:
            os.killpg(0, signal.SIGTERM)
        return rate(optimizer, step, config)

    def command() -> None:
        os.setsid()
        try:
            main(["train", str(world / "run.toml"), "--quiet"])
        except SystemExit as ended:
            os._exit(int(ended.code or 0))

    monkeypatch.setattr(optimise, "set_rate", press)
    _, status = os.waitpid(forked(command), 0)
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == 128 + signal.SIGTERM
    (kept,) = checkpoint.find(world / "out")
    assert kept.name == "step-000002"
    assert [line["step"] for line in logs.read(world / "out")] == [1, 2]


# ------------------------------------------------------------------ what does not go on
def test_other_data_models_and_processes_do_not_go_on(world: Path) -> None:
    done = made.train(world, "sd15")

    def refused(why: str) -> None:
        with pytest.raises(UsageError, match=rf"trained {why}.*take back.*--restart"):
            made.train(world, "sd15", train={"steps": 3})

    white = imageio.encode_mask(np.full((64, 64), 255, np.uint8))
    for name, changed in {"faces/0.txt": b"another caption", "masks/1.png": white}.items():
        file = world / "data" / name
        before = file.read_bytes()
        file.write_bytes(changed)
        refused("on other data")
        file.write_bytes(before)
    with_faces(world, "0" * 64)
    refused("on other data .*faces changed")
    (world / "data/embeddings.safetensors").unlink()

    models = (world / "models").resolve()
    (world / "models").unlink()
    shutil.copytree(models / "sd15", world / "models/sd15")
    scheduler = world / "models/sd15/scheduler/scheduler_config.json"
    text = scheduler.read_text()
    scheduler.write_text(text + "\n")
    refused("on another base model")
    scheduler.write_text(text)
    merged = world / "models/sd15/unet/diffusion_pytorch_model.safetensors"
    whole = merged.read_bytes()
    made.change_the_middle(merged)
    refused("on another base model")
    merged.write_bytes(whole)

    (kept,) = checkpoint.find(world / "out")
    state = json.loads((kept / "state.json").read_text())
    (kept / "state.json").write_text(json.dumps({**state, "processes": 2}))
    refused("by 2 processes, not 1")
    (kept / "state.json").write_text(json.dumps(state))
    assert made.train(world, "sd15", train={"steps": 3}).step == 3  # all was taken back
    assert done.files[0].exists()


def test_files_that_no_run_wrote_are_not_replaced(world: Path) -> None:
    out = world / "out"
    foreign = {
        "lora.safetensors": b"somebody's",
        "log.jsonl": b"dear diary\n",
        "losses.png": b"a holiday",
        "samples/step-000002-0.png": b"another one",
    }
    for name, content in foreign.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
        with pytest.raises(UsageError, match=rf"{name} would be replaced.*--restart"):
            made.train(world, "sd15")
        assert (out / name).read_bytes() == content
        (out / name).unlink()
    (out / "lora.kohya.safetensors").mkdir()
    with pytest.raises(UsageError, match=r"lora.kohya.safetensors would be replaced"):
        made.train(world, "sd15", save={"namings": ["diffusers", "kohya"]})
    (out / "log.jsonl").write_bytes(b"")  # of a run that was killed before its first step
    (out / "lora.safetensors").write_bytes(b"somebody's")
    made.train(world, "sd15", train={"steps": 1}, restart=True)
    assert weights(out / "lora.safetensors")
    shutil.rmtree(out / checkpoint.FOLDER)
    made.train(world, "sd15", train={"steps": 1})  # its own are begun again


# ------------------------------------------------------------------ checkpoints on disk
def kept(out: Path, step: int, keep: int = 2) -> Path:
    weight = torch.nn.Parameter(torch.full((2,), float(step)))
    return checkpoint.write(
        out,
        step,
        checkpoint.Setting("f", "m", "d", 1),
        adapter={"a": weight},
        average=None,
        optimizer=torch.optim.SGD([weight], 0.1),
        keep=keep,
    )


def test_old_checkpoints_go_and_the_last_is_that_of_the_highest_step(tmp_path: Path) -> None:
    for step in (5, 999_999, 1_000_000):
        kept(tmp_path, step)
    folders = sorted(path.name for path in (tmp_path / checkpoint.FOLDER).iterdir())
    assert folders == ["step-1000000", "step-999999"]
    found = checkpoint.latest(tmp_path, checkpoint.Setting("f", "m", "d", 1))
    assert found is not None
    assert found.name == "step-1000000"
    assert checkpoint.read(found, torch.device("cpu")).adapter["a"][0] == 1_000_000


def test_a_run_killed_while_it_deleted_does_not_hinder_the_next(tmp_path: Path) -> None:
    folder = tmp_path / checkpoint.FOLDER
    for name in (".step-000010.old", ".step-000010.part"):
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter.safetensors").write_bytes(b"half")
    assert checkpoint.find(tmp_path) == []
    assert kept(tmp_path, 10).is_dir()
    kept(tmp_path, 10)  # written over
    checkpoint.remove(tmp_path)
    assert not folder.exists()


def test_a_restart_deletes_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    kept(tmp_path, 10)
    folder = tmp_path / checkpoint.FOLDER
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/state.json").write_text("{}")
    (folder / "step-000020").symlink_to(tmp_path / "mine", target_is_directory=True)
    (folder / "step-by-step").mkdir()
    (folder / "sdxl.safetensors").write_bytes(b"mine")
    checkpoint.remove(tmp_path)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["sdxl.safetensors", "step-000020", "step-by-step"]
    assert (tmp_path / "mine/state.json").exists()
