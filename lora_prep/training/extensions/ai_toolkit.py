"""lora-prep's losses in ai-toolkit: a trainer whose `calculate_loss` is a `LossSum`.

In ai-toolkit's folder, `extensions/lora_prep/__init__.py`:

    from lora_prep.training.extensions.ai_toolkit import extension
    AI_TOOLKIT_EXTENSIONS = [extension()]

and in the job's configuration, everything else as for `sd_trainer`:

    process:
      - type: lora_prep_trainer
        lora_prep:
          losses:
            masked: {normalize: sample}
            inverted_mask_prior: {weight: 0.5}

Written against the interface of ai-toolkit's `SDTrainer` of 2026-08.
"""

import importlib
from dataclasses import replace
from typing import Any

from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.batch import LossBatch
from lora_prep.training.extensions.wiring import as_sum, refuse_ignored, refuse_missing
from lora_prep.training.objectives import Objective
from lora_prep.training.resize import resize_mask
from lora_prep.training.total import LossResult, LossSum

NAME = "ai-toolkit"
UID = "lora_prep_trainer"

TIMESTEPS = 1000
"""Of a flow-matching model: σ is timestep / 1000."""

HOW = {
    "mask": "give mask_path (or alpha_mask: true) in every data set of the job",
    "face_mask": "give mask_path, masks of the faces, in every data set of the job",
    "base_pred": "set train.inverted_mask_prior: true, which makes ai-toolkit predict with the "
    "adapter off for data sets with masks",
}
"""How the inputs of terms are had."""

INERT = {
    "loss_type": "mse",
    "loss_target": "noise",
    "snr_gamma": None,
    "min_snr_gamma": None,
    "learnable_snr_gos": False,
    "train_turbo": False,
    "do_prior_divergence": False,
    "do_guidance_loss": False,
    "correct_pred_norm": False,
    "match_noise_norm": False,
    "target_norm_std": None,
    "pred_scaler": 1.0,
    "target_noise_multiplier": 1.0,
    "linear_timesteps": False,
    "linear_timesteps2": False,
}
"""Options in `train` that change ai-toolkit's own loss, with the values at which they do not."""


class CalculateLoss:
    """Put before ai-toolkit's trainer among the bases of a class: its loss becomes lora-prep's.

    `lora_prep_result` is what the last loss was made of.
    """

    sd: Any
    train_config: Any
    step_num: int
    lora_prep_losses: LossSum | None = None
    lora_prep_result: LossResult | None = None

    def calculate_loss(
        self,
        noise_pred: Tensor,
        noise: Tensor,
        noisy_latents: Tensor,
        timesteps: Tensor,
        batch: Any,
        mask_multiplier: Tensor | float = 1.0,
        prior_pred: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of a batch: a scalar with gradient.

        noise_pred, noise, noisy_latents: (B,C,h,w) or (B,C,T,h,w); timesteps: (B,), 0 to 1000.
        batch: its `latents`, `mask_tensor` (B,C,H,W) or None, `get_is_reg_list()` and
        `loss_multiplier_list` are read. prior_pred: the prediction with the adapter off.

        Raises UsageError for inputs that a term needs and are not there, and for options of
        ai-toolkit that would do nothing.
        """
        losses = self._lora_prep()
        if any(float(one) != 1 for one in getattr(batch, "loss_multiplier_list", ())):
            raise UsageError(
                "a data set has a loss_multiplier: take it out, and weigh lora-prep's terms instead"
            )
        objective = _objective(self.sd)
        inputs = LossBatch(
            pred=noise_pred,
            target=self._target(objective, noise, batch, timesteps, prior_pred),
            objective=objective,
            timesteps=None if objective.is_flow else timesteps.long(),
            sigmas=timesteps.float() / TIMESTEPS if objective.is_flow else None,
            noisy=noisy_latents,
            mask=_mask(batch, noise_pred),
            is_prior=noise_pred.new_tensor(batch.get_is_reg_list()).bool(),
            base_pred=prior_pred if self._wants_prior else None,
            step=getattr(self, "step_num", None),
        )
        inputs = replace(inputs, face_mask=inputs.mask)  # it has one mask: the face's, or all's
        refuse_missing(losses, inputs, HOW, NAME)
        self.lora_prep_result = losses(inputs)
        return self.lora_prep_result.total

    @property
    def _wants_prior(self) -> bool:
        return bool(getattr(self.train_config, "inverted_mask_prior", False))

    def _lora_prep(self) -> LossSum:
        """The sum of terms, made of the job's configuration at first."""
        if self.lora_prep_losses is None:
            table = self.get_conf("lora_prep")  # type: ignore[attr-defined]
            if not isinstance(table, dict) or set(table) != {"losses"}:
                raise UsageError(
                    f"the process {UID} wants a table lora_prep with losses in it, such as "
                    "lora_prep: {losses: {masked: {}}}, or losses: losses.toml"
                )
            self.lora_prep_losses = as_sum(table["losses"], NAME)
            refuse_ignored(self.train_config, INERT, "train")
            if getattr(self.train_config, "timestep_type", None) == "weighted":
                raise UsageError(
                    "train.timestep_type is 'weighted', which belongs to the trainer's own loss: "
                    "take another, such as sigmoid"
                )
            terms = self.lora_prep_losses.terms.values()
            if self._wants_prior and not any("base_pred" in term.requires for _, term in terms):
                raise UsageError(
                    "train.inverted_mask_prior is on, but no loss uses it: add "
                    "inverted_mask_prior: {weight: 0.5} to lora_prep.losses"
                )
        return self.lora_prep_losses

    def _target(
        self,
        objective: Objective,
        noise: Tensor,
        batch: Any,
        timesteps: Tensor,
        prior_pred: Tensor | None,
    ) -> Tensor:
        """What the model should have given, chosen as ai-toolkit does."""
        if prior_pred is not None and not self._wants_prior:
            return prior_pred.detach()
        if objective.prediction != "v_prediction" and hasattr(self.sd, "get_loss_target"):
            target: Tensor = self.sd.get_loss_target(noise=noise, batch=batch, timesteps=timesteps)
            return target.detach()
        latents: Tensor = batch.latents.to(noise.device)
        if objective.is_flow:
            return (noise - latents).detach()
        return objective.target(latents, noise, timesteps.long()).detach()


def trainer(base: Any = None) -> type:
    """ai-toolkit's trainer with lora-prep's loss; `base` is its class, SDTrainer if left out.

    Raises UsageError where ai-toolkit cannot be imported, or is another one.
    """
    if base is None:
        base = _imported("extensions_built_in.sd_trainer.SDTrainer", "SDTrainer")
    for method in ("calculate_loss", "get_conf"):
        if not hasattr(base, method):
            raise UsageError(
                f"{base.__name__} has no {method}: it is not ai-toolkit's trainer as of 2026-08"
            )
    return type("LoraPrepTrainer", (CalculateLoss, base), {})


def extension() -> type:
    """The class for ai-toolkit's list AI_TOOLKIT_EXTENSIONS."""

    def get_process(cls: type) -> type:  # noqa: ARG001 a class method
        return trainer()

    members = {"uid": UID, "name": "lora-prep's losses", "get_process": classmethod(get_process)}
    return type("LoraPrepExtension", (_imported("toolkit.extension", "Extension"),), members)


def _imported(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"ai-toolkit's {module}.{name} cannot be imported ({error}): run its run.py, in its "
            "folder"
        ) from error


def _objective(sd: Any) -> Objective:
    if sd.is_flow_matching:
        return Objective("flow_matching")
    alphas = getattr(sd.noise_scheduler, "alphas_cumprod", None)
    return Objective(sd.prediction_type, alphas)


def _mask(batch: Any, pred: Tensor) -> Tensor | None:
    mask = batch.mask_tensor
    if mask is None:
        return None
    small = resize_mask(mask[:, :1].to(pred.device), (pred.shape[-2], pred.shape[-1]))
    return small.clamp(0, 1)
