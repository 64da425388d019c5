"""The learning rate and the target that a random task gets."""

from __future__ import annotations

from math import inf, isfinite, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbatch.envs.random_fit import fitted_table, level
from rlbatch.envs.tasks.random_job import RandomJob
from rlbatch.signals.record import Coupling

LOSSES = st.lists(st.one_of(st.floats(1e-3, 1e3), st.sampled_from([nan, inf])), max_size=12)


@given(losses=LOSSES)
def test_the_level_is_the_lowest_mean_of_five_in_a_row(losses: list[float]) -> None:
    width = min(5, len(losses))
    means = [sum(losses[i : i + width]) / width for i in range(len(losses) - width + 1) if width]
    finite = [mean for mean in means if isfinite(mean)]
    assert level(np.array(losses)) == pytest.approx(min(finite, default=inf))


def test_one_lucky_validation_hardly_moves_the_level() -> None:
    calm = np.full(30, 2.0)
    lucky = calm.copy()
    lucky[17] = 1.0
    assert level(calm) == 2.0
    assert level(lucky) == pytest.approx(1.8)


@pytest.mark.slow
def test_curves_of_a_perceptron_serve_all() -> None:
    table = fitted_table(RandomJob("random", 12))
    assert table is not None
    assert table.couplings(0) == [Coupling.NONE, Coupling.SQRT, Coupling.LINEAR]
