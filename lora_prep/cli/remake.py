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
    """Run `lora-prep masks` with the configuration's settings, where it writes over just these.

    The journal has the settings only as a hash. If that of the configuration's is another, or if
    they would replace other masks as well, the command is only named. Masks that are missing are
    made along with them. The configuration is that of the command that is running. Paths are
    relative to the data set's root. Returns whether masks were made.
    """
    command = [sys.executable, "-m", "lora_prep", "masks", str(dataset.images)]
    command += ["--out", str(dataset.masks), *(["--recursive"] * dataset.recursive)]
    config: Config = click.get_current_context().meta.get(META, Config())
    command += ["--config", str(config.path)] if config.path else []
    plan = _run([*command, "--dry-run", "--json"])
    count = f"{len(stale)} stale mask{'s' * (len(stale) != 1)}"
    wanted = None if plan is None else _to_make(plan, dataset, stale)
    if wanted is None:
        click.echo(
            f"left alone  A001  {count}: run `lora-prep masks` with the options that made them",
            err=True,
        )
        return False
    missing = wanted - set(stale)
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


def _to_make(plan: "Json", dataset: "Dataset", stale: Sequence[str]) -> set[str] | None:
    """The masks that a plan makes: stale ones, as they were made, and such as are not there.

    None where it makes no stale one anew, or would write over another.
    """
    made = _made(plan, dataset)
    others = made - set(stale)
    same = all(item["code"] != "other-settings" for item in plan["items"])
    kept = not any(os.path.lexists(dataset.root / mask) for mask in others)
    return made if same and kept and len(made) > len(others) else None


def _made(document: "Json", dataset: "Dataset") -> set[str]:
    return {_mask_of(dataset, i["key"]) for i in document["items"] if i["status"] == "done"}


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
