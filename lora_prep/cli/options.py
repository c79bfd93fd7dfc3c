"""Options that several commands share."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

FOLDER = click.Path(file_okay=False, path_type=Path)


def images_argument(command: Command) -> Command:
    """IMAGES: the image folder, or the data set's root; from the configuration if left out."""
    return click.argument("images", type=FOLDER, required=False)(command)


def recursive_option(command: Command) -> Command:
    """--recursive."""
    return click.option("--recursive", is_flag=True, help="Read sub-folders, too.")(command)


@dataclass(frozen=True, slots=True)
class Running:
    """How a stage is to be run: what `running_options` ask for."""

    force: bool
    dry_run: bool
    threads: int
    executor: str
    workers: int | None
    num_gpus: float
    address: str | None
    shard: str | None
    merge: bool
    as_json: bool
    quiet: bool
    verbose: bool


def _refuse_what_has_no_effect(running: Running) -> None:
    """Raise UsageError for options typed in vain; in the file they may wait for their executor."""
    context = click.get_current_context()

    def typed(name: str) -> bool:
        return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE

    if typed("address") and running.executor != "ray":
        raise click.UsageError("--address goes with --executor ray")
    if running.executor == "local" and (typed("workers") or typed("num_gpus")):
        raise click.UsageError(
            "--workers and --num-gpus go with --executor processes and ray: the local one has "
            "one model and --threads around it"
        )
    if running.merge and running.shard is not None:
        raise click.UsageError("--merge goes without --shard: it looks at all of them")


def _without_downloads(command: Callable[[], Any]) -> Any:
    """Run a command, and say at its end which models it would have to download."""
    from lora_prep.backends import catalogue, weights

    with weights.no_downloads() as missing:
        try:
            return command()
        finally:
            if missing:
                names = {model.repo: model.name for model in catalogue.MODELS.values()}
                listed = [names.get(model, model) for model in missing]
                pulled = all(name in catalogue.MODELS for name in listed)
                does = "`lora-prep models pull` does" if pulled else "the run itself will"
                click.echo(
                    f"not here yet: {', '.join(listed)}. A dry run downloads nothing ({does}), so "
                    "what other models made cannot be told from what this one did",
                    err=True,
                )


def running_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command takes that works through a folder; `command` gets it as `running`."""

    @functools.wraps(command)
    def decorated(*args: Any, **options: Any) -> Any:
        running = Running(**{field.name: options.pop(field.name) for field in fields(Running)})
        _refuse_what_has_no_effect(running)
        if running.dry_run:
            return _without_downloads(functools.partial(command, *args, running=running, **options))
        return command(*args, running=running, **options)

    decorators = [
        click.option("--force", is_flag=True, help="Do everything again, and replace hand edits."),
        click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing."),
        click.option(
            "--threads",
            type=click.IntRange(1),
            default=4,
            show_default=True,
            help="Threads that read and write around each model.",
        ),
        click.option(
            "--executor",
            type=click.Choice(["local", "processes", "ray"]),
            default="local",
            show_default=True,
            help="local = one model here; processes = several here; ray = on the machines of a Ray "
            "cluster that share the data set's folder. The files are the same.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1),
            help="processes, ray: how many models.  [default: as many as there are CPUs, or GPUs "
            "with --num-gpus]",
        ),
        click.option(
            "--num-gpus",
            type=click.FloatRange(0),
            default=0.0,
            show_default=True,
            help="processes, ray: GPUs for each model; 0.5 lets two share one.",
        ),
        click.option(
            "--address",
            metavar="HOST:PORT",
            help="ray: the cluster's head, or auto.  [default: RAY_ADDRESS, or a cluster of this "
            "machine alone]",
        ),
        click.option(
            "--shard",
            metavar="I/N",
            help="Do the I-th of N parts (1/8 to 8/8) alone: for job arrays on a shared folder. "
            "All may run at once; then --merge.",
        ),
        click.option(
            "--merge",
            is_flag=True,
            help="Do nothing but check that all shards are complete, and put their journals "
            "together; with --force, what there is of them.",
        ),
        reporting_options,
    ]
    for decorator in reversed(decorators):
        decorated = decorator(decorated)
    return decorated


def reporting_options(command: Command) -> Command:
    """--json, --quiet, --verbose."""
    decorators = [
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        click.option("-q", "--quiet", is_flag=True, help="No progress; only problems."),
        click.option("-v", "--verbose", is_flag=True, help="A line for each image."),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def detector_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which face detector, and its settings; a licence to accept is asked for before the command.

    `command` gets `preset`, `detector`, `face_model`, `det_size`, `min_score` and `device`.
    """

    @functools.wraps(command)
    def decorated(*args: Any, accept_license: bool, **options: Any) -> Any:
        from lora_prep.backends import weights
        from lora_prep.cli.presets import detector_spec

        if options["detector"] == "yunet" and options["face_model"] is None:
            options["face_model"] = ""  # the preset's is a pack of insightface's
        names = ("preset", "detector", "face_model", "det_size", "min_score", "device")
        spec = detector_spec(**{name: options[name] for name in names})
        if spec.name == "insightface" and weights.is_licensed(spec.model or weights.DEFAULT_PACK):
            ask_for_license(accept_license)
        return command(*args, **options)

    decorators = [
        click.option(
            "--detector",
            type=click.Choice(["insightface", "yunet", "cascade"]),
            help="Face detector; yunet's weights are free for any use, cascade needs none.  "
            "[default: the preset's]",
        ),
        click.option(
            "--face-model",
            metavar="NAME|PATH",
            help="insightface: a pack's name or a folder of ONNX files; yunet: an ONNX file.  "
            "[default: the preset's]",
        ),
        click.option(
            "--det-size",
            type=click.IntRange(32),
            help="insightface, yunet: the image is fitted into a square of this many pixels; small "
            "faces in large groups want more.  [default: 640]",
        ),
        click.option(
            "--min-score",
            type=click.FloatRange(0, 1),
            help="insightface, yunet: drop faces below this confidence.  [default: 0.5]",
        ),
        accept_license_option,
        device_option,
    ]
    for decorator in reversed(decorators):
        decorated = decorator(decorated)
    return decorated


def accept_license_option(command: Command) -> Command:
    """--accept-license."""
    return click.option(
        "--accept-license",
        is_flag=True,
        help="Accept, once, that insightface's models are for non-commercial research only.",
    )(command)


def ask_for_license(accept: bool) -> None:
    """Have the licence of insightface's models accepted, if it was not yet, and record it.

    Asks where somebody can answer. Elsewhere it is left to the backend to refuse its models.
    """
    from lora_prep.backends import licenses

    if licenses.accepted():
        return
    if not accept and sys.stdin.isatty() and sys.stderr.isatty():
        click.echo(licenses.NOTICE, err=True)
        accept = click.confirm("Do you accept that?", err=True)
    if accept:
        licenses.accept()
        click.echo(f"insightface's licence accepted: {licenses.record()}", err=True)


def device_option(command: Command) -> Command:
    """--device."""
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
    )(command)


def preset_option(what: str) -> Callable[[Command], Command]:
    """--preset."""
    return click.option(
        "--preset",
        type=click.Choice(["best", "fast", "embedded"]),
        default="best",
        show_default=True,
        help=f"{what} `embedded` needs no model files (draft quality).",
    )


def required(images: Path | None) -> Path:
    """The image folder: given, configured, or `data` here."""
    if images is None:
        raise click.UsageError(
            "give the folder of the images (there is neither a lora-prep.toml nor a data folder "
            "here; `lora-prep init` makes both)"
        )
    return images
