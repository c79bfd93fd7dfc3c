"""`lora-prep models`."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_prep.cli import options
from lora_prep.errors import UsageError

if TYPE_CHECKING:
    from lora_prep.backends.catalogue import Check, Model

SCHEMA = 1
"""Version of the JSON documents."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group(
    "models",
    epilog="""\b
Examples:
  lora-prep models list
  lora-prep models pull buffalo_l facebook/sam2-hiera-large
  lora-prep models pull yunet
  lora-prep models path facebook/sam2-hiera-tiny
  lora-prep models verify
  lora-prep models rm buffalo_m --yes
""",
)
def command() -> None:
    """The model files: what there is, what is here, under which licence.

    Models are downloaded when they are first needed. `pull` does it beforehand, on a machine with
    a network; `list` tells size, licence, origin and SHA-256, `path` where a model lies, `verify`
    reads what is here again, and `rm` deletes it.

    They lie where insightface and the Hugging Face hub keep theirs: in ~/.insightface/models, and
    in the hub's cache (HF_HOME or HF_HUB_CACHE; HF_ENDPOINT and HF_HUB_OFFLINE are honoured, too).
    """


@command.command(
    "list",
    epilog="""\b
Examples:
  lora-prep models list
  lora-prep models list --json
""",
)
@json_option
def list_command(as_json: bool) -> None:
    """List the models, and which of them are here."""
    from lora_prep.backends import catalogue, licenses

    rows = [(model, catalogue.locate(model)) for model in catalogue.MODELS.values()]
    if as_json:
        models = [document(model, place) for model, place in rows]
        _print_json({"models": models, "insightface_license_accepted": licenses.accepted()})
        return
    for line in table(rows):
        click.echo(line)
    state = "accepted" if licenses.accepted() else "not accepted yet"
    click.echo(f"insightface's licence ({licenses.TERMS}): {state}")


@command.command(
    "pull",
    epilog="""\b
Examples:
  lora-prep models pull buffalo_l facebook/sam2-hiera-large    what --preset best needs
  lora-prep models pull buffalo_sc --accept-license            where nobody can be asked
  lora-prep models pull yunet
""",
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@options.accept_license_option
def pull_command(names: Sequence[str], accept_license: bool) -> None:
    """Download models, and print where each lies.

    A download that broke off goes on where it was. What arrives is used only if its SHA-256 is
    right. Models that are here already are left as they are.
    """
    from lora_prep.backends import catalogue

    wanted = [catalogue.named(name) for name in names]
    if any(model.is_pack for model in wanted):
        options.ask_for_license(accept_license)
    for model in wanted:
        click.echo(catalogue.pull(model))


@command.command(
    "path",
    epilog="""\b
Examples:
  lora-prep models path yunet
  cp -r "$(lora-prep models path buffalo_l)" /media/stick
""",
)
@click.argument("name")
def path_command(name: str) -> None:
    """Print where a model lies; exit with 1 if it is not here."""
    from lora_prep.backends import catalogue

    place = catalogue.locate(catalogue.named(name))
    if place is None:
        click.echo(f"{name} is not here: `lora-prep models pull {name}` downloads it", err=True)
        sys.exit(1)
    click.echo(place)


@command.command(
    "verify",
    epilog="""\b
Examples:
  lora-prep models verify
  lora-prep models verify buffalo_l yunet --json
""",
)
@click.argument("names", metavar="[NAME...]", nargs=-1)
@json_option
def verify_command(names: Sequence[str], as_json: bool) -> None:
    """Read model files again and compare their SHA-256; without NAME, all that are here.

    Compared is the hash that the publisher gives, else the hub's, else the one of when the model
    was pulled; the report says which. The exit code is 1 if a file is damaged or missing.
    """
    from lora_prep.backends import catalogue

    wanted = [catalogue.named(name) for name in names] or [
        model for model in catalogue.MODELS.values() if catalogue.locate(model)
    ]
    checks = [(model, check) for model in wanted for check in catalogue.verify(model)]
    if as_json:
        _print_json({"files": [check_document(model, check) for model, check in checks]})
    else:
        for line in check_lines(checks):
            click.echo(line)
        if not checks:
            click.echo("no models are here")
    sys.exit(any(check.status in ("damaged", "missing") for _, check in checks))


@command.command(
    "rm",
    epilog="""\b
Examples:
  lora-prep models rm facebook/sam2-hiera-large
  lora-prep models rm buffalo_m --yes
""",
)
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm_command(name: str, yes: bool) -> None:
    """Delete a model's files.

    Only files that lora-prep, insightface or the hub put there for this model, parts of broken
    downloads among them. Your own files beside them stay.
    """
    from lora_prep.backends import catalogue

    model = catalogue.named(name)
    files = catalogue.files(model)
    if not files:
        click.echo(f"{name} is not here: nothing to delete", err=True)
        sys.exit(1)
    for path in files:
        click.echo(path, err=True)
    total = size(sum(path.lstat().st_size for path in files))
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked here: give --yes to delete these files")
        click.confirm(f"Delete these {len(files)} files ({total})?", abort=True, err=True)
    catalogue.remove(model)
    click.echo(f"deleted {name}: {total}")


# ---------------------------------------------------------------------------- what is printed
def table(rows: "Sequence[tuple[Model, Path | None]]") -> Iterator[str]:
    """The models as lines of columns."""
    cells = [("model", "for", "download", "here", "sha256", "licence", "from")]
    for model, place in rows:
        host_and_path = model.source.partition("://")[2]
        cells.append(
            (
                model.name,
                model.use,
                size(model.size),
                "yes" if place else "no",
                model.sha256[:12] if model.sha256 else "the hub's",
                model.license,
                host_and_path.partition("/resolve/")[0].partition("/releases/")[0],
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        texts = [
            text.rjust(width) if i == 2 else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(texts).rstrip()


def document(model: "Model", place: Path | None) -> dict[str, Any]:
    """A model for machines."""
    return {
        "name": model.name,
        "use": model.use,
        "license": model.license,
        "bytes": model.size,
        "sha256": model.sha256,
        "source": model.source,
        "path": place and str(place),
    }


def check_lines(checks: "Iterable[tuple[Model, Check]]") -> Iterator[str]:
    """What `verify` says of each file."""
    for model, check in checks:
        if check.status == "missing":
            yield f"missing  {model.name}: {check.path}"
        elif check.status == "unknown":
            yield f"unknown  {model.name}: {check.path.name} {check.sha256}, no hash is known"
        else:
            verb = "is" if check.status == "ok" else "is not"
            yield (
                f"{check.status:7}  {model.name}: {check.path.name} {check.sha256} {verb} "
                f"{check.against}"
            )
        if check.status in ("damaged", "missing"):
            yield f"         -> lora-prep models rm {model.name}, then pull it again"


def check_document(model: "Model", check: "Check") -> dict[str, Any]:
    """The same for machines."""
    return {
        "name": model.name,
        "path": str(check.path),
        "status": check.status,
        "sha256": check.sha256 or None,
        "against": check.against or None,
    }


def size(count: int) -> str:
    """Bytes in MB, as downloads are told."""
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e6:.1f} MB"


def _print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps({"schema": SCHEMA, **content}, ensure_ascii=False))
