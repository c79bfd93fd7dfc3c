import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_prep.errors import UsageError
from lora_prep.training.targets import adapter, merging, resolve, select
from tests.training.targets import key_lists

META = {"ss_network_dim": "4", "modelspec.title": "cat"}


def modules_of(style: str) -> list[str]:
    """Two double and two single blocks, or SDXL's two B-LoRA blocks."""
    if style == "unet":
        layers = ("attn1.to_q", "attn2.to_v")
        return [
            f"up_blocks.0.attentions.{i}.transformer_blocks.9.{x}" for i in (0, 1) for x in layers
        ]
    if style == "diffusers":
        return [x.name for x in resolve("klein-9b").layers if x.block.numbers[0] < 2]
    return [m for m in key_lists.bfl_modules(2, 2, flux1=True) if "mod" not in m]


def tensors_of(
    style: str, rank: int = 4, seed: int = 0, dtype: Any = torch.bfloat16
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for key in key_lists.lora_keys(modules_of(style), style):
        if key.endswith("alpha"):
            found[key] = torch.tensor(float(rank) / 2, dtype=dtype)
        else:
            shape = (rank, 6) if ("lora_A" in key or "lora_down" in key) else (5, rank)
            found[key] = torch.randn(shape, generator=generator).to(dtype)
    return found


def write(
    path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> adapter.Lora:
    save_file(tensors, path, META if metadata is None else metadata)
    return adapter.read(path)


def delta(lora: adapter.Lora) -> dict[str, torch.Tensor]:
    """What each module's weight changes by: (alpha / rank)·B·A, computed plainly."""
    found = {}
    for module in lora.modules:
        assert module.down is not None
        assert module.up is not None
        product = lora.tensors[module.up].double() @ lora.tensors[module.down].double()
        found[module.stem] = product * adapter.scale(lora, module)
    return found


def saved(path: Path, merged: tuple[dict[str, Any], dict[str, str]]) -> adapter.Lora:
    adapter.write(path, *merged)
    return adapter.read(path)


STYLES = ["diffusers", "comfyui", "peft", "kohya", "unet"]


@pytest.mark.parametrize("style", STYLES)
def test_the_norms_are_those_of_the_products(tmp_path: Path, style: str) -> None:
    lora = write(tmp_path / "a.safetensors", tensors_of(style))
    changes = delta(lora)
    for touch in adapter.touches(lora):
        here = [m.stem for m in lora.modules if m.block == touch.block]
        expected = math.sqrt(sum(float(changes[stem].square().sum()) for stem in here))
        assert touch.norm == pytest.approx(expected, rel=1e-9)
        assert (touch.modules, touch.zero, touch.ranks) == (len(here), 0, (4,))


def test_zeros_and_broken_blocks_are_told(tmp_path: Path) -> None:
    tensors = tensors_of("kohya")
    for key in tensors:
        if "single_blocks_0" in key and "lora_up" in key:
            tensors[key].zero_()
        if "single_blocks_1_linear1.lora_up" in key:
            tensors[key][0, 0] = math.nan
    found = {t.label: t for t in adapter.touches(write(tmp_path / "a.safetensors", tensors))}
    assert (found["single.0"].norm, found["single.0"].zero) == (0.0, 2)
    assert math.isnan(found["single.1"].norm)
    assert found["double.0"].norm > 0


def test_a_convolutions_lora_has_a_norm(tmp_path: Path) -> None:
    stem = "lora_unet_up_blocks_0_resnets_1_conv1"
    down, up = torch.randn(2, 3, 3, 3), torch.randn(4, 2, 1, 1)
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    (touch,) = adapter.touches(write(tmp_path / "a.safetensors", tensors))
    assert touch.label == "up.0.resnets.1"
    assert touch.norm == pytest.approx(float((up.flatten(1) @ down.flatten(1)).norm()), rel=1e-5)


def test_text_encoders_and_other_modules_are_told_apart(tmp_path: Path) -> None:
    tensors = tensors_of("kohya")
    for stem in ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_unet_img_in"):
        tensors[f"{stem}.lora_down.weight"] = torch.ones(2, 3)
        tensors[f"{stem}.lora_up.weight"] = torch.ones(3, 2)
    found = [t.label for t in adapter.touches(write(tmp_path / "a.safetensors", tensors))]
    assert found[-2:] == ["outside of blocks", "text encoder"]


def peft_metadata(**config: Any) -> dict[str, str]:
    return {adapter.ADAPTER: json.dumps({f"transformer.{k}": v for k, v in config.items()})}


def test_the_scale_is_read_where_peft_keeps_it(tmp_path: Path) -> None:
    config = {"r": 4, "lora_alpha": 2, "alpha_pattern": {"attn.to_q": 8}}
    lora = write(tmp_path / "a.safetensors", tensors_of("diffusers"), peft_metadata(**config))
    scales = {m.name: adapter.scale(lora, m) for m in lora.modules}
    assert scales["transformer_blocks.0.attn.to_q"] == 2.0
    assert scales["transformer_blocks.0.attn.to_k"] == 0.5


SPLITS = {
    "unet": "up.0.attentions.1",
    "diffusers": "double",
    "comfyui": "double.1",
    "peft": "single",
}


@pytest.mark.parametrize("style", STYLES)
def test_split_and_merged_again_it_is_the_same_bit_for_bit(tmp_path: Path, style: str) -> None:
    tensors = tensors_of(style)
    lora = write(tmp_path / "a.safetensors", tensors)
    selection = select(lora.model, SPLITS.get(style, "double.0"))
    inside, outside = adapter.split(lora, selection)
    assert inside
    assert outside
    noted = META | {adapter.SELECTION: "x"}
    parts = [
        saved(tmp_path / "in.safetensors", (inside, noted)),
        saved(tmp_path / "out.safetensors", (outside, noted)),
    ]
    assert {t.block for t in adapter.touches(parts[0])} == set(selection.blocks)
    assert not {t.block for t in adapter.touches(parts[1])} & set(selection.blocks)
    again = saved(tmp_path / "again.safetensors", merging.merge(parts, [1.0, 1.0]))
    assert set(again.tensors) == set(tensors)
    for key, tensor in tensors.items():
        assert again.tensors[key].dtype == tensor.dtype
        assert torch.equal(again.tensors[key], tensor)
    assert META.items() <= again.metadata.items()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("strength", [0.5, -1.0, 2.0, 0.0])
def test_a_strength_counts_once(tmp_path: Path, style: str, strength: float) -> None:
    """Exactly, as these are powers of two; twice, 0.5 would be 0.25."""
    lora = write(tmp_path / "a.safetensors", tensors_of(style))
    scaled = saved(tmp_path / "b.safetensors", merging.merge([lora], [strength]))
    before, after = delta(lora), delta(scaled)
    for stem, change in before.items():
        assert torch.equal(after[stem], strength * change)


@pytest.mark.parametrize("style", STYLES)
def test_modules_that_both_have_are_added_at_different_ranks(tmp_path: Path, style: str) -> None:
    a = write(tmp_path / "a.safetensors", tensors_of(style, 4, 1, torch.float32))
    b = write(tmp_path / "b.safetensors", tensors_of(style, 2, 2, torch.float32))
    both = saved(tmp_path / "c.safetensors", merging.merge([a, b], [0.7, -0.3]))
    first, second, found = delta(a), delta(b), delta(both)
    for stem, change in found.items():
        expected = 0.7 * first[stem] - 0.3 * second[stem]
        assert torch.allclose(change, expected, atol=1e-5)
    assert {t.ranks for t in adapter.touches(both)} == {(6,)}


def test_b_lora_content_of_one_and_style_of_another(tmp_path: Path) -> None:
    cat = write(tmp_path / "cat.safetensors", tensors_of("unet", 4, 1))
    ink = write(tmp_path / "ink.safetensors", tensors_of("unet", 8, 2))
    content, _ = adapter.split(cat, select(cat.model, "sdxl:b-lora-content"))
    style, _ = adapter.split(ink, select(ink.model, "sdxl:b-lora-style"))
    parts = [
        saved(tmp_path / "content.safetensors", (content, {})),
        saved(tmp_path / "style.safetensors", (style, {})),
    ]
    mixed = saved(tmp_path / "mixed.safetensors", merging.merge(parts, [1.0, 0.5]))
    found = {t.label: t for t in adapter.touches(mixed)}
    of_cat = {t.label: t for t in adapter.touches(cat)}
    of_ink = {t.label: t for t in adapter.touches(ink)}
    first, second = "up.0.attentions.0", "up.0.attentions.1"
    assert found[first] == of_cat[first]
    assert found[second].norm == pytest.approx(0.5 * of_ink[second].norm, rel=1e-12)
    assert (found[first].ranks, found[second].ranks) == ((4,), (8,))


def test_pefts_configuration_is_kept_only_where_it_still_holds(tmp_path: Path) -> None:
    tensors = tensors_of("diffusers", 4, 1, torch.float32)
    half = {k: v for k, v in tensors.items() if "single" in k}
    rest = {k: v for k, v in tensors.items() if "single" not in k}
    a = write(tmp_path / "a.safetensors", half, peft_metadata(r=4, lora_alpha=2))
    b = write(tmp_path / "b.safetensors", rest, peft_metadata(r=4, lora_alpha=2))
    c = write(tmp_path / "c.safetensors", rest, peft_metadata(r=4, lora_alpha=8))
    same = saved(tmp_path / "same.safetensors", merging.merge([a, b], [1, 1]))
    assert same.metadata[adapter.ADAPTER] == a.metadata[adapter.ADAPTER]
    other = saved(tmp_path / "other.safetensors", merging.merge([a, c], [1, 1]))
    assert adapter.ADAPTER not in other.metadata
    found = delta(other)
    for lora in (a, c):
        for stem, change in delta(lora).items():
            assert torch.allclose(found[stem], change, atol=1e-6)


def test_files_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", tensors_of("kohya"))
    b = write(tmp_path / "b.safetensors", tensors_of("comfyui"))
    with pytest.raises(UsageError, match="different ways"):
        merging.merge([a, b], [1, 1])
    dora = tensors_of("kohya")
    dora["lora_unet_single_blocks_0_linear1.dora_scale"] = torch.ones(5, 1)
    c = write(tmp_path / "c.safetensors", dora)
    with pytest.raises(UsageError, match="DoRA"):
        merging.merge([c], [0.5])
    with pytest.raises(UsageError, match="DoRA"):
        merging.merge([a, c], [1, 1])
    assert merging.merge([c], [1])[0].keys() == dora.keys()
    wider = {k: (t.repeat(1, 2) if "down" in k else t) for k, t in tensors_of("kohya").items()}
    d = write(tmp_path / "d.safetensors", wider)
    with pytest.raises(UsageError, match="another model"):
        merging.merge([a, d], [1, 1])


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    lokr, half = tmp_path / "lokr.safetensors", tmp_path / "half.safetensors"
    save_file({"lora_unet_single_blocks_0_linear1.lokr_w1": torch.ones(2, 2)}, lokr)
    with pytest.raises(UsageError, match="LoKr"):
        adapter.read(lokr)
    save_file({"single_blocks.0.linear1.weight": torch.ones(2, 2)}, half)
    with pytest.raises(UsageError, match="no LoRA"):
        adapter.read(half)
    tensors = tensors_of("kohya")
    del tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"]
    with pytest.raises(UsageError, match="only a half"):
        adapter.touches(write(tmp_path / "part.safetensors", tensors))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "part.safetensors").read_bytes()[:-50])
    with pytest.raises(UsageError, match="cannot be read"):
        adapter.read(tmp_path / "cut.safetensors")


def test_nothing_is_replaced_unasked_and_nothing_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    lora = write(path, tensors_of("kohya"))
    with pytest.raises(UsageError, match="exists already"):
        adapter.write(path, {}, {})
    adapter.write(path, lora.tensors, {"a": "b"}, force=True)
    assert load_file(path).keys() == lora.tensors.keys()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


STEM = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha": torch.ones(2)}, "2 numbers"),
        ({"alpha": torch.tensor(math.nan)}, "nan, where an alpha"),
        ({"lora_A.weight": torch.tensor(1.0)}, "no matrix"),
        ({"lora_B.weight": torch.ones(3)}, "no matrix"),
        ({"lora_A.weight": torch.ones(3, 8)}, "ranks 2, 3"),
        ({"lora_A.weight": torch.ones(0, 8), "lora_B.weight": torch.ones(8, 0)}, "ranks 0"),
    ],
)
def test_a_lora_that_cannot_be_reckoned_with_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    whole = {"lora_A.weight": torch.ones(2, 8), "lora_B.weight": torch.ones(8, 2)}
    tensors = {f"{STEM}.{key}": tensor for key, tensor in {**whole, **change}.items()}
    with pytest.raises(UsageError, match=f"a.safetensors: .*{said}"):
        write(tmp_path / "a.safetensors", tensors)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{",
        "[]",
        '{"transformer.lora_alpha": "x"}',
        '{"transformer.lora_alpha": NaN}',
        '{"transformer.lora_alpha": 1' + "0" * 400 + "}",
        '{"transformer.alpha_pattern": [1]}',
        '{"transformer.alpha_pattern": {"attn.to_q": "x"}}',
        '{"transformer.target_modules": [[]]}',
    ],
)
def test_a_configuration_of_peft_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"a\.safetensors: .*lora_a"):
        write(tmp_path / "a.safetensors", tensors_of("diffusers"), {adapter.ADAPTER: text})


def test_target_modules_that_are_an_expression_are_not_joined(tmp_path: Path) -> None:
    tensors = tensors_of("diffusers", 4, 1, torch.float32)
    half = {k: v for k, v in tensors.items() if "single" in k}
    rest = {k: v for k, v in tensors.items() if "single" not in k}
    config = {"r": 4, "lora_alpha": 2}
    a = write(tmp_path / "a.safetensors", half, peft_metadata(**config, target_modules=".*single"))
    b = write(tmp_path / "b.safetensors", rest, peft_metadata(**config, target_modules=["to_q"]))
    both = saved(tmp_path / "c.safetensors", merging.merge([a, b], [1, 1]))
    assert adapter.ADAPTER not in both.metadata
    before, after = delta(a) | delta(b), delta(both)
    assert all(torch.allclose(after[stem], before[stem], atol=1e-6) for stem in before)


def test_equal_loras_have_equal_bytes(tmp_path: Path) -> None:
    noted = {f"key {n} ü\n": f'"{n}"\x01\x7f' for n in range(20)}
    lora = write(tmp_path / "a.safetensors", tensors_of("kohya"), noted)
    for name, metadata in (("b", noted), ("c", dict(reversed(noted.items())))):
        adapter.write(tmp_path / f"{name}.safetensors", lora.tensors, metadata)
    one, other = (tmp_path / f"{name}.safetensors" for name in "bc")
    assert one.read_bytes() == other.read_bytes()
    again = adapter.read(one)
    assert list(again.metadata.items()) == sorted(noted.items())
    assert all(torch.equal(again.tensors[key], lora.tensors[key]) for key in lora.tensors)


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"__metadata__": [1]}', b"[]"])
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UsageError, match="no safetensors file"):
        adapter.read(path)
