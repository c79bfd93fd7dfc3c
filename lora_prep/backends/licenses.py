"""The licence of insightface's weights, which is accepted once, before they are first used.

Accepting is a person's decision: the command line asks where it can. A library never asks; it
raises, and says how to accept.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from lora_prep.errors import BackendError

VARIABLE = "LORA_PREP_ACCEPT_LICENSE"

TERMS = "for non-commercial research only"

NOTICE = f"""\
insightface's model packs (buffalo_l, buffalo_m, buffalo_s, buffalo_sc, antelopev2) may be used
{TERMS}: the weights' licence, not that of the package insightface,
which is MIT. Other uses need a licence from insightface: https://www.insightface.ai
Without that limit: --detector yunet (MIT), for `embed` with --recogniser sface; a detector of
your own with --face-model; or --detector cascade, but not for `embed`, which needs landmarks.
"""


def record() -> Path:
    """This user's file of what was accepted: lora-prep/accepted.json in $XDG_CONFIG_HOME."""
    config = os.environ.get("XDG_CONFIG_HOME")
    folder = Path(config) if config and Path(config).is_absolute() else Path.home() / ".config"
    return folder / "lora-prep" / "accepted.json"


def accepted() -> bool:
    """Whether this user has accepted insightface's licence, now by the variable or earlier."""
    if os.environ.get(VARIABLE, "").lower() in ("1", "true", "yes"):
        return True
    return "insightface" in _read()


def accept() -> None:
    """Record that this user accepts insightface's licence.

    Raises BackendError where the record cannot be written.
    """
    path = record()
    entry = {"terms": TERMS, "accepted": datetime.now(UTC).isoformat(timespec="seconds")}
    content = json.dumps({**_read(), "insightface": entry}, indent=2) + "\n"
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(content, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise BackendError(
            f"that the licence is accepted cannot be recorded in {path}: {error.strerror}. "
            f"Set {VARIABLE}=1 instead"
        ) from error


def require(pack: str) -> None:
    """Raise BackendError unless the licence of insightface's packs has been accepted."""
    if not accepted():
        raise BackendError(
            f"{pack} is one of insightface's model packs, whose weights are {TERMS}, and that has "
            "not been accepted yet. If it fits your use, accept it once with "
            f"`lora-prep models pull {pack} --accept-license`, or set {VARIABLE}=1. Without that "
            "limit: --detector yunet (MIT), for `embed` with --recogniser sface; a detector of "
            "your own with --face-model DIR; or --preset embedded, but not for `embed`, which "
            "needs landmarks"
        )


def _read() -> dict[str, object]:
    """What was accepted; nothing where the record is missing or unreadable."""
    try:
        content = json.loads(record().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
