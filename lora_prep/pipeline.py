"""The steps from photographs to a checked data set, in order, and which of them a user wants."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora_prep.errors import UsageError

STEPS = (
    "normalize",
    "captions",
    "embed",
    "masks",
    "augment",
    "priors",
    "validate",
    "report",
    "export",
)
"""Every step works on what those before it made. `embed` comes before `masks`, since
`--faces reference` asks it who is meant; faces are found once, by whichever needs them first."""

ALWAYS = ("masks", "validate")


def chosen(
    steps: Sequence[str], tables: Mapping[str, Mapping[str, Any]], *, photos: bool
) -> tuple[str, ...]:
    """The steps to run, in order.

    `steps` as the user named them; where that is empty, masks and validate, and what the
    configuration's `tables` ask for: `augment` if its table sets anything, `priors` if it names a
    class, `captions` if it has a template to fill them from, `export` if it names a trainer,
    `report` and `embed` if theirs set anything or `masks` wants the reference person.
    `normalize` needs `photos`.

    Raises UsageError for a step that there is not, and for `normalize` without photographs.
    """
    for step in steps:
        if step not in STEPS:
            raise UsageError(f"there is no step {step!r}; there are {', '.join(STEPS)}")
    if "normalize" in steps and not photos:
        raise UsageError("the step normalize wants --photos: the folder of your photographs")
    if steps:
        return tuple(step for step in STEPS if step in steps)
    wanted = {
        "normalize": photos,
        "captions": bool(tables.get("captions", {}).get("fill")),
        "embed": bool(tables.get("embed")) or tables.get("masks", {}).get("faces") == "reference",
        "augment": bool(tables.get("augment")),
        "priors": bool(tables.get("priors", {}).get("class")),
        "report": bool(tables.get("report")),
        "export": bool(tables.get("export", {}).get("to")),
    }
    return tuple(step for step in STEPS if step in ALWAYS or wanted.get(step))
