"""From a chunk's signals to the bounded vector that a policy sees."""

from rlbatch.observation.cost import step_cost_at
from rlbatch.observation.encoder import encode
from rlbatch.observation.feature import Feature
from rlbatch.observation.state import EncoderState, initial_state
from rlbatch.observation.table import (
    FEATURES,
    GROUPS,
    OBSERVATION_NAMES,
    OBSERVATION_SIZE,
    SCHEMA_VERSION,
)

__all__ = [
    "FEATURES",
    "GROUPS",
    "OBSERVATION_NAMES",
    "OBSERVATION_SIZE",
    "SCHEMA_VERSION",
    "EncoderState",
    "Feature",
    "encode",
    "initial_state",
    "step_cost_at",
]
