"""A Keras optimizer as the controller sees it, and its learning rate while a step is made."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

ops: Any = keras.ops  # its annotations name the tensors of every backend at once

_ADAPTIVE = {"Adam", "AdamW", "Adamax", "Nadam", "RMSprop"}
_SECOND_MOMENTS = {"_velocities": True, "_u": False}  # True where it is a square


class OptimizerFacts:
    """What is asked of an optimizer.

    Attributes:
        optimizer: The one that knows the learning rate, within a LossScaleOptimizer.
        rate: Its learning rate.
        initial_rate: Learning rate before any schedule.
    """

    def __init__(self, model: Any) -> None:
        """Ask the optimizer of a compiled model."""
        self._model = model
        self.optimizer: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        self.rate = CoupledLearningRate(self.optimizer)
        self.initial_rate = self.rate.largest()

    @property
    def is_adaptive(self) -> bool:
        """Whether it divides by a running root mean square: Adam and its kin, RMSprop."""
        return any(kind.__name__ in _ADAPTIVE for kind in type(self.optimizer).__mro__)

    def as_torch(self) -> Any:
        """Return what torch's optimizers tell, for what asks these."""
        return _LikeTorch(self)

    def settings(self) -> dict[str, Any]:
        """Return learning rate and decays, as in a torch optimizer's group."""
        optimizer = self.optimizer
        group: dict[str, Any] = {"lr": self.rate.current()}
        if self.rate.follows_steps or self.initial_rate != group["lr"]:
            group["initial_lr"] = self.initial_rate  # as torch's schedulers leave it
        if hasattr(optimizer, "beta_1"):
            group["betas"] = (float(optimizer.beta_1), float(getattr(optimizer, "beta_2", 0.0)))
        elif hasattr(optimizer, "momentum"):
            group["momentum"] = float(optimizer.momentum or 0.0)
        return group

    def rate_variable(self) -> Any:
        """Return the variable that holds the learning rate, or None where a schedule gives it."""
        rate = self.rate.user_rate
        return rate if isinstance(rate, keras.Variable) else None

    def metric(self) -> list[Any] | None:
        """Return the square root of each weight's own weight in the norms of gradients.

        1 for SGD and its kin; for adaptive optimizers 1 / (sqrt(v) + eps) with the second moment
        before the step, 0 where no gradient was ever seen, None for a weight without one. None
        instead of a list: there is no second moment at all yet.
        """
        weights, scale = self._model.trainable_weights, self._unscaling()
        if not self.is_adaptive:
            return [scale] * len(weights)
        optimizer = self.optimizer
        name = next((n for n in _SECOND_MOMENTS if hasattr(optimizer, n)), None)
        if name is None or not optimizer.built:
            return None
        moments: list[Any] = getattr(optimizer, name)
        correction: Any = 1.0
        if name == "_velocities" and hasattr(optimizer, "beta_2"):
            steps = ops.cast(optimizer.iterations, "float32")
            correction = 1.0 - ops.power(float(optimizer.beta_2), steps)
        indices = [optimizer._get_variable_index(weight) for weight in weights]
        is_square = _SECOND_MOMENTS[name]
        scales = [self._scale(moments[i], is_square, correction) for i in indices]
        return [None if each is None else each * scale for each in scales]

    def _unscaling(self) -> Any:
        """Return what gradients have to be multiplied by where their loss was scaled."""
        outer = self._model.optimizer
        if outer is self.optimizer and not outer.loss_scale_factor:
            return 1.0
        return 1.0 / ops.cast(outer.scale_loss(ops.ones(())), "float32")

    def _scale(self, moment: Any, is_square: bool, correction: Any) -> Any:
        if moment is None:
            return None
        moment = ops.cast(ops.convert_to_tensor(moment), "float32")
        root = ops.sqrt(moment / correction) if is_square else moment
        weight = 1.0 / (root + float(self.optimizer.epsilon))
        return ops.sqrt(ops.where(moment > 0, weight, ops.zeros_like(weight)))


class _LikeTorch:
    """The part of torch's `Optimizer` that is read, never written."""

    def __init__(self, facts: OptimizerFacts) -> None:
        self._facts = facts
        self.state: dict[Any, Any] = {}
        group = facts.settings()
        self.defaults = {"betas": group.get("betas", (0.0, 0.0)), "eps": 0.0}
        if not facts.is_adaptive:
            self.defaults = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One group with the settings of now."""
        return [self._facts.settings()]


class CoupledLearningRate:
    """Takes the place of an optimizer's learning rate for the time of a step.

    Before and behind it the optimizer holds what it held before, the same object: schedules,
    callbacks, checkpoints and saved models see nothing. A `LearningRateSchedule` is asked at the
    steps that the plain run would have made with as many samples, not at those that were made.
    """

    def __init__(self, optimizer: Any) -> None:
        """Couple an optimizer."""
        self._optimizer = optimizer
        self._factor = keras.Variable(1.0, dtype="float32", trainable=False, name="rlbatch_factor")
        self._step = keras.Variable(
            0, dtype=optimizer._iterations.dtype, trainable=False, name="rlbatch_step"
        )
        self._now = (1.0, 0)  # what the two hold, known without asking the device
        self.user_rate: Any = optimizer._learning_rate
        self._epoch_rate: float | None = None
        self._warned = False

    @property
    def follows_steps(self) -> bool:
        """Whether it is a schedule."""
        return isinstance(self.user_rate, keras.optimizers.schedules.LearningRateSchedule)

    @contextmanager
    def applied(self, factor: float, plain_step: int) -> Generator[None]:
        """Couple within the `with` block.

        Args:
            factor: What the learning rate is multiplied by.
            plain_step: Steps that the plain run would have made so far.
        """
        self.user_rate = self._optimizer._learning_rate
        self._set(factor, plain_step if self.follows_steps else 0)
        # Past the optimizer's own bookkeeping: it would take this for one of its variables.
        object.__setattr__(self._optimizer, "_learning_rate", self._rate)
        try:
            yield
        finally:
            object.__setattr__(self._optimizer, "_learning_rate", self.user_rate)

    def current(self) -> float:
        """Return the learning rate as the user has it, without the factor; asks the device."""
        rate = self._plain_rate()
        value = float(on_host(rate))
        if self._epoch_rate is not None and not self.follows_steps and not self._warned:
            self._warned = value != self._epoch_rate
            if self._warned:
                warnings.warn(
                    "The learning rate was changed between two batches of an epoch. A schedule "
                    "that counts batches stretches when the batch size grows: give the optimizer a "
                    "LearningRateSchedule, which then goes by samples, or count "
                    "control.plain_steps.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return value

    def largest(self) -> float:
        """Return the learning rate before any schedule: its peak where there is a warm-up."""
        if not self.follows_steps:
            return self.current() or 1.0
        steps = [0, *(2**power for power in range(21))]
        rates = (self.user_rate(ops.cast(step, self._step.dtype)) for step in steps)
        return max(float(on_host(rate)) for rate in rates) or 1.0

    def begin_epoch(self) -> None:
        """Note what the callbacks have made of the learning rate for this epoch."""
        self._epoch_rate = None
        self.user_rate = self._optimizer._learning_rate
        self._epoch_rate = self.current()

    def _set(self, factor: float, plain_step: int) -> None:
        before, self._now = self._now, (factor, plain_step)
        if factor != before[0]:
            self._factor.assign(factor)
        if plain_step != before[1]:
            self._step.assign(plain_step)

    def _plain_rate(self) -> Any:
        if self.follows_steps:
            return self.user_rate(ops.convert_to_tensor(self._step))
        return self.user_rate if isinstance(self.user_rate, keras.Variable) else self.user_rate()

    def _rate(self) -> Any:
        """Stand in for the learning rate; called while a step is traced or made."""
        plain = ops.convert_to_tensor(self._plain_rate())
        return plain * ops.cast(ops.convert_to_tensor(self._factor), plain.dtype)


def on_host(value: Any) -> Any:
    """Return a tensor, a variable or a number as NumPy has it; waits for the device."""
    value = value.value if isinstance(value, keras.Variable) else value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    # Not by np.asarray, which warns of what these types lack.
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)
