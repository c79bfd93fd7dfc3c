"""Block maps that were published, each with where it comes from and whether it was shown."""

from dataclasses import dataclass

from lora_prep.errors import UsageError
from lora_prep.training.targets.families import Model


@dataclass(frozen=True, slots=True)
class Preset:
    """A named selection for one family."""

    name: str
    """`<model>:<what>`."""
    family: str
    counts: dict[str, int] | None
    """The numbers of blocks it was made for; None where the blocks' names say it all."""
    expression: str
    source: str
    verified: bool
    """Whether the source shows it with code or a controlled study that can be checked."""
    note: str

    def fits(self, model: Model) -> bool:
        """Whether `model` is what the map was made for."""
        if model.family != self.family:
            return False
        return self.counts is None or model.lora or model.counts == self.counts


_B_LORA = "Frenkel et al., B-LoRA, ECCV 2024 (arXiv 2403.14572), and its official code"
_SPLITFLUX = "SplitFlux (arXiv 2511.15258)"
_SECOND_HAND = "taken from the paper's text; not run by lora-prep. Double blocks: negligible."
_RECIPE = "the LoRA recipe that lora-prep was made for"
_CLAIM = (
    "a claim without a study: SplitFlux finds the opposite on FLUX.1, and no map of FLUX.2 is "
    "agreed on. Try it against a run on all blocks."
)
_FLUX1 = {"double": 19, "single": 38}
_KLEIN_9B = {"double": 8, "single": 24}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "sdxl:b-lora-content",
            "sdxl",
            None,
            "up.0.attentions.0.attn",
            _B_LORA,
            True,
            "trained there with rank 64, learning rate 5e-5, 1000 steps, prompt 'A [v]'.",
        ),
        Preset(
            "sdxl:b-lora-style",
            "sdxl",
            None,
            "up.0.attentions.1.attn",
            _B_LORA,
            True,
            "trained together with the content block, and taken apart afterwards.",
        ),
        Preset(
            "sdxl:b-lora",
            "sdxl",
            None,
            "up.0.attentions[0:2].attn",
            _B_LORA,
            True,
            "both blocks: train this one, then `lora-prep lora split`.",
        ),
        Preset(
            "flux1:splitflux-content",
            "flux1",
            _FLUX1,
            "single[0:10]",
            _SPLITFLUX,
            False,
            _SECOND_HAND,
        ),
        Preset(
            "flux1:splitflux-style",
            "flux1",
            _FLUX1,
            "single[10:38]",
            _SPLITFLUX,
            False,
            _SECOND_HAND,
        ),
        Preset("klein-9b:recipe-style", "flux2", _KLEIN_9B, "double[0:8]", _RECIPE, False, _CLAIM),
        Preset(
            "klein-9b:recipe-content", "flux2", _KLEIN_9B, "single[0:12]", _RECIPE, False, _CLAIM
        ),
    )
}


def find(name: str, model: Model) -> Preset:
    """The preset of this name, for this model. Raises UsageError where there is none."""
    preset = PRESETS.get(name)
    fitting = [p.name for p in PRESETS.values() if p.fits(model)]
    others = f"for this model there are: {', '.join(fitting) or 'none'}"
    if preset is None:
        raise UsageError(f"there is no preset {name}; {others}")
    if not preset.fits(model):
        counts = " and ".join(f"{n} {g}" for g, n in (preset.counts or {}).items())
        made = f"{preset.family} with {counts} blocks" if counts else preset.family
        which = ", which its names do not tell: say it with --model" if model.possible else ""
        raise UsageError(f"{name} was made for {made}; this is {model.describe()}{which}; {others}")
    return preset
