"""What a Keras training shows the control loop of its learning rate and its optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

ops: Any = keras.ops  # its annotations name the tensors of every backend at once

_ADAPTIVE = {"Adam", "AdamW", "Adamax", "Nadam", "RMSprop"}
_SECOND_MOMENTS = {"_velocities": True, "_u": False}  # True where it is a square


class KerasRate:
    """Takes the place of an optimizer's learning rate for the time of a step.

    Before and after it the optimizer holds what it held before, the same object: schedules,
    callbacks, checkpoints and saved models see nothing. A `LearningRateSchedule` is asked at the
    steps that the plain run would have made with as many samples, not at those that were made.

    Attributes:
        optimizer: The one that knows the learning rate, within a LossScaleOptimizer.
        factor: What it is multiplied by within a step.
        initial: Learning rate before any schedule.
        user_rate: What the optimizer holds between steps.
    """

    def __init__(self, model: Any) -> None:
        """Take the optimizer of a compiled model."""
        self._model = model
        self.optimizer: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        kind = self.optimizer._iterations.dtype
        self._factor = keras.Variable(1.0, dtype="float32", trainable=False, name="rlbatch_factor")
        self._step = keras.Variable(0, dtype=kind, trainable=False, name="rlbatch_step")
        # Steps that were to be made: a scaled loss leaves out those whose gradients overflow.
        self._tried = keras.Variable(0, dtype=kind, trainable=False, name="rlbatch_tried")
        self._scales_loss = self.optimizer is not model.optimizer
        self._now = (1.0, 0, 0)  # what the three hold, known without asking the device
        self._epoch_rate: float | None = None
        self._epoch_decay: Any = None
        self._warned = False
        self._has_moments = self.iterations > 0
        self._first = self.iterations  # and of these, before the first step
        self._steps = 0  # since then, those left out too
        self.factor = 1.0
        self.user_rate: Any = self.optimizer._learning_rate
        self.initial = self._largest()

    @property
    def adaptive(self) -> bool:
        """Whether it divides by a running root mean square: Adam and its kin, RMSprop."""
        return any(kind.__name__ in _ADAPTIVE for kind in type(self.optimizer).__mro__)

    @property
    def momentum(self) -> float:
        """Decay of the first moment; 0 where there is none."""
        decay = getattr(self.optimizer, "beta_1", getattr(self.optimizer, "momentum", 0.0))
        return float(decay or 0.0)

    @property
    def is_scheduled(self) -> bool:
        """Whether a schedule or a callback sets it."""
        return self._follows_steps or self.initial != self.current()

    def scheduled_steps(self, epoch_steps: int) -> int | None:
        """Return None: what a schedule of Keras is made for is not the same in each of them."""
        return None

    @property
    def variable(self) -> Any:
        """The variable that holds it, or None where a schedule gives it."""
        return self.user_rate if isinstance(self.user_rate, keras.Variable) else None

    @property
    def iterations(self) -> int:
        """Steps that the optimizer has made; waits for the device."""
        return int(on_host(self.optimizer._iterations))

    @property
    def skipped(self) -> int:
        """Steps that the optimizer left out because gradients overflowed; waits for the device."""
        return self._first + self._steps - self.iterations if self._scales_loss else 0

    def continue_from(self, fit: Mapping[str, Any]) -> None:
        """Go on with a run of that learning rate, which has left out so many steps."""
        self.initial, self._first = fit["learning_rate"], self._first + fit["skipped"]

    def put_back(self, iterations: int) -> None:
        """The optimizer's count, which was this, was put back: no step was left out by that."""
        self._first += self.iterations - iterations

    def current(self) -> float:
        """Return it as the user has it, without the factor; waits for the device."""
        value = float(on_host(self._plain_rate()))
        if self._epoch_rate is None or self._warned:
            return value
        moved = not self._follows_steps and value != self._epoch_rate
        if moved or self._decay() != self._epoch_decay:
            self._warned = True
            warnings.warn(
                f"The {'learning rate' if moved else 'weight decay'} was changed between two "
                "batches of an epoch. A schedule that counts batches stretches when the batch size "
                "grows: give the optimizer a LearningRateSchedule, which then goes by samples, or "
                "count control.plain_steps.",
                RuntimeWarning,
                stacklevel=2,
            )
        return value

    def begin_epoch(self) -> None:
        """Note what the callbacks have made of it for this epoch."""
        self._epoch_rate = None
        self.user_rate = self.optimizer._learning_rate
        self._epoch_rate, self._epoch_decay = self.current(), self._decay()

    def _decay(self) -> Any:
        value: Any = getattr(self.optimizer, "weight_decay", None)
        return value if isinstance(value, int | float) else None  # a variable is left on its device

    @contextmanager
    def applied(self, plain_step: int) -> Generator[None]:
        """Multiply within the `with` block.

        Args:
            plain_step: Steps that the plain run would have made so far.
        """
        self.user_rate = self.optimizer._learning_rate
        tried = self._first + self._steps if self._scales_loss else 0
        self._set(self.factor, *((plain_step, tried) if self._follows_steps else (0, 0)))
        self._steps += 1
        # Past the optimizer's own bookkeeping: it would take this for one of its variables.
        object.__setattr__(self.optimizer, "_learning_rate", self._rate)
        try:
            yield
            self._has_moments = True
        finally:
            object.__setattr__(self.optimizer, "_learning_rate", self.user_rate)

    def scales(self) -> list[Any] | None:
        """Return the square root of each weight's own weight in the norms of gradients.

        1 for SGD and its kin; for adaptive optimizers 1 / (sqrt(v) + eps) with the second moment
        before the step, 0 where no gradient was ever seen, None for a weight without one. None
        instead of a list: there is no second moment at all yet.
        """
        weights, scale = self._model.trainable_weights, self.unscaling()
        if not self.adaptive:
            return [scale] * len(weights)
        optimizer = self.optimizer
        name = next((n for n in _SECOND_MOMENTS if hasattr(optimizer, n)), None)
        if name is None or not self._has_moments:
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

    @property
    def has_metric(self) -> bool:
        """Whether `scales` may have something: an adaptive optimizer has made a step."""
        return self._has_moments or not self.adaptive

    @property
    def _follows_steps(self) -> bool:
        return isinstance(self.user_rate, keras.optimizers.schedules.LearningRateSchedule)

    def _largest(self) -> float:
        """Return the learning rate before any schedule: its peak where there is a warm-up."""
        if not self._follows_steps:
            return self.current() or 1.0
        steps = [0, *(2**power for power in range(21))]
        rates = (self.user_rate(ops.cast(step, self._step.dtype)) for step in steps)
        return max(float(on_host(rate)) for rate in rates) or 1.0

    def _set(self, factor: float, plain_step: int, tried: int) -> None:
        before, self._now = self._now, (factor, plain_step, tried)
        if factor != before[0]:
            self._factor.assign(factor)
        if plain_step != before[1]:
            self._step.assign(plain_step)
        if tried != before[2]:
            self._tried.assign(tried)

    def _plain_rate(self) -> Any:
        if self._follows_steps:
            return self.user_rate(self._scheduled_step())
        return self.user_rate if isinstance(self.user_rate, keras.Variable) else self.user_rate()

    def _scheduled_step(self) -> Any:
        """Return where its schedule is: a step that the optimizer leaves out does not count."""
        step = ops.convert_to_tensor(self._step)
        if not self._scales_loss:
            return step
        left_out = self._tried - self.optimizer._iterations
        return step - ops.maximum(left_out, ops.zeros_like(left_out))  # it is read after steps, too

    def _rate(self) -> Any:
        """Stand in for the learning rate; called while a step is traced or made."""
        plain = ops.convert_to_tensor(self._plain_rate())
        return plain * ops.cast(ops.convert_to_tensor(self._factor), plain.dtype)

    def unscaling(self) -> Any:
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


def dense(gradient: Any) -> Any:
    """Return a gradient, of which TensorFlow may have some rows only, as a tensor."""
    if gradient is None or keras.backend.backend() != "tensorflow":
        return gradient
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)


def on_host(value: Any) -> Any:
    """Return a tensor, a variable or a number as NumPy has it; waits for the device."""
    value = value.value if isinstance(value, keras.Variable) else value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    # Not by np.asarray, which warns of what these types lack.
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)
