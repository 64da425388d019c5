"""What a Keras training shows the control loop: its learning rate, its losses, its gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from rlbatch.signals.monitor import ChunkMeasurement, chunk_measurement

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
        self._now = (1.0, 0)  # what the two hold, known without asking the device
        self._epoch_rate: float | None = None
        self._warned = False
        self._has_moments = self.iterations > 0
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

    def current(self) -> float:
        """Return it as the user has it, without the factor; waits for the device."""
        value = float(on_host(self._plain_rate()))
        known = self._epoch_rate is None or self._follows_steps or self._warned
        if not known and value != self._epoch_rate:
            self._warned = True
            warnings.warn(
                "The learning rate was changed between two batches of an epoch. A schedule "
                "that counts batches stretches when the batch size grows: give the optimizer a "
                "LearningRateSchedule, which then goes by samples, or count "
                "control.plain_steps.",
                RuntimeWarning,
                stacklevel=2,
            )
        return value

    def begin_epoch(self) -> None:
        """Note what the callbacks have made of it for this epoch."""
        self._epoch_rate = None
        self.user_rate = self.optimizer._learning_rate
        self._epoch_rate = self.current()

    @contextmanager
    def applied(self, plain_step: int) -> Generator[None]:
        """Multiply within the `with` block.

        Args:
            plain_step: Steps that the plain run would have made so far.
        """
        self.user_rate = self.optimizer._learning_rate
        self._set(self.factor, plain_step if self._follows_steps else 0)
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
        weights, scale = self._model.trainable_weights, self._unscaling()
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
    def _follows_steps(self) -> bool:
        return isinstance(self.user_rate, keras.optimizers.schedules.LearningRateSchedule)

    def _largest(self) -> float:
        """Return the learning rate before any schedule: its peak where there is a warm-up."""
        if not self._follows_steps:
            return self.current() or 1.0
        steps = [0, *(2**power for power in range(21))]
        rates = (self.user_rate(ops.cast(step, self._step.dtype)) for step in steps)
        return max(float(on_host(rate)) for rate in rates) or 1.0

    def _set(self, factor: float, plain_step: int) -> None:
        before, self._now = self._now, (factor, plain_step)
        if factor != before[0]:
            self._factor.assign(factor)
        if plain_step != before[1]:
            self._step.assign(plain_step)

    def _plain_rate(self) -> Any:
        if self._follows_steps:
            return self.user_rate(ops.convert_to_tensor(self._step))
        return self.user_rate if isinstance(self.user_rate, keras.Variable) else self.user_rate()

    def _rate(self) -> Any:
        """Stand in for the learning rate; called while a step is traced or made."""
        plain = ops.convert_to_tensor(self._plain_rate())
        return plain * ops.cast(ops.convert_to_tensor(self._factor), plain.dtype)

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


class KerasMonitor:
    """Collects losses and gradient norms of a chunk on the device, of any backend.

    Noise is measured where a step has several micro-batches: `take_gradient` gets each one's.
    """

    def __init__(self, rate: KerasRate, compiled: Callable[[Any], Any]) -> None:
        """Watch a model whose gradients are given.

        Args:
            rate: Of its optimizer.
            compiled: Compiles a function where the backend does.
        """
        self._rate, self._sqr = rate, compiled(_squared_norm)
        self._shares: list[float] = []
        self._samples = 0
        self.drop_step()
        self._clear()

    def begin_step(self, micro_batch_sizes: Sequence[int], *, measured: bool) -> None:
        """Announce an optimizer step."""
        self.drop_step()
        self._samples = sum(micro_batch_sizes)
        self._shares = [size / self._samples for size in micro_batch_sizes]
        self._measures = measured and len(self._shares) > 1

    def take_gradient(self, part: list[Any]) -> None:
        """Take a micro-batch's gradient times its share in the step; None counts as zero."""
        if not self._measures:
            return
        if self._noise is None:  # by now the model has its weights, and the optimizer no new ones
            scales = self._rate.scales()
            if scales is None:
                self._measures = False
                return
            self._noise = _StepNoise(self._shares, scales, self._sqr)
        self._noise.add(part)

    def after_backward(self, loss: Any) -> None:
        """Take the micro-batch's mean loss."""
        share = self._shares[self._done]
        part = loss if share == 1.0 else loss * share
        self._loss = part if self._loss is None else self._loss + part
        self._done += 1
        if self._done < len(self._shares):
            return
        if self._noise is not None:
            self._norms += self._noise.norms()
            self._owners.append(len(self._losses))
            self._sizes.append((self._samples / len(self._shares), float(self._samples)))
        self._losses.append(self._loss)
        self.drop_step()  # no gradient is taken of steps that are not announced

    def finish(self) -> ChunkMeasurement:
        """Read the chunk from the device and start the next one."""
        losses, norms = (np.array(_read(kept)) for kept in (self._losses, self._norms))
        owners, sizes = self._owners, self._sizes
        self._clear()
        return chunk_measurement(losses, norms, owners, sizes)

    def leave_unmeasured(self) -> None:
        """Measure no noise in the step under way, whose parts are weighted in another way."""
        self._measures, self._noise = False, None

    def drop_step(self, steps: int | None = None) -> None:
        """Forget the step under way, and those after the first `steps` of the chunk."""
        self._loss: Any = None
        self._noise: _StepNoise | None = None
        self._measures = False
        self._done = 0
        if steps is not None:
            measured = sum(owner < steps for owner in self._owners)
            del self._losses[steps:], self._norms[3 * measured :]
            del self._owners[measured:], self._sizes[measured:]

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """Return the first `steps` of the chunk so far as plain numbers: reads the device."""
        owners = [owner for owner in self._owners if steps is None or owner < steps]
        return {
            "losses": _read(self._losses[:steps]),
            "norms": _read(self._norms[: 3 * len(owners)]),
            "owners": owners,
            "sizes": [list(row) for row in self._sizes[: len(owners)]],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the chunk that `state_dict` returned."""
        self._losses, self._norms = list(state["losses"]), list(state["norms"])
        self._owners = list(state["owners"])
        self._sizes = [(row[0], row[1]) for row in state["sizes"]]

    def _clear(self) -> None:
        self.load_state_dict({"losses": (), "norms": (), "owners": (), "sizes": ()})


class _StepNoise:
    """The norms of a step's gradients, from which its noise is estimated."""

    def __init__(self, shares: list[float], scales: list[Any], squared_norm: Any) -> None:
        self._shares, self._scales, self._sqr = shares, scales, squared_norm
        # the first number of micro-batches that holds half of the samples, leaving at least one
        half = int(np.searchsorted(np.cumsum(shares), 0.5 - 1e-9)) + 1
        self._half = min(half, len(shares) - 1)
        self._parts = 0
        self._small: Any = 0.0
        self._first: list[Any] = []  # sum of the first half
        self._rest: list[Any] = []  # sum of the second one

    def add(self, part: list[Any]) -> None:
        """Take share x g_i: g_i weighs by its share, share x |g_i|^2 = |part|^2 / share."""
        self._small = self._small + self._norm(part) / self._shares[self._parts]
        target = self._first if self._parts < self._half else self._rest
        target[:] = add_up(target, part)
        self._parts += 1

    def norms(self) -> tuple[Any, Any, Any]:
        """Return the weighted squared norm of the parts, that of the whole, and the cosine."""
        first, rest = self._norm(self._first), self._norm(self._rest)
        big = self._norm(add_up(self._first, self._rest))
        product = 0.5 * (big - first - rest)
        cosine = product / ops.maximum(ops.sqrt(first) * ops.sqrt(rest), 1e-30)
        return self._small, big, cosine

    def _norm(self, vector: list[Any]) -> Any:
        both = zip(vector, self._scales, strict=True)
        pairs = [(v, s) for v, s in both if v is not None and s is not None]
        return self._sqr([v for v, _ in pairs], [s for _, s in pairs])


def add_up(left: list[Any], right: list[Any]) -> list[Any]:
    """Return the sum of two gradients; an empty one and None count as zero."""
    if not left:
        return list(right)
    both = zip(left, right, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in both]


def on_host(value: Any) -> Any:
    """Return a tensor, a variable or a number as NumPy has it; waits for the device."""
    value = value.value if isinstance(value, keras.Variable) else value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    # Not by np.asarray, which warns of what these types lack.
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)


def _squared_norm(vectors: list[Any], scales: list[Any]) -> Any:
    scaled = (ops.cast(v, "float32") * s for v, s in zip(vectors, scales, strict=True))
    return ops.sum(ops.stack([ops.sum(ops.square(v)) for v in scaled]))


def _read(values: list[Any]) -> list[float]:
    """Return scalars of the device in one transfer."""
    if not values:
        return []
    together = ops.stack([ops.cast(value, "float32") for value in values])
    return on_host(together).astype(np.float64).tolist()
