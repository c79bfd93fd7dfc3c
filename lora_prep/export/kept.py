"""Configurations that the user fills in: what is still blank, and what a kept one does not have."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lora_prep.errors import DatasetError
from lora_prep.export.configs import Config, parse
from lora_prep.types import Json

BLANKS = ("TYPE", "MODEL", "VAE", "TEXT_ENCODER", "FAMILY")
"""Values that the user has to replace."""
SHOWN = 60
"""Characters of a value in a note."""


@dataclass(slots=True)
class Filled:
    """How a configuration will be, as the trainer reads it."""

    notes: list[str] = field(default_factory=list)
    lost: bool = False
    """Whether it lacks the selected blocks, because it was edited and is kept."""


def as_written(config: Config) -> Filled:
    """What is blank in a configuration that this export writes."""
    return Filled([f"{note}{config.hint}" for note in _blanks(config.name, leaves(config.value))])


def as_kept(config: Config, out: Path) -> Filled:
    """What is blank in the edited configuration in `out`, and where it is not as this export's."""
    edited = f"{config.name} was edited and is kept: --force writes it anew"
    wanted = leaves(config.value)
    blocks = wanted.get(config.blocks)
    try:
        there = leaves(parse(config.name, (out / config.name).read_text("utf-8")))
    except (DatasetError, OSError, UnicodeDecodeError) as error:
        return Filled([edited, f"{config.name} is damaged: {error}"], blocks is not None)
    found = Filled([edited, *_blanks(config.name, there)])
    for key, value in wanted.items():
        if key == config.blocks:
            continue  # below, at full length
        if key not in there and value not in BLANKS:
            found.notes.append(
                f"{config.name} has no `{key}`: this export would say {_short(value)}"
            )
        elif there.get(key) != value and value not in BLANKS:
            found.notes.append(
                f"{config.name} says `{key}` is {_short(there[key])}: this export would say "
                f"{_short(value)}"
            )
    found.lost = blocks is not None and there.get(config.blocks) != blocks
    if found.lost:
        found.notes.append(
            f"--select: {config.name} does not have the selected blocks: put this into it as "
            f"`{config.blocks}`: {json.dumps(blocks, ensure_ascii=False)}"
        )
    elif blocks is None and config.blocks in there:
        found.notes.append(
            f"{config.name} selects blocks (`{config.blocks}`), this export does not"
        )
    return found


def leaves(value: Json, place: str = "") -> dict[str, Json]:
    """The values in a configuration by their keys: `model.text_encoders.0.path`.

    Lists of anything but tables are values.
    """
    return dict(_leaves(value, place))


def _leaves(value: Json, place: str) -> Iterator[tuple[str, Json]]:
    inner: dict[str, Json] | None = None
    if isinstance(value, dict):
        inner = value
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        inner = {str(index): one for index, one in enumerate(value)}
    if inner is None:
        yield place, value
        return
    for key, one in inner.items():
        yield from _leaves(one, f"{place}.{key}" if place else str(key))


def _blanks(name: str, values: dict[str, Json]) -> list[str]:
    words = [word for word in BLANKS if word in values.values()]
    if not words:
        return []
    listed = " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return [f"fill in {listed} in {name}"]


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
