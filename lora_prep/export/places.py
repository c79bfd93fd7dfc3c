"""How paths are written into a trainer's configuration."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from lora_prep.errors import UsageError

PathStyle: TypeAlias = Literal["posix", "windows"]


@dataclass(frozen=True, slots=True)
class Places:
    """Names of what lies in the export's folder, as the machine that trains has to say them."""

    root: str
    """What the folder is called there; empty: paths are relative to it."""
    style: PathStyle = "posix"

    def __call__(self, *parts: str) -> str:
        """The path of a part of the export; of the export itself without arguments."""
        separator = "\\" if self.style == "windows" else "/"
        tail = [piece for part in parts for piece in part.split("/") if piece]
        if not self.root:
            return separator.join(tail) or "."
        root = self.root.rstrip("/\\") or separator
        return (
            root
            + (separator if not root.endswith(separator) else "") * bool(tail)
            + (separator.join(tail))
        )

    def local(self, path: str, out: Path) -> Path | None:
        """Where a path that this wrote lies here; None where it is outside of the export."""
        if self.root:
            start = self().rstrip("/\\")
            if path != start and not path.startswith(self("x")[:-1]):
                return None
            path = path[len(start) :]
        pieces = path.replace("\\", "/") if self.style == "windows" else path
        tail = [piece for piece in pieces.split("/") if piece not in ("", ".")]
        return None if ".." in tail else out.joinpath(*tail)


def places(out: Path, *, relative: bool, style: PathStyle | None, root: str | None) -> Places:
    """The places for the options of the command line.

    Raises UsageError where absolute Windows paths are wanted and this is not Windows, where OUT's
    name is no text, and where --root and --relative contradict each other.
    """
    here: PathStyle = "windows" if os.name == "nt" else "posix"
    style = style or here
    if relative:
        if root is not None:
            raise UsageError("--relative and --root contradict each other: give one of them")
        return Places("", style)
    if root is None:
        if style != here:
            raise UsageError(
                f"{out} is no {style} path: say with --root what the folder is called where you "
                "train (--root 'D:\\train\\subject'), or give --relative"
            )
        root = str(out)
    if not root.strip():
        raise UsageError("--root is empty: give --relative for paths relative to the export")
    if any(not c.isprintable() for c in root):
        raise UsageError(
            f"{root!a} has control codes or bytes that are no text in it, which no trainer's "
            "configuration can hold: choose another folder"
        )
    return Places(
        root.replace("/", "\\")
        if style == "windows"
        else root.replace("\\", "/")
        if root[1:3] == ":\\"
        else root,
        style,
    )
