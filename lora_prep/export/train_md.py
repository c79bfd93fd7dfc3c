"""`TRAIN.md`: what is in an export, the command, and what the trainer cannot do."""

from lora_prep.export.gather import Gathered
from lora_prep.export.plan import Plan
from lora_prep.export.recipe import Recipe

NAME = "TRAIN.md"


def train_md(plan: Plan, gathered: Gathered, recipe: Recipe, *, blocks: bool = True) -> str:
    """The text, the same for the same export. `blocks`: the trainer is told of those selected."""
    windows = plan.places.style == "windows"
    lines = [f"# {plan.name}: {plan.trainer}", "", *_contents(plan, gathered, recipe, blocks), ""]
    lines += ["## Train", ""]
    intro = recipe.intro
    if not plan.places.root:
        intro += (
            ". Paths are relative to this folder: run it from here, with the trainer's script by "
            "its full path"
        )
    lines += [f"{intro}:", "", "```" + ("bat" if windows else "sh")]
    lines += [command.text(windows) for command in recipe.commands]
    lines += ["```", "", "## What to know", ""]
    lines += [f"- {text}" for text in recipe.cannot]
    if recipe.notes:
        lines += ["", "## Not as asked for", "", *(f"- {note}" for note in recipe.notes)]
    return "\n".join(lines) + "\n"


def _contents(plan: Plan, gathered: Gathered, recipe: Recipe, blocks: bool) -> list[str]:
    with_masks = sum(p.mask is not None for p in gathered.pictures)
    lines = [f"- {_count(len(gathered.pictures), 'image')}, {with_masks} with a mask"]
    if plan.uses_masks:
        lines[-1] += f" (white is trained, black weighs {plan.mask_floor:g})"
    if gathered.classes:
        lines.append(f"- {_count(len(gathered.classes), 'class image')}")
    names = ", ".join(f"`{config.name}`" for config in recipe.configs)
    lines.append(f"- configuration: {names}")
    if plan.selection:
        what = "trained blocks" if blocks else "selected blocks, which the trainer is not told of"
        lines.append(f"- {what}: `{plan.selection.expression}`")
    lines.append(
        "- made by `lora-prep export`; run it again after changes, and "
        "`lora-prep export --check --out .` to read it back"
    )
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
