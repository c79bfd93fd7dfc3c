import json
import struct
from pathlib import Path

import pytest

from lora_prep.errors import UsageError
from lora_prep.training.targets import inventory, meta, resolve, shipped
from lora_prep.training.targets.names import Naming
from tests.training.targets import key_lists

FACTS = {
    "flux1-dev": ("flux1", {"double": 19, "single": 38}, 11.90),
    "flux2-dev": ("flux2", {"double": 8, "single": 48}, 32.22),
    "klein-4b": ("flux2", {"double": 5, "single": 20}, 3.88),
    "klein-9b": ("flux2", {"double": 8, "single": 24}, 9.08),
    "sd3": ("sd3", {"double": 24}, 2.03),
    "sd35-medium": ("sd3", {"double": 24}, 2.24),
    "sd35-large": ("sd3", {"double": 38}, 8.06),
    "wan21-1.3b": ("wan21", {"block": 30}, 1.42),
    "wan21-14b": ("wan21", {"block": 40}, 14.29),
    "qwen-image": ("qwen-image", {"double": 60}, 20.43),
    "sd15": ("sd15", {"down": 6, "mid": 1, "up": 9}, 0.86),
    "sdxl": ("sdxl", {"down": 4, "mid": 1, "up": 6}, 2.57),
}


def test_the_table_is_of_all_shipped_models() -> None:
    assert set(FACTS) == set(shipped())


@pytest.mark.parametrize("name", FACTS)
def test_built_on_the_meta_device_each_model_is_told(name: str) -> None:
    model = meta.from_config(meta.public_config(name), name)
    family, counts, billions = FACTS[name]
    assert (model.family, model.variant, model.counts) == (family, name, counts)
    assert model.parameters is not None
    assert round(model.parameters / 1e9, 2) == billions
    assert model.naming is Naming.DIFFUSERS


@pytest.mark.parametrize("name", FACTS)
def test_what_was_written_down_is_what_diffusers_builds(name: str) -> None:
    built = meta.from_config(meta.public_config(name), name)
    known = inventory.load(name)
    assert set(known.layers) == set(built.layers)
    assert (known.describe(), known.parameters) == (built.describe(), built.parameters)


def model_of(keys: list[str]) -> "meta.Model":
    return meta.from_keys(dict.fromkeys(keys), "keys")


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("style", ["diffusers", "comfyui", "peft", "kohya"])
def test_a_lora_on_all_layers_is_told_in_every_style(name: str, style: str) -> None:
    whole = resolve(name)
    modules = [layer.name for layer in whole.layers]
    found = model_of(key_lists.lora_keys(modules, style))
    assert (found.family, found.variant, found.counts) == (whole.family, name, whole.counts)
    assert {layer.name for layer in found.layers} == set(modules)


@pytest.mark.parametrize("style", ["comfyui", "kohya"])
@pytest.mark.parametrize(
    ("modules", "variant"),
    [
        (key_lists.bfl_modules(19, 38, flux1=True), "flux1-dev"),
        (key_lists.bfl_modules(8, 48, flux1=False), "flux2-dev"),
        (key_lists.wan_modules(30), "wan21-1.3b"),
        (key_lists.wan_modules(40), "wan21-14b"),
        (key_lists.sgm_sdxl_modules(), "sdxl"),
    ],
)
def test_the_authors_own_names(modules: list[str], variant: str, style: str) -> None:
    found = model_of(key_lists.lora_keys(modules, style))
    assert found.variant == variant
    assert found.naming is Naming.ORIGINAL


def test_flux_1_and_2_are_told_apart_without_modulation_by_their_widths() -> None:
    def lora(width: int, ratio: int) -> "meta.Model":
        keys = {
            "lora_unet_single_blocks_0_linear1.lora_down.weight": (4, width),
            "lora_unet_single_blocks_0_linear1.lora_up.weight": (ratio * width, 4),
        }
        return meta.from_keys(keys, "lora")

    assert lora(3072, 7).family == "flux1"
    assert lora(3072, 9).family == "flux2"


DOUBLE, SINGLE = "transformer_blocks", "single_transformer_blocks"


@pytest.mark.parametrize("style", ["diffusers", "kohya"])
@pytest.mark.parametrize(
    ("last", "width", "told"),
    [
        ({f"{SINGLE}.3.attn.to_out": 1}, 16384, "flux2"),
        ({f"{SINGLE}.3.attn.to_out": 1, f"{DOUBLE}.4.attn.to_q": 1}, 3072, "flux2"),
        ({f"{SINGLE}.3.attn.to_v": 1}, 3072, "flux1"),
        ({f"{SINGLE}.3.proj_out": 1, f"{DOUBLE}.4.attn.to_q": 1}, 3072, "flux1"),
        ({f"{DOUBLE}.7.attn.add_q_proj": 1}, 4096, "flux2"),
        ({f"{DOUBLE}.7.attn.to_out.0": 1}, 6144, "flux2"),
        ({f"{DOUBLE}.4.attn.to_q": 1}, 3072, "flux1 or flux2 or qwen-image"),
        ({f"{DOUBLE}.5.attn.to_q": 1}, 3072, "flux1 or qwen-image"),
        ({f"{DOUBLE}.19.attn.to_q": 1}, 3072, "qwen-image"),
        ({f"{DOUBLE}.5.ff.net.2": 4, f"{DOUBLE}.5.attn.to_q": 1}, 3072, "flux1"),
        ({f"{DOUBLE}.23.attn.to_q": 1}, 1536, "sd3"),
        ({f"{DOUBLE}.0.attn1.to_q": 1}, 1152, "unknown"),
        ({"double_blocks.4.img_attn.proj": 1}, 3072, "flux1 or flux2"),
        ({"double_blocks.4.img_attn.proj": 1}, 4096, "flux2"),
    ],
)
def test_a_sparse_lora_is_told_by_names_and_sizes_or_not_at_all(
    last: dict[str, int], width: int, told: str, style: str
) -> None:
    shapes = {}
    for module, ratio in last.items():
        for key in key_lists.lora_keys([module], style):
            down = "_A." in key or "down" in key
            shapes[key] = () if "alpha" in key else (4, width * ratio) if down else (width, 4)
    found = meta.from_keys(shapes, "lora")
    assert found.describe().partition(":")[0] == told
    assert found.family == ("unknown" if " or " in told else told)


def test_a_flux_2_checkpoint_is_told_by_its_one_modulation() -> None:
    modules = [*key_lists.bfl_modules(8, 24, flux1=False), "double_stream_modulation_img.lin"]
    found = model_of([f"{m}.weight" for m in modules])
    assert (found.family, found.variant) == ("flux2", "klein-9b")


def safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file whose header is right and whose data is missing: only the header may be read."""
    header = {k: {"dtype": "BF16", "shape": s, "data_offsets": [0, 0]} for k, s in shapes.items()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


def test_of_a_checkpoint_only_the_header_is_read(tmp_path: Path) -> None:
    whole = resolve("klein-4b")
    shapes = {f"{x.name}.weight": (x.outputs or 0, x.inputs or 0) for x in whole.layers}
    shapes["transformer_blocks.0.attn.norm_q.weight"] = (128,)
    found = resolve(safetensors(tmp_path / "klein.safetensors", shapes))
    assert found.variant == "klein-4b"
    assert {(x.name, x.inputs, x.outputs) for x in found.layers} == {
        (x.name, x.inputs, x.outputs) for x in whole.layers
    }


def test_the_index_of_a_sharded_checkpoint(tmp_path: Path) -> None:
    keys = [f"{layer.name}.weight" for layer in resolve("flux1-dev").layers]
    path = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": dict.fromkeys(keys, "a.safetensors")}))
    assert resolve(path).variant == "flux1-dev"


@pytest.mark.parametrize("where", ["transformer", ""])
def test_a_diffusers_folder(tmp_path: Path, where: str) -> None:
    folder = tmp_path / where
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(meta.public_config("klein-9b")))
    assert resolve(tmp_path).variant == "klein-9b"


def test_a_model_with_other_counts_has_a_family_but_no_variant() -> None:
    config = meta.public_config("flux1-dev") | {"num_layers": 5, "num_single_layers": 10}
    model = resolve(config)
    assert (model.family, model.variant) == ("flux1", None)
    assert model.counts == {"double": 5, "single": 10}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.ckpt", b"\x80\x02", "pickle"),
        ("m.safetensors", b"", "no safetensors file"),
        ("m.safetensors", b"\xff" * 64, "no safetensors file"),
        ("m.safetensors", struct.pack("<Q", 2) + b"[]", "no safetensors file"),
        ("m.safetensors", struct.pack("<Q", 2) + b"{}", "none of its 0 modules"),
        ("config.json", b"[1]", "no JSON object"),
        ("config.json", b"{", "cannot be read as JSON"),
        ("config.json", b"{}", "no _class_name"),
        ("config.json", b'{"_class_name": "os.system"}', "no model"),
        ("config.json", b'{"_class_name": "DDIMScheduler"}', "no model"),
        ("config.json", b'{"_class_name": "AutoencoderKL"}', "none of its"),
    ],
)
def test_what_is_no_model_is_said(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(write(tmp_path / name, content))


def test_unknown_names_and_empty_folders_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known are flux1-dev"):
        resolve("flux9")
    with pytest.raises(UsageError, match="no diffusers model"):
        resolve(tmp_path)
