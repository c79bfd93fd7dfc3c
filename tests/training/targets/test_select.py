import pytest

from lora_prep.errors import UsageError
from lora_prep.training.targets import PRESETS, meta, resolve, select
from lora_prep.training.targets.names import labels
from tests.training.targets import key_lists


@pytest.mark.parametrize(
    ("model", "expression", "blocks", "modules"),
    [
        ("klein-9b", "double[0:8]", "double 0-7", 96),
        ("klein-9b", "double", "double 0-7", 96),
        ("klein-9b", "single", "single 0-23", 48),
        ("klein-9b", "single[:12]", "single 0-11", 24),
        ("klein-9b", "single[12:]", "single 12-23", 24),
        ("klein-9b", "single[0,2:4]", "single.0, single 2-3", 6),
        ("klein-9b", "double.1, single.10", "double.1, single.10", 14),
        ("klein-9b", "transformer.single_transformer_blocks[0:12]", "single 0-11", 24),
        ("klein-9b", "double_blocks.3.attn", "double.3", 8),
        ("klein-9b", "double.3.attn.to_q", "double.3", 1),
        ("klein-9b", "all.attn", "double 0-7, single 0-23", 112),
        ("klein-9b", "all", "double 0-7, single 0-23", 144),
        ("flux1-dev", "to_q,to_k,to_v,to_out.0", "double 0-18, single 0-37", 19 * 4 + 38 * 3),
        ("qwen-image", "block[58:60].ff", "double 58-59", 8),
        ("wan21-14b", "blocks[39].attn", "block.39", 8),
        ("sdxl", "up.0.attentions.1", "up.0.attentions.1", 102),
        ("sdxl", "unet.up_blocks.0.attentions[0:2].attn", "up.0.attentions 0-1", 160),
        ("sdxl", "mid", "mid.attentions.0", 102),
        ("sdxl", "down", "down.1.attentions 0-1, down.2.attentions 0-1", 248),
        ("sd15", "up.3", "up.3.attentions 0-2", 30),
    ],
)
def test_expressions(model: str, expression: str, blocks: str, modules: int) -> None:
    found = select(resolve(model), expression)
    assert labels(found.blocks) == blocks
    assert len(found.layers) == modules


@pytest.mark.parametrize(
    ("name", "model", "modules", "millions"),
    [
        ("klein-9b:recipe-style", "klein-9b", 96, 19.9),
        ("klein-9b:recipe-content", "klein-9b", 24, 11.8),
        ("sdxl:b-lora-style", "sdxl", 80, 3.5),
        ("sdxl:b-lora-content", "sdxl", 80, 3.5),
    ],
)
def test_presets_have_the_sizes_that_were_measured(
    name: str, model: str, modules: int, millions: float
) -> None:
    found = select(resolve(model), name)
    assert len(found.modules) == modules
    size = found.lora_parameters(16)
    assert size is not None
    assert round(size / 1e6, 1) == millions


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_its_source_and_says_when_nobody_verified_it(name: str) -> None:
    preset = PRESETS[name]
    model = next(resolve(m) for m in ("sdxl", "flux1-dev", "klein-9b") if preset.fits(resolve(m)))
    found = select(model, name)
    assert found.presets == (preset,)
    assert bool(found.notes) is not preset.verified
    assert all(preset.source in note for note in found.notes)


def test_the_recipes_names_are_answered_with_the_right_ones() -> None:
    model = resolve("klein-9b")
    terms = ",".join(f"transformer.double_transformer_blocks.{i}" for i in range(8))
    found = select(model, terms)
    assert found.modules == select(model, "double[0:8]").modules
    assert "`transformer_blocks`" in found.notes[0]


@pytest.mark.parametrize(
    ("model", "expression", "message"),
    [
        ("klein-9b", "double[0:9]", "out of range: double has 0 to 7, not 8"),
        ("klein-9b", "double.8", "out of range"),
        ("klein-9b", "double[0:99999999999]", "out of range"),
        ("klein-9b", "single[20:30]", "not 24 to 29"),
        ("klein-9b", "single[-1]", "no number or range"),
        ("klein-9b", "double[0-7]", "written 0:8"),
        ("klein-9b", "double[]", "no number or range"),
        ("klein-9b", "double[5:5]", "empty range"),
        ("klein-9b", "", "selects nothing"),
        ("klein-9b", "double,,single", "selects nothing"),
        ("klein-9b", "dubble", "Did you mean double"),
        ("klein-9b", "double[0:8", "not understood"),
        ("klein-9b", "up.0", "no up blocks"),
        ("klein-9b", "double.attn.to_x", "hits nothing"),
        ("klein-9b", "to_q,to_k,to_v,to_out.0", "nothing in single 0-23"),
        ("klein-9b", "all.ff", "nothing in single 0-23"),
        ("sd35-medium", "double.attn2", "nothing in double 13-23"),
        ("klein-9b", "sdxl:b-lora-style", "was made for sdxl"),
        ("klein-4b", "klein-9b:recipe-style", "8 double and 24 single"),
        ("klein-9b", "klein-9b:nothing", "no preset"),
        ("sdxl", "up.2", "not 2"),
        ("sdxl", "up.0.attentions.3", "up.0.attentions has 0, 1, 2, not 3"),
        ("sdxl", "up.0.resnets.0", "no resnets"),
        ("sdxl", "down.0", "not 0"),
    ],
)
def test_what_hits_nothing_or_a_half_is_an_error(model: str, expression: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        select(resolve(model), expression)


def test_a_lora_with_the_authors_names_can_be_selected_from() -> None:
    keys = key_lists.lora_keys(key_lists.bfl_modules(8, 24, flux1=False), "comfyui")
    model = meta.from_keys(dict.fromkeys(keys), "lora")
    found = select(model, "klein-9b:recipe-content")
    assert labels(found.blocks) == "single 0-11"
    assert len(found.modules) == 24
