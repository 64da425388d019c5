"""What the saved state of a chunk has to hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlbatch.errors import ConfigurationError


def checked_variances(state: Mapping[str, Any]) -> list[float]:
    """Return the variances of a state of `ChunkMonitor`, zeros for one that was saved without them.

    Raises:
        ConfigurationError: Something in the state is no number, or its parts do not fit together.
    """
    measured = len(state["owners"])
    variances = state.get("variances", [0.0] * measured)
    sizes = (size for row in state["sizes"] for size in row)
    numbers = [*variances, *state["losses"], *state["norms"], *sizes]
    counts = [*state["owners"], state.get("chunks", 0)]
    whole = all(type(count) is int for count in counts)
    if not whole or not all(isinstance(number, float | int) for number in numbers):
        raise ConfigurationError(
            "The state of a chunk holds something else than numbers. It is damaged: resume from "
            "another checkpoint."
        )
    lengths = len(state["norms"]), len(state["sizes"]), len(variances)
    if lengths != (3 * measured, measured, measured):
        raise ConfigurationError(
            f"The state of a chunk tells of {measured} measured steps, and holds {lengths[0]} "
            f"norms, {lengths[1]} sizes and {lengths[2]} variances. It is damaged: resume from "
            "another checkpoint."
        )
    return variances
