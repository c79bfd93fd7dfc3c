from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training import (
    Diffusion,
    LossBatch,
    LossSum,
    Masked,
    Objective,
    ShapeError,
    WarmUp,
    pack,
    resize_mask,
    unpack,
)
from lora_prep.training.identity import IdentityInputs, IdentityTerm, Recogniser, load_recogniser
from lora_prep.training.identity.align import TEMPLATE
from lora_prep.training.identity.decode import decode_faces

FLOW = Objective("flow_matching")
LANDMARKS = torch.tensor(TEMPLATE) * 0.5 + 20


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return load_recogniser(Path("tests/assets/tiny_faces/rec_tiny.onnx"), check=False)


class Decoder:
    """Latents (N,12,h,w) to (N,3,2h,2w), counting what it decodes."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, latents: Tensor) -> Tensor:
        self.shapes.append(tuple(latents.shape))
        return F.pixel_shuffle(latents, 2)


def make(sigmas: list[float], **more: Any) -> LossBatch:
    g = torch.Generator().manual_seed(0)
    count = len(sigmas)
    noisy, pred, target = torch.randn(3, count, 12, 64, 48, generator=g).unbind()
    inputs = IdentityInputs(LANDMARKS.expand(count, -1, -1), torch.randn(128, generator=g))
    batch = LossBatch(pred.requires_grad_(), target, objective=FLOW, sigmas=torch.tensor(sigmas),
                      noisy=noisy, identity=inputs)  # fmt: skip
    return replace(batch, **more)


def term(recogniser: Recogniser, **more: Any) -> tuple[IdentityTerm, Decoder]:
    decoder = Decoder()
    return IdentityTerm(recogniser, decoder, factor=2, **more), decoder


def test_only_low_noise_and_only_the_face_are_decoded(recogniser: Recogniser) -> None:
    it, decoder = term(recogniser, max_sigma=0.3)
    batch = make([0.1, 0.9, 0.3])
    found = it(batch)
    assert found.weight.tolist() == [1, 0, 1]
    [(count, _, height, width)] = decoder.shapes
    assert count == 2
    assert height < 64
    assert width < 48
    found.loss.sum().backward()
    assert batch.pred.grad is not None
    reached = batch.pred.grad.abs().flatten(1).amax(1)
    assert reached[0] > 0
    assert reached[1] == 0
    assert torch.equal(it.weights(batch), found.weight)


def test_the_gradient_of_the_whole_path_is_right() -> None:
    """x0, decoding around the face, alignment, recogniser and cosine, in float64."""
    network = load_recogniser(Path("tests/assets/tiny_faces/rec_tiny.onnx"), check=False).double()
    it, _ = term(network, weighting="linear")
    batch = make([0.1, 0.2])
    tensors = {name: getattr(batch, name).double() for name in ("target", "noisy", "sigmas")}
    pred = batch.pred.detach().double()
    direction = torch.randn(pred.shape, generator=torch.Generator().manual_seed(1)).double()

    def total(pred: Tensor) -> Tensor:
        return it(replace(batch, pred=pred, **tensors)).loss.sum()

    learned = pred.clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(learned), learned)
    eps = 1e-6  # PReLU has kinks
    with torch.no_grad():
        step = (total(pred + eps * direction) - total(pred - eps * direction)) / eps / 2
    assert float(step) == pytest.approx(float((slope * direction).sum()), rel=1e-5)


def test_a_sample_without_a_face_is_no_zero_in_the_mean(recogniser: Recogniser) -> None:
    it, _ = term(recogniser)
    batch = make([0.1, 0.1, 0.1])
    landmarks = batch.identity.landmarks.clone()
    landmarks[0], landmarks[1] = 0.0, float("nan")
    inputs = replace(batch.identity, landmarks=landmarks, valid=None)
    result = LossSum({"identity": (1.0, it)})(replace(batch, identity=inputs))
    alone = it(batch).loss[2]
    torch.testing.assert_close(result.values["identity"], alone.detach())
    assert float(result.counts["identity"]) == 1
    said = replace(batch.identity, valid=torch.tensor([False, False, True]))
    assert it(replace(batch, identity=said)).weight.tolist() == [0, 0, 1]


def test_class_images_other_steps_and_high_noise_cost_nothing(recogniser: Recogniser) -> None:
    it, decoder = term(recogniser, every=4)
    prior = torch.tensor([True])
    for batch in (make([0.1], step=3), make([0.9], step=4), make([0.1], is_prior=prior, step=4)):
        assert it(batch).weight.tolist() == [0]
        LossSum({"base": (1.0, Diffusion()), "identity": (1.0, it)})(batch).total.backward()
    assert decoder.shapes == []
    assert it(make([0.1], step=8)).weight.tolist() == [1]


def test_weighting_scales_losses_not_counts(recogniser: Recogniser) -> None:
    batch = make([0.2])
    plain = it_loss(recogniser, batch, "none")
    torch.testing.assert_close(it_loss(recogniser, batch, "linear"), plain * 0.64)
    steps = Objective("epsilon", torch.linspace(0.99, 0.01, 1000))
    t = torch.tensor([100])
    batch = replace(batch, objective=steps, sigmas=None, timesteps=t)
    plain = it_loss(recogniser, batch, "none")
    assert steps.alphas_cumprod is not None
    torch.testing.assert_close(it_loss(recogniser, batch, "linear"), plain * 0.81)
    torch.testing.assert_close(
        it_loss(recogniser, batch, "alpha_bar"), plain * steps.alphas_cumprod[100]
    )


def it_loss(recogniser: Recogniser, batch: LossBatch, weighting: Any) -> Tensor:
    found = term(recogniser, weighting=weighting)[0](batch)
    assert found.weight.tolist() == [1]
    return found.loss.detach()


def test_warm_up_and_two_micro_batches_equal_one(recogniser: Recogniser) -> None:
    it, _ = term(recogniser)
    losses = LossSum({"identity": (WarmUp(0.5, 10), it)})
    whole = make([0.1, 0.9, 0.2], step=5)
    one = losses(whole)
    torch.testing.assert_close(one.total, 0.25 * one.values["identity"], check_dtype=False)
    parts = []
    for rows in (slice(0, 1), slice(1, 3)):
        inputs = IdentityInputs(whole.identity.landmarks[rows], whole.identity.reference)
        assert whole.sigmas is not None
        assert whole.noisy is not None
        parts.append(replace(whole, pred=whole.pred[rows], target=whole.target[rows],
                             sigmas=whole.sigmas[rows], noisy=whole.noisy[rows],
                             identity=inputs))  # fmt: skip
    counts = losses.counts(parts)
    total = torch.stack([losses(part, counts=counts).total for part in parts]).sum()
    torch.testing.assert_close(total, one.total, rtol=1e-4, atol=1e-6)


def test_a_large_enough_margin_gives_what_the_whole_image_gives(recogniser: Recogniser) -> None:
    batch = make([0.1])
    losses = [it(batch).loss for it in (term(recogniser, margin=m)[0] for m in (0, 4, None))]
    torch.testing.assert_close(losses[0], losses[2])  # this decoder looks at one latent a pixel
    torch.testing.assert_close(losses[1], losses[2])


class Elsewhere(Tensor):
    """Says that it is on a device, and fails where the host looks at it."""

    device = property(lambda _: torch.device("meta"))  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What is computed of it is plain, but for flags."""
        out = super().__torch_function__(func, types, args, kwargs or {})
        flags = isinstance(out, Tensor) and out.dtype == torch.bool
        return out if flags or not isinstance(out, Tensor) else out.as_subclass(Tensor)

    def tolist(self) -> Any:
        raise AssertionError("waits for the device")

    item = nonzero = __bool__ = cpu = tolist


def test_noise_levels_on_a_device_are_masked_there_and_chosen_where_the_host_knows(
    recogniser: Recogniser,
) -> None:
    batch = make([0.1, 0.9, 0.2])
    assert batch.sigmas is not None
    assert batch.noisy is not None
    host, _ = term(recogniser)
    wanted = host(batch)
    there = replace(batch, sigmas=batch.sigmas.as_subclass(Elsewhere))
    noisy = batch.noisy.clone()
    noisy[1] = float("inf")  # decoded, not counted: it must not spoil the others
    it, decoder = term(recogniser)
    found = it(replace(there, noisy=noisy))
    assert found.weight.tolist() == [1, 0, 1]
    assert decoder.shapes[0][0] == 3
    torch.testing.assert_close(found.loss[[0, 2]], wanted.loss[[0, 2]])
    LossSum({"identity": (1.0, it)})(replace(there, noisy=noisy)).total.backward()
    assert batch.pred.grad is not None
    assert batch.pred.grad.isfinite().all()
    assert not batch.pred.grad[1].any()
    assert batch.pred.grad[0].any()
    known = replace(batch.identity, t=batch.sigmas)
    assert it(replace(there, identity=known)).weight.tolist() == [1, 0, 1]
    assert decoder.shapes[-1][0] == 2


@pytest.mark.parametrize("host_knows", [True, False])
def test_a_whole_step_looks_at_no_value_on_the_device(host_knows: bool) -> None:
    """Tensors without data stand for a GPU's: what would wait for it cannot work on them."""
    network = load_recogniser(Path("tests/assets/tiny_faces/rec_tiny.onnx"), check=False)
    it = IdentityTerm(network.to("meta"), Decoder(), factor=2, weighting="linear")
    losses = LossSum({"masked": (1.0, Masked(min_snr=5.0)), "identity": (0.1, it)})
    steps, t = Objective("epsilon", torch.linspace(0.99, 0.01, 1000)), torch.tensor([100, 900, 50])
    x0, noise = torch.zeros(2, 3, 12, 64, 48, device="meta")
    there = t.to("meta")
    noisy, target = steps.add_noise(x0, noise, there), steps.target(x0, noise, there)
    pred = torch.zeros_like(x0, dtype=torch.bfloat16, requires_grad=True)
    landmarks = torch.stack([LANDMARKS, LANDMARKS, LANDMARKS * 0.4 + 10])  # one is small
    inputs = IdentityInputs(landmarks, torch.ones(128), None, t if host_knows else None)
    mask = resize_mask(torch.zeros(3, 1, 500, 512, device="meta"), (64, 48))
    priors = torch.zeros(3, dtype=torch.bool, device="meta")
    batch = LossBatch(pred, target, steps, there, noisy=noisy, mask=mask, is_prior=priors,
                      identity=inputs)  # fmt: skip
    result = losses(batch, counts=losses.counts([batch]))
    result.total.backward()
    assert pred.grad is not None
    assert (pred.grad.shape, result.total.dtype) == (x0.shape, torch.float32)


def test_class_images_on_a_device_do_not_count(recogniser: Recogniser) -> None:
    prior = torch.tensor([False, True]).as_subclass(Elsewhere)
    found = term(recogniser)[0](make([0.1, 0.1], is_prior=prior))
    assert found.weight.tolist() == [1, 0]


def test_packed_tokens_are_unpacked(recogniser: Recogniser) -> None:
    batch = make([0.1, 0.9, 0.2])
    assert batch.noisy is not None
    tokens = replace(batch, pred=pack(batch.pred), target=pack(batch.target),
                     noisy=pack(batch.noisy))  # fmt: skip
    it, _ = term(recogniser, unpack=lambda x: unpack(x, 64, 48))
    torch.testing.assert_close(it(tokens).loss, term(recogniser)[0](batch).loss)
    it(tokens).loss.sum().backward()
    assert batch.pred.grad is not None
    assert batch.pred.grad[0].any()
    with pytest.raises(ShapeError, match="Give `unpack`"):
        term(recogniser)[0](tokens)


def test_faces_over_the_border_and_larger_than_the_image() -> None:
    latents = torch.randn(3, 12, 10, 14)
    landmarks = torch.stack([LANDMARKS - 60, LANDMARKS + 60, LANDMARKS * 9])
    pixels, moved = decode_faces(latents, landmarks, Decoder(), factor=2, margin=2)
    assert pixels.shape[0] == 3
    assert pixels.shape[2] <= 20
    assert moved.shape == (3, 5, 2)


def test_faces_that_a_crop_cut_off_have_no_term(recogniser: Recogniser) -> None:
    """The image is 96 × 128 pixels, and the crops 112: from none to all of them in it."""
    it, decoder = term(recogniser)
    batch = make([0.1] * 4)
    moved = torch.tensor([[0.0, 0.0], [0.0, -200.0], [90.0, 0.0], [-10.0, -10.0]])
    inputs = IdentityInputs(LANDMARKS + moved[:, None], batch.identity.reference)
    for unpacked in (True, False):
        there = replace(batch, identity=inputs)
        if not unpacked:
            assert batch.noisy is not None
            there = replace(there, pred=pack(batch.pred), target=pack(batch.target),
                            noisy=pack(batch.noisy))  # fmt: skip
        chosen = replace(it, unpack=None if unpacked else lambda x: unpack(x, 64, 48))
        with pytest.warns(UserWarning, match=r"2 of 4 faces .* \(96 × 128 pixels by factor=2\)"):
            assert chosen(there).weight.tolist() == [1, 0, 0, 1]
    assert [shape[0] for shape in decoder.shapes] == [2, 2]


class Sent(Tensor):
    """Remembers how it was sent to a device."""

    sent: ClassVar[list[dict[str, Any]]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Everything is computed as ever."""
        if func is Tensor.to:
            cls.sent.append(dict(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_sending_the_reference_waits_for_nothing(recogniser: Recogniser) -> None:
    batch = make([0.1, 0.1])
    reference = batch.identity.reference.as_subclass(Sent)
    inputs = replace(batch.identity, reference=reference)
    Sent.sent.clear()
    term(recogniser)[0](replace(batch, identity=inputs))
    assert Sent.sent[0] == {"non_blocking": True}


def wrong_type(batch: LossBatch) -> LossBatch:
    return replace(batch, identity={"landmarks": 1})


def too_many(batch: LossBatch) -> LossBatch:
    inputs = IdentityInputs(LANDMARKS.expand(5, -1, -1), batch.identity.reference)
    return replace(batch, identity=inputs)


def no_reference(batch: LossBatch) -> LossBatch:
    return replace(batch, identity=replace(batch.identity, reference=torch.zeros(1, 0)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(wrong_type, "give IdentityInputs"), (too_many, "5 faces for 1"), (no_reference, "embed")],
)
def test_wrong_inputs_say_what_to_give(
    recogniser: Recogniser, spoil: Callable[[LossBatch], LossBatch], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        term(recogniser)[0](spoil(make([0.1])))


def test_wrong_settings_are_refused(recogniser: Recogniser) -> None:
    for wrong in ({"every": 0}, {"margin": -1}, {"max_sigma": 2.0}, {"max_timestep": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            term(recogniser, **wrong)
    it = replace(term(recogniser)[0], factor=8)
    with pytest.raises(UsageError, match="Set factor"):
        it(make([0.1]))


def test_every_nth_step_needs_the_step(recogniser: Recogniser) -> None:
    batch = make([0.1])
    with pytest.raises(UsageError, match=r"every=3 needs the step.*LossBatch\(step="):
        term(recogniser, every=3)[0].weights(batch)
    assert term(recogniser, every=3)[0].weights(replace(batch, step=4)).tolist() == [0]
    it = term(recogniser, every=3)[0]
    assert repr(LossSum({"face": (0.1, it)})) == (
        "LossSum({'face': (0.1, IdentityTerm(recogniser=Recogniser, decode=Decoder, "
        "every=3, factor=2))})"
    )
