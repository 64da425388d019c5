"""What differs between the processes of a fit, in a checkpoint that only the first one writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from rlbatch.control.ranks import Ranks
from rlbatch.errors import ConfigurationError

_RANDOM = ("rng", "cuda_rng")


def with_ranks(state: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Return a controller's state with what each rank has of its own.

    Every rank has to call it, as Lightning lets every rank put its checkpoint together.

    Args:
        state: Of the `LoopAdapter` on this rank.
        ranks: The processes.
    """
    if ranks.world_size == 1:
        return state
    own = {
        "monitor": state["control_loop"]["monitor"],
        **{name: state["loader"][name] for name in _RANDOM},
    }
    found: list[Any] = [None] * ranks.world_size
    cast("Any", torch.distributed).all_gather_object(found, own)
    return {**state, "ranks": found}


def of_rank(state: Any, ranks: Ranks) -> Any:
    """Return the state of this rank, where as many have saved it; or else rank 0's.

    Args:
        state: What `with_ranks` returned on rank 0.
        ranks: The processes now.

    Raises:
        ConfigurationError: It is damaged.
    """
    if not isinstance(state, Mapping) or "ranks" not in state:
        return state
    told = cast("Mapping[str, Any]", state)
    found: Any = told["ranks"]
    rest = {name: value for name, value in told.items() if name != "ranks"}
    if not isinstance(found, list) or len(cast("list[Any]", found)) != ranks.world_size:
        return rest
    own: Any = found[ranks.rank]
    needed = ("monitor", *_RANDOM)
    if not isinstance(own, Mapping) or any(name not in own for name in needed):
        raise ConfigurationError(
            "The controller's state of this process is damaged. Resume from another checkpoint."
        )
    return {
        **rest,
        "control_loop": {**rest["control_loop"], "monitor": own["monitor"]},
        "loader": {**rest["loader"], **{name: own[name] for name in _RANDOM}},
    }
