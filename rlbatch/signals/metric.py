"""In which metric gradients are measured: plain for SGD, preconditioned for Adam-type optimizers.

Adam moves along g / (sqrt(v) + eps), so what decides whether a batch is large enough is noise
against signal in the metric sum of g_i^2 / (sqrt(v_i) + eps). v is the second moment before the
step, which the measured gradient has not
entered: the estimators stay unbiased.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlbatch.signals import foreach

MIN_STATE_STEPS = 2
"""Steps that must have entered v. After one, v is a single squared gradient, whose inverse root has
no mean."""

# Key of the second moment in an optimizer's state; True where it is a square, whose root is taken.
_SECOND_MOMENTS = {"max_exp_avg_sq": True, "exp_avg_sq": True, "exp_inf": False, "square_avg": True}


def is_adaptive(optimizer: Optimizer) -> bool:
    """True for optimizers that divide by a running root mean square: Adam and its kin, RMSprop."""
    defaults = getattr(optimizer, "defaults", None) or optimizer.param_groups[0]  # of a wrapper
    second_decay = len(defaults["betas"]) == 2 if "betas" in defaults else "alpha" in defaults
    return second_decay and "eps" in defaults


def momentum_of(optimizer: Optimizer) -> float:
    """Return the decay of the first moment: SGD's momentum, Adam's beta1, 0 where there is none."""
    group = optimizer.param_groups[0]
    if "betas" in group:
        return float(group["betas"][0])
    return float(group.get("momentum", 0.0))


@dataclass(frozen=True)
class GradientMetric:
    """The parameters whose gradients are measured, and the weights of their elements.

    Attributes:
        parameters: Each once, in a fixed order.
        scales: The square root of each element's weight, shaped as the parameters; None for the
            plain metric.
    """

    parameters: tuple[nn.Parameter, ...]
    scales: tuple[Tensor, ...] | None

    def vector(self, factor: Tensor | None = None) -> list[Tensor]:
        """Return a copy of the present gradients in this metric, in float32 or wider.

        A parameter without a gradient counts as zero: nothing has flowed to it yet. Of a sharded
        one, it is this process's shard.

        Args:
            factor: Multiplies all gradients, before their squares could overflow.
        """
        gradients = self.gradients(factor)
        is_copy = factor is not None or self.scales is not None
        return gradients if is_copy else foreach.scaled(gradients)

    def gradients(self, factor: Tensor | None = None) -> list[Tensor]:
        """As `vector`, but the gradients themselves where nothing is to be multiplied."""
        gradients = [_dense(parameter) for parameter in self.parameters]
        if factor is not None:
            gradients = foreach.scaled(gradients, factor)
        return gradients if self.scales is None else foreach.multiply(gradients, self.scales)


def make_metric(parameters: Iterable[nn.Parameter], optimizer: Optimizer) -> GradientMetric | None:
    """Return the metric in force before the coming step, or None when there is none yet.

    Args:
        parameters: What is measured; frozen ones and repetitions are dropped. For adaptive
            optimizers, so are those without a second moment, such as a branch that was never used.
        optimizer: Of the run. Nothing in it is changed.
    """
    unique = tuple({id(p): p for p in parameters if p.requires_grad}.values())
    if not is_adaptive(optimizer):
        return GradientMetric(unique, None) if unique else None
    wanted = {id(p) for p in unique}
    kept: list[nn.Parameter] = []
    scales: list[Tensor] = []
    for group in optimizer.param_groups:
        members = [p for p in group["params"] if id(p) in wanted and _has_moment(optimizer, p)]
        if members:
            kept += members
            scales += _scales([optimizer.state[p] for p in members], group)
    return GradientMetric(tuple(kept), tuple(scales)) if kept else None


def has_metric(parameters: Iterable[nn.Parameter], optimizer: Optimizer) -> bool:
    """Return whether `make_metric` would return one."""
    trained = (p for p in parameters if p.requires_grad)
    adaptive = is_adaptive(optimizer)
    return any(not adaptive or _has_moment(optimizer, p) for p in trained)


def _dense(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(
            foreach.local(parameter), dtype=torch.promote_types(parameter.dtype, torch.float32)
        )
    gradient = foreach.local(gradient).detach()
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    return _wide(gradient)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _moment_key(state: dict[str, Any]) -> str | None:
    return next((key for key in _SECOND_MOMENTS if key in state), None)


def _has_moment(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    state = optimizer.state.get(parameter)
    if not state or _moment_key(state) is None:
        return False
    step = state.get("step", MIN_STATE_STEPS)
    if isinstance(step, Tensor) and step.device.type != "cpu":
        return True  # reading it would wait for the device
    return float(step) >= MIN_STATE_STEPS


def _scales(states: list[dict[str, Any]], group: dict[str, Any]) -> list[Tensor]:
    """Square roots of 1 / (sqrt(vhat) + eps), and 0 where no gradient was ever seen.

    Without the 0, the first gradient of a rare embedding row would be weighted by 1 / eps and drown
    the rest.
    """
    key = _moment_key(states[0])
    assert key is not None  # noqa: S101 - `_has_moment` kept only states that have one
    moments = [_wide(foreach.local(state[key]).detach()) for state in states]
    root = foreach.square_root(moments) if _SECOND_MOMENTS[key] else moments
    seen = foreach.sign(root)
    if key.endswith("exp_avg_sq"):
        second_decay = group["betas"][1]
        corrections = [(1.0 - second_decay ** state["step"]) ** 0.5 for state in states]
        root = [part / correction for part, correction in zip(root, corrections, strict=True)]
    weights = foreach.divide(seen, foreach.add(root, group["eps"]))
    return foreach.square_root(weights)
