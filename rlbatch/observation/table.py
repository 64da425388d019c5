"""The table of features: the one place that says what the observation consists of, in its order."""

from __future__ import annotations

from rlbatch.observation import features_loss, features_run, features_size
from rlbatch.observation.feature import Feature

SCHEMA_VERSION = 3

FEATURES: tuple[Feature, ...] = (
    *features_run.PLACE,
    *features_run.LEARNING_RATE,
    *features_size.COST,
    *features_size.NOISE,
    *features_loss.LOSS,
    *features_loss.TREND,
    *features_loss.PROGRESS,
    *features_loss.HISTORY,
    *features_loss.VALIDATION,
    *features_size.SIZE_STATISTICS,
    *features_run.OBJECTIVE,
    *features_run.PLAN,
)

OBSERVATION_NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)
OBSERVATION_SIZE = len(FEATURES)

GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(feature.name for feature in FEATURES if feature.group == group)
    for group in dict.fromkeys(feature.group for feature in FEATURES)
}
"""Names of the features by group, in the order of the vector."""


def markdown() -> str:
    """Return the table as the documentation shows it."""
    rows = (
        f"| `{f.name}` | {f.group} | {f.meaning} | {f.unit} | {f.bounds[0]:g} to {f.bounds[1]:g} |"
        for f in FEATURES
    )
    return "\n".join(
        ("| name | group | meaning | unit of 1 | range |", "|---|---|---|---|---|", *rows)
    )
