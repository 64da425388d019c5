"""Notices hooks on gradients that make another gradient of a batch that comes in parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_PASSES = 2  # whose gradients are compared
_TOLERANCE = 2e-2  # relative, of single elements: also half precision stays within it
_SAID = (
    "rlbatch: a hook on a parameter changes its gradient, not in proportion to it (by clipping, "
    "normalising, noise), and a batch that is divided calls it for each of its parts: their sum is "
    "another gradient than the hook makes of the whole batch's. Do it where "
    "controller.batch_complete (in a framework, before the optimizer steps), or set "
    "micro_batch_size to no less than the batch sizes."
)


class HookWatch:
    """Shows the user's hooks nothing, and looks at what they make of two passes' gradients.

    A factor for each element, as a mask has it, goes with sums. Whether it is one shows in two
    passes: what comes out has to be to what goes in as it was before.
    """

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._seen: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._after: list[tuple[Tensor, Tensor]] = []  # of hooks behind the accumulation
        self._remove: list[Callable[[], None]] = []
        self._calls, self.done = 0, False

    def look(self, optimizer: Optimizer) -> None:
        """A pass of a divided batch is over: begin to watch, or say what was seen."""
        self._calls += 1
        if self._calls == 1:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    self._attach(parameter)
            self.done = not self._remove
        elif self._calls > _PASSES:
            self._finish()

    def _attach(self, parameter: Any) -> None:
        if hasattr(parameter, "_local_tensor"):  # a shard of fully_shard, which has its own hooks
            return
        passing = getattr(parameter, "_backward_hooks", None)
        if passing:
            into: list[Tensor] = []
            seen = self._seen.setdefault(id(parameter), [])

            def behind(gradient: Tensor) -> None:
                if into:
                    seen.append((into.pop(), gradient.detach().clone()))

            _surround(passing, lambda g: into.append(g.detach().clone()), behind, self._remove)
        behind_sum = getattr(parameter, "_post_accumulate_grad_hooks", None)
        if behind_sum:
            sums: list[Tensor] = []

            def behind_all(held: Any) -> None:
                if sums:
                    self._after.append((sums.pop(), held.grad.detach().clone()))

            def before_all(held: Any) -> None:
                sums.append(held.grad.detach().clone())

            _surround(behind_sum, before_all, behind_all, self._remove)

    def _finish(self) -> None:
        self.done = True
        for remove in self._remove:
            remove()
        pairs = [seen[:_PASSES] for seen in self._seen.values() if len(seen) >= _PASSES]
        bent = any(_is_bent(*one, *other) for one, other in pairs)
        if bent or any(_is_changed(was, now) for was, now in self._after):
            warnings.warn(_SAID, RuntimeWarning, stacklevel=6)
        self._seen, self._after, self._remove = {}, [], []


def _surround(
    hooks: dict[Any, Any],
    front: Callable[[Any], None],
    behind: Callable[[Any], None],
    remove: list[Callable[[], None]],
) -> None:
    """Call one function in front of all hooks and one behind them, until they are removed."""
    first, last, known = object(), object(), dict(hooks)
    hooks.clear()  # torch goes by the order in which they were put in
    hooks.update({first: front, **known, last: behind})

    def take_away() -> None:
        hooks.pop(first, None)
        hooks.pop(last, None)

    remove.append(take_away)


def _is_bent(into: Tensor, out: Tensor, into_then: Tensor, out_then: Tensor) -> bool:
    """Whether no factor for each element leads from what went in to what came out, both times."""
    if into.is_sparse or into.shape != out.shape or into.shape != into_then.shape:
        return False
    one, other = out * into_then, out_then * into
    return bool(((one - other).abs() > _TOLERANCE * torch.maximum(one.abs(), other.abs())).any())


def _is_changed(was: Tensor, now: Tensor) -> bool:
    """Whether a sum of gradients was changed otherwise than by setting elements to 0."""
    if was.is_sparse or was.shape != now.shape:
        return False
    return bool(((now != was) & (now != 0)).any())
