"""The state of torch's global random number generators."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

_IS_BUILT = torch.backends.cuda.is_built()
_cpu_state = torch.default_generator.get_state  # not torch.get_rng_state: taken in every step
_make = cast("Any", tuple).__new__


class RandomState(NamedTuple):
    """Torch's global random states.

    Attributes:
        cpu: Of the CPU's generator.
        cuda: Of each CUDA device's; empty where CUDA is not in use.
    """

    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def now(cls) -> RandomState:
        """Return the states of now."""
        in_use = _IS_BUILT and torch.cuda.is_initialized()
        return _make(cls, (_cpu_state(), torch.cuda.get_rng_state_all() if in_use else []))

    def restore(self) -> None:
        """Put the states back."""
        torch.set_rng_state(self.cpu)
        if self.cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self.cuda)
