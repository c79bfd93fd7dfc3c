"""The keys that each trainer knows, kept as data in `schemas/`.

A schema is JSON in the shape of what it describes. An object lists its keys, those with `!` behind
must be there; a list with one entry describes all of its entries; a text names a type: `str`,
`int`, `float`, `bool`, `any`, `path` (has to exist) and `place` (a path that training makes).
`a|b` is either.
"""

import json
from collections.abc import Iterator
from functools import cache
from importlib import resources

from lora_prep.types import Json

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "path": (str,),
    "place": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "null": (type(None),),
    "any": (object,),
}


@cache
def schema(name: str) -> Json:
    """A schema by its name."""
    text = (resources.files(__package__) / "schemas" / f"{name}.json").read_text("utf-8")
    return json.loads(text)["keys"]


@cache
def names() -> frozenset[str]:
    """All schemas."""
    files = (resources.files(__package__) / "schemas").iterdir()
    return frozenset(f.name.removesuffix(".json") for f in files if f.name.endswith(".json"))


def problems(name: str, value: Json) -> list[str]:
    """What the trainer would not understand: unknown and missing keys, values of wrong types."""
    return list(_problems(schema(name), value, ""))


def paths(name: str, value: Json) -> list[tuple[str, str]]:
    """Every path in a configuration that has to exist, after the key that it stands under."""
    return list(_paths(schema(name), value, ""))


def _problems(spec: Json, value: Json, place: str) -> Iterator[str]:
    where = place or "the file"
    if isinstance(spec, dict):
        if not isinstance(value, dict):
            yield f"{where} has to be a table, not {value!r}"
            return
        known = {key.removesuffix("!"): inner for key, inner in spec.items()}
        for key, inner in value.items():
            name = f"{place}.{key}" if place else str(key)
            if key in known:
                yield from _problems(known[key], inner, name)
            else:
                yield f"{name} is no key of this trainer: it would be ignored, or stop it"
        for key in spec:
            if key.endswith("!") and key[:-1] not in value:
                yield f"{where} lacks the key {key[:-1]}"
    elif isinstance(spec, list):
        if not isinstance(value, list):
            yield f"{where} has to be a list, not {value!r}"
            return
        for index, inner in enumerate(value):
            yield from _problems(spec[0], inner, f"{place}[{index}]")
    else:
        names = spec.split("|")
        fits = any(isinstance(value, _TYPES[name]) for name in names)
        if isinstance(value, bool) and not {"bool", "any"} & set(names):
            fits = False
        if not fits:
            yield f"{where} has to be of type {spec}, not {value!r}"


def _paths(spec: Json, value: Json, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(spec, dict) and isinstance(value, dict):
        for key, inner in spec.items():
            name = key.removesuffix("!")
            if name in value:
                yield from _paths(inner, value[name], f"{place}.{name}" if place else name)
    elif isinstance(spec, list) and isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(spec[0], inner, f"{place}[{index}]")
    elif spec == "path" and isinstance(value, str):
        yield place, value
