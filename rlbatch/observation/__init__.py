"""From a chunk's signals to the bounded vector that a policy sees."""

from rlbatch.observation.encoder import (
    GROUPS,
    OBSERVATION_NAMES,
    OBSERVATION_SIZE,
    SCHEMA_VERSION,
    EncoderState,
    encode,
    initial_state,
    step_cost_at,
)

__all__ = [
    "GROUPS",
    "OBSERVATION_NAMES",
    "OBSERVATION_SIZE",
    "SCHEMA_VERSION",
    "EncoderState",
    "encode",
    "initial_state",
    "step_cost_at",
]
