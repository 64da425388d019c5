"""A copy of weights, buffers and optimizer state that can be put back, cheap to make anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlbatch.control.sharding import reshard
from rlbatch.signals import foreach

_StateSlot = tuple[dict[str, Any], str, Any]


class Snapshot:
    """What a step of training changes: one copy in memory that is allocated once.

    The position in the data, the random number generators and the schedules are not part of it:
    after a roll-back the run goes on with new data.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Keep references; nothing is copied before `take`."""
        self._model = model
        self._optimizer = optimizer
        self._live: list[Tensor] = []
        self._saved: list[Tensor] = []
        self._plain: list[_StateSlot] = []
        self._keys: dict[Any, frozenset[str]] = {}
        self.taken = False

    @torch.no_grad()
    def take(self) -> None:
        """Copy the present values, over those of the last call."""
        live, self._plain = self._collect()
        values = [foreach.local(tensor) for tensor in live]
        if [id(tensor) for tensor in live] != [id(tensor) for tensor in self._live]:
            self._live, self._saved = live, [value.detach().clone() for value in values]
        else:
            foreach.copy_(self._saved, values)
        self._keys = {p: frozenset(state) for p, state in self._optimizer.state.items()}
        self.taken = True

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values of the last `take` back; state that did not exist then is dropped."""
        reshard(self._model)  # whole copies of the parameters are made anew
        foreach.copy_([foreach.local(tensor) for tensor in self._live], self._saved)
        for state, key, value in self._plain:
            state[key] = value
        for parameter, state in list(self._optimizer.state.items()):
            kept = self._keys.get(parameter)
            if kept is None:
                del self._optimizer.state[parameter]
                continue
            for key in set(state) - kept:
                del state[key]

    def _collect(self) -> tuple[list[Tensor], list[_StateSlot]]:
        reshard(self._model)  # a validation may have been before
        live: list[Tensor] = [*self._model.parameters(), *self._model.buffers()]
        plain: list[_StateSlot] = []
        for state in self._optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    live.append(value)
                else:
                    plain.append((state, key, value))
        return live, plain
