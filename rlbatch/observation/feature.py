"""What a feature of the observation is, and what it is computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlbatch.observation import size_statistics, trend
from rlbatch.observation.cost import goodput_size, interpolated
from rlbatch.observation.state import TINY, EncoderState
from rlbatch.signals.elementwise import clip, isfinite, maximum, number, where
from rlbatch.signals.record import Array, RunContext, Signals

SIGNED, SHARE = (-1.0, 1.0), (0.0, 1.0)

_SHIFTS: Array = np.array([0.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0])  # of log2 size, where costs count


Value = TypeVar("Value")


class _Lazy(Generic[Value]):
    """`functools.cached_property` without its lock, which a decision would take fifteen times."""

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self._compute, self._name, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, owner: Any, kind: Any = None) -> Value:
        value = owner.__dict__[self._name] = self._compute(owner)
        return value


class Moment:
    """A chunk's signals, the averages before and after it, and what several features share.

    Attributes:
        signals: The chunk's measurements.
        context: The run's constants.
        before: Averages up to the previous chunk.
        after: Averages that include this one.
        size: log2 of the chunk's batch size.
    """

    def __init__(self, signals: Signals, before: EncoderState, after: EncoderState) -> None:
        """Take the parts; everything else is computed when it is asked for."""
        self.signals, self.before, self.after = signals, before, after
        self.context: RunContext = signals.context
        self.size = after.last_size

    @_Lazy
    def target(self) -> Array:
        """Loss to be reached; NaN without a target."""
        return number(self.context.target_loss)

    @_Lazy
    def planned(self) -> Array:
        """Samples for which the run is planned; NaN where nobody said."""
        return number(self.context.planned_samples)

    @_Lazy
    def val_loss(self) -> Array:
        """Validation loss of this chunk; NaN without one."""
        return number(self.signals.val_loss)

    @_Lazy
    def has_val(self) -> NDArray[np.bool_]:
        """Whether this chunk had a usable validation."""
        return isfinite(self.val_loss) & (self.val_loss > 0)

    @_Lazy
    def to_go(self) -> Array:
        """Log of the loss, validated where possible, over the target."""
        return np.log(where(self.has_val, self.val_loss, self.after.last_loss) / self.target)

    @_Lazy
    def rate(self) -> Array:
        """Recent decrease of the log loss for each e-fold of cost."""
        return self.after.rate / maximum(self.after.rate_cost, 1e-3)

    @_Lazy
    def elasticities(self) -> Array:
        """Slopes of log step cost against log size towards other sizes, shape (..., 6)."""
        costs = interpolated(self.signals.step_cost_curve, self.size[..., None] + _SHIFTS)
        return (costs[..., 1:] - costs[..., :1]) / _SHIFTS[1:]

    @_Lazy
    def noise_measured(self) -> NDArray[np.bool_]:
        """Whether the gradient noise was ever measured."""
        return self.after.noise_weight > 0

    @_Lazy
    def mean_gradient(self) -> tuple[Array, Array]:
        """Averaged |G|^2 and its standard error."""
        weight = maximum(self.after.noise_weight, TINY)
        return self.after.grad_sqr / weight, np.sqrt(self.after.grad_sqr_var) / weight

    @_Lazy
    def noise_scale(self) -> Array:
        """log2 of tr(Sigma) / |G|^2, in samples.

        Where |G|^2 drowns in its own error, only a lower bound is known.
        """
        grad_sqr, error = self.mean_gradient
        trace = self.after.noise_trace / maximum(self.after.noise_weight, TINY)
        scale = np.log2(maximum(trace, TINY) / maximum(grad_sqr, maximum(0.5 * error, TINY)))
        return clip(scale, -8.0, 24.0)

    @_Lazy
    def goodput_size(self) -> Array:
        """log2 of the size of most progress per cost."""
        return goodput_size(self.signals, self.context, self.noise_scale)

    @_Lazy
    def direction(self) -> tuple[Array, Array]:
        """`trend.direction` of the recent loss."""
        state = self.after
        fast, slow = (state.fast_loss, state.fast_weight), (state.slow_loss, state.slow_weight)
        return trend.direction(fast, slow, state.one_sample_var)

    @_Lazy
    def recent_to_go(self) -> Array:
        """Log of the recent mean loss over the target."""
        state = self.after
        return np.log(state.fast_loss / maximum(state.fast_weight, TINY) / self.target)

    @_Lazy
    def size_slope(self) -> tuple[Array, Array]:
        """`trend.slope`: what a doubling of the batch size did to progress."""
        state = self.after
        return trend.slope(
            state.rate_weight,
            state.rate_size,
            state.rate_sum,
            state.rate_size_sqr,
            state.rate_product,
        )

    @_Lazy
    def size_rates(self) -> tuple[Array, Array]:
        """Bounded rates seen at sizes around this one, and how well each is known."""
        table = self.after.size_rates, self.after.size_weights
        rates, known = size_statistics.around(table, self.size)
        return np.tanh(rates), known


@dataclass(frozen=True)
class Feature:
    """One entry of the observation.

    Attributes:
        name: Its name, unique.
        group: What it is about: groups may be masked together.
        unit: What a value of 1 stands for.
        bounds: Smallest and largest value.
        meaning: In a sentence, for the documentation.
        compute: Returns it for every run at once; NaN where nothing is known, which becomes 0.
    """

    name: str
    group: str
    unit: str
    bounds: tuple[float, float]
    meaning: str
    compute: Callable[[Moment], Array]
