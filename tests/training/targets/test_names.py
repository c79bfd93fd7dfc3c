import pytest

from lora_prep.training.targets import names
from lora_prep.training.targets.names import Naming, Role

DOUBLE = [
    "transformer.transformer_blocks.3.attn.to_q.lora_A.weight",
    "base_model.model.transformer_blocks.3.attn.to_q.lora_A.weight",
    "transformer_blocks.3.attn.to_q.lora_A.default.weight",
    "diffusion_model.double_blocks.3.img_attn.qkv.lora_A.weight",
    "model.diffusion_model.double_blocks.3.img_attn.qkv.weight",
    "double_blocks.3.img_attn.qkv.weight",
    "lora_unet_double_blocks_3_img_attn_qkv.lora_down.weight",
    "lora_transformer_transformer_blocks_3_attn_to_q.alpha",
    "lora_unet_joint_blocks_3_x_block_attn_qkv.lora_up.weight",
]
STYLE = [
    "unet.up_blocks.0.attentions.1.transformer_blocks.7.attn1.to_out.0.lora_B.weight",
    "unet.up_blocks.0.attentions.1.transformer_blocks.7.attn1.to_out.0.lora.up.weight",
    "lora_unet_up_blocks_0_attentions_1_transformer_blocks_7_attn1_to_out_0.lora_up.weight",
    "lora_unet_output_blocks_1_1_transformer_blocks_7_attn1_to_out_0.lora_up.weight",
    "model.diffusion_model.output_blocks.1.1.transformer_blocks.7.attn1.to_out.0.weight",
]


@pytest.mark.parametrize("key", DOUBLE)
def test_a_double_block_is_found_in_every_naming(key: str) -> None:
    place = names.place(names.parse(key).module)
    assert place is not None
    assert place.block.label == "double.3"


@pytest.mark.parametrize("key", STYLE)
def test_a_unets_block_is_found_in_every_naming(key: str) -> None:
    place = names.place(names.parse(key).module)
    assert place is not None
    assert place.block.label == "up.0.attentions.1"
    assert place.layer == "transformer_blocks.7.attn1.to_out.0"


@pytest.mark.parametrize(
    ("module", "label"),
    [
        ("input_blocks.1.1.proj_in", "down.0.attentions.0"),
        ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "down.1.attentions.0"),
        ("input_blocks.8.1.transformer_blocks.0.attn1.to_q", "down.2.attentions.1"),
        ("input_blocks.4.0.in_layers.2", "down.1.resnets.0"),
        ("input_blocks.3.0.op", "down.0.downsamplers.0"),
        ("middle_block.1.proj_out", "mid.attentions.0"),
        ("middle_block.2.out_layers.3", "mid.resnets.1"),
        ("output_blocks.5.1.proj_in", "up.1.attentions.2"),
        ("output_blocks.2.2.conv", "up.0.upsamplers.0"),
        ("single_transformer_blocks.11.attn.to_out", "single.11"),
        ("blocks.4.ffn.net.2", "block.4"),
    ],
)
def test_places(module: str, label: str) -> None:
    place = names.place(module)
    assert place is not None
    assert place.block.label == label


@pytest.mark.parametrize("module", ["x_embedder", "proj_out", "input_blocks.0.0", "time_embed.0"])
def test_modules_outside_of_blocks(module: str) -> None:
    assert names.place(module) is None


def test_text_encoders_are_not_taken_for_blocks() -> None:
    for key in (
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "text_encoder_2.encoder.blocks.0.layer.lora_A.weight",
    ):
        assert names.place(names.parse(key).module) is None


@pytest.mark.parametrize(
    ("flat", "dotted"),
    [
        ("double_blocks_0_img_attn_qkv", "double_blocks.0.img_attn.qkv"),
        ("single_blocks_37_linear1", "single_blocks.37.linear1"),
        ("double_blocks_18_txt_mlp_2", "double_blocks.18.txt_mlp.2"),
        (
            "single_transformer_blocks_3_attn_to_qkv_mlp_proj",
            "single_transformer_blocks.3.attn.to_qkv_mlp_proj",
        ),
        ("transformer_blocks_0_ff_context_linear_in", "transformer_blocks.0.ff_context.linear_in"),
        ("blocks_9_cross_attn_k_img", "blocks.9.cross_attn.k_img"),
        (
            "joint_blocks_2_context_block_adaLN_modulation_1",
            "joint_blocks.2.context_block.adaLN_modulation.1",
        ),
    ],
)
def test_unflatten(flat: str, dotted: str) -> None:
    assert names.unflatten(flat) == dotted


def test_every_name_of_the_known_models_survives_flattening() -> None:
    from lora_prep.training.targets import resolve, shipped

    for model in shipped():
        for layer in resolve(model).layers:
            assert names.unflatten(layer.name.replace(".", "_")) == layer.name


def test_roles_and_stems_group_what_belongs_together() -> None:
    keys = [
        "lora_unet_single_blocks_0_linear1.lora_down.weight",
        "lora_unet_single_blocks_0_linear1.lora_up.weight",
        "lora_unet_single_blocks_0_linear1.alpha",
        "lora_unet_single_blocks_0_linear1.dora_scale",
    ]
    parsed = [names.parse(key) for key in keys]
    assert [p.role for p in parsed] == [Role.DOWN, Role.UP, Role.ALPHA, Role.OTHER]
    assert {p.stem for p in parsed} == {"lora_unet_single_blocks_0_linear1"}


def test_namings_are_told_apart() -> None:
    wan = names.place("blocks.0.self_attn.q")
    diffusers = names.place("blocks.0.attn1.to_q")
    assert wan is not None
    assert diffusers is not None
    assert (wan.naming, diffusers.naming) == (Naming.ORIGINAL, Naming.DIFFUSERS)


@pytest.mark.parametrize("key", ["", ".", "lora_unet_", "transformer.", "blocks.x.y", "a" * 10_000])
def test_odd_keys_do_not_fail(key: str) -> None:
    assert names.place(names.parse(key).module) is None


def test_labels_join_neighbours() -> None:
    blocks = [names.Block("double", (i,)) for i in (0, 1, 2, 5)]
    assert names.labels(blocks) == "double 0-2, double.5"
