"""As users run it: compiled, and without the type checks of the other tests.

In one process of its own, since neither torch.compile nor messages about wrong literals get past
those checks.
"""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import lora_prep.training as training
assert "torch" not in sys.modules, "import lora_prep.training must not import torch"
assert set(training.__all__) <= set(dir(training))
for name in training.__all__:
    assert getattr(training, name) is not None

import torch
from dataclasses import replace
from test_functional import LOSSES, tensors
from test_total import SUMS, whole_step
from lora_prep.errors import UsageError

losses, step = training.LossSum(SUMS["masked, inverted, prior"]), whole_step()
pred, target, mask = tensors()

flow = training.Objective("flow_matching")
steps = training.Objective("epsilon", torch.linspace(0.99, 0.01, 1000))
sigmas, times = torch.rand(4), torch.tensor([0, 1, 500, 999])

def noised(x, sigmas, times):
    return flow.add_noise(x, x, sigmas), steps.add_noise(x, x, times)

def everything(pred, whole):
    each = [loss(pred, target, mask) for loss in LOSSES.values()]
    return torch.stack(each), losses(replace(step, pred=whole)).total

results = []
for run in (everything, torch.compile(everything, fullgraph=True, backend="eager")):
    p, whole = pred.clone().requires_grad_(), step.pred.clone().requires_grad_()
    each, total = run(p, whole)
    (each.sum() + total).backward()
    results.append((each.detach(), total.detach(), p.grad, whole.grad))
torch.testing.assert_close(*results)
once = torch.compile(noised, fullgraph=True, backend="eager")
for _ in range(2):
    torch.testing.assert_close(once(pred, sigmas, times), noised(pred, sigmas, times))
    there = once(*(x.to("meta") for x in (pred, sigmas, times)))
    assert all(x.is_meta for x in there)
print("compiled")

x = torch.ones(1, 2, 2, 2)
masked, from_config = training.masked_loss, training.from_config
three = replace(step, is_prior=torch.ones(3, dtype=torch.bool))
for wrong, message in (
    (lambda: masked(x, x, x, normalize="smaple"), "normalize='smaple': take one of sample, batch"),
    (lambda: masked(x, x, x, like="khoya"), "like='khoya' is no trainer known: kohya"),
    (lambda: masked(x, x, x.byte()), "mask is torch.uint8: give weights from 0 to 1"),
    (lambda: training.Objective("eps"), "no objective is called 'eps': take one of epsilon"),
    (lambda: training.sample_levels(2, density="cosine"), "no density is called 'cosine'"),
    (lambda: from_config({"inverted_mask_prior": {"normalize": "all"}}), "normalize='all': take"),
    (lambda: from_config({"masked": {"like": "khoya"}}), "losses.masked: like='khoya'"),
    (lambda: from_config({"masked": {"weight": "1"}}), "weight: a term's weight is '1'"),
    (lambda: from_config({"masked": {"floor": "much"}}), "masked cannot be made of this"),
    (lambda: from_config({"diffusion": {"min_snr": "5"}}), "losses.diffusion"),
    (lambda: training.pack(x[:, :, None]), "latents is 1×2×1×2×2: packing takes B×C×H×W"),
    (lambda: training.unpack(pred, 4, 6), "tokens is 4×3×4×6: packing takes B×N×4C"),
    (lambda: training.unpatchify(x[0]), "patches is 2×2×2: packing takes B×4C×h×w"),
    (lambda: training.to_tokens(x[0]), "x is 2×2×2: packing takes B×D×h×w"),
    (lambda: training.pack_mask(x[0, :1], 16), "mask is 1×2×2: give B×1×H×W, of latent size"),
    (lambda: training.LossSum({"m": training.Masked()}), "entry m is Masked("),
    (lambda: training.LossSum({"m": (1.0, training.Masked)}), "give a weight and a term, such as"),
    (lambda: training.LossSum({"m": (1.0, masked)}), "give a weight and a term, such as"),
    (lambda: losses(replace(step, is_prior=step.is_prior.long())), "is_prior is torch.int64: give"),
    (lambda: losses(three), "is_prior is 3: give one value a sample"),
):
    try:
        wrong()
    except UsageError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
print("messages")
"""


def test_compiled_and_unchecked():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.stdout.split("\n")[:-1] == ["compiled", "messages"], done.stderr


def test_a_name_that_does_not_exist_is_an_attribute_error():
    import lora_prep.training

    assert not hasattr(lora_prep.training, "maksed_loss")
