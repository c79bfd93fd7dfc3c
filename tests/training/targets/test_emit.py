"""Each trainer's rule for matching names, written down small, on the names that it really has.

Read in the trainers' sources at the snapshots that docs/ names.
"""

import ast
import json
import re
from collections.abc import Iterable

import pytest
import torch

from lora_prep.errors import UsageError
from lora_prep.training.targets import CONSUMERS, Selection, emit, meta, names, resolve, select
from lora_prep.training.targets.names import Block
from tests.training.targets import key_lists


# ------------------------------------------------------------------------ the trainers' rules
def ai_toolkit(words: list[str], modules: Iterable[str], prefix: str) -> set[str]:
    """toolkit/lora_special.py: any word is a part of `<prefix>.<name>`, or of it with `$$`."""
    found = set()
    for module in modules:
        clean = f"{prefix}.{module}"
        if any(word in clean or word in clean.replace(".", "$$") for word in words):
            found.add(module)
    return found


def one_trainer(config: dict[str, object], modules: Iterable[str]) -> set[str]:
    """modules/util/ModuleFilter.py: commas divide patterns; each is searched for."""
    assert config["layer_filter_regex"] is True
    filters = [re.compile(p.strip()) for p in str(config["layer_filter"]).split(",")]
    return {m for m in modules if any(p.search(m) for p in filters)}


def musubi(arguments: list[str], modules: Iterable[str]) -> set[str]:
    """networks/lora.py: a literal list each; excluded, unless an include pattern matches."""
    given = dict(argument.split("=", 1) for argument in arguments)
    exclude = [re.compile(p) for p in ast.literal_eval(given["exclude_patterns"])]
    include = [re.compile(p) for p in ast.literal_eval(given["include_patterns"])]
    found = set()
    for module in modules:
        excluded = any(p.match(module) for p in exclude)
        if not excluded or any(p.match(module) for p in include):
            found.add(module)
    return found


def diffusion_pipe(answer: dict[str, dict[str, str]], modules: Iterable[str]) -> set[str]:
    """models/base.py hands it to PEFT as `exclude_modules`, beside a list of all linear layers."""
    left_out = re.compile(answer["adapter"]["exclude_modules"])
    return {module for module in modules if not left_out.fullmatch(module)}


def kohya_indices(text: str, count: int) -> set[int]:
    """networks/lora_flux.py: `all`, `none`, or numbers and ranges whose ends are included."""
    if text in ("all", "none"):
        return set(range(count)) if text == "all" else set()
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        assert 0 <= int(first) <= int(last or first) < count
        found.update(range(int(first), int(last or first) + 1))
    return found


def kohya_sdxl_index(name: str) -> int:
    """networks/lora.py: get_block_index for SDXL, on Stability's names."""
    block, number = re.match(r"(input|middle|output)_blocks?\.(\d+)", name).groups()  # type: ignore[union-attr]
    return int(number) + {"input": 1, "middle": 10, "output": 13}[block]


def kohya_sd15_index(name: str) -> int:
    """networks/lora.py: get_block_index otherwise, on diffusers' names."""
    found = re.match(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)", name)
    if not found:
        return 12
    side, i, j = found.groups()
    return (1 if side == "down" else 13) + 3 * int(i) + int(j)


# ------------------------------------------------------------------------ what they are asked
CASES = [
    ("flux1-dev", "double[1:3]"),
    ("flux1-dev", "double.1,single.1"),
    ("flux1-dev", "single[0:10]"),
    ("flux1-dev", "double[0:19].attn"),
    ("flux2-dev", "single.1,single[40:48]"),
    ("klein-4b", "all"),
    ("klein-9b", "klein-9b:recipe-style"),
    ("klein-9b", "klein-9b:recipe-content"),
    ("klein-9b", "double.1.attn"),
    ("klein-9b", "double[0:2].ff,single.1"),
    ("klein-9b", "double.1.attn.to_q"),
    ("sd3", "double.1,double.10"),
    ("sd35-large", "double.3.attn"),
    ("qwen-image", "double[1:3]"),
    ("qwen-image", "double.5.attn"),
    ("wan21-1.3b", "block.1"),
    ("wan21-14b", "block.1.attn,block.11.ff"),
    ("sd15", "up.1.attentions.1,mid"),
    ("sdxl", "up.0.attentions.1"),
    ("sdxl", "sdxl:b-lora-style"),
    ("sdxl", "sdxl:b-lora"),
]


def chosen(model: str, expression: str) -> Selection:
    return select(resolve(model), expression)


def blocks_of(modules: Iterable[str]) -> set[Block]:
    places = [names.place(module) for module in modules]
    assert None not in places
    return {place.block for place in places if place}


def own_modules(model: str) -> list[str]:
    """All linear modules of the author's code: what musubi (and ai-toolkit for FLUX.2) sees."""
    counts = resolve(model).counts
    if model.startswith("wan"):
        return key_lists.wan_modules(counts["block"])
    if model == "qwen-image":
        return [layer.name for layer in resolve(model).layers]
    flux1 = model.startswith("flux1")
    blocks = key_lists.bfl_modules(counts["double"], counts["single"], flux1=flux1)
    return [*blocks, "img_in", "final_layer.linear"]


def layers_alike(module: str) -> set[str]:
    """Kinds of layers, under either naming."""
    place = names.place(module)
    assert place is not None
    return {names.kind(place.layer)}


@pytest.mark.parametrize(("model", "expression"), CASES)
def test_ai_toolkit_trains_the_same(model: str, expression: str) -> None:
    selection = chosen(model, expression)
    answer = emit(selection, "ai-toolkit")
    words = answer.value["network"]["network_kwargs"]["only_if_contains"]
    if selection.model.family == "flux2":
        found = ai_toolkit(words, own_modules(model), "transformer")
        assert blocks_of(found) == set(selection.blocks)
        kinds = {layer.kind for layer in selection.layers if layer.block.group == "double"}
        if answer.exact:
            assert {k for m in found if "double" in m for k in layers_alike(m)} == kinds
    else:
        everything = [layer.name for layer in selection.model.layers]
        prefix = "lora_unet" if model in ("sd15", "sdxl") else "transformer"
        assert ai_toolkit(words, everything, prefix) == set(selection.modules)
        assert answer.exact


@pytest.mark.parametrize(("model", "expression"), CASES)
def test_one_trainer_trains_the_same(model: str, expression: str) -> None:
    selection = chosen(model, expression)
    config = emit(selection, "onetrainer").value
    everything = [layer.name for layer in selection.model.layers]
    assert one_trainer(config, everything) == set(selection.modules)


@pytest.mark.parametrize(("model", "expression"), CASES)
def test_musubi_trains_the_same(model: str, expression: str) -> None:
    selection = chosen(model, expression)
    answer = emit(selection, "musubi")
    if selection.model.family in ("sd15", "sdxl", "sd3"):
        assert (answer.value, answer.exact) == (None, False)
        return
    found = musubi(answer.value["network_args"], own_modules(model))
    assert blocks_of(found) == set(selection.blocks)
    if answer.exact and model != "qwen-image":
        for block in selection.blocks:
            if block.group != "single":
                here = [m for m in found if blocks_of([m]) == {block}]
                wanted = {x.kind for x in selection.layers if x.block == block}
                assert {k for m in here for k in layers_alike(m)} == wanted
    if model == "qwen-image":
        assert found == set(selection.modules)


@pytest.mark.parametrize(("model", "expression"), CASES)
def test_diffusion_pipe_trains_the_same(model: str, expression: str) -> None:
    selection = chosen(model, expression)
    answer = emit(selection, "diffusion-pipe")
    if selection.model.family in ("sd15", "sdxl"):
        assert (answer.value, answer.exact) == (None, False)
        return
    if selection.model.family in ("flux2", "wan21"):
        found = diffusion_pipe(answer.value, own_modules(model))
        assert blocks_of(found) == set(selection.blocks)
        kinds = {layer.kind for layer in selection.layers if layer.block.group != "single"}
        if answer.exact:
            assert {k for m in found if "single" not in m for k in layers_alike(m)} == kinds
        return
    everything = [layer.name for layer in selection.model.layers]
    assert diffusion_pipe(answer.value, everything) == set(selection.modules)
    assert answer.exact


def test_peft_leaves_out_what_diffusion_pipe_is_told() -> None:
    from peft import LoraConfig, get_peft_model

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = torch.nn.Linear(4, 4)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.double_blocks = torch.nn.ModuleList(Block() for _ in range(12))
            self.single_blocks = torch.nn.ModuleList(Block() for _ in range(3))

    model = Model()
    every = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    told = emit(chosen("klein-9b", "double.1,single.2"), "diffusion-pipe").value["adapter"]
    get_peft_model(model, LoraConfig(r=2, target_modules=every, **told))
    trained = {n.partition(".lora_A")[0] for n, _ in model.named_parameters() if "lora_A" in n}
    assert trained == {"double_blocks.1.qkv", "single_blocks.2.qkv"}


@pytest.mark.parametrize(("model", "expression"), CASES)
def test_kohya_trains_the_same_blocks(model: str, expression: str) -> None:
    selection = chosen(model, expression)
    answer = emit(selection, "kohya", rank=8)
    if selection.model.family not in ("flux1", "sd3", "sd15", "sdxl"):
        assert answer.value is None
        assert answer.notes
        return
    given = dict(argument.split("=", 1) for argument in answer.value["network_args"])
    if "block_dims" in given:
        dims = [int(n) for n in given["block_dims"].split(",")]
        assert len(dims) == (23 if model == "sdxl" else 25)
        names_of = emitted_names(selection)
        index = kohya_sdxl_index if model == "sdxl" else kohya_sd15_index
        assert {block for block, name in names_of.items() if dims[index(name)] == 8} == set(
            selection.blocks
        )
        assert sum(dims) == 8 * len(selection.blocks)
        return
    found = {
        Block(group, (i,))
        for key, group in (
            ("train_block_indices", "double"),
            ("train_double_block_indices", "double"),
            ("train_single_block_indices", "single"),
        )
        for i in kohya_indices(given.get(key, "none"), selection.model.counts.get(group, 0))
    }
    assert found == set(selection.blocks)


def emitted_names(selection: Selection) -> dict[Block, str]:
    """The block's names as sd-scripts has them: Stability's for SDXL, diffusers' otherwise."""
    if selection.model.family == "sd15":
        return {x.block: x.name for x in selection.model.layers}
    places = {module: names.place(module) for module in key_lists.sgm_sdxl_modules()}
    return {place.block: module for module, place in places.items() if place}


def test_kohyas_numbers_for_b_lora_are_the_published_ones() -> None:
    for name, index in (("content", 13), ("style", 14)):
        answer = emit(chosen("sdxl", f"sdxl:b-lora-{name}"), "kohya", rank=64)
        dims = answer.value["network_args"][0].removeprefix("block_dims=").split(",")
        assert [i for i, dim in enumerate(dims) if dim == "64"] == [index]
        assert not answer.exact


@pytest.mark.parametrize(("model", "expression"), CASES)
def test_lists_of_names_hit_the_same_in_peft(model: str, expression: str) -> None:
    """PEFT takes a list's entries for whole names, or for ends of names after a dot."""
    selection = chosen(model, expression)
    lists = [emit(selection, "simpletuner").value["peft_lora_target_modules"]]
    if model not in ("sd15", "sdxl"):
        lists.append(emit(selection, "diffusers").value["lora_layers"].split(","))
    for listed in lists:
        everything = [layer.name for layer in selection.model.layers]
        found = {n for n in everything if any(n == e or n.endswith(f".{e}") for e in listed)}
        assert found == set(selection.modules)


def test_without_the_trailing_dot_ai_toolkit_would_train_more() -> None:
    selection = chosen("klein-9b", "single.1")
    (word,) = emit(selection, "ai-toolkit").value["network"]["network_kwargs"]["only_if_contains"]
    assert word == "transformer.single_blocks.1."
    more = ai_toolkit([word.rstrip(".")], own_modules("klein-9b"), "transformer")
    assert len(blocks_of(more)) == 11


def test_a_lora_in_the_authors_names_is_translated_for_peft() -> None:
    keys = key_lists.lora_keys(key_lists.bfl_modules(8, 24, flux1=False), "comfyui")
    model = meta.from_keys(dict.fromkeys(keys), "lora")
    regex = emit(select(model, "double[0:8]"), "peft").value
    assert regex == chosen("klein-9b", "double[0:8]").peft_regex()
    assert emit(select(model, "double.0.img_attn"), "peft").value is None


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_answer_says_something_and_is_json(consumer: str) -> None:
    answer = emit(chosen("klein-9b", "double.1.attn.to_q"), consumer)
    assert answer.text or answer.notes
    assert json.loads(json.dumps(answer.value)) == answer.value
    assert answer.exact or answer.notes


def test_an_unknown_trainer_is_said() -> None:
    with pytest.raises(UsageError, match="ai-toolkit"):
        emit(chosen("klein-9b", "double"), "nothing")
