"""A sum of terms from a dictionary or a file."""

import pytest
import torch

from lora_prep.errors import UsageError
from lora_prep.training import (
    Constant,
    FaceWeighted,
    LossBatch,
    Masked,
    PriorPreservation,
    Steps,
    WarmUp,
    from_config,
    masked_loss,
)

EXAMPLE = """
[model]
name = "someone else's"

[losses.masked]
like = "onetrainer"
normalize = "sample"

[losses.class]
term = "prior_preservation"
weight = { steps = { 0 = 1.0, 1000 = 0.5 } }

[losses.inverted_mask_prior]
weight = { to = 0.5, over = 200, after = 100 }
"""


def test_a_file_gives_the_sum(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text(EXAMPLE)
    terms = from_config(path).terms
    assert terms["masked"] == (Constant(1.0), Masked(like="onetrainer", normalize="sample"))
    assert terms["class"] == (Steps(((0, 1.0), (1000, 0.5))), PriorPreservation())
    assert terms["inverted_mask_prior"][0] == WarmUp(0.5, 200, after=100)
    assert from_config(str(path)).terms == terms


def test_a_dictionary_gives_the_sum():
    losses = from_config({"masked": {"weight": 2, "floor": 0.1}})
    g = torch.Generator().manual_seed(0)
    pred, target = (torch.randn(2, 3, 4, 4, generator=g) for _ in range(2))
    mask = torch.rand(2, 1, 4, 4, generator=g)
    expected = 2 * masked_loss(pred, target, mask, floor=0.1).mean()
    torch.testing.assert_close(losses(LossBatch(pred, target, mask=mask)).total, expected)


def test_objects_can_be_given_beside():
    losses = from_config(
        {"face_weighted": {"weight": 0.5}}, {"face_weighted": {"face_weight": 2.0}}
    )
    assert losses.terms["face_weighted"] == (Constant(0.5), FaceWeighted(2.0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"maksed": {}}, r"losses.maksed: there is no term 'maksed': did you mean 'masked'\?"),
        ({"a": {"term": "zzz"}}, "there is no term 'zzz': there is diffusion, masked"),
        ({"masked": {"flor": 0.1}}, r"masked has no option 'flor': did you mean 'floor'\?"),
        ({"masked": {"zzz": 0.1}}, "no option 'zzz': there is normalize, floor, like"),
        ({"masked": {"floor": 3.0}}, "losses.masked: floor=3.0"),
        ({"masked": {"floor": "much"}}, "losses.masked: masked cannot be made of this"),
        ({"masked": 1.0}, "losses.masked is 1.0: write a table"),
        ({"masked": {"weight": -1}}, r"losses.masked.weight: a term's weight is -1"),
        ({"masked": {"weight": "1"}}, r"losses.masked.weight.* is '1'"),
        ({"masked": {"weight": {"to": 1.0}}}, r"losses.masked.weight is \{'to': 1.0\}: give"),
        (
            {"masked": {"weight": {"to": 1.0, "ovr": 5}}},
            r"weight: there is no 'ovr' in a weight: did you mean 'over'\?",
        ),
        ({"masked": {"weight": {"steps": {"x": 1.0}}}}, "losses.masked.weight is"),
        ({"masked": {"weight": {"steps": [0, 1]}}}, "losses.masked.weight is"),
        ({"face_weighted": {}}, "face_weighted cannot be made of this: .*face_weight"),
        ({"diffusion": {}, "masked": {}}, "count twice"),
        ({}, "no terms"),
    ],
)
def test_what_is_wrong_is_said(config, message):
    with pytest.raises(UsageError, match=message):
        from_config(config)


def test_objects_for_no_term_are_refused():
    with pytest.raises(UsageError, match=r"'maskd', and losses has no such term: did you mean"):
        from_config({"masked": {}}, {"maskd": {}})
    with pytest.raises(UsageError, match=r"losses.masked.floor is in the configuration and given"):
        from_config({"masked": {"floor": 0.1}}, {"masked": {"floor": 0.2}})


def test_files_that_cannot_be_read_are_said(tmp_path):
    path = tmp_path / "train.toml"
    with pytest.raises(UsageError, match=r"cannot read .*train.toml: No such file"):
        from_config(path)
    path.write_text("losses = [")
    with pytest.raises(UsageError, match=r"train.toml is not valid TOML"):
        from_config(path)
    path.write_text("[masked]\n")
    with pytest.raises(UsageError, match=r"no table \[losses.<term>\]"):
        from_config(path)
    path.write_text("[losses.masked]\nflor = 1\n")
    with pytest.raises(UsageError, match=r"train.toml: losses.masked: masked has no option 'flor'"):
        from_config(path)
