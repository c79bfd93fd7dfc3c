"""The sum of weighted terms, exact under gradient accumulation and data parallelism.

A term's value is sum(loss · weight) / sum(weight) over *all* samples of an optimizer step. Where
the step is split into micro-batches or over processes, each part has to divide by the whole
step's sum(weight): the mean of the parts' means is something else as soon as the parts have
different numbers of class images, faces or masked samples. What counts is known before the model
runs, so count first:

    parts = [as_loss_batch(b) for b in micro_batches]        # pred=target for now
    counts = loss_sum.counts(parts)                          # sum_over_processes(...) under DDP
    for part in parts:
        part = replace(part, pred=model(part.noisy, part.timesteps))
        loss_sum(part, counts=counts).total.backward()

The gradients add up to those of one large batch. Who averages gradients afterwards divides once
too often; `scale` takes that back: the number of processes under DDP and FSDP, times the
accumulation steps with `accelerator.backward`, which divides by them.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lora_prep.errors import UsageError
from lora_prep.training.batch import Countable, LossBatch, PerSample, Term
from lora_prep.training.schedules import Constant, Schedule, as_schedule, fixed
from lora_prep.training.shapes import as_float, same_shape
from lora_prep.training.terms import PriorPreservation

MOST_AUXILIARY = 2
"""More terms beside the base loss than this get a warning."""


@dataclass(frozen=True)
class LossResult:
    """A loss, and what it is made of."""

    total: Tensor
    """Scalar, with gradient: what to call `backward()` on."""
    sums: Mapping[str, Tensor]
    """sum(loss · weight) of each term in this batch; scalars without gradient."""
    counts: Mapping[str, Tensor]
    """sum(weight) of each term in this batch; scalars without gradient."""
    weights: Mapping[str, float]
    """The weight that each term had in the total."""

    @property
    def values(self) -> dict[str, Tensor]:
        """Each term's own value, not weighted: scalars without gradient, 0 where none counted."""
        return {name: _ratio(self.sums[name], self.counts[name]) for name in self.sums}

    def log(self) -> dict[str, float]:
        """`values` as numbers, and the `total`. Waits for the device: not for every step."""
        names = [*self.values, "total"]
        numbers = torch.stack(
            [*(v.float() for v in self.values.values()), self.total.detach().float()]
        )
        return dict(zip(names, numbers.tolist(), strict=True))


class LossSum:
    """A weighted sum of terms: `LossSum({"masked": (1.0, Masked()), ...})(batch).total`.

    Each entry is a name of your choice, the weight (a number or a `Schedule`), and the term. A
    term whose weight is 0 at `batch.step` is left out: it is not computed and needs no inputs. At
    step 0 alone it needs them, unless its weight is 0 at every step: what is missing is then said
    at once, not after the warm-up. Weights that change need `batch.step`.

    Raises UsageError for an empty sum, a weight below 0, or two terms that both hold the base
    loss, which would count twice. Warns (UserWarning) of more than two terms beside the base.
    """

    def __init__(self, terms: Mapping[str, tuple[float | Schedule, Term]]) -> None:
        if not terms:
            raise UsageError("the sum has no terms: give at least one, such as Diffusion()")
        self.terms = {name: _entry(name, entry) for name, entry in terms.items()}
        bases = [n for n, (_, term) in self.terms.items() if getattr(term, "is_base", False)]
        if len(bases) > 1:
            raise UsageError(
                f"{' and '.join(bases)} each hold the diffusion loss, which would count twice: "
                "Masked, FaceWeighted and the sliders take the place of Diffusion, keep one"
            )
        auxiliary = [name for name in self.terms if name not in bases]
        if len(auxiliary) > MOST_AUXILIARY:
            warnings.warn(
                f"{len(auxiliary)} terms beside the base loss ({', '.join(auxiliary)}) can "
                "destabilise the training: start with one or two and add more once it converges",
                stacklevel=2,
            )
        self._prior_apart = any(isinstance(t, PriorPreservation) for _, t in self.terms.values())

    def __call__(
        self,
        batch: LossBatch,
        *,
        counts: Mapping[str, Tensor] | None = None,
        scale: float = 1.0,
    ) -> LossResult:
        """The loss of a batch, or a batch's share of a larger step's.

        `counts`: sum(weight) of each term over the whole step, from `counts` of all its parts;
        left out, the batch is the whole step. `scale` multiplies the total, and nothing else.

        Raises UsageError that names the term for which an input or the step is missing, ShapeError
        where `pred` and `target` differ in shape.
        """
        same_shape(batch.pred, batch.target, "target")
        active = self._active(batch)
        results = {
            name: _check(name, term(self._for(term, batch))) for name, (_, term) in active.items()
        }
        sums = {name: _sum(result) for name, result in results.items()}
        own = {name: result.weight.detach().sum() for name, result in results.items()}
        over = own if counts is None else counts
        missing = [name for name in active if name not in over]
        if missing:
            raise UsageError(
                f"counts has nothing for {', '.join(missing)}: make it with LossSum.counts of all "
                "parts of the step, at the same step"
            )
        weights = {name: weight for name, (weight, _) in active.items()}
        shares = [weight * _ratio(sums[name], over[name]) for name, weight in weights.items()]
        if not any(share.requires_grad for share in shares):
            # No term looked at pred, which then keeps the graph for backward().
            shares.append(as_float(batch.pred.flatten()[:0]).sum())
        total = sum(shares[1:], start=shares[0])
        detached = {name: value.detach() for name, value in sums.items()}
        return LossResult(total * scale, detached, own, weights)

    def __repr__(self) -> str:
        """Names, weights and terms, without what is at its default: for logs and notebooks."""
        entries = [
            f"{name!r}: ({_brief(schedule)}, {_brief(term)})"
            for name, (schedule, term) in self.terms.items()
        ]
        return f"LossSum({{{', '.join(entries)}}})"

    def counts(self, batches: Iterable[LossBatch]) -> dict[str, Tensor]:
        """sum(weight) of each term over the parts of one optimizer step; scalars.

        Looks at masks, flags and times, never at what `pred` and `target` hold: before the
        forward give any tensor of the right shape for `pred`, such as the target.

        Raises UsageError for a missing input, or a term that cannot count beforehand.
        """
        totals: dict[str, Tensor] = {}
        for batch in batches:
            for name, (_, term) in self._active(batch, before=True).items():
                if not isinstance(term, Countable):
                    raise UsageError(
                        f"the term {name} cannot count its samples before the forward: give it a "
                        "method weights(batch), or leave counts out"
                    )
                count = term.weights(self._for(term, batch)).detach().sum()
                totals[name] = totals[name] + count if name in totals else count
        return totals

    def weights_at(self, step: int | None) -> dict[str, float]:
        """Each term's weight at a step. Raises UsageError where it changes and `step` is None."""
        found = {}
        for name, (schedule, term) in self.terms.items():
            always = fixed(schedule)
            if always is None and step is None:
                raise UsageError(
                    f"the weight of the term {name} ({type(term).__name__}) changes with the step, "
                    "which is not given: give LossBatch(step=...), the optimizer step from 0"
                )
            found[name] = always if step is None or always is not None else schedule.at(step)
        return {name: weight or 0.0 for name, weight in found.items()}

    def needs(self, step: int | None) -> dict[str, set[str]]:
        """The inputs that must be there at a step, each with the names of the terms that ask."""
        wanted: dict[str, set[str]] = {}
        for name in self._asking(step):
            for field in self.terms[name][1].requires:
                wanted.setdefault(field, set()).add(name)
        return wanted

    def _asking(self, step: int | None) -> list[str]:
        """Terms that have a weight now; at step 0 also those that may get one."""
        now = self.weights_at(step)
        return [
            name
            for name, (schedule, _) in self.terms.items()
            if now[name] > 0 or (step == 0 and fixed(schedule) is None)
        ]

    def _active(self, batch: LossBatch, *, before: bool = False) -> dict[str, tuple[float, Term]]:
        """Weight and term of those that have a weight now, all inputs checked."""
        for name in self._asking(batch.step):
            term = self.terms[name][1]
            wanted_now = [f for f in term.requires if not (before and f in _FROM_FORWARD)]
            absent = [field for field in wanted_now if getattr(batch, field, None) is None]
            if absent:
                wanted = " and ".join(_field(batch, field) for field in absent)
                raise UsageError(
                    f"the term {name} ({type(term).__name__}) needs {wanted}, which is not given: "
                    "give it, or take the term out"
                )
        now = self.weights_at(batch.step)
        return {name: (now[name], term) for name, (_, term) in self.terms.items() if now[name] > 0}

    def _for(self, term: Term, batch: LossBatch) -> LossBatch:
        """The batch; base terms see class images as any other while no term takes them apart."""
        if self._prior_apart or batch.is_prior is None or not getattr(term, "is_base", False):
            return batch
        return replace(batch, is_prior=None)


_FROM_FORWARD = ("base_pred", "preserved_pred", "preserved_base", "slider", "pair")
"""What is not there yet when a step is counted."""


def _entry(name: str, entry: Any) -> tuple[Schedule, Term]:
    """The weight and the term of an entry; raises UsageError for anything else."""
    pair = isinstance(entry, tuple | list) and len(entry) == 2
    if not pair or isinstance(entry[1], type) or not isinstance(entry[1], Term):
        raise UsageError(
            f"the entry {name} is {entry!r}: give a weight and a term, such as (1.0, Masked())"
        )
    return as_schedule(entry[0]), entry[1]


def _brief(value: Any) -> str:
    """A term or a schedule in a few words; networks by their class."""
    if isinstance(value, Constant):
        return repr(value.weight)
    if value is None or isinstance(value, bool | int | float | str | tuple):
        return repr(value)
    if not is_dataclass(value):
        return getattr(value, "__name__", type(value).__name__)
    shown = []
    for field in fields(value):
        given = getattr(value, field.name)
        if field.repr and (field.default is MISSING or given != field.default):
            shown.append(f"{field.name}={_brief(given)}")
    return f"{type(value).__name__}({', '.join(shown)})"


def _field(batch: LossBatch, name: str) -> str:
    """An input by the name under which it is given."""
    if name != "t" or batch.objective is None:
        return "batch.timesteps or batch.sigmas" if name == "t" else f"batch.{name}"
    if batch.objective.is_flow:
        return "batch.sigmas (from 0 to 1, for flow_matching)"
    return f"batch.timesteps (for {batch.objective.prediction})"


def combine(results: Sequence[LossResult]) -> dict[str, Tensor]:
    """Each term's value over several parts of a step: Σsums / Σcounts; scalars for logging."""
    names = dict.fromkeys(name for result in results for name in result.sums)
    sums = {n: _total([r.sums[n] for r in results if n in r.sums]) for n in names}
    counts = {n: _total([r.counts[n] for r in results if n in r.counts]) for n in names}
    return {name: _ratio(sums[name], counts[name]) for name in names}


def sum_over_processes(counts: Mapping[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """The counts of all processes added up (one all-reduce); as given where there is only one.

    Every process has to call it, with the same terms.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or not counts:
        return dict(counts)
    together = torch.stack([count.float() for count in counts.values()])
    torch.distributed.all_reduce(together, group=group)
    return dict(zip(counts, together.unbind(), strict=True))


def _check(name: str, result: PerSample) -> PerSample:
    if result.loss.shape != result.weight.shape or result.loss.ndim != 1:
        raise UsageError(
            f"the term {name} gave a loss of {tuple(result.loss.shape)} and weights of "
            f"{tuple(result.weight.shape)}: both have one value a sample"
        )
    return result


def _sum(result: PerSample) -> Tensor:
    """sum(loss · weight); a loss that does not count may be anything, even NaN."""
    weight = result.weight.detach()
    return (torch.where(weight != 0, as_float(result.loss), 0) * weight).sum()


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    return torch.where(count != 0, total, 0) / torch.where(count != 0, count, 1)


def _total(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()
