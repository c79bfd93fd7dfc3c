"""A trainer's configuration as values, as text, and read back by its format's own parser."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from lora_prep.errors import DatasetError
from lora_prep.types import Json

SHORT = 88
"""Commands up to this length stay on a line."""


@dataclass(frozen=True, slots=True)
class Config:
    """A file that a trainer reads."""

    name: str
    """In the export; the ending says the format."""
    schema: str
    """Which of the schemas holds its keys."""
    value: Json
    yours: bool = False
    """Meant to be filled in: once it was edited, no later export replaces it."""
    hint: str = ""
    """How it is filled in: the end of a note."""
    blocks: str = ""
    """The key that tells the trainer of the selected blocks, such as `adapter.exclude_modules`."""

    def text(self) -> str:
        """The file's content."""
        match PurePosixPath(self.name).suffix:
            case ".toml":
                return "\n".join(_toml(self.value, "")).lstrip("\n") + "\n"
            case ".yaml":
                import yaml  # type: ignore[import-untyped]

                return str(
                    yaml.safe_dump(self.value, sort_keys=False, allow_unicode=True, width=10**6)
                )
            case ".json":
                return json.dumps(self.value, indent=2, ensure_ascii=False) + "\n"
            case suffix:
                raise ValueError(f"no format for {suffix}")


@dataclass(frozen=True, slots=True)
class Command:
    """A command line for TRAIN.md."""

    words: tuple[str, ...]

    def text(self, windows: bool) -> str:
        """Quoted for the shell, an option a line."""
        lines: list[str] = []
        for word in self.words:
            quoted = _for_cmd(word) if windows else shlex.quote(word)
            if word.startswith("--") or not lines:
                lines.append(quoted)
            else:
                lines[-1] += f" {quoted}"
        if len(" ".join(lines)) <= SHORT:
            return " ".join(lines)
        joint = " ^\n  " if windows else " \\\n  "
        return joint.join(lines)


def _for_cmd(word: str) -> str:
    """For cmd.exe in a batch file, and for how programs then take their line apart.

    Quotes keep `| & ^ < >` from cmd, and not `%`. A quote within would end that, so such words are
    escaped sign by sign. Programs take a backslash for an escape only before a quote.
    """
    if re.fullmatch(r"[\w.:\\/=,-]+", word):
        return word
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', word)
    quoted = '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'
    if '"' in word:
        quoted = re.sub(r'[()!^"<>&|]', r"^\g<0>", quoted)
    return quoted.replace("%", "%%")


def _toml(table: Mapping[str, Json], place: str) -> Iterator[str]:
    """The lines of a table: values, then tables, each with a header of its own.

    No inline tables, which the parser that kohya, musubi-tuner and diffusion-pipe use is bad at.
    """
    inner = {}
    for key, value in table.items():
        if isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict)):
            inner[key] = value
        else:
            yield f"{key} = {toml_value(value)}"
    for key, value in inner.items():
        name = f"{place}{key}"
        for one in [value] if isinstance(value, dict) else value:
            yield ""
            yield f"[{name}]" if isinstance(value, dict) else f"[[{name}]]"
            yield from _toml(one, f"{name}.")


def toml_value(value: Json) -> str:
    """A value on one line; texts with backslashes or quotes as literals, where that is possible."""
    import tomli_w

    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str) and set(value) & {"\\", '"'} and "'" not in value:
        return f"'{value}'"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def parse(name: str, text: str) -> Json:
    """The values in a configuration file. Raises DatasetError where it is damaged."""
    import tomllib

    import yaml

    try:
        match PurePosixPath(name).suffix:
            case ".toml":
                return tomllib.loads(text)
            case ".yaml":
                return yaml.safe_load(text)
            case _:
                return json.loads(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DatasetError(f"{name} cannot be read: {error}") from error
