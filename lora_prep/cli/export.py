"""`lora-prep export`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand
from lora_prep.cli.options import FOLDER

if TYPE_CHECKING:
    from lora_prep.export.check import Checked
    from lora_prep.export.plan import Plan
    from lora_prep.export.write import Report

TRAINERS = (
    "diffusion-pipe",
    "ai-toolkit",
    "kohya",
    "onetrainer",
    "simpletuner",
    "musubi",
    "diffusers",
)
WEIGHT = click.FloatRange(0)
COUNT = click.IntRange(1)


@click.command(
    "export",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep export --to diffusion-pipe data --out train/dp --trigger ohwx
  lora-prep export --to kohya data --out train/kohya --caption "a photo of {trigger}" --trigger ohwx
  lora-prep export --to ai-toolkit data --out train/ait --model klein-9b --select "double[0:8]"
  lora-prep export --to onetrainer data --out D --path-style windows --root 'D:\\train\\subject'
  lora-prep export --to simpletuner --pairs data/pairs --out train/age --caption "a face"
  lora-prep export --check --out train/dp      reads an export back as its trainer would
\b
Exit codes: 0 all well; 1 images were left out, a configuration that you edited lacks the selected
blocks, or --check found something; 2 wrong usage.
""",
)
@options.images_argument
@click.option("--to", "trainer", type=click.Choice(TRAINERS), help="The trainer.")
@click.option("--out", type=FOLDER, help="The export's folder, for this trainer alone.")
@click.option("--masks", type=FOLDER, help="Where the masks lie.  [default: masks beside IMAGES]")
@click.option("--no-masks", is_flag=True, help="Train the images as a whole.")
@options.recursive_option
@click.option("--augmented", is_flag=True, help="With the variants that `augment` made.")
@click.option(
    "--augmented-from", type=FOLDER, help="Where they lie.  [default: augmented beside IMAGES]"
)
@click.option(
    "--priors", type=FOLDER, help="Class images.  [default: priors beside IMAGES, if it exists]"
)
@click.option("--no-priors", is_flag=True, help="Without class images.")
@click.option("--class", "class_name", metavar="TEXT", default="", help="What class images show.")
@click.option("--trigger", metavar="WORD", default="", help="The subject's word, for captions.")
@click.option(
    "--caption",
    metavar="TEMPLATE",
    default="",
    help="For images without a caption; {trigger}, {stem} and {folder} are replaced.  "
    "[default: the trigger]",
)
@click.option("--repeats", type=COUNT, default=1, show_default=True, help="Of each image an epoch.")
@click.option(
    "--prior-repeats", type=COUNT, default=1, show_default=True, help="Of each class image."
)
@click.option(
    "--prior-weight", type=WEIGHT, default=1.0, show_default=True, help="Of class images' loss."
)
@click.option(
    "--mask-floor",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Weight of black: 0.1 keeps backgrounds from becoming halos.",
)
@click.option(
    "--background-prior",
    type=WEIGHT,
    default=0.0,
    help="ai-toolkit, onetrainer: hold on to what the base model makes of the masked part.",
)
@click.option(
    "--dop", type=WEIGHT, default=0.0, help="ai-toolkit: output preservation instead of priors."
)
@click.option(
    "--dop-class",
    metavar="TEXT",
    default="",
    help="What the trigger becomes for that: woman.  [default: --class]",
)
@click.option(
    "--slider",
    metavar="MORE LESS",
    nargs=2,
    help="ai-toolkit: a concept slider between two prompts, of --class.",
)
@click.option(
    "--pairs",
    type=FOLDER,
    help="simpletuner: a slider from the folders positive and negative in here, instead of IMAGES; "
    "see `lora-prep pairs`.",
)
@click.option(
    "--slider-strength",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="--pairs: the LoRA's weight on one side; on the other one, minus that.",
)
@click.option(
    "--resolution",
    "resolutions",
    type=click.IntRange(64),
    multiple=True,
    help="Side of the square whose area is trained at; may be repeated.  [default: 1024]",
)
@click.option("--no-buckets", is_flag=True, help="Squares instead of the images' own shapes.")
@click.option("--batch-size", type=COUNT, default=1, show_default=True, help="Images a step.")
@click.option(
    "--route",
    type=click.Choice(["rgba", "mask-dir"]),
    default="rgba",
    show_default=True,
    help="kohya: masks as alpha channels, or in a folder of their own.",
)
@click.option(
    "--model", metavar="NAME|PATH", help="What the LoRA is for: see `lora-prep targets --list`."
)
@click.option("--select", "expression", metavar="EXPR", help="Blocks to train: double[0:8].")
@click.option("--base", metavar="PATH|ID", default="", help="The base model, as the trainer wants.")
@click.option("--rank", type=COUNT, default=16, show_default=True, help="The LoRA's rank.")
@click.option("--alpha", type=WEIGHT, help="The LoRA's alpha.  [default: its rank]")
@click.option("--learning-rate", type=WEIGHT, default=1e-4, show_default=True, help="Of the LoRA.")
@click.option("--steps", type=COUNT, default=2000, show_default=True, help="To train.")
@click.option("--name", metavar="TEXT", default="subject", show_default=True, help="Of the LoRA.")
@click.option(
    "--link",
    type=click.Choice(["copy", "hard", "symlink"]),
    default="copy",
    show_default=True,
    help="How images that need no change get there; hard links take no space.",
)
@click.option("--relative/--absolute", help="Paths in the configuration.  [default: --absolute]")
@click.option("--root", metavar="PATH", help="What OUT is called on the machine that trains.")
@click.option(
    "--path-style", type=click.Choice(["posix", "windows"]), help="[default: this machine's]"
)
@click.option("--check", is_flag=True, help="Read it back as the trainer would; alone: only that.")
@click.option("--force", is_flag=True, help="Replace files of OUT that others made or edited.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@options.reporting_options
def command(
    images: Path | None,
    trainer: str | None,
    out: Path | None,
    check: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **settings: Any,
) -> None:
    """Write a data set as a trainer reads it, with its configuration and command.

    OUT gets the images, captions and masks where this trainer looks for them, its configuration,
    and TRAIN.md with the command and with what the trainer cannot do. Nothing in the data set is
    changed. Images are written anew only where trainers would disagree about them (EXIF, colour
    profiles, alpha, other formats). Images whose mask is missing, damaged or of another size are
    left out, and said so; what is left out of a slider's pair takes the other half with it. Run
    again, it brings OUT up to date.
    """
    if out is None:
        raise click.UsageError("give the folder to write to: --out DIR")
    import os

    out = Path(os.path.abspath(out))  # noqa: PTH100 keeps links
    if trainer is None:
        if not check:
            raise click.UsageError(f"say for which trainer: --to {'|'.join(TRAINERS)}")
        _finish(None, _checked(out), as_json=as_json, verbose=verbose, quiet=quiet)
        return
    from lora_prep.export.write import export
    from lora_prep.pairs import NEGATIVE, POSITIVE, Pairs

    negative = None
    if folder := settings.pop("pairs"):
        Pairs.at(folder, recursive=settings["recursive"])  # raises where a side is missing
        images, negative = folder / POSITIVE, folder / NEGATIVE
    plan = _plan(options.required(images), trainer, out, {**settings, "negative": negative})
    if plan.masked:
        _warn_of_old_masks(plan)
    report = _run(export, plan, dry_run=dry_run, force=force, hidden=quiet or as_json)
    checked = _checked(out) if check and not dry_run else None
    _finish(report, checked, as_json=as_json, verbose=verbose, quiet=quiet, dry_run=dry_run)


def _plan(images: Path, trainer: str, out: Path, settings: Mapping[str, Any]) -> "Plan":
    from lora_prep.dataset import Dataset
    from lora_prep.errors import UsageError
    from lora_prep.export.places import places
    from lora_prep.export.plan import Plan, Slider

    given = dict(settings)
    dataset = Dataset.at(images, masks=given.pop("masks"), recursive=given.pop("recursive"))
    beside = dataset.images.parent
    negative = given.pop("negative")
    augmented = None
    folder = given.pop("augmented_from")
    if given.pop("augmented") or folder:
        folder = folder or beside / "augmented"
        augmented = Dataset.at(folder, recursive=dataset.recursive)
    priors = given.pop("priors")
    if given.pop("no_priors"):
        if priors:
            raise click.UsageError("--priors and --no-priors contradict each other")
    elif priors is None and (beside / "priors").is_dir():
        priors = beside / "priors"
    if priors is not None and not priors.is_dir():
        raise UsageError(f"there is no folder {priors}: draw class images with lora-prep priors")
    model, expression = given.pop("model"), given.pop("expression")
    if expression and not model:
        raise click.UsageError("--select needs --model: blocks are those of a model")
    resolved = selection = None
    if model:
        from lora_prep.cli.targets import resolve_model
        from lora_prep.training import targets

        resolved = resolve_model(model)
        selection = targets.select(resolved, expression) if expression else None
        for note in selection.notes if selection else ():
            click.echo(f"note: {note}", err=True)
    slider = given.pop("slider")
    if slider and not given["class_name"]:
        raise click.UsageError("--slider needs --class: what the slider changes")
    where = places(
        out,
        relative=given.pop("relative"),
        style=given.pop("path_style"),
        root=given.pop("root"),
    )
    return Plan(
        trainer=trainer,  # type: ignore[arg-type]
        out=out,
        places=where,
        dataset=dataset,
        augmented=augmented,
        negative=Dataset.at(negative, recursive=dataset.recursive) if negative else None,
        priors=priors,
        masked=not given.pop("no_masks") and not negative,
        buckets=not given.pop("no_buckets"),
        resolutions=tuple(dict.fromkeys(given.pop("resolutions"))) or (1024,),
        model=resolved,
        selection=selection,
        slider=Slider(slider[0], slider[1], given["class_name"]) if slider else None,
        **given,
    )


def _warn_of_old_masks(plan: "Plan") -> None:
    """They are exported, since the journal alone tells them; but nobody should miss it."""
    from lora_prep.cli.console import name
    from lora_prep.validate.alignment import left_mask, stale_mask
    from lora_prep.validate.listing import Listing

    listing = Listing.of(plan.dataset)
    old = [issue.path for check in (stale_mask, left_mask) for issue in check(listing)]
    if old:
        more = f" and {len(old) - 3} more" if len(old) > 3 else ""
        click.echo(
            f"warning: masks out of date: {', '.join(map(name, old[:3]))}{more}; "
            "lora-prep validate says why",
            err=True,
        )


def _run(export: Any, plan: "Plan", *, dry_run: bool, force: bool, hidden: bool) -> "Report":
    from tqdm import tqdm

    hidden = hidden or not sys.stderr.isatty()
    with tqdm(desc="export", unit="img", disable=hidden) as bar:
        report: Report = export(plan, dry_run=dry_run, force=force, observe=bar.update)
    return report


def _checked(out: Path) -> "Checked":
    from lora_prep.export.check import check

    return check(out)


def _finish(
    report: "Report | None",
    checked: "Checked | None",
    *,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    dry_run: bool = False,
) -> None:
    code = 0
    if report:
        code = report.exit_code
    if checked and checked.problems:
        code = 1
    if as_json:
        from lora_prep.cli.console import SCHEMA

        document: dict[str, Any] = {"schema": SCHEMA, "dry_run": dry_run}
        if report:
            document |= {**asdict(report), "out": str(report.out)}
        document["check"] = asdict(checked) if checked else None
        click.echo(json.dumps(document))
    else:
        if report:
            _print_report(report, verbose=verbose, quiet=quiet, dry_run=dry_run)
        if checked:
            _print_check(checked, verbose=verbose)
    sys.exit(code)


def _print_report(report: "Report", *, verbose: bool, quiet: bool, dry_run: bool) -> None:
    from lora_prep.cli.console import SHOWN, name, short

    shown = report.left_out if verbose else report.left_out[:SHOWN]
    for item in shown:
        click.echo(f"left out  {name(item.key)}: {name(item.reason)}")
    if len(shown) < len(report.left_out):
        more = len(report.left_out) - len(shown)
        click.echo(f"... and {more} more (--verbose or --json lists all)")
    for what, keys in (("caption filled in", report.filled), ("written anew", report.mended)):
        if keys and not quiet:
            some = [*map(name, keys if verbose else keys[:3])]
            rest = "" if len(some) == len(keys) else ", ..."
            click.echo(f"{what} for {len(keys)}: {', '.join(some)}{rest}")
    for note in report.notes:
        click.echo(f"note: {name(note)}")
    if report.strangers:
        click.echo(
            f"warning: {len(report.strangers)} files in the export are not of it, and the trainer "
            f"may read them: {', '.join(map(name, report.strangers[:3]))}"
        )
    if quiet and not report.exit_code:
        return
    if verbose:
        verbs = ("would write", "would remove") if dry_run else ("wrote", "removed")
        for verb, names in zip(verbs, (report.changed, report.removed), strict=True):
            for file in names:
                click.echo(f"{verb}  {name(file)}")
    classes = f" and {report.classes} class images" if report.classes else ""
    left = f", {len(report.left_out)} left out" if report.left_out else ""
    would = "would be " if dry_run else ""
    done = f"{len(report.changed)} files {would}written, {len(report.removed)} {would}removed"
    click.echo(f"{report.trainer}: {report.images} images{classes}{left}; {done}")
    if not dry_run:
        click.echo(f"-> {short(report.out)}: {', '.join(report.configs)}; see TRAIN.md")


def _print_check(checked: "Checked", *, verbose: bool) -> None:
    from lora_prep.cli.console import SHOWN, name

    shown = checked.problems if verbose else checked.problems[:SHOWN]
    for problem in shown:
        click.echo(f"problem  {name(problem)}")
    if len(shown) < len(checked.problems):
        click.echo(f"... and {len(checked.problems) - len(shown)} more (--verbose lists all)")
    verdict = f"{len(checked.problems)} problems" if checked.problems else "all well"
    click.echo(
        f"check: {checked.trainer} reads {checked.images} images, uses the masks of "
        f"{checked.masked}: {verdict}"
    )
