"""lora-prep's losses in musubi-tuner: a network trainer whose `compute_loss` is a `LossSum`.

A script beside musubi's own, started with `accelerate launch` and the same options:

    from musubi_tuner import flux_2_train_network as script
    from musubi_tuner.hv_train_network import read_config_from_file, setup_parser_common
    from lora_prep.training.extensions.musubi import with_losses

    parser = script.flux2_setup_parser(setup_parser_common())
    args = read_config_from_file(parser.parse_args(), parser)
    ...                                    # as at the end of musubi's script
    with_losses(script.Flux2NetworkTrainer, "losses.toml")().train(args)

Written against `NetworkTrainer.call_dit` and `compute_loss` of 2026-06 (flow matching alone).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.batch import LossBatch
from lora_prep.training.extensions.wiring import Losses, as_sum, refuse_missing
from lora_prep.training.objectives import Objective
from lora_prep.training.resize import resize_mask
from lora_prep.training.total import LossSum

NAME = "musubi-tuner"
KEY = "lora_prep"
"""Where `call_dit` leaves, in its output's `extra`, what `compute_loss` needs."""

HOW = {
    "mask": "musubi-tuner caches no masks: override lora_prep_mask(batch) to give them",
    "face_mask": "musubi-tuner caches no masks: override lora_prep_mask(batch) to give them",
    "sigmas": "its call_dit was not run",
}
"""How the inputs of terms are had."""

WEIGHTED = ("sigma_sqrt", "cosmap")
"""Values of --weighting_scheme that weigh the loss; others only draw timesteps."""


class ComputeLoss:
    """Put before a network trainer of musubi's among the bases of a class: `with_losses` does."""

    lora_prep_losses: LossSum
    lora_prep_network: Any = None

    def on_train_start(
        self, args: Any, accelerator: Any, network: Any, transformer: Any, optimizer: Any
    ) -> None:
        """Keep the LoRA network, to switch it off for the base model's predictions."""
        self.lora_prep_network = accelerator.unwrap_model(network)
        inherited = getattr(super(), "on_train_start", None)
        if inherited is not None:
            inherited(args, accelerator, network, transformer, optimizer)

    def call_dit(
        self,
        args: Any,
        accelerator: Any,
        transformer: Any,
        latents: Tensor,
        batch: dict[str, Any],
        noise: Tensor,
        noisy_model_input: Tensor,
        timesteps: Tensor,
        network_dtype: torch.dtype,
        **kwargs: Any,
    ) -> Any:
        """musubi's forward, and one with the adapter off before it where a term needs that.

        The adapter is on again before the forward with gradient, so that gradient checkpointing
        runs it again as it was.
        """
        given = (args, accelerator, transformer, latents, batch, noise, noisy_model_input)
        forward = super().call_dit  # type: ignore[misc]
        base = None
        # A weight that is 0 at first still counts: which step it is, only compute_loss knows.
        if any("base_pred" in term.requires for _, term in self.lora_prep_losses.terms.values()):
            with self._adapter_off(), torch.no_grad():
                base = forward(*given, timesteps, network_dtype, **kwargs).pred
        output = forward(*given, timesteps, network_dtype, **kwargs)
        output.extra[KEY] = (latents, noise, noisy_model_input, base, self.lora_prep_mask(batch))
        return output

    def lora_prep_mask(self, batch: dict[str, Any]) -> Tensor | None:
        """The masks of a batch, 1 = train, (B,1,H,W) of any size; None where there are none.

        musubi's own batches have none; yours may have, under the key `mask`.
        """
        return batch.get("mask")

    def compute_loss(
        self,
        args: Any,
        output: Any,
        timesteps: Tensor,
        noise_scheduler: Any,
        dit_dtype: torch.dtype,
        network_dtype: torch.dtype,
        global_step: int,
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, a scalar with gradient, and each term's value for the log.

        `output`: what `call_dit` gave, with `pred` and `target` (noise − latents) alike in shape.
        Raises UsageError for inputs that a term needs and are not there, and for a
        --weighting_scheme that would do nothing.
        """
        scheme = getattr(args, "weighting_scheme", "none")
        if scheme in WEIGHTED:
            raise UsageError(
                f"--weighting_scheme {scheme} weighs musubi's own loss and does nothing with "
                "lora-prep's: leave it out"
            )
        if KEY not in output.extra:
            raise UsageError(
                "the forward's output has nothing of lora-prep's: call_dit was overridden without "
                "super().call_dit(...)"
            )
        latents, noise, noisy, base, mask = output.extra[KEY]
        size = (output.pred.shape[-2], output.pred.shape[-1])
        inputs = LossBatch(
            pred=output.pred,
            target=output.target,
            objective=Objective("flow_matching"),
            sigmas=sigma_of(latents, noise, noisy),
            noisy=noisy,
            mask=None if mask is None else resize_mask(mask.to(output.pred.device), size),
            base_pred=base,
            step=global_step,
        )
        inputs = replace(inputs, face_mask=inputs.mask)  # one mask: the face's, or all's
        refuse_missing(self.lora_prep_losses, inputs, HOW, NAME)
        result = self.lora_prep_losses(inputs)
        log = result.log()
        return result.total, {f"loss/{name}": v for name, v in log.items() if name != "total"}

    @contextmanager
    def _adapter_off(self) -> Iterator[None]:
        network = self.lora_prep_network
        if not hasattr(network, "set_multiplier"):
            terms = sorted(self.lora_prep_losses.needs(0).get("base_pred", {"of the base model"}))
            raise UsageError(
                f"the loss {' and '.join(terms)} needs the model without its LoRA, and "
                f"{type(network).__name__} has no set_multiplier: take the term out"
            )
        network.set_multiplier(0.0)
        try:
            yield
        finally:
            network.set_multiplier(1.0)


def with_losses(base: Any, losses: Losses) -> type:
    """A network trainer of musubi's, such as Flux2NetworkTrainer, with lora-prep's losses.

    Raises UsageError where the class is too old to have `compute_loss`, and for losses that are
    not understood.
    """
    for method in ("call_dit", "compute_loss"):
        if not hasattr(base, method):
            raise UsageError(
                f"{base.__name__} has no {method}: take a network trainer of musubi-tuner from "
                "2026-06 or later"
            )
    members = {"lora_prep_losses": as_sum(losses, NAME)}
    return type(f"LoraPrep{base.__name__}", (ComputeLoss, base), members)


def sigma_of(latents: Tensor, noise: Tensor, noisy: Tensor) -> Tensor:
    """σ of noisy = (1−σ)·latents + σ·noise for each sample, (B,), by least squares.

    musubi's timesteps are σ·1000 in some ways of sampling and σ·1000 + 1 in others.
    """
    way = (noise - latents).float().flatten(1)
    gone = (noisy - latents).float().flatten(1)
    return ((gone * way).sum(1) / way.square().sum(1)).clamp(0, 1)
