"""`lora-prep train`."""

import json
import sys
from pathlib import Path

import click

SCHEMA = 1
"""Version of the JSON document."""


@click.command(
    "train",
    epilog="""\b
Examples:
  lora-prep train --example > run.toml
  lora-prep train run.toml --dry-run
  lora-prep train run.toml
  accelerate launch --num_processes 4 -m lora_prep train run.toml
  ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m lora_prep train run.toml
""",
)
@click.argument("config", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be done.")
@click.option("--example", is_flag=True, help="Print a configuration with every table.")
@click.option(
    "--restart", is_flag=True, help="Begin anew: delete the run's checkpoints, replace its files."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; only problems.")
def command(
    config: Path | None, dry_run: bool, example: bool, restart: bool, as_json: bool, quiet: bool
) -> None:
    """Train a LoRA on a prepared folder: the reference for lora-prep's losses.

    CONFIG is a TOML file (`--example` prints one). SD 1.5, SDXL, FLUX.1 and FLUX.2 Klein. The same
    command goes on where an interrupted one left off, to the same result. On several GPUs start it
    with `accelerate launch`, for several processes without a GPU with `torchrun` as below. For long
    runs of big models write a configuration for a trainer made for them: `lora-prep export`.
    """
    if example:
        from lora_prep.training.trainer.example import EXAMPLE

        click.echo(EXAMPLE, nl=False)
        return
    if config is None:
        raise click.UsageError("give a CONFIG, or --example to print one")
    from lora_prep.training.trainer import config as run_config

    run = run_config.read(config)  # before the heavy imports: most mistakes are here
    from lora_prep.backends import diffusers_pipeline
    from lora_prep.training.trainer import plan as planning

    given = _base(run.model.base, config.parent)
    base = diffusers_pipeline.find(given, f'base = "DIR" in [model] of {config}')
    plan = planning.plan(run, base)
    if dry_run:
        click.echo(
            json.dumps({"schema": SCHEMA, **plan.as_json()}) if as_json else "\n".join(plan.lines())
        )
        return
    _train(plan, config, restart=restart, as_json=as_json, quiet=quiet)


def _base(given: str, folder: Path) -> str:
    """The model's folder, relative to the configuration; or the hub's name as it is."""
    beside = folder / Path(given).expanduser()
    return str(beside) if beside.is_dir() else given


def _train(plan: object, config: Path, *, restart: bool, as_json: bool, quiet: bool) -> None:
    from lora_prep.training.trainer import loop
    from lora_prep.training.trainer.plan import Plan

    assert isinstance(plan, Plan)

    def say(text: str) -> None:
        if not (quiet or as_json):
            click.echo(text, err=True)

    for note in plan.notes:
        say(f"note: {note}")
    done = loop.train(plan, restart=restart, say=say)
    if as_json:
        files = [str(path) for path in done.files]
        document = {"schema": SCHEMA, "step": done.step, "files": files}
        click.echo(json.dumps({**document, "interrupted": done.interrupted}))
    elif done.interrupted:
        if done.checkpoint:
            click.echo(
                f"interrupted after step {done.step} of {plan.config.train.steps}, kept in "
                f"{done.checkpoint}: `lora-prep train {config}` goes on",
                err=True,
            )
    else:
        for path in done.files:
            click.echo(path)
    if done.interrupted:
        sys.exit(128 + done.signal)
