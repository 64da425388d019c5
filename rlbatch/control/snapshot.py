"""A copy of weights, buffers and optimizer state that can be put back, cheap to make anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlbatch.control.sharding import reshard
from rlbatch.signals import foreach

# Where a value is: kind, position among the parameters or buffers, name in the optimizer's state.
# Positions, not objects: a resumed run has others, and its optimizer may list its state elsewise.
_Slot = tuple[str, int, str]
_PARAMETER, _BUFFER, _STATE = "parameter", "buffer", "state"


class Snapshot:
    """What a step of training changes: one copy in memory that is allocated once.

    The position in the data, the random number generators and the schedules are not part of it:
    after a roll-back the run goes on with new data.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Keep references; nothing is copied before `take`."""
        self._model = model
        self._optimizer = optimizer
        self._live: list[Tensor] = []  # of which `_saved` is the copy
        self._saved: dict[_Slot, Tensor] = {}
        self._plain: dict[_Slot, Any] = {}
        self.taken = False

    @torch.no_grad()
    def take(self) -> None:
        """Copy the present values, over those of the last call."""
        live, self._plain = self._collect()
        values = [foreach.local(tensor) for tensor in live.values()]
        if [id(tensor) for tensor in live.values()] == [id(tensor) for tensor in self._live]:
            foreach.copy_(list(self._saved.values()), values)
        else:
            copies = [value.detach().clone() for value in values]
            self._live, self._saved = list(live.values()), dict(zip(live, copies, strict=True))
        self.taken = True

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values of the last `take` back; state that did not exist then is dropped."""
        live, plain = self._collect()  # whole copies of sharded parameters are made anew
        kept = [slot for slot in live if slot in self._saved]
        foreach.copy_(
            [foreach.local(live[slot]) for slot in kept], [self._saved[slot] for slot in kept]
        )
        states = self._states()
        for slot in (*live, *plain):
            kind, position, name = slot
            if kind != _STATE:
                continue
            if slot in self._plain:
                states[position][name] = self._plain[slot]
            elif slot not in self._saved:
                del states[position][name]
        for parameter in [p for p, state in self._optimizer.state.items() if not state]:
            del self._optimizer.state[parameter]

    def state_dict(self) -> dict[str, Any]:
        """Return the copy as plain values and tensors of its own."""
        return {
            "tensors": [(*slot, tensor.clone()) for slot, tensor in self._saved.items()],
            "plain": [(*slot, value) for slot, value in self._plain.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy out of a checkpoint; one of other shapes is left alone.

        The optimizer's own state may be loaded before or after.
        """
        saved: dict[_Slot, Tensor] = {(k, i, name): t for k, i, name, t in state["tensors"]}
        live, _ = self._collect()
        shapes = {s: foreach.local(t).shape for s, t in live.items() if s[0] != _STATE}
        self.taken = shapes == {s: t.shape for s, t in saved.items() if s[0] != _STATE}
        if self.taken:
            self._live, self._saved = [], saved
            self._plain = {(k, i, name): value for k, i, name, value in state["plain"]}

    def _collect(self) -> tuple[dict[_Slot, Tensor], dict[_Slot, Any]]:
        reshard(self._model)  # a validation may have been before
        live: dict[_Slot, Tensor] = {}
        live |= {(_PARAMETER, i, ""): p for i, p in enumerate(self._model.parameters())}
        live |= {(_BUFFER, i, ""): b for i, b in enumerate(self._model.buffers())}
        plain: dict[_Slot, Any] = {}
        for position, state in self._states().items():
            for name, value in state.items():
                into = live if isinstance(value, Tensor) else plain
                into[_STATE, position, name] = value
        return live, plain

    def _states(self) -> dict[int, dict[str, Any]]:
        """Return the optimizer's state by the position of its parameter."""
        groups = self._optimizer.param_groups
        states = self._optimizer.state
        parameters = (p for group in groups for p in group["params"])
        return {i: states[p] for i, p in enumerate(parameters) if p in states}
