"""`lora-prep priors`."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand
from lora_prep.cli.options import FOLDER

COUNT = 200


@click.command(
    "priors",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep priors data --class "a person" -n 200 --model DIR   writes data/priors/*.png
  lora-prep priors data --class "a person" --prompts prompts.txt --steps 30
  lora-prep priors data --from old/class_images --class "a photo of a person"
""",
)
@options.images_argument
@click.option("--class", "class_name", metavar="TEXT", help="What the subject is one of: a person.")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1),
    help="Class images wanted in the folder, those that are there already included.  "
    f"[default: {COUNT}]",
)
@click.option(
    "--model",
    metavar="ID|DIR",
    help="The model that you will train: a hub id, or a folder that a pipeline was saved into.  "
    "[default: stabilityai/stable-diffusion-xl-base-1.0]",
)
@click.option("--out", type=FOLDER, help="The class folder.  [default: priors in the data set]")
@click.option(
    "--from",
    "source",
    type=FOLDER,
    help="Draw nothing: take over the class images of this folder, which is only read. --class is "
    "what they show.",
)
@click.option(
    "--prompts",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A prompt a line, with {class} in it, taken in turn.  [default: the class alone]",
)
@click.option("--steps", type=click.IntRange(1), help="Denoising steps.  [default: the model's]")
@click.option("--guidance", type=click.FloatRange(0), help="Scale.  [default: the model's]")
@click.option(
    "--size",
    metavar="N|WxH",
    help="In pixels: what you will train at.  [default: what the model was made for]",
)
@click.option("--negative-prompt", default="", help="What not to draw.")
@click.option(
    "--scheduler",
    type=click.Choice(["ddim", "ddpm", "dpm++", "euler", "euler-a", "heun", "unipc"]),
    help="[default: the model's]",
)
@click.option("--seed", default=0, show_default=True, help="Of all images; each has its own of it.")
@click.option(
    "--format",
    type=click.Choice(["png", "jpg"]),
    default="png",
    show_default=True,
    help="png = without loss; jpg takes a third of the space.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Precision; auto = float32 on the CPU, bfloat16 on CUDA where it is built in.",
)
@click.option("--offload", is_flag=True, help="Keep only the part at work on the GPU: slower.")
@click.option(
    "--batch-size",
    default="auto",
    show_default=True,
    help="Images at once; halved where the memory is too small. auto = 8 on CUDA. The CPU draws "
    "one by one in any case.",
)
@click.option("--require-face", is_flag=True, help="Draw again where no face is found.")
@click.option("--lora", metavar="FILE", help="Refused: priors show what the base model knows.")
@options.preset_option("Face detector for --require-face.")
@options.detector_options
@options.running_options
def command(
    images: Path | None,
    class_name: str | None,
    count: int | None,
    out: Path | None,
    source: Path | None,
    lora: str | None,
    require_face: bool,
    running: options.Running,
    **drawing: Any,
) -> None:
    """Make class images, which keep a model from forgetting its class while it learns a subject.

    Draws them with diffusers, from the model that you will train. An image depends on the seed and
    on its number alone: asking for more makes the missing ones only. Images that are black, NaN,
    blanked by a safety checker or the same as another are drawn again. Whatever else lies in the
    folder counts as a class image, as it does for the trainers, and is left alone.
    """
    from lora_prep.cli.console import End, run_stage
    from lora_prep.cli.presets import detector_spec
    from lora_prep.stages.priors import AdoptPriors, check_places

    if lora:
        raise click.UsageError(
            "--lora: class images have to show what the base model knows of the class. Drawn with "
            "a LoRA they would teach its faults, and above all the subject it was trained on"
        )
    if running.shard is not None or running.merge:
        raise click.UsageError(
            "--shard: how many class images are wanting depends on those in the folder, so shards "
            "would not agree on them; --executor processes and ray draw on several GPUs"
        )
    if source and running.executor != "local":
        raise click.UsageError(
            "--from takes each picture over once, so one worker has to see them all: leave out "
            "--executor"
        )
    names = ("preset", "detector", "face_model", "det_size", "min_score", "device")
    detector = detector_spec(**{name: drawing[name] for name in names}) if require_face else None
    place = Place.at(images, out)
    check_places(place.out, place.root, place.images, source)
    stage: Any
    finish = None
    if source:
        if count is not None:
            raise click.UsageError(
                "--from takes over the whole folder, so -n has no meaning; to fill up to a number "
                "afterwards, give -n without --from"
            )
        if not source.is_dir():
            raise click.UsageError(f"--from {source}: there is no such folder")
        shown = (class_name or "").strip()
        if not shown and not running.as_json and not running.quiet:
            _say(
                "what these images show is not known: say it with --class, or `lora-prep export` "
                "will ask for it"
            )
        theirs = Path(os.path.abspath(source))  # noqa: PTH100
        stage = AdoptPriors(place.out, place.root, theirs, detector, shown)
    else:
        stage = _drawn(place, class_name, count or COUNT, detector, **drawing)
        planned = _to_make(stage, place, force=running.force)
        if not running.as_json and not running.quiet:
            _announce(stage, place, planned)
        if not running.force and not running.dry_run:
            _refuse_to_replace(stage, planned)
        if running.executor != "local":

            def finish(outcomes: Any) -> Any:
                return End(lines=_redrawn(stage, place, whole=len(outcomes) == len(stage)))

    run_stage(
        stage,
        place.root,
        place.out,
        running,
        finish=finish,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where the class images go."""

    out: Path
    root: Path
    images: Path | None = None
    """Of the subject."""
    instances: int = 0

    @classmethod
    def at(cls, images: Path | None, out: Path | None) -> "Place":
        """Below the data set; without one, beside `out`, or here."""
        from lora_prep.dataset import IMAGE_FOLDERS, Dataset
        from lora_prep.errors import DatasetError

        given = out and Path(os.path.abspath(out))  # noqa: PTH100 keeps links
        if images is None:
            root = given.parent if given else Path.cwd()
            return cls(given or root / "priors", root)
        try:
            dataset = Dataset.at(images)
        except DatasetError:
            if not images.is_dir():
                raise
            root = Path(os.path.abspath(images))  # noqa: PTH100
            root = root.parent if root.name in IMAGE_FOLDERS else root
            return cls(given or root / "priors", root)
        where = given or dataset.root / "priors"
        return cls(where, dataset.root, dataset.images, len(dataset))


def _drawn(
    place: Place,
    class_name: str | None,
    count: int,
    require_face: Any,
    *,
    model: str | None,
    prompts: Path | None,
    steps: int | None,
    guidance: float | None,
    size: str | None,
    negative_prompt: str,
    scheduler: str | None,
    seed: int,
    format: Any,
    dtype: Any,
    offload: bool,
    batch_size: str,
    device: str,
    **_detector: Any,
) -> Any:
    from lora_prep import priors
    from lora_prep.backends import diffusers_pipeline as backend
    from lora_prep.backends import weights
    from lora_prep.stages.priors import DrawPriors

    if not (class_name or "").strip():
        raise click.UsageError('give --class, such as --class "a person" (or --from DIR)')
    assert class_name
    fixed = _batch_size(batch_size)
    lines: tuple[str, ...] = (class_name.strip(),)
    if prompts:
        lines = priors.prompts_from(_text(prompts), class_name.strip(), str(prompts))
    backend.require_diffusers()
    if model is None:
        _say(f"model: {backend.DEFAULT_MODEL}; give --model if you will train another one")
    model, here = model or backend.DEFAULT_MODEL, True
    width, height = _size(size) if size else (0, 0)
    try:
        about = backend.Description(backend.find(model))
        if not size:
            width = height = about.size
        sampling = backend.Sampling(width, height, steps or about.steps, guidance, negative_prompt)
        about.check(sampling)
    except weights.NotHere:  # a dry run: what the model decides stays open
        about, here = backend.Description(Path(model)), False
        sampling = backend.Sampling(width, height, steps or 0, guidance, negative_prompt)
    return DrawPriors(
        place.out,
        place.root,
        backend.PipelineSpec(about.folder, device, dtype, scheduler, offload, here),
        sampling,
        lines,
        count=count,
        seed=seed,
        format=format,
        require_face=require_face,
        batch_size=fixed or backend.default_batch_size(device),
    )


def _to_make(stage: Any, place: Place, *, force: bool) -> set[str]:
    """Keys of the images that are to be drawn."""
    from lora_prep.run import plan
    from lora_prep.types import Status

    planned = plan(stage, place.root, force=force)
    return {outcome.key for outcome in planned if outcome.status is Status.DONE}


def _refuse_to_replace(stage: Any, planned: set[str]) -> None:
    """Raise UsageError where images that took hours would be lost by a changed setting."""
    replaced = planned & set(stage.present.values())
    if replaced:
        raise click.UsageError(
            f"{len(replaced)} class images in {stage.out} were drawn with another model or other "
            "settings (class, prompts, size, steps, seed, ...), and would be replaced. Give the "
            "settings of then to keep them, --out for another folder, or --force to draw them again"
        )


def _redrawn(stage: Any, place: Place, *, whole: bool) -> list[str]:
    """Lines on the images that several workers drew alike: only the first of them may stay.

    The others are drawn again by one worker, who sees all; after an interrupt by the next run.
    """
    from lora_prep.errors import DatasetError
    from lora_prep.executors.local import LocalExecutor
    from lora_prep.run import run
    from lora_prep.types import Status

    removed = stage.remove_repeated()
    if not removed or not whole:
        return []
    report = run(stage, place.root, executor=LocalExecutor(1))
    failed = report.counts[Status.FAILED]
    if failed:
        raise DatasetError(
            f"{failed} class images are missing: {report.problems[0].message}. Run the same "
            "command again without --executor"
        )
    return [f"{len(removed)} images that workers drew alike were drawn again"]


def _announce(stage: Any, place: Place, keys: set[str]) -> None:
    """What it will cost, and whether it is likely to pay; on stderr."""
    from lora_prep import priors

    to_make = len(keys)
    sampling, suffix = stage.sampling, f".{stage.format}"
    if stage.foreign:
        _say(f"{stage.foreign} images in {place.out} were not drawn by lora-prep: they count")
    more = len(stage.present) + stage.foreign - stage.count
    if more > 0:
        _say(f"{more} more than asked for are in {place.out}: trainers use them all")
    if not to_make:
        return
    if not stage.pipeline.here:
        _say(f"to make: {to_make} images; what they cost depends on the model, which is not here")
        return
    size = (sampling.width, sampling.height)
    _say(f"to make: {priors.cost(to_make, sampling.steps, *size, suffix)}")
    if replaced := keys & set(stage.present.values()):
        _say(f"{len(replaced)} of them replace images that were drawn before")
    free = shutil.disk_usage(_existing(place.out)).free
    if to_make * priors.bytes_of(*size, suffix) > free:
        _say(f"warning: the disk of {place.out} has {free / 1e9:.1f} GB left")
    note = priors.advice(place.instances)
    if note:
        _say(note)


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _say(text: str) -> None:
    click.echo(text, err=True)


def _batch_size(text: str) -> int | None:
    """None for auto."""
    if text == "auto":
        return None
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise click.UsageError(f"--batch-size {text}: give auto or a number from 1 on")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", text)
    if match is None or int(match[1]) < 16 or int(match[2] or match[1]) < 16:
        raise click.UsageError(f"--size {text}: write 1024, or 832x1216 (from 16 on)")
    return int(match[1]), int(match[2] or match[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read {path}: {error}") from error
