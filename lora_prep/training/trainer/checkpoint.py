"""Checkpoints: whole or not there, and enough to go on as if nothing had happened.

    checkpoints/step-000250/
      adapter.safetensors     the trained weights, float32
      average.safetensors     their moving average, where there is one
      optimizer.pt            the optimiser's state
      state.json              the step, and what it was trained with (`Setting`)

There is no random state and no position in the data: both are functions of the seed and the step.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_prep.errors import DatasetError, UsageError

FOLDER = "checkpoints"

_name = re.compile(r"step-\d{6,12}").fullmatch
_left_name = re.compile(r"\.step-\d{6,12}\.(part|old)").fullmatch
"""Half a checkpoint: of a run that was killed while it wrote or deleted it."""


@dataclass(frozen=True)
class Setting:
    """What has to stay the same for the rest of a run to be that of an undisturbed one."""

    fingerprint: str
    """Of the configuration."""
    model: str
    """Of the base model's files."""
    data: str
    """Of the images and what is known of them."""
    processes: int
    """How many train: with others each would see other batches."""

    def differs(self, other: "Setting") -> str:
        """In what a checkpoint's setting is another than this one; empty where it is the same."""
        if other.fingerprint != self.fingerprint:
            return "with other settings"
        if other.model != self.model:
            return "on another base model (the files in [model] base changed since)"
        if other.data != self.data:
            return "on other data (images, masks, captions, decisions or faces changed since)"
        if other.processes != self.processes:
            return f"by {other.processes} processes, not {self.processes}"
        return ""


@dataclass(frozen=True)
class Checkpoint:
    """One that was read."""

    step: int
    """Steps that were done."""
    adapter: Mapping[str, Tensor]
    average: Mapping[str, Tensor] | None
    optimizer: Any


def find(out: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    folders = [f for f in (out / FOLDER).glob("step-*") if _name(f.name)]
    whole = [f for f in folders if (f / "state.json").is_file() and not f.is_symlink()]
    return sorted(whole, key=lambda folder: int(folder.name.removeprefix("step-")))


def describe(folder: Path) -> tuple[int, Setting]:
    """Steps that were done, and with what. Raises DatasetError for a damaged one."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        texts = {key: str(state[key]) for key in ("fingerprint", "model", "data")}
        return int(state["step"]), Setting(**texts, processes=int(state["processes"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"the checkpoint {folder} is damaged: {error}. Delete it") from error


def latest(out: Path, setting: Setting) -> Path | None:
    """The checkpoint to go on from. Raises UsageError where it was trained otherwise."""
    found = find(out)
    if not found:
        return None
    other = setting.differs(describe(found[-1])[1])
    if other:
        raise UsageError(
            f"{found[-1]} was trained {other}: to go on, take back what was changed; "
            "to begin anew, give --restart, which deletes the checkpoints, or another [save] out"
        )
    return found[-1]


def write(
    out: Path,
    step: int,
    setting: Setting,
    *,
    adapter: Mapping[str, Tensor],
    average: Mapping[str, Tensor] | None,
    optimizer: Any,
    keep: int,
) -> Path:
    """Write one and delete older ones. Raises DatasetError where it cannot be written."""
    folder = out / FOLDER / f"step-{step:06}"
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _save(adapter, part / "adapter.safetensors")
        if average is not None:
            _save(average, part / "average.safetensors")
        torch.save(optimizer.state_dict(), part / "optimizer.pt")
        state = {"step": step, **asdict(setting)}
        (part / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for path in part.iterdir():
            _flush(path)
        if folder in find(out):
            _delete(folder)
        part.rename(folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise DatasetError(f"the checkpoint {folder} cannot be written: {error}") from error
    for old in find(out)[:-keep]:
        _delete(old)
    return folder


def read(folder: Path, device: torch.device) -> Checkpoint:
    """Read one. Raises DatasetError for a damaged one."""
    try:
        average = folder / "average.safetensors"
        return Checkpoint(
            describe(folder)[0],
            load_file(folder / "adapter.safetensors", str(device)),
            load_file(average, str(device)) if average.exists() else None,
            torch.load(folder / "optimizer.pt", map_location=device, weights_only=True),
        )
    except Exception as error:  # half a pickle fails in any way
        raise DatasetError(
            f"the checkpoint {folder} is damaged: {error}. Delete it to go on from the one before"
        ) from error


def remove(out: Path) -> None:
    """Delete all checkpoints of a run, and nothing else that lies in their folder."""
    for folder in find(out):
        _delete(folder)
    for left in (out / FOLDER).glob(".step-*"):
        if _left_name(left.name) and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
    with suppress(OSError):  # a folder with something else in it, or none
        (out / FOLDER).rmdir()


def _delete(folder: Path) -> None:
    """Out of the way at once: a run that is killed here leaves no half checkpoint of that name."""
    gone = folder.with_name(f".{folder.name}.old")
    with suppress(OSError):
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def _flush(path: Path) -> None:
    """To the device: a power cut must not leave a checkpoint that looks whole."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        os.fsync(file.fileno())
