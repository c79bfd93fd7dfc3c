"""Make stale masks anew, if the settings that made them are known."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_prep.cli.config import META, Config

if TYPE_CHECKING:
    from lora_prep.dataset import Dataset
    from lora_prep.types import Json


def remake(
    dataset: "Dataset", stale: Sequence[str], without: Sequence[str], *, dry_run: bool
) -> bool:
    """Run `lora-prep masks` with the configuration's settings, where it writes just what is wanted.

    That is the masks `stale`, and those of the images `without` one that are to be mended, too. The
    journal has the settings only as a hash. If that of the configuration's is another, or if they
    would write other masks as well, the command is only named. The configuration is that of the
    command that is running. Paths are relative to the data set's root. Returns whether masks were
    made.
    """
    command = [sys.executable, "-m", "lora_prep", "masks", str(dataset.images)]
    command += ["--out", str(dataset.masks), *(["--recursive"] * dataset.recursive)]
    config: Config = click.get_current_context().meta.get(META, Config())
    command += ["--config", str(config.path)] if config.path else []
    plan = _run([*command, "--dry-run", "--json"])
    count = f"{len(stale)} stale mask{'s' * (len(stale) != 1)}"
    wanted = {_mask_of(dataset, key) for key in without}
    if reason := _obstacle(plan, dataset, set(stale), wanted):
        click.echo(f"left alone  A001  {count}: {reason}", err=True)
        return False
    missing = _made(plan, dataset) - set(stale)
    if dry_run:
        click.echo(f"would make  A001  {count}", err=True)
        if missing:
            click.echo(f"would make  P001  {len(missing)} missing", err=True)
        return False
    done = _run([*command, "--json"])
    made = _made(done, dataset) if done else set()
    click.echo(f"did make  A001  {len(made - missing)} of {count}", err=True)
    if missing:
        click.echo(f"did make  P001  {len(made & missing)} of {len(missing)} missing", err=True)
    return bool(made)


def _obstacle(plan: "Json", dataset: "Dataset", stale: set[str], wanted: set[str]) -> str:
    """Why a plan is not to be carried out, or nothing.

    It has to make stale masks as they were made, and others only where they are wanted.
    """
    other = "run `lora-prep masks` with the options that made them"
    if plan is None or any(item["code"] == "other-settings" for item in plan["items"]):
        return other
    made = _made(plan, dataset)
    if stale <= _made(plan, dataset, "skipped"):
        return "`lora-prep masks` leaves their images out: take them out, or draw their masks"
    if not made & stale or any(os.path.lexists(dataset.root / mask) for mask in made - stale):
        return other
    if unasked := made - stale - wanted:
        return (
            f"`lora-prep masks` would also make {len(unasked)} that "
            f"{'is' if len(unasked) == 1 else 'are'} missing: --select A001,P001 makes all"
        )
    return ""


def _made(document: "Json", dataset: "Dataset", status: str = "done") -> set[str]:
    """The masks of all items that end in one way."""
    return {_mask_of(dataset, i["key"]) for i in document["items"] if i["status"] == status}


def _mask_of(dataset: "Dataset", key: str) -> str:
    """The mask's path for an image's, both relative to the data set's root."""
    name = os.path.relpath(dataset.root / key, dataset.images)
    return dataset.key(dataset.sample(Path(name).as_posix()).mask)


def _run(command: Sequence[str]) -> "Json":
    """What a command says with --json; None where it does not get that far."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(result.stdout)
    except ValueError:
        return None
