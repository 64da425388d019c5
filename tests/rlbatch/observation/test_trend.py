"""Averages over chunks against plain sums and a least-squares fit."""

from __future__ import annotations

import numpy as np
import pytest

from rlbatch.observation import trend


def test_a_sum_forgets_by_its_decay() -> None:
    total, weight = np.array(0.0), np.array(0.0)
    values, shares = [3.0, 1.0, 4.0, 1.0], [8.0, 8.0, 64.0, 2.0]
    for value, share in zip(values, shares, strict=True):
        total, weight = trend.add(total, weight, np.array(value), np.array(share), 0.5)
    decayed = np.array(shares) * 0.5 ** np.arange(3, -1, -1)
    assert weight == pytest.approx(decayed.sum())
    assert total / weight == pytest.approx(np.average(values, weights=decayed))


def test_the_direction_is_told_from_noise() -> None:
    rng = np.random.default_rng(0)
    runs, chunks, batch = 4000, 12, 16
    fast = slow = (np.zeros(runs), np.zeros(runs))
    for _ in range(chunks):
        loss = 1.0 + rng.standard_normal(runs) / np.sqrt(batch)  # one sample varies by 1
        fast = trend.add(*fast, loss, np.full(runs, batch), trend.FAST_DECAY)
        slow = trend.add(*slow, loss, np.full(runs, batch), trend.SLOW_DECAY)
    change, significance = trend.direction(fast, slow, np.ones(runs))
    assert np.mean(change) == pytest.approx(0.0, abs=0.02)
    # The longer mean shares chunks with the recent one: the error is on the safe side.
    assert 0.3 < np.std(significance) < 1.0
    _, falling = trend.direction((fast[0] * 0.2, fast[1]), slow, np.ones(runs))
    assert np.mean(falling) > 2.0


def test_the_slope_is_the_weighted_least_squares_line() -> None:
    rng = np.random.default_rng(1)
    size, weight = rng.uniform(2.0, 9.0, 30), rng.uniform(0.5, 5.0, 30)
    rate = 0.3 * size - 1.0 + rng.standard_normal(30) / np.sqrt(weight)
    sums = [(weight * v).sum() for v in (size**0, size, rate, size**2, size * rate)]
    value, significance = trend.slope(*(np.array(total) for total in sums))
    design = np.stack([np.ones(30), size], axis=1) * np.sqrt(weight)[:, None]
    expected = np.linalg.lstsq(design, rate * np.sqrt(weight), rcond=None)[0][1]
    error = np.sqrt(np.linalg.inv(design.T @ design)[1, 1])
    assert value == pytest.approx(expected)
    assert significance == pytest.approx(expected / error)


def test_one_size_has_no_slope_and_an_empty_history_is_harmless() -> None:
    zero = np.array(0.0)
    assert trend.slope(zero, zero, zero, zero, zero) == (0.0, 0.0)
    value, significance = trend.slope(*(np.array(v) for v in (4.0, 20.0, 8.0, 100.0, 40.0)))
    assert (value, significance) == (0.0, 0.0)


def test_a_chunk_that_is_mostly_noise_says_little() -> None:
    rate, precise = trend.rate_and_precision(np.array(0.1), np.array(0.1), np.array(1e-4))
    _, vague = trend.rate_and_precision(np.array(0.1), np.array(0.1), np.array(1.0))
    assert rate == pytest.approx(1.0)
    assert precise > 1000 * vague
    assert trend.rate_and_precision(np.array(5.0), np.array(0.0), np.array(1.0))[0] == 3.0
