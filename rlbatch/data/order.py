"""The order in which an epoch visits its samples, and how to come back to a place in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DistributedSampler, Sampler, SequentialSampler

from rlbatch.data.delivery import appearance
from rlbatch.data.randomness import Randomness
from rlbatch.data.step_plan import last_but_one
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


_DETERMINISTIC = (SequentialSampler, ShuffledSampler, DistributedSampler, list, tuple, range)
TAIL = 8
"""Samples by which an order is recognised."""


class EpochOrder:
    """Remembers the random states from which an epoch's order is drawn, to draw it again.

    What they are is said in `rlbatch.data.randomness`. An order that depends on anything else
    is not repeated; that is noticed when a run resumes.
    """

    def __init__(self, sampler: Iterable[int]) -> None:
        """Take the sampler whose iterations are the epochs."""
        self.sampler = sampler
        self._randomness = Randomness(None if type(sampler) in _DETERMINISTIC else sampler)
        self._start: dict[str, Any] = {}
        self._finished: dict[str, Any] | None = None

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
            self._randomness.restore(self._finished)
        self._finished = None
        if isinstance(self.sampler, ShuffledSampler):
            self.sampler.set_epoch(epoch)
        self._start = {
            "size": self.size,
            "set_epoch": getattr(self.sampler, "epoch", None),
            "random": self._randomness.state(),
        }
        return iter(self.sampler)

    def resume(self, state: dict[str, Any], position: int, tail: Sequence[str]) -> Iterator[int]:
        """Start the epoch of `state` again, behind its first `position` samples.

        The global random states that the order comes from are then set to what they were when the
        state was taken, as if the run had not been interrupted.

        Args:
            state: From `state_dict`.
            position: How many samples to pass over.
            tail: What the last of them look like.

        Raises:
            ConfigurationError: The order is another one this time.
        """
        rest = self._replay(state, position, tail)
        self._randomness.restore_global(state["now"])
        return rest

    def check(self, state: dict[str, Any]) -> None:
        """Refuse what `state_dict` never returns; random states are put back to find out.

        Raises:
            ConfigurationError: Something is missing, or is no random state.
        """
        if not state:
            return
        before = self._randomness.state()
        try:
            for count in (state["size"], state["set_epoch"]):
                if count is not None and type(count) is not int:
                    raise TypeError(f"{count!r} is no count")
            self._randomness.restore(state["random"])
            self._randomness.restore_global(state["now"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"The saved order of an epoch is damaged ({type(error).__name__}: {error}). Resume "
                "from another checkpoint, or start anew."
            ) from error
        finally:
            self._randomness.restore(before)

    def finish(self, state: dict[str, Any], position: int, tail: Sequence[str]) -> None:
        """Bring the random states to where the whole epoch of `state` leaves them.

        Raises:
            ConfigurationError: The order is another one this time.
        """
        if not state:
            return
        deque(self._replay(state, position, tail), maxlen=0)
        self._randomness.restore_global(state["now"])
        self._finished = self._randomness.state()

    def state_dict(self, rewind_to: torch.Tensor | None = None) -> dict[str, Any]:
        """Return what `resume` needs: the random states at the epoch's start, and now.

        Args:
            rewind_to: Stands for torch's global state of now.
        """
        if not self._start:
            return {}
        now = self._randomness.global_state()
        if rewind_to is not None and "torch" in now:
            now["torch"] = rewind_to
        return {**self._start, "now": now}

    def _replay(self, state: dict[str, Any], position: int, tail: Sequence[str]) -> Iterator[int]:
        epoch, size = state["set_epoch"], state["size"]
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if epoch is not None and set_epoch is not None:
            set_epoch(epoch)
        if size != self.size:
            raise ConfigurationError(
                f"Expected the sampler of the saved run, of {size} samples an epoch, got one of "
                f"{self.size}. Resume with the same data, or start the run anew."
            )
        self._start = {key: value for key, value in state.items() if key != "now"}
        self._randomness.restore(state["random"])
        indices = iter(self.sampler)
        passed = list(islice(indices, position))
        # A sampler draws its order when it is first asked: ask it now, also at position 0.
        head = list(islice(indices, 0 if position else 1))
        found = appearance(passed[-len(tail) :]) if tail else []
        if found != list(tail) or len(passed) != position:
            raise ConfigurationError(
                f"Expected the {type(self.sampler).__name__} to repeat the order of the saved "
                f"epoch, and the samples before place {position} are {', '.join(found)}, not "
                f"{', '.join(tail)}. Resume with the same data and sampler; if it draws from "
                "something of its own, let it follow set_epoch(epoch) and a seed, or hold its "
                "torch.Generator as an attribute."
            )
        return _chain(head, indices)


class Lookahead:
    """Takes steps from an order so that the last one leaves no rank without a sample."""

    def __init__(
        self,
        indices: Iterator[int],
        world_size: int,
        drop_last: bool,
        least: int | None = None,
        largest: int | None = None,
    ) -> None:
        """Take over what is left of an epoch.

        Args:
            indices: Of its samples.
            world_size: Ranks that share each step.
            drop_last: Leave out what does not fill the last step.
            least: With several ranks, a rest of fewer samples joins the step before; None for one a
                rank.
            largest: With several ranks, a step and the rest that joins it are made two of about the
                same size where they exceed it; None for no limit.
        """
        self._largest = largest
        self._indices, self._world_size, self._drop_last = indices, world_size, drop_last
        self._least = world_size if least is None else max(least, world_size)
        self._ahead: list[int] = []
        self.exhausted = False

    def take(self, size: int) -> list[int]:
        """Return the next step's samples: `size`, fewer or a few more at the end, [] after it.

        With several ranks, a rest of fewer samples than `least` joins the step before it.
        """
        if self._world_size == 1:
            # One rank looks no further than its step: the sampler's draws stay where they were.
            step = list(islice(self._indices, size))
            if len(step) == size:
                return step
            self._ahead = step
            return self._tail()
        wanted = size if self._drop_last else size + self._least
        self._ahead += islice(self._indices, max(wanted - len(self._ahead), 0))
        if len(self._ahead) >= wanted:
            step, self._ahead = self._ahead[:size], self._ahead[size:]
            return step
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
        size = len(left)
        if self._world_size > 1:
            size = last_but_one(size, self._largest, self._least, self._world_size)
        step, self._ahead = left[:size], left[size:]
        self.exhausted = not self._ahead
        return step


def _chain(head: list[int], rest: Iterator[int]) -> Iterator[int]:
    yield from head
    yield from rest
