"""Image pairs of a slider: half a pair is never exported."""

import numpy as np
import pytest

from lora_prep import decisions, imageio
from lora_prep.dataset import Dataset
from lora_prep.export.check import check
from lora_prep.export.places import Places
from lora_prep.export.plan import Plan
from lora_prep.export.write import export


@pytest.mark.parametrize("harm", ["orphan", "size"])
def test_half_a_pair_is_left_out_whole(harm, pairs, tmp_path, lora_prep):
    out, low = tmp_path / "out", pairs / "negative" / "b.png"
    if harm == "orphan":
        low.unlink()
    else:
        low.write_bytes(imageio.encode_image(np.zeros((20, 64, 3), np.uint8), "png"))
    given = ("--pairs", pairs, "--caption", "a face", "--out", out)
    result = lora_prep("export", "--to", "simpletuner", *given, code=1)
    assert "left out  b.png" in result.output
    assert {p.name for p in out.glob("*/*.png")} == {"a.png"}


@pytest.mark.parametrize("side", ["positive", "negative"])
@pytest.mark.parametrize(
    ("harm", "code", "said"), [("rejected", 0, "rejected in"), ("caption", 1, "not UTF-8")]
)
def test_the_other_half_is_left_out_too(harm, code, said, side, pairs, tmp_path, lora_prep):
    out, half = tmp_path / "out", Dataset.at(pairs / side)
    if harm == "rejected":
        decisions.decide(half, half.sample("b.png"), decisions.Verdict.REJECTED)
    else:
        (pairs / side / "b.txt").write_bytes(b"\xff")
    given = ("--pairs", pairs, "--caption", "a face", "--out", out, "--check")
    result = lora_prep("export", "--to", "simpletuner", *given, code=code)
    assert said in result.output
    assert "left out  b.png: " in result.output
    assert "left out  negative/b.png: " in result.output
    assert "simpletuner: 2 images, 2 left out" in result.output
    assert "check: simpletuner reads 2 images" in result.output
    assert [p.parent.name for p in sorted(out.glob("*/*.png"))] == ["negative", "positive"]
    assert {p.stem for p in out.glob("*/*.*")} == {"a"}


@pytest.mark.parametrize("again", [False, True])
def test_a_half_that_goes_while_the_other_is_written(again, pairs, tmp_path):
    def low_goes():
        (pairs / "negative" / "b.png").unlink(missing_ok=True)

    out = tmp_path / "out"
    sides = {"dataset": Dataset.at(pairs / "positive"), "negative": Dataset.at(pairs / "negative")}
    plan = Plan("simpletuner", out, Places(str(out)), **sides, masked=False, caption="a face")
    if again:
        export(plan)
    report = export(plan, observe=low_goes)
    assert [item.key for item in report.left_out] == ["negative/b.png", "b.png"]
    assert (report.images, report.exit_code) == (2, 1)
    assert {p.stem for p in out.glob("*/*.*")} == {"a"}
    assert check(out).problems == []
    assert ("positive/b.png" in report.removed) == again
    assert report.filled == ["a.png", "negative/a.png"]


def test_both_sides_of_pairs_are_read_back(pairs, tmp_path, lora_prep):
    out = tmp_path / "out"
    given = ("--pairs", pairs, "--caption", "a face", "--recursive", "--out", out)
    for side in ("positive", "negative"):
        (pairs / side / "more").mkdir()
        (pairs / side / "b.png").rename(pairs / side / "more" / "b.png")
    lora_prep("export", "--to", "simpletuner", *given)
    (out / "negative" / "zz.png").write_bytes((out / "negative" / "a.png").read_bytes())
    (out / "negative" / "more__b.png").unlink()
    result = lora_prep("export", "--check", "--out", out, code=1)
    assert "reads 3 images" in result.output
    assert "negative/zz.png is not of this export" in result.output
    assert "does not find negative/more__b.png" in result.output


def test_variants_have_no_other_half(pairs, tmp_path, lora_prep):
    given = ("--pairs", pairs, "--augmented-from", pairs / "positive", "--out", tmp_path / "out")
    result = lora_prep("export", "--to", "simpletuner", *given, "--caption", "a face", code=2)
    assert "variants would have no other half" in result.output
