"""The order in which an epoch visits its samples, and how to come back to a place in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler

from rlbatch.errors import ConfigurationError


class ShuffledSampler(Sampler[int]):
    """A permutation an epoch that depends on the seed and the epoch alone.

    All ranks of a distributed run therefore see the same order without talking to each other.
    `ElasticBatchSampler` calls `set_epoch` by itself.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Prepare epoch 0.

        Args:
            size: Samples in an epoch.
            seed: Of the permutations, 0 or more.

        Raises:
            ConfigurationError: The size or the seed is negative.
        """
        if size < 0 or seed < 0:
            raise ConfigurationError(
                f"Expected a size and a seed of at least 0, got size {size} and seed {seed}."
            )
        self._size, self._seed = size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # One draw from the seed's stream makes neighbouring seeds share no epochs.
        first = torch.Generator().manual_seed(self._seed)
        base = int(torch.randint(2**62, (), generator=first))
        order = torch.Generator().manual_seed(base + self.epoch)
        drawn: Any = torch.randperm(self._size, generator=order)
        permutation: list[int] = drawn.tolist()
        yield from permutation

    def __len__(self) -> int:
        return self._size


class EpochOrder:
    """Remembers the random state from which an epoch's order is drawn.

    A sampler with a `generator` is replayed from that generator's state, one without from torch's
    global state. Samplers that draw from NumPy or `random` cannot be replayed.
    """

    def __init__(self, sampler: Iterable[int]) -> None:
        """Take the sampler whose iterations are the epochs."""
        self.sampler = sampler
        self._generator: torch.Generator | None = getattr(sampler, "generator", None)
        self._is_random = not isinstance(sampler, (SequentialSampler, ShuffledSampler))
        self._start: dict[str, Any] = {}
        self._finished: torch.Tensor | None = None

    @property
    def size(self) -> int | None:
        """Samples in an epoch; None when the sampler does not know."""
        try:
            return len(self.sampler)  # pyright: ignore[reportArgumentType]
        except TypeError:
            return None

    def begin(self, epoch: int, after_seed: bool) -> Iterator[int]:
        """Start an epoch.

        Args:
            epoch: Its number.
            after_seed: Whether a loader draws its seed before each epoch, as all do that keep no
                workers. One that keeps them draws a seed only at the first epoch of a process:
                after `finish` it is taken back, as the uninterrupted run did not draw it.
        """
        if self._finished is not None and not after_seed:
            self._set_random_state(self._finished)
        self._finished = None
        if isinstance(self.sampler, ShuffledSampler):
            self.sampler.set_epoch(epoch)
        self._start = {"set_epoch": getattr(self.sampler, "epoch", None)}
        if self._is_random:
            self._start["random"] = self._random_state()
        return iter(self.sampler)

    def resume(self, state: dict[str, Any], position: int) -> Iterator[int]:
        """Start the epoch of `state` again, behind its first `position` samples.

        Torch's global random state, if the order comes from it, is then set to what it was when the
        state was taken, as if the run had not been interrupted.
        """
        rest = self._replay(state, position)
        if "now" in state and self._generator is None:
            torch.set_rng_state(state["now"])
        return rest

    def finish(self, state: dict[str, Any]) -> None:
        """Bring the random state to where the whole epoch of `state` leaves it."""
        if not state:
            return
        deque(self._replay(state, 0), maxlen=0)
        if "now" in state and self._generator is None:
            torch.set_rng_state(state["now"])
        if "random" in state:
            self._finished = self._random_state()

    def state_dict(self) -> dict[str, Any]:
        """Return what `resume` needs: the random state at the epoch's start, and now."""
        state = dict(self._start)
        if "random" in state and self._generator is None:
            state["now"] = torch.get_rng_state()
        return state

    def _replay(self, state: dict[str, Any], position: int) -> Iterator[int]:
        epoch = state.get("set_epoch")
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if epoch is not None and set_epoch is not None:
            set_epoch(epoch)
        self._start = {key: value for key, value in state.items() if key != "now"}
        if "random" in state:
            self._set_random_state(state["random"])
        indices = iter(self.sampler)
        deque(islice(indices, max(position - 1, 0)), maxlen=0)
        # A sampler draws its order when it is first asked: ask it now, also at position 0.
        head = list(islice(indices, 1))
        return indices if position else _chain(head, indices)

    def _random_state(self) -> torch.Tensor:
        return torch.get_rng_state() if self._generator is None else self._generator.get_state()

    def _set_random_state(self, state: torch.Tensor) -> None:
        if self._generator is None:
            torch.set_rng_state(state)
        else:
            self._generator.set_state(state)


class Lookahead:
    """Takes windows from an order so that the last one leaves no rank without a sample."""

    def __init__(self, indices: Iterator[int], world_size: int, drop_last: bool) -> None:
        """Take over what is left of an epoch."""
        self._indices, self._world_size, self._drop_last = indices, world_size, drop_last
        self._ahead: list[int] = []
        self.exhausted = False

    def take(self, size: int) -> list[int]:
        """Return the next window's samples: `size`, fewer or a few more at the end, [] after it.

        With several ranks, a rest of fewer samples than ranks joins the window before it.
        """
        if self._world_size == 1:
            # One rank looks no further than its window: the sampler's draws stay where they were.
            window = list(islice(self._indices, size))
            if len(window) == size:
                return window
            self._ahead = window
            return self._tail()
        wanted = size if self._drop_last else size + self._world_size
        self._ahead += islice(self._indices, wanted - len(self._ahead))
        if len(self._ahead) == wanted:
            window, self._ahead = self._ahead[:size], self._ahead[size:]
            return window
        return self._tail()

    def _tail(self) -> list[int]:
        self.exhausted = True
        if self._drop_last:
            return []
        left = self._ahead
        if 0 < len(left) < self._world_size:
            raise ConfigurationError(
                f"Expected at least one sample an epoch for each of {self._world_size} ranks, got "
                f"{len(left)}. Use fewer ranks."
            )
        window, self._ahead = left, []
        return window


def _chain(head: list[int], rest: Iterator[int]) -> Iterator[int]:
    yield from head
    yield from rest
