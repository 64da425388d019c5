"""The table of features: complete, true to its ranges, and what the documentation shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlbatch import observation
from rlbatch.observation.table import markdown
from rlbatch.testing.generators import random_run

DOCS = Path(__file__).parents[3] / "docs"


def test_the_documentation_holds_the_table() -> None:
    assert markdown() in (DOCS / "observation.md").read_text()


def test_every_feature_says_what_it_is() -> None:
    for feature in observation.FEATURES:
        assert feature.meaning.endswith(".")
        assert feature.unit
        assert feature.bounds in {(-1.0, 1.0), (0.0, 1.0)}
    assert len(set(observation.OBSERVATION_NAMES)) == observation.OBSERVATION_SIZE


@pytest.mark.parametrize("seed", range(3))
def test_values_stay_within_the_ranges_that_the_table_names(seed: int) -> None:
    run = random_run((32,), np.random.default_rng(seed), 25)
    seen = np.stack([vector for vector, _ in run])

    for column, feature in enumerate(observation.FEATURES):
        low, high = feature.bounds
        assert seen[..., column].min() >= low, feature.name
        assert seen[..., column].max() <= high, feature.name
