"""The table of rates by batch size, against a dictionary of weighted means."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbatch.observation import size_statistics
from rlbatch.observation.size_statistics import OFFSETS, TABLE_SIZES

Seen = list[tuple[float, float, float]]  # log2 size, rate, precision

one = st.tuples(
    st.floats(-1.0, 18.0), st.floats(-3.0, 3.0), st.one_of(st.just(0.0), st.floats(0.01, 100.0))
)


def empty(shape: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((*shape, TABLE_SIZES)), np.zeros((*shape, TABLE_SIZES))


def filled(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    table = empty()
    for entry in seen:
        table = size_statistics.note(table, *map(np.asarray, entry))
    return table


@given(seen=st.lists(one, max_size=12), size=st.floats(0.0, 16.0))
@settings(deadline=None)
def test_rates_are_weighted_means_of_what_was_seen_at_a_size(seen: Seen, size: float) -> None:
    by_size: dict[int, Seen] = defaultdict(list)
    for entry in seen:
        by_size[int(np.clip(np.round(entry[0]), 0, TABLE_SIZES - 1))].append(entry)
    rates, known = size_statistics.around(filled(seen), np.asarray(size))
    for i, offset in enumerate(OFFSETS):
        entries = by_size[int(np.round(size)) + offset]
        weight = sum(precision for _, _, precision in entries)
        mean = sum(rate * precision for _, rate, precision in entries) / weight if weight else 0.0
        np.testing.assert_allclose(rates[i], mean, atol=1e-9)
        np.testing.assert_allclose(known[i], weight / (weight + 4.0), atol=1e-12)


def test_a_rate_without_precision_may_be_anything() -> None:
    table = size_statistics.note(empty(), np.asarray(4.0), np.asarray(np.nan), np.asarray(0.0))
    rates, known = size_statistics.around(table, np.asarray(4.0))
    assert not rates.any()
    assert not known.any()


def test_many_runs_have_a_table_each() -> None:
    rng = np.random.default_rng(0)
    rows = [(rng.uniform(0, 16, 5), rng.standard_normal(5), rng.uniform(0, 9, 5)) for _ in range(8)]
    together = empty((5,))
    for row in rows:
        together = size_statistics.note(together, *row)
    size = rng.uniform(0, 16, 5)
    rates, known = size_statistics.around(together, size)
    for i in range(5):
        alone = filled([(float(a[i]), float(b[i]), float(c[i])) for a, b, c in rows])
        mine = size_statistics.around(alone, size[i])
        np.testing.assert_array_equal(rates[i], mine[0])  # one run goes another way to this
        np.testing.assert_array_equal(known[i], mine[1])
