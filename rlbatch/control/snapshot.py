"""A copy of weights, buffers and optimizer state that can be put back, cheap to make anew."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from rlbatch.control.gradient_watch import parameters_of, version_of
from rlbatch.control.sharding import reshard
from rlbatch.control.user_copies import UserCopies
from rlbatch.errors import ConfigurationError
from rlbatch.signals import foreach

# Where a value is: kind, position among the parameters or buffers, name in the optimizer's state.
# Positions, not objects: a resumed run has others, and its optimizer may list its state elsewise.
_Slot = tuple[str, int, str]
# `extra` are parameters that the optimizer holds and the model does not.
# `group` are numbers of parameter groups: some optimizers count and adapt there (Prodigy's d and k,
# schedule-free ones), and what is not finite would stay so.
_PARAMETER, _EXTRA, _BUFFER, _STATE, _GROUP = "parameter", "extra", "buffer", "state", "group"
_SCHEDULED = (  # set from outside, and not undone: the run goes on
    *("params", "lr", "initial_lr", "max_lr", "min_lr", "swa_lr", "weight_decay"),
    *("momentum", "betas", "base_momentum", "max_momentum"),
)


class Snapshot:
    """What a step of training changes: one copy in memory that is allocated once.

    That is what is trained, in the model or only in the optimizer, the optimizer's state, and of
    the rest (frozen weights, buffers) what was seen to change. `also` adds what else there is. The
    position in the data, the random number generators and the schedules are not part of it: after
    a roll-back the run goes on with new data.

    Attributes:
        taken: There is a copy.
        also: What else is copied and put back.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Keep references; nothing is copied before `take`."""
        self._model = model
        self._optimizer = optimizer
        self._live: list[Tensor] = []  # of which `_saved` is the copy
        self._saved: dict[_Slot, Tensor] = {}
        self._plain: dict[_Slot, Any] = {}
        self._versions: dict[_Slot, int] | None = None  # when the run began
        self._changing: set[_Slot] | None = None  # of the rest; None: not known yet
        self._frozen: dict[_Slot, Tensor] = {}  # that the copy is without
        self._groups = 0  # of the optimizer, in the copy
        self.also = UserCopies()
        self.taken = False

    def begin(self) -> None:
        """The run is about to make its first step: what changes from now on is part of it."""
        if self._versions is None:
            self._versions = {slot: version_of(tensor) for slot, tensor in self._tensors()}

    @torch.no_grad()
    def take(self) -> None:
        """Copy the present values, over those of the last call."""
        self._learn_what_changes()
        live, self._plain = self._collect()
        values = [foreach.local(tensor) for tensor in live.values()]
        same = [id(tensor) for tensor in live.values()] == [id(tensor) for tensor in self._live]
        if same and all(map(_fits, self._saved.values(), values)):
            foreach.copy_(list(self._saved.values()), values)
        else:
            copies = [value.detach().clone() for value in values]
            self._live, self._saved = list(live.values()), dict(zip(live, copies, strict=True))
        self._note_frozen()
        self.also.take()
        self.taken = True

    def extend(self) -> None:
        """Copy what has begun to be trained since `take`: unfrozen, or given to the optimizer.

        Called in each step before the optimizer's, and quick where nothing is frozen.
        """
        groups = len(self._optimizer.param_groups)
        if not self.taken or not (self._frozen or groups != self._groups):
            return
        begun = {slot: tensor for slot, tensor in self._frozen.items() if tensor.requires_grad}
        if groups != self._groups:
            self._groups = groups
            begun |= {slot: t for slot, t in self._tensors() if slot[0] == _EXTRA}
        for slot, tensor in begun.items():
            self._frozen.pop(slot, None)
            self._saved.setdefault(slot, foreach.local(tensor).detach().clone())
            self._live = []  # the next copy is made anew

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values of the last `take` back; state that did not exist then is dropped."""
        live, plain = self._collect()  # whole copies of sharded parameters are made anew
        kept = [slot for slot in live if slot in self._saved]
        foreach.copy_(
            [foreach.local(live[slot]) for slot in kept], [self._saved[slot] for slot in kept]
        )
        self._put_plain_back(live, plain)
        self.also.restore()

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the values of the last `take` back, and keep those of now as the copy.

        Tensor by tensor, so that memory is needed for one more of them only.
        """
        live, plain = self._collect()
        saved = self._saved
        now = {
            slot: foreach.local(tensor).detach().clone()
            for slot, tensor in live.items()
            if slot not in saved
        }
        also = self.also.now()
        for slot in saved.keys() & live.keys():
            values = foreach.local(live[slot])
            kept = values.detach().clone()
            values.copy_(saved[slot])
            saved[slot].copy_(kept)
        self._put_plain_back(live, plain)
        self.also.restore()
        # State that came since is part of what is kept, and no more of what is there.
        self._saved, self._plain, self.also.saved = {**saved, **now}, plain, also
        self._live = []

    def state_dict(self) -> dict[str, Any]:
        """Return the copy as plain values and tensors of its own."""
        return {
            "slots": _slots(self._saved, self._plain),
            "tensors": [(*slot, tensor.clone()) for slot, tensor in self._saved.items()],
            "plain": [(*slot, value) for slot, value in self._plain.items()],
            "also": copy.deepcopy(self.also.saved),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy out of a checkpoint; one of other shapes is left alone.

        The optimizer's own state may be loaded before or after.

        Raises:
            ConfigurationError: The copy does not hold what it says.
        """
        saved: dict[_Slot, Tensor] = {(k, i, name): t for k, i, name, t in state["tensors"]}
        plain = {(k, i, name): value for k, i, name, value in state["plain"]}
        if [tuple(slot) for slot in state["slots"]] != _slots(saved, plain):
            raise ConfigurationError(
                "The saved copy of the weights is damaged: what it holds is not what it lists. "
                "Resume from another checkpoint."
            )
        shapes = {slot: foreach.local(tensor).shape for slot, tensor in self._tensors()}
        needed = {slot for slot, tensor in self._tensors() if tensor.requires_grad}
        self.taken = needed <= saved.keys() and all(
            shapes.get(slot) == tensor.shape
            for slot, tensor in saved.items()
            if slot[0] not in (_STATE, _GROUP)
        )
        if self.taken:
            self._live, self._saved = [], saved
            self._plain = plain
            self._note_frozen()
            self.also.saved = list(state.get("also", []))

    def changing(self) -> list[_Slot] | None:
        """Return what of frozen weights and buffers was seen to change, for a checkpoint."""
        return None if self._changing is None else sorted(self._changing)

    def load_changing(self, slots: list[_Slot] | None) -> None:
        """Take what `changing` returned."""
        self._changing = None if slots is None else {(k, i, name) for k, i, name in slots}

    def _tensors(self) -> Iterator[tuple[_Slot, Tensor]]:
        """Yield all that a step could change, but the optimizer's state."""
        reshard(self._model)  # a validation may have been before
        own: set[int] = set()
        for index, parameter in enumerate(self._model.parameters()):
            own.add(id(parameter))
            yield (_PARAMETER, index, ""), parameter
        for index, parameter in enumerate(parameters_of(self._optimizer)):
            if id(parameter) not in own:
                yield (_EXTRA, index, ""), parameter
        for index, buffer in enumerate(self._model.buffers()):
            yield (_BUFFER, index, ""), buffer

    def _note_frozen(self) -> None:
        self._frozen = {
            slot: tensor
            for slot, tensor in self._tensors()
            if slot not in self._saved and slot[0] != _BUFFER
        }
        self._groups = len(self._optimizer.param_groups)

    def _learn_what_changes(self) -> None:
        """Look what has changed since the run began, if a step was made since."""
        self.begin()
        was = self._versions or {}
        now = {slot: version_of(tensor) for slot, tensor in self._tensors()}
        changed = {slot for slot, version in now.items() if version != was.get(slot)}
        trained = {slot for slot, tensor in self._tensors() if tensor.requires_grad}
        if not changed & trained:
            return
        rest = changed - trained
        # The kernels of batch normalisation change statistics without being counted.
        statistics = {id(b) for b in _statistics(self._model)}
        rest |= {slot for slot, tensor in self._tensors() if id(tensor) in statistics}
        self._changing = rest | (self._changing or set())

    def _collect(self) -> tuple[dict[_Slot, Tensor], dict[_Slot, Any]]:
        changing = self._changing
        live: dict[_Slot, Tensor] = {}
        for slot, tensor in self._tensors():
            unknown = changing is None and slot[0] == _BUFFER
            if tensor.requires_grad or unknown or (changing is not None and slot in changing):
                live[slot] = tensor
        plain: dict[_Slot, Any] = {}
        for position, state in self._states().items():
            for name, value in state.items():
                into = live if isinstance(value, Tensor) else plain
                into[_STATE, position, name] = value
        for index, group in enumerate(self._optimizer.param_groups):
            for name in sorted(group.keys() - _SCHEDULED):
                value = group[name]
                if isinstance(value, Tensor):
                    live[_GROUP, index, name] = value
                elif isinstance(value, (int, float)) and not isinstance(value, bool):
                    plain[_GROUP, index, name] = value
        return live, plain

    def _put_plain_back(self, live: Mapping[_Slot, Any], plain: Mapping[_Slot, Any]) -> None:
        """Put the optimizer's plain values back; state that did not exist is dropped."""
        states, groups = self._states(), self._optimizer.param_groups
        for slot in (*live, *plain):
            kind, position, name = slot
            if kind == _GROUP and slot in self._plain:
                groups[position][name] = self._plain[slot]
            if kind != _STATE:
                continue
            if slot in self._plain:
                states[position][name] = self._plain[slot]
            elif slot not in self._saved:
                del states[position][name]
        for parameter in [p for p, state in self._optimizer.state.items() if not state]:
            del self._optimizer.state[parameter]

    def _states(self) -> dict[int, dict[str, Any]]:
        """Return the optimizer's state by the position of its parameter."""
        groups = self._optimizer.param_groups
        states = self._optimizer.state
        parameters = (p for group in groups for p in group["params"])
        return {i: states[p] for i, p in enumerate(parameters) if p in states}


def _slots(saved: Mapping[_Slot, Tensor], plain: Mapping[_Slot, Any]) -> list[tuple[Any, ...]]:
    """Return where values are, and of which shape, so that a copy that lost some is noticed.

    Nobody else could tell: which state an optimizer keeps for a parameter is its own affair.
    """
    shapes = [(*slot, *tensor.shape) for slot, tensor in saved.items()]
    return [*shapes, *((*slot, type(value).__name__) for slot, value in plain.items())]


def _fits(copy: Tensor, tensor: Tensor) -> bool:
    """Whether a copy can hold a tensor, which the loop may have moved or converted since."""
    kind = tensor.dtype, tensor.device, tensor.shape
    return (copy.dtype, copy.device, copy.shape) == kind


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, _NormBase):
            yield from module.buffers(recurse=False)
