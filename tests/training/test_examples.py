"""The examples of docs/losses.md, as they stand there, on a tiny pipeline and a prepared folder."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from lora_prep import imageio
from lora_prep.training import LossBatch, unpack
from tests.fakes import tiny_faces, tiny_pipelines

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"
BLOCKS: dict[str, str] = dict(
    re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
)


@pytest.fixture(scope="module")
def data(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Portraits with their embeddings, and discs for masks."""
    root = Path(shutil.copytree(embedded, tmp_path_factory.mktemp("prepared") / "data"))
    (root / "masks").mkdir()
    for path in (root / "faces").iterdir():
        mask = np.zeros((320, 320), np.uint8)
        cv2.circle(mask, (160, 150), 110, 255, -1)
        (root / "masks" / f"{path.stem}.png").write_bytes(imageio.encode_mask(mask))
    return root


def given(data: Path) -> dict[str, Any]:
    """The names that the page says are there."""
    blocks, widths = (1, 1, 1, 1), (8, 8, 8, 8)
    tiny_vae = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    )
    return {
        "data": data,
        "pipeline": tiny_pipelines.build("sd15"),
        "recogniser_file": tiny_faces.PACK / "rec_tiny.onnx",
        "tiny_vae": tiny_vae.eval(),
    }


def adapter(unet: torch.nn.Module) -> torch.Tensor:
    """All weights that are trained, the B matrices start at 0."""
    return torch.cat([p.detach().flatten() for p in unet.parameters() if p.requires_grad])


def run(names: dict[str, Any], *blocks: str) -> dict[str, Any]:
    for block in blocks:
        exec(compile(BLOCKS[block], f"{PAGE.name}: {block}", "exec"), names)
    return names


def test_the_diffusers_loop(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = given(data)
    frozen = {n: p.clone() for n, p in names["pipeline"].unet.named_parameters()}
    run(names, "diffusers")
    shown = capsys.readouterr().out
    assert shown.count("'masked': ") == names["step"] + 1 == 5
    assert math.isfinite(float(names["result"].total.detach()))
    assert grew(names["unet"])
    for name, weight in names["unet"].named_parameters():
        if not weight.requires_grad:
            assert torch.equal(weight, frozen[name.replace(".base_layer", "")])


def test_the_accelerate_loop(data: Path) -> None:
    names = run(given(data), "diffusers")
    before = adapter(names["unet"])
    run(names, "accelerate")
    assert names["step"] == 2  # five batches, four parts a step
    assert set(names["result"].values) == {"masked", "outside"}
    assert math.isfinite(float(names["result"].total.detach()))
    assert not torch.equal(adapter(names["adapter"]), before)
    assert names["result"].values["outside"] > 0  # the adapter was off for one forward, and on


def test_the_identity_loop(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At low noise only, so that each step has the term."""
    names = run(given(data), "diffusers")
    before = adapter(names["unet"])
    kind = type(names["objective"])
    low = kind("epsilon", names["objective"].alphas_cumprod[:200])
    capsys.readouterr()
    run({**names, "objective": low}, "identity")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "identity" not in lines[0]  # the warm-up starts at 0
    for line in lines[1:]:
        value = float(re.findall(r"'identity': ([\d.e-]+)", line)[0])
        assert 0 < value < 2
    assert not torch.equal(adapter(names["unet"]), before)


def test_the_flux_step() -> None:
    """Only what the mask shows is learned, whatever the order of the tokens is."""
    pipeline = tiny_pipelines.build("flux1")
    prompt, pooled, text_ids = pipeline.encode_prompt("a photo of ohwx", None)
    given = {"pipeline": pipeline, "prompt": prompt.expand(2, -1, -1), "text_ids": text_ids,
             "pooled": pooled.expand(2, -1), "images": torch.zeros(2, 3, 32, 48)}  # fmt: skip
    mask = torch.zeros(2, 1, 32, 48)
    mask[..., :24] = 1  # the left half
    names = run({**given, "mask": mask}, "flux")
    assert names["pred"].shape == (2, 6, 64)
    (slope,) = torch.autograd.grad(
        names["losses"](LossBatch(names["pred"], names["x0"], mask=names["packed"])).total,
        names["pred"],
    )
    inside = unpack(slope, 4, 6).abs().amax((0, 1, 2)) > 0
    assert inside.tolist() == [True] * 3 + [False] * 3
    assert pipeline.transformer.proj_out.weight.grad.any()


def grew(unet: torch.nn.Module) -> bool:
    """Whether the B matrices of the adapter, which start at 0, have all moved."""
    return all(bool(p.any()) for n, p in unet.named_parameters() if "lora_B" in n)


def test_the_other_names_on_the_page_exist() -> None:
    import lora_prep.training
    from lora_prep.training import identity

    text = PAGE.read_text("utf-8")
    table = re.findall(r"^\| `(\w+)`, `(\w+)` \|", text, re.M)
    assert len(table) == 9
    for function, term in table:
        assert hasattr(lora_prep.training, function)
        assert hasattr(lora_prep.training, term)
    assert hasattr(identity, "evaluate_identity")
    toml = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(toml) == 1
    import tomllib

    losses = lora_prep.training.from_config(tomllib.loads(toml[0])["losses"])
    assert set(losses.terms) == {"masked", "inverted_mask_prior"}
