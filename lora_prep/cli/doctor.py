"""`lora-prep doctor`."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_prep.cli.config import FILE_NAME, ConfiguredCommand, find_config, option_defaults
from lora_prep.dataset import Dataset
from lora_prep.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from lora_prep.doctor import Finding

SCHEMA = 1
"""Version of the JSON document. `console` has the same, but needs an OpenCV that works."""


@click.command(
    "doctor",
    epilog="""\b
Examples:
  lora-prep doctor
  lora-prep doctor --json
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Look at this machine: what works, what does not, and what to do about it.

    Versions and clashes of packages, devices, models that are here already, disk space, the
    configuration and the data set here, and which presets can run. Nothing is downloaded or
    changed. The exit code is 1 where there is a problem; a warning is none.
    """
    from lora_prep.doctor import Level, examine, guarded

    if sys.stderr.isatty() and not as_json:
        click.echo("trying the packages, which takes some seconds ...", err=True)
    findings = [*examine(presets(), data_place()), *guarded("data set", data_set)]
    if as_json:
        click.echo(json.dumps(document(findings), ensure_ascii=False))
    else:
        for line in lines(findings):
            click.echo(line)
    sys.exit(any(f.level is Level.PROBLEM for f in findings))


def lines(findings: "Sequence[Finding]") -> Iterator[str]:
    """The report for people."""
    from lora_prep.doctor import Level

    width = max(len(f.topic) for f in findings)
    for finding in findings:
        yield f"{finding.level:8} {finding.topic:{width}}  {finding.message}"
        if finding.fix:
            yield f"{'':{width + 9}}  -> {finding.fix}"
    counts = {level: sum(f.level is level for f in findings) for level in Level}
    yield f"problems: {counts[Level.PROBLEM]}, warnings: {counts[Level.WARNING]}"


def document(findings: "Sequence[Finding]") -> dict[str, Any]:
    """The report for machines."""
    return {
        "schema": SCHEMA,
        "findings": [
            {"topic": f.topic, "level": f.level, "message": f.message, "fix": f.fix}
            for f in findings
        ],
    }


def presets() -> dict[str, tuple[str, str]]:
    """Face pack and SAM2 checkpoint of the presets that have them; none where numpy is broken."""
    try:
        from lora_prep.cli.presets import PRESETS
    except Exception:  # the findings on packages say why
        return {}
    return {
        name: (detector.model, segmenter.model)
        for name, (detector, segmenter) in PRESETS.items()
        if detector.name == "insightface" and segmenter.name == "sam2"
    }


def data_place() -> Path | None:
    """Where the masks of the data set here are going to lie, if there is one."""
    try:
        config = find_config(Path())
    except UsageError:
        return None
    here = Path("data")
    return config.masks or config.images or (here if here.is_dir() else None)


def data_set() -> "Iterator[Finding]":
    """The configuration and the data set here."""
    from lora_prep.doctor import Finding, Level

    try:
        config = find_config(Path())
        for one in _configured_commands() if config.commands else ():
            option_defaults(config, one)
    except UsageError as error:
        fix = "correct it there; `lora-prep init` in an empty folder writes one with all keys"
        yield Finding("config", Level.PROBLEM, str(error), fix)
        return
    yield Finding("config", Level.OK, str(config.path or f"no {FILE_NAME} here"))
    images = config.images or Path("data")
    if config.images is None and not images.is_dir():
        yield Finding("data set", Level.OK, "none here; `lora-prep init` starts one")
        return
    try:
        dataset = Dataset.at(images, masks=config.masks, recursive=config.recursive)
    except DatasetError as error:
        fix = f"put images there, or correct [dataset] in {FILE_NAME}"
        yield Finding("data set", Level.WARNING, str(error), fix)
        return
    level = Level.OK if len(dataset) else Level.WARNING
    message = f"{len(dataset)} images in {dataset.images}, masks in {dataset.masks}"
    yield Finding("data set", level, message)


def _configured_commands() -> Iterator[click.Command]:
    from lora_prep.cli import COMMANDS, main

    context = click.Context(main)
    found = (main.get_command(context, name) for name in COMMANDS)
    return (one for one in found if isinstance(one, ConfiguredCommand))
