"""A trainer's configuration as values, as text, and read back by its format's own parser."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from lora_prep.errors import DatasetError
from lora_prep.types import Json


@dataclass(frozen=True, slots=True)
class Config:
    """A file that a trainer reads."""

    name: str
    """In the export; the ending says the format."""
    schema: str
    """Which of the schemas holds its keys."""
    value: Json

    def text(self) -> str:
        """The file's content."""
        match PurePosixPath(self.name).suffix:
            case ".toml":
                import tomli_w

                return tomli_w.dumps(self.value)
            case ".yaml":
                import yaml

                return yaml.safe_dump(
                    self.value, sort_keys=False, allow_unicode=True, width=10**6
                )
            case ".json":
                return json.dumps(self.value, indent=2, ensure_ascii=False) + "\n"
            case suffix:
                raise ValueError(f"no format for {suffix}")


@dataclass(frozen=True, slots=True)
class Command:
    """A command line for TRAIN.md."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def text(self, windows: bool) -> str:
        """Quoted for the shell, an option a line."""
        import subprocess

        lines: list[str] = []
        for word in self.words:
            quoted = subprocess.list2cmdline([word]) if windows else shlex.quote(word)
            if word.startswith("--") or not lines:
                lines.append(quoted)
            else:
                lines[-1] += f" {quoted}"
        joint = " ^\n  " if windows else " \\\n  "
        return joint.join(lines)


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
    except (tomllib.TOMLDecodeError, yaml.YAMLError, json.JSONDecodeError) as error:
        raise DatasetError(f"{name} cannot be read: {error}") from error
