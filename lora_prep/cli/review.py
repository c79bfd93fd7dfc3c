"""`lora-prep review`."""

import json
import os
import secrets
import sys
import threading
import webbrowser
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_prep.cli import Failure, options
from lora_prep.cli.config import ConfiguredCommand
from lora_prep.cli.options import FOLDER

if TYPE_CHECKING:
    from lora_prep.backends import SegmenterSpec
    from lora_prep.dataset import Dataset
    from lora_prep.decisions import Decision


@click.command(
    "review",
    cls=ConfiguredCommand,
    epilog="""\b
Examples:
  lora-prep review                       opens the page on the data set here
  lora-prep review data --preset embedded
  lora-prep review --no-browser --port 8765   prints the address alone
  lora-prep review --list                what was decided so far
""",
)
@click.argument("images", type=FOLDER, required=False, metavar="[DATA]")
@click.option("--masks", type=FOLDER, help="The masks.  [default: masks beside the images]")
@options.recursive_option
@options.preset_option("Model that answers to clicks: best = sam2-hiera-large, fast = tiny.")
@click.option(
    "--segmenter",
    type=click.Choice(["sam2", "grabcut"]),
    help="grabcut needs no model file.  [default: the preset's]",
)
@click.option(
    "--sam2-model",
    metavar="ID|FILE",
    help="sam2: a hub id or a checkpoint file.  [default: the preset's]",
)
@click.option("--sam2-config", metavar="FILE", help="sam2: the YAML file of a checkpoint file.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="sam2: precision; auto = bfloat16 where the device has instructions for it.  "
    "[default: auto]",
)
@click.option(
    "--cache-embeddings",
    is_flag=True,
    help="sam2: keep what the encoder makes of each image (8.4 MB) below .lora-prep/embeddings. "
    "What is there already is used in any case.",
)
@options.device_option
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default="any that is free",
    help="Port of this machine to listen at.",
)
@click.option("--no-browser", is_flag=True, help="Print the address, and open nothing.")
@click.option("--list", "list_decisions", is_flag=True, help="List what was decided, and exit.")
@click.option("--json", "as_json", is_flag=True, help="With --list: print one JSON document.")
def command(
    images: Path | None,
    masks: Path | None,
    recursive: bool,
    port: int,
    no_browser: bool,
    cache_embeddings: bool,
    list_decisions: bool,
    as_json: bool,
    **models: Any,
) -> None:
    """Look at the masks in the browser: accept, reject, repair.

    Paint and erase, click on what is meant and have it segmented, erode, feather, fill. The worst
    images come first. What you do is saved as you do it; the masks as they were before lie in
    .lora-prep/trash. No stage replaces a mask that you edited or accepted. Rejected images stay
    where they are, and --list names them.

    The page is served to this machine alone. From another one: ssh -L 8765:localhost:8765 HOST,
    and --port 8765 there. Ctrl-C ends it.
    """
    from lora_prep.dataset import Dataset

    dataset = Dataset.at(options.required(images), masks=masks, recursive=recursive)
    if list_decisions or as_json:
        _print_decisions(dataset, as_json=as_json)
        return
    from lora_prep.cli.presets import specs

    nothing = dict.fromkeys(("detector", "face_model", "det_size", "min_score"))
    _, segmenter = specs(compile=False, **nothing, **models)
    _serve(dataset, segmenter, port, browser=not no_browser, cache=cache_embeddings)


def _serve(
    dataset: "Dataset", segmenter: "SegmenterSpec", port: int, *, browser: bool, cache: bool
) -> None:
    try:
        from lora_prep.review import app
        from lora_prep.review.segment import Clicking
        from lora_prep.review.session import Session
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn"):
            raise
        raise Failure(f"the page needs {package}: pip install 'lora-prep[review]'") from error
    from lora_prep.cli.console import name, short
    from lora_prep.validate import cache_path, validate

    embeddings = dataset.state / "embeddings"
    with app.listen(port) as listening:
        click.echo(f"checking {len(dataset)} images ...", err=True)
        report = validate(dataset, cache=cache_path(dataset))
        session = Session(dataset, report.issues)
        clicking = Clicking(segmenter, embeddings if cache or embeddings.is_dir() else None)
        token = secrets.token_urlsafe(24)
        server = app.server(app.application(session, clicking, token))
        url = f"http://{app.HOST}:{listening.getsockname()[1]}/{token}/"
        click.echo(f"review: {url}")
        click.echo(f"{name(str(dataset.images))}; Ctrl-C ends it", err=True)
        if browser and _has_screen():
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            click.echo(err=True)
    click.echo(f"{_totals(dataset)} -> {short(dataset.state)}")


def _has_screen() -> bool:
    """Whether a browser would have a window: one in the terminal would be in the way."""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _print_decisions(dataset: "Dataset", *, as_json: bool) -> None:
    from lora_prep import decisions
    from lora_prep.cli.console import SCHEMA

    found = decisions.read(dataset)
    if as_json:
        items = [
            {"name": n, "verdict": d.verdict, "edited": d.edited, "when": d.when}
            for n, d in found.items()
        ]
        document = {"images": len(dataset), "counts": _counts(dataset, found), "items": items}
        click.echo(json.dumps({"schema": SCHEMA, **document}))
        return
    for line in _lines(found):
        click.echo(line)
    click.echo(_totals(dataset))


def _lines(found: Mapping[str, "Decision"]) -> Iterator[str]:
    from lora_prep.cli.console import name

    for image, decision in found.items():
        edited = "  mask edited" if decision.edited else ""
        yield f"{decision.verdict or 'undecided':9} {name(image)}{edited}"


def _totals(dataset: "Dataset") -> str:
    from lora_prep import decisions

    counts = _counts(dataset, decisions.read(dataset))
    listed = ", ".join(f"{count} {what}" for what, count in counts.items())
    return f"{len(dataset)} images: {listed}"


def _counts(dataset: "Dataset", found: Mapping[str, "Decision"]) -> dict[str, int]:
    counts = Counter(str(d.verdict) for d in found.values() if d.verdict)
    accepted, rejected = counts["accepted"], counts["rejected"]
    edited = sum(d.edited for d in found.values())
    undecided = len(dataset) - accepted - rejected
    return {
        "accepted": accepted,
        "rejected": rejected,
        "undecided": undecided,
        "edited": edited,
    }
