"""`lora-prep embed`."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_prep.cli import options
from lora_prep.cli.config import ConfiguredCommand, FileOrWord

if TYPE_CHECKING:
    from lora_prep.backends import DetectorSpec, RecogniserSpec
    from lora_prep.embeddings import Embeddings
    from lora_prep.stages.subject import Best, Survey
    from lora_prep.types import Json, Outcome

MEDOID = "medoid"
"""As --reference: the most typical face."""


@click.command(
    "embed",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep embed data/faces                      writes data/embeddings.safetensors
  lora-prep embed data/faces --reference me.jpg   who is like the person in me.jpg?
  lora-prep embed data/faces --detector yunet --recogniser sface   weights free for any use
""",
)
@options.images_argument
@options.recursive_option
@click.option(
    "--preset",
    type=click.Choice(["best", "fast", "embedded"]),
    default="best",
    show_default=True,
    help="Models: best = insightface buffalo_l, fast = buffalo_sc. `embedded` has none for this.",
)
@click.option(
    "--reference",
    "references",
    multiple=True,
    type=FileOrWord(MEDOID),
    metavar="IMG",
    help="A picture of the person meant (its largest face); may be given several times. `medoid` "
    "is the most typical face of the set.  [default: as last time; at first medoid]",
)
@click.option(
    "--min-similarity",
    type=click.FloatRange(-1, 1),
    help="A face less like the reference is somebody else's.  [default: arcface 0.28, sface 0.363]",
)
@click.option(
    "--recogniser",
    type=click.Choice(["arcface", "sface"]),
    default="arcface",
    show_default=True,
    help="arcface = insightface's; sface = OpenCV's, whose weights are free for any use.",
)
@click.option(
    "--recogniser-model",
    metavar="NAME|PATH",
    help="arcface: a pack's name, a folder of ONNX files or one ONNX file; sface: an ONNX file.  "
    "[default: the detector's pack, or the preset's]",
)
@options.detector_options
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Images whose faces are recognised together.",
)
@options.running_options
def command(
    images: Path | None,
    recursive: bool,
    references: tuple[Path, ...],
    min_similarity: float | None,
    recogniser: Any,
    recogniser_model: str | None,
    batch_size: int,
    running: options.Running,
    **models: Any,
) -> None:
    """Say who is in each image: a vector for every face, and how much it is like the reference.

    Writes embeddings.safetensors beside the image folder, one row a face. Lists images that may not
    show the same person, and those that are nearly the same. Images that have not changed are not
    looked at again. `lora-prep masks --faces reference` then masks the person meant alone.
    A reference that was given is kept until another one is, by `lora-prep run`, too.
    The vectors are biometric data: have the person's consent.
    """
    from lora_prep.cli.console import End, run_stage, short
    from lora_prep.cli.presets import detector_spec
    from lora_prep.dataset import Dataset
    from lora_prep.stages import embed
    from lora_prep.stages.subject import check_target, given_before

    dataset = Dataset.at(options.required(images), recursive=recursive)
    before = given_before(dataset)
    chosen = _chosen(references, before)
    detector = detector_spec(**models)
    stage = embed.EmbedFaces(
        dataset,
        detector,
        recogniser_spec(recogniser, recogniser_model, detector, models["preset"], models["device"]),
        references=chosen,
        min_similarity=min_similarity,
        batch_size=batch_size,
    )
    if not running.force:
        check_target(dataset)

    def finish(outcomes: "Sequence[Outcome]") -> End:
        from lora_prep.stages.subject import survey
        from lora_prep.types import Status

        failed = {outcome.key for outcome in outcomes if outcome.status is Status.FAILED}
        interrupted = len(outcomes) < len(stage)
        embeddings = embed.finish(stage, failed, interrupted=interrupted)
        if embeddings is None:
            how = "left as it was" if dataset.embeddings.is_file() else "not made yet"
            left = f"{short(dataset.embeddings)}: {how}, since the run was interrupted"
            return End(lines=() if running.quiet else (left,))
        found = survey(embeddings)
        lines = (
            [] if found is None or not found.is_doubtful else [_doubt(found, given=bool(chosen))]
        )
        if not running.quiet:
            same = ", as last time; `--reference medoid` takes the most typical face"
            kept = same if chosen and not references else ""
            if before and chosen != before:
                kept = f"; last time it was {', '.join(short(path) for path in before)}"
            lines = [*report(embeddings, found, kept, verbose=running.verbose), *lines]
        return End(document(embeddings, found), lines)

    run_stage(
        stage,
        dataset.root,
        dataset.embeddings,
        running,
        finish=finish,
    )


def _chosen(references: "Sequence[Path]", before: tuple[Path, ...]) -> tuple[Path, ...]:
    """The references to take: those given, or else those of last time; none for the medoid."""
    if Path(MEDOID) in references:
        if len(set(references)) > 1:
            raise click.UsageError(f"--reference: {MEDOID} goes without others")
        return ()
    for path in references:
        if not path.is_file():
            raise click.UsageError(f"--reference: there is no file {path}")
    gone = [path for path in before if not path.is_file()]
    if not references and gone:
        raise click.UsageError(
            f"--reference: {gone[0]}, which was given last time, is gone: give another picture of "
            f"the person, or `--reference {MEDOID}` for the most typical face"
        )
    return tuple(dict.fromkeys(Path(os.path.abspath(path)) for path in references)) or before  # noqa: PTH100 keeps links


def _doubt(found: "Survey", *, given: bool) -> str:
    do = "is it a picture of the person meant?" if given else "give one with --reference IMG"
    return f"warning  only {found.shown} of {len(found.best)} images show the reference: {do}"


def recogniser_spec(
    name: Any, model: str | None, detector: "DetectorSpec", preset: str, device: str
) -> "RecogniserSpec":
    """The recogniser that the options mean; a licence to accept is asked for.

    arcface comes from the pack of the detector, where that is insightface's, else the preset's.
    """
    from lora_prep.backends import RecogniserSpec, weights
    from lora_prep.cli.presets import PRESETS

    if model is None and name == "arcface":
        pack = detector if detector.name == "insightface" else PRESETS[preset][0]
        model = pack.model
    spec = RecogniserSpec(name, model or "", device)
    if spec.name == "arcface" and weights.is_licensed(spec.model or weights.DEFAULT_PACK):
        options.ask_for_license(click.get_current_context().params["accept_license"])
    return spec


def document(embeddings: "Embeddings", found: "Survey | None") -> "dict[str, Json]":
    """What --json adds to the items."""
    about = dict(embeddings.metadata)
    reference = json.loads(about.pop("reference", "[]"))
    return {
        "faces": len(embeddings),
        "without_face": list(embeddings.faceless),
        "metadata": about,
        "reference": reference,
        "identity": found.to_json() if found else None,
    }


def report(
    embeddings: "Embeddings", found: "Survey | None", kept: str, *, verbose: bool
) -> Iterator[str]:
    """Who is who, in lines; `kept` is about last time's reference."""
    from lora_prep.cli.console import name

    about = embeddings.metadata
    images = len(set(embeddings.names))
    yield f"{len(embeddings)} faces in {images} images by {about['model']}"
    yield f"licence of its weights: {about['license']}"
    if found is None:
        return
    chosen = [f"{name(r['image'])} (face {r['face'] + 1})" for r in json.loads(about["reference"])]
    given = about["reference_kind"] == "given"
    kind = "" if given else ", the most typical face; --reference IMG takes another"
    yield f"reference: {', '.join(chosen)}{kind}{kept}"
    median = "" if found.median is None else f", their median similarity is {found.median:.2f}"
    yield f"{found.shown} of {len(found.best)} images show that person{median}"
    yield from _listed(
        f"not the same person? (below {found.min_similarity:.2f})", found.others, verbose
    )
    yield from _listed(
        f"unlike the others (below {found.bound:.2f}: 3.5 robust standard deviations)",
        found.unlike,
        verbose,
    )
    if found.near_duplicates:
        yield "nearly the same picture of the same face; trainers see it more often than the rest:"
        for a, b, cosine in _first(found.near_duplicates, verbose):
            yield f"  {cosine:5.2f}  {name(a)}  {name(b)}"
        yield from _more(len(found.near_duplicates), verbose)


def _listed(title: str, faces: "Sequence[Best]", verbose: bool) -> Iterator[str]:
    """A title and the faces below it, the least similar first; nothing where there is none."""
    from lora_prep.cli.console import name

    if not faces:
        return
    yield f"{title}:"
    for best in _first(sorted(faces, key=lambda b: b.similarity), verbose):
        yield f"  {best.similarity:5.2f}  {name(best.image)} (face {best.face + 1})"
    yield from _more(len(faces), verbose)


def _first(found: "Sequence[Any]", verbose: bool) -> "Sequence[Any]":
    from lora_prep.cli.console import SHOWN

    return found if verbose else found[:SHOWN]


def _more(count: int, verbose: bool) -> Iterator[str]:
    from lora_prep.cli.console import SHOWN

    if count > SHOWN and not verbose:
        yield f"  ... and {count - SHOWN} more (--verbose or --json lists all)"
