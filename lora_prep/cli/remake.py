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


def remake(dataset: "Dataset", stale: Sequence[str], *, dry_run: bool) -> bool:
    """Run `lora-prep masks` with the configuration's settings, where it would make just these.

    The journal has the settings only as a hash. If that of the configuration's is another, or if
    they would make other masks as well, the command is only named. The configuration is that of the
    command that is running. Paths are relative to the data set's root. Returns whether masks were
    made.
    """
    command = [sys.executable, "-m", "lora_prep", "masks", str(dataset.images)]
    command += ["--out", str(dataset.masks), *(["--recursive"] * dataset.recursive)]
    config: Config = click.get_current_context().meta.get(META, Config())
    command += ["--config", str(config.path)] if config.path else []
    plan = _run([*command, "--dry-run", "--json"])
    count = f"{len(stale)} stale mask{'s' * (len(stale) != 1)}"
    if plan is None or not _makes_only(plan, dataset, stale):
        click.echo(
            f"left alone  A001  {count}: run `lora-prep masks` with the options that made them",
            err=True,
        )
        return False
    if dry_run:
        click.echo(f"would make  A001  {count}", err=True)
        return False
    done = _run([*command, "--json"])
    made = done["counts"]["done"] if done else 0
    click.echo(f"did make  A001  {made} of {count}", err=True)
    return bool(made)


def _makes_only(plan: "Json", dataset: "Dataset", stale: Sequence[str]) -> bool:
    """Whether a plan makes stale masks anew, as they were made, and leaves all others alone."""
    items = [item for item in plan["items"] if item["status"] == "done"]
    made = {_mask_of(dataset, item["key"]) for item in items}
    same = all(item["code"] != "other-settings" for item in items)
    return bool(made) and made <= set(stale) and same


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
