"""Checkpoints: whole or not there, and enough to go on as if nothing had happened.

    checkpoints/step-000250/
      adapter.safetensors     the trained weights, float32
      average.safetensors     their moving average, where there is one
      optimizer.pt            the optimiser's state
      state.json              step, the configuration's fingerprint, the data's, processes

There is no random state and no position in the data: both are functions of the seed and the step.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_prep.errors import DatasetError, UsageError

FOLDER = "checkpoints"

_name = re.compile(r"step-\d{6,12}").fullmatch
_part_name = re.compile(r"\.step-\d{6,12}\.part").fullmatch


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


def describe(folder: Path) -> dict[str, Any]:
    """Step, fingerprint, digest of the data, processes. Raises DatasetError for a damaged one."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return {
            "step": int(state["step"]),
            "fingerprint": str(state["fingerprint"]),
            "data": str(state["data"]),
            "processes": int(state["processes"]),
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"the checkpoint {folder} is damaged: {error}. Delete it") from error


def latest(out: Path, fingerprint: str, data: str, processes: int) -> Path | None:
    """The checkpoint to go on from. Raises UsageError where it was trained otherwise.

    `data` is the digest of the images, `processes` how many train: with others the rest of the run
    would see other batches than an undisturbed one.
    """
    found = find(out)
    if not found:
        return None
    state = describe(found[-1])
    other = ""
    if state["fingerprint"] != fingerprint:
        other = "with other settings"
    elif state["data"] != data:
        other = "on other data (images, masks, captions or decisions changed since)"
    elif state["processes"] != processes:
        other = f"by {state['processes']} processes, not {processes}"
    if other:
        raise UsageError(
            f"{found[-1]} was trained {other}: to go on, take back what was changed; "
            "to begin anew, give --restart, which deletes the checkpoints, or another [save] out"
        )
    return found[-1]


def write(
    out: Path,
    step: int,
    fingerprint: str,
    *,
    data: str,
    processes: int,
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
        state = {"step": step, "fingerprint": fingerprint, "data": data, "processes": processes}
        (part / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for path in part.iterdir():
            _flush(path)
        if folder in find(out):
            shutil.rmtree(folder)
        part.rename(folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise DatasetError(f"the checkpoint {folder} cannot be written: {error}") from error
    for old in find(out)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def read(folder: Path, device: torch.device) -> Checkpoint:
    """Read one. Raises DatasetError for a damaged one."""
    try:
        average = folder / "average.safetensors"
        return Checkpoint(
            int(describe(folder)["step"]),
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
    for folder in (*find(out), *(out / FOLDER).glob(".step-*.part")):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # a folder with something else in it, or none
        (out / FOLDER).rmdir()


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def _flush(path: Path) -> None:
    """To the device: a power cut must not leave a checkpoint that looks whole."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        os.fsync(file.fileno())
