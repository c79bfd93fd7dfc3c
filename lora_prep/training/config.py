"""A `LossSum` from a dictionary or a TOML file.

    [losses.masked]
    normalize = "sample"          # a field of the term; weight is 1 where left out

    [losses.identity]
    weight = { to = 0.1, over = 500, after = 100 }    # warm-up
    every = 2

    [losses.class]                # any name, where `term` says what it is
    term = "prior_preservation"
    weight = { steps = { 0 = 1.0, 1000 = 0.5 } }      # another weight from a step on

Unknown terms and keys are errors: a misspelt option that is passed over in silence is a training
run for nothing.
"""

import dataclasses
import difflib
import importlib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_prep.errors import UsageError
from lora_prep.training.batch import Term
from lora_prep.training.schedules import Constant, Schedule, Steps, WarmUp
from lora_prep.training.total import LossSum

TERMS = {
    "diffusion": ("lora_prep.training.terms", "Diffusion"),
    "masked": ("lora_prep.training.terms", "Masked"),
    "face_weighted": ("lora_prep.training.terms", "FaceWeighted"),
    "inverted_mask_prior": ("lora_prep.training.terms", "InvertedMaskPrior"),
    "prior_preservation": ("lora_prep.training.terms", "PriorPreservation"),
    "output_preservation": ("lora_prep.training.terms", "OutputPreservation"),
    "slider": ("lora_prep.training.terms", "Slider"),
    "paired_slider": ("lora_prep.training.terms", "PairedSlider"),
    "identity": ("lora_prep.training.identity.term", "IdentityTerm"),
}
"""Module and class of each term by the name it has in configurations; imported when used."""


def from_config(
    config: Mapping[str, Any] | str | Path,
    given: Mapping[str, Mapping[str, Any]] | None = None,
) -> LossSum:
    """The sum of terms that a configuration describes.

    `config` is the table of terms by name, or the path of a TOML file with `[losses.<name>]`
    tables (its other tables are someone else's). `given` adds by name what a file cannot hold,
    such as the identity term's networks: `{"identity": {"recogniser": net}}`.

    Raises UsageError that names the table and the key, with the nearest that exists.
    """
    where = "losses"
    if not isinstance(config, Mapping):
        where, config = f"{config}: losses", _read(Path(config))
    extra = dict(given or {})
    for name in extra:
        _known(name, config, f"the objects given are for {name!r}, and {where} has no such term")
    terms = {
        str(name): _entry(f"{where}.{name}", str(name), table, extra.get(name, {}))
        for name, table in config.items()
    }
    return LossSum(terms)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or too long a number
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    losses = content.get("losses")
    if not isinstance(losses, Mapping):
        raise UsageError(f"{path} has no table [losses.<term>]: add one, such as [losses.masked]")
    return losses


def _entry(
    where: str, name: str, table: Any, given: Mapping[str, Any]
) -> tuple[float | Schedule, Term]:
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} is {table!r}: write a table, such as {{ weight = 1.0 }}")
    options = {str(key): value for key, value in table.items()}
    kind = options.pop("term", name)
    _known(kind, TERMS, f"{where}: there is no term {kind!r}")
    weight = _weight(where, options.pop("weight", 1.0))
    module, cls = TERMS[kind]
    term = getattr(importlib.import_module(module), cls)
    fields = [field.name for field in dataclasses.fields(term) if field.init]
    for key in (*options, *given):
        _known(key, [*fields, "weight", "term"], f"{where}: {kind} has no option {key!r}")
    twice = sorted(options.keys() & given.keys())
    if twice:
        raise UsageError(f"{where}.{twice[0]} is in the configuration and given as an object")
    try:
        return weight, term(**options, **given)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except TypeError as error:
        raise UsageError(f"{where}: {kind} cannot be made of this: {error}") from error


def _weight(where: str, value: Any) -> float | Schedule:
    try:
        if not isinstance(value, Mapping):
            return Constant(value)
        if "steps" in value:
            _only(value, ("steps",))
            return Steps(tuple(sorted((int(k), v) for k, v in value["steps"].items())))
        _only(value, ("to", "over", "start", "after"))
        return WarmUp(value["to"], value["over"], value.get("start", 0.0), value.get("after", 0))
    except UsageError as error:
        raise UsageError(f"{where}.weight: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{where}.weight is {value!r}: give a number, {{ to = 0.1, over = 500 }} or "
            "{ steps = { 0 = 0.0, 500 = 0.1 } }"
        ) from error


def _only(table: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in table:
        _known(key, keys, f"there is no {key!r} in a weight")


def _known(name: Any, names: Iterable[str], problem: str) -> None:
    """Raise UsageError unless `name` is among `names`."""
    known = [str(n) for n in names]
    if name in known:
        return
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(known) or 'nothing'}"
    raise UsageError(f"{problem}: {hint}")
