"""Costs of other sizes: of a single run, which goes another way, the bits of one among many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlbatch.observation.cost import goodput_size, interpolated
from rlbatch.testing import simple_signals

Array = NDArray[np.float64]


def curves(count: int) -> tuple[Array, Array]:
    """Return curves of costs and places at which to read them, some beyond the ends."""
    rng = np.random.default_rng(0)
    curve = np.log2(1.0 + 2.0 ** np.arange(17) / rng.uniform(1.0, 500.0, (count, 1)))
    return curve, rng.uniform(-3.0, 20.0, (count, 7))


def test_a_single_run_is_interpolated_as_one_of_many() -> None:
    curve, sizes = curves(20)
    sizes[0] = [-0.0, 0.0, 16.0, 15.0, 15.999, 17.0, 1.0]
    together = interpolated(curve, sizes)
    for row in range(len(curve)):
        np.testing.assert_array_equal(interpolated(curve[row], sizes[row]), together[row])


def test_runs_that_share_a_curve_are_interpolated_as_with_one_each() -> None:
    curve, sizes = curves(5)
    each = np.broadcast_to(curve[0], curve.shape)
    np.testing.assert_array_equal(interpolated(curve[0], sizes), interpolated(each, sizes))


def test_the_size_of_most_goodput_of_a_single_run_is_that_of_one_of_many() -> None:
    signals = simple_signals()
    curve, _ = curves(20)
    rng = np.random.default_rng(1)
    noise, low = rng.uniform(-8.0, 24.0, 20), 2.0 ** rng.integers(0, 4, 20)
    high = low * 2.0 ** rng.integers(0, 10, 20)
    limits = {"min_batch_size": low, "max_batch_size": high}
    together = goodput_size(
        replace(signals, step_cost_curve=curve), replace(signals.context, **limits), noise
    )
    for row in range(20):
        limits = {"min_batch_size": float(low[row]), "max_batch_size": float(high[row])}
        alone = goodput_size(
            replace(signals, step_cost_curve=curve[row]),
            replace(signals.context, **limits),
            noise[row],
        )
        assert alone == together[row]
