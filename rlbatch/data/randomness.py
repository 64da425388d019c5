"""The random states that a sampler's order may depend on, as plain values."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import (
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

_TORCH_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_DEPTH = 4  # of samplers in samplers

State = dict[str, Any]


class Randomness:
    """Takes and puts back all random states that an order may be drawn from.

    These are the generators of torch, NumPy and `random` that the owner holds itself or in samplers
    within it, and the global ones of the three. Of torch's own samplers it is known that they use
    their generator, or else torch's global one.
    """

    def __init__(self, owner: Any, within: tuple[type, ...] = (Sampler,)) -> None:
        """Look at a sampler or a loader.

        Args:
            owner: What draws; None for what draws nothing.
            within: Kinds of attributes that are looked into.
        """
        self._owner, self._within = owner, within
        is_torch_s = type(owner) in _TORCH_SAMPLERS
        has_generator = getattr(owner, "generator", None) is not None
        self._none = owner is None
        self._torch = not self._none and not (is_torch_s and has_generator)
        self._others = not self._none and not is_torch_s

    def state(self) -> State:
        """Return everything, in what `torch.load` reads with `weights_only=True`."""
        if self._none:
            return {}
        own = {path: _access(generator)[0](generator) for path, generator in self._generators()}
        return {"global": self.global_state(), "own": own}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        if not state:
            return
        self.restore_global(state["global"])
        own: Mapping[str, Any] = state["own"]
        for path, generator in self._generators():
            if path in own:
                _access(generator)[1](generator, own[path])

    def global_state(self) -> State:
        """Return the states of the global generators that the order may be drawn from."""
        state: State = {}
        if self._torch:
            state["torch"] = torch.get_rng_state()
        if self._others:
            state["random"] = random.getstate()
            state["numpy"] = _without_arrays(np.random.get_state(legacy=False))
        return state

    def restore_global(self, state: Mapping[str, Any]) -> None:
        """Put back what `global_state` returned."""
        if "torch" in state:
            torch.set_rng_state(state["torch"].cpu())  # map_location may have moved it
        if "random" in state:
            random.setstate(state["random"])
        if "numpy" in state:
            np.random.set_state(_with_arrays(state["numpy"]))

    def _generators(self) -> Iterator[tuple[str, Any]]:
        return _generators(self._owner, self._within, "", _DEPTH)


def _generators(
    owner: Any, within: tuple[type, ...], path: str, depth: int
) -> Iterator[tuple[str, Any]]:
    attributes = cast("dict[str, Any]", getattr(owner, "__dict__", {}))
    for name, value in attributes.items():
        if type(value) in _ACCESS or isinstance(value, random.Random):
            yield f"{path}{name}", value
        elif depth and isinstance(value, within):
            yield from _generators(value, within, f"{path}{name}.", depth - 1)


def _access(generator: Any) -> tuple[Callable[[Any], Any], Callable[[Any, Any], None]]:
    # Whatever has no entry is of a subclass of Random.
    return _ACCESS.get(generator.__class__, _ACCESS[random.Random])


def _set_bit_generator(generator: Any, state: Any) -> None:
    generator.bit_generator.state = _with_arrays(state)


_ACCESS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    torch.Generator: (lambda g: g.get_state(), lambda g, state: g.set_state(state.cpu())),
    random.Random: (lambda g: g.getstate(), lambda g, state: g.setstate(state)),
    np.random.Generator: (lambda g: _without_arrays(g.bit_generator.state), _set_bit_generator),
    np.random.RandomState: (
        lambda g: _without_arrays(g.get_state(legacy=False)),
        lambda g, state: g.set_state(_with_arrays(state)),
    ),
}


def _without_arrays(state: Any) -> Any:
    if isinstance(state, Mapping):
        entries = cast("Iterable[tuple[str, Any]]", state.items())
        return {key: _without_arrays(value) for key, value in entries}
    if isinstance(state, np.ndarray):
        array: Any = cast("Any", state)
        return {"dtype": str(array.dtype), "values": array.tolist()}
    return state


def _with_arrays(state: Any) -> Any:
    if not isinstance(state, Mapping):
        return state
    entries = cast("Mapping[str, Any]", state)
    if set(entries) == {"dtype", "values"}:
        return np.array(entries["values"], dtype=entries["dtype"])
    return {key: _with_arrays(value) for key, value in entries.items()}
