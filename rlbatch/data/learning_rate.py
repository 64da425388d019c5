"""How the learning rate follows the batch size, without any scheduler noticing."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from rlbatch.data.step_plan import require_positive
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.signals.metric import is_adaptive
from rlbatch.signals.record import Coupling


def coupling_factor(
    rule: str,
    batch_size: float,
    base_batch_size: float,
    gain: float | None = None,
    *,
    adaptive: bool = False,
) -> float:
    """Return what the learning rate is multiplied by at a batch size.

    With s = B / B0:

    - `none`: 1.
    - `sqrt`: sqrt(s) (Krizhevsky 2014, "One weird trick for parallelizing convolutional neural
      networks", section 5; for Adam-type optimizers Malladi et al. 2022, "On the SDEs and Scaling
      Rules for Adaptive Gradient Algorithms", definition 5.2).
    - `linear`: s (Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.1).
    - `adascale`: the gain r(s) = (var + sqr) / (var / s + sqr), with var the variance of the
      gradient at B0 and sqr the squared norm of its mean (Johnson et al. 2020, "AdaScale SGD",
      equation 4). It lies between 1 and s: s where noise rules, 1 where there is none. For
      Adam-type optimizers its square root. `rlbatch.signals.noise_scale.adascale_gain` gives it.

    Args:
        rule: One of the above.
        batch_size: Samples per optimizer step on all ranks together.
        base_batch_size: That for which the learning rate was chosen.
        gain: r(s) for `adascale`, limited to what the formula allows. None or NaN where it is not
            known yet: then 1.
        adaptive: Whether the optimizer is of Adam type; read by `adascale` only.

    Raises:
        UnknownNameError: There is no such rule.
        ConfigurationError: A batch size is not positive.
    """
    for name, value in (("batch_size", batch_size), ("base_batch_size", base_batch_size)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigurationError(
                f"Expected a positive {name}, got {value}. Pass a number of samples."
            )
    coupling = as_coupling(rule)
    scale = batch_size / base_batch_size
    if coupling is not Coupling.ADASCALE:
        return scale**coupling.exponent
    if gain is None or math.isnan(gain):
        return 1.0
    bounded = min(max(gain, min(1.0, scale)), max(1.0, scale))
    return math.sqrt(bounded) if adaptive else bounded


def as_coupling(rule: str) -> Coupling:
    """Return the rule of that name, or raise UnknownNameError."""
    try:
        return Coupling(rule)
    except ValueError:
        raise UnknownNameError("learning rate coupling", rule, list(Coupling)) from None


class LearningRateCoupling:
    """Multiplies the learning rate of every parameter group for the time of an optimizer step.

        coupling.set_batch_size(256)
        with coupling.applied():
            optimizer.step()
        scheduler.step()

    Afterwards each group holds the very value it had before, bit for bit: schedulers, checkpoints
    and logs see the plain learning rate. Tensor learning rates are changed in place, so that
    captured graphs see it, and are never read by the host. Decoupled weight decay (AdamW) is
    proportional to the learning rate and scales with it.

    Attributes:
        optimizer: Whose groups are scaled; groups may be added at any time.
        rule: `none`, `sqrt`, `linear` or `adascale`.
        base_batch_size: Batch size for which the learning rate was chosen.
        adaptive: Whether the optimizer is of Adam type.
        factor: What the learning rate is multiplied by during a step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rule: str,
        base_batch_size: int,
        *,
        adaptive: bool | None = None,
    ) -> None:
        """Couple an optimizer, at first at its base batch size.

        Args:
            optimizer: Any torch optimizer.
            rule: See `coupling_factor`.
            base_batch_size: Batch size for which the learning rate was chosen.
            adaptive: Whether it is of Adam type; None looks at its settings.

        Raises:
            UnknownNameError: No such rule.
            ConfigurationError: The base batch size is below 1.
        """
        require_positive("base_batch_size", base_batch_size)
        self.optimizer, self.rule = optimizer, as_coupling(rule)
        self.base_batch_size = base_batch_size
        self.adaptive = is_adaptive(optimizer) if adaptive is None else adaptive
        self.factor = self.set_batch_size(base_batch_size)
        self._restore: list[Callable[[], bool]] | None = None  # while a step is under way

    def set_batch_size(self, batch_size: int, gain: float | None = None) -> float:
        """Choose the factor for the coming steps and return it.

        Args:
            batch_size: Samples per optimizer step, over all ranks.
            gain: AdaScale's gain at this batch size, if known.
        """
        self.factor = coupling_factor(
            self.rule, batch_size, self.base_batch_size, gain, adaptive=self.adaptive
        )
        return self.factor

    def applied(self) -> AbstractContextManager[float]:
        """Scale within the `with` block, whose value is the factor.

        Only `optimizer.step()` goes into it.

        Raises:
            ConfigurationError: Something inside changed the learning rate, the blocks are nested,
                or a group has no learning rate.
        """
        return self

    def __enter__(self) -> float:
        if self.factor == 1.0 and self._restore is None:  # most steps: kept short
            self._restore = []
            return 1.0
        return self._scale()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._restore:
            self._restore = None
        elif not self._unscale() and kind is None:
            raise ConfigurationError(
                "Expected an untouched learning rate while the coupling scales it; it was changed, "
                "and that change is lost. Call scheduler.step() after the block, not inside it."
            )

    def attach(self) -> Callable[[], None]:
        """Scale in every optimizer.step() from now on, for loops that others wrote.

        Returns:
            A function that ends this.
        """

        def before(*_: Any) -> None:
            if self._restore is not None:  # the last step raised, so its post hook did not run
                self._unscale()
            self._scale()

        def after(*_: Any) -> None:
            self._unscale()

        handles = (
            self.optimizer.register_step_pre_hook(before),
            self.optimizer.register_step_post_hook(after),
        )

        def detach() -> None:
            for handle in handles:
                handle.remove()
            if self._restore is not None:
                self._unscale()

        return detach

    def _scale(self) -> float:
        if self._restore is not None:
            raise ConfigurationError(
                "The learning rate is already scaled: applied() cannot be nested, nor used along "
                "with attach(). Remove one of them."
            )
        restore: list[Callable[[], bool]] = []
        self._restore = restore
        if self.factor == 1.0:
            return 1.0
        tensors: set[int] = set()
        for group in self.optimizer.param_groups:
            value = group.get("lr")
            if isinstance(value, Tensor):
                if id(value) not in tensors:  # groups may share one tensor
                    tensors.add(id(value))
                    restore.append(_scale_tensor(value, self.factor))
            elif isinstance(value, (int, float)):
                restore.append(_scale_number(group, value, self.factor))
            else:
                self._unscale()
                raise ConfigurationError(
                    f"A parameter group of {type(self.optimizer).__name__} has learning rate "
                    f"{value!r}, which cannot be scaled. Give it a number or use rule 'none'."
                )
        return self.factor

    def _unscale(self) -> bool:
        """Put every value back; False if one was changed meanwhile."""
        restore, self._restore = self._restore, None
        return not restore or all([undo() for undo in restore])


def _scale_number(group: dict[str, Any], original: float, factor: float) -> Callable[[], bool]:
    scaled = original * factor
    group["lr"] = scaled

    def undo() -> bool:
        untouched = group["lr"] is scaled
        group["lr"] = original
        return untouched

    return undo


def _scale_tensor(rate: Tensor, factor: float) -> Callable[[], bool]:
    original = rate.detach().clone()
    rate.detach().mul_(factor)

    def undo() -> bool:
        rate.detach().copy_(original)
        return True  # comparing would wait for the device

    return undo
