"""The processes that share a training: what they agree on, and how they take turns with data."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler

from rlbatch.control.sharding import require_steerable, reshard
from rlbatch.data.sampler import ShuffledSampler
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Array


def _last_few() -> deque[Tensor]:
    return deque(maxlen=8)  # more than gloo has threads


@dataclass(frozen=True)
class Ranks:
    """This process among those of `torch.distributed`; by default alone.

    Attributes:
        rank: This process.
        world_size: Number of processes.
        device: Where the collectives' tensors live.
        sharded: Each has only its shard of parameters and gradients (FSDP2). Every backward pass
            averages the gradients then.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sharded: bool = False
    # What was last sent. Gloo's threads hold a tensor longer than its collective takes, and freeing
    # one that only they hold takes the interpreter: a process that is just ending aborts then.
    _sent: deque[Tensor] = field(default_factory=_last_few, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, model: nn.Module) -> Ranks:
        """Return the processes that train a model together.

        Raises:
            ConfigurationError: There are several, and nothing averages the model's gradients; or
                its parameters are sharded in another way than by `fully_shard` over all of them.
        """
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        world_size = distributed.get_world_size()
        if world_size == 1:
            return cls()
        if reshard(model):
            device = require_steerable(model, world_size)
            return cls(distributed.get_rank(), world_size, device, sharded=True)
        if not isinstance(model, nn.parallel.DistributedDataParallel):
            raise ConfigurationError(
                f"torch.distributed has {world_size} processes, and the model is a "
                f"{type(model).__name__}, whose gradients nobody averages in steps. Give the "
                "controller DistributedDataParallel(model), or a model on which fully_shard was "
                "called (the older FullyShardedDataParallel cannot be steered)."
            )
        device = next(model.parameters()).device
        return cls(distributed.get_rank(), world_size, device)

    @property
    def is_main(self) -> bool:
        """Whether this process decides and writes the log."""
        return self.rank == 0

    def agree(self, number: int) -> int:
        """Return rank 0's number on every rank: one broadcast."""
        return self.agree_on(number)[0]

    def agree_on(self, *numbers: int) -> tuple[int, ...]:
        """Return rank 0's numbers on every rank: one broadcast."""
        if self.world_size == 1:
            return numbers
        shared = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        self._sent.append(shared)
        torch.distributed.broadcast(shared, src=0)
        return tuple(int(number) for number in shared.tolist())

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """Return the largest of each number over the ranks: one all-reduce."""
        if self.world_size == 1:
            return numbers
        shared = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        self._sent.append(shared)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        return tuple(int(number) for number in shared.tolist())

    def require_agreement(self, steps: int, error: Exception | None) -> None:
        """Refuse saved states that the ranks cannot go on from together.

        Every rank calls it, whatever is wrong with its own: the others wait.

        Args:
            steps: Optimizer steps of this rank's state.
            error: Why it was refused; None if it was not.

        Raises:
            Exception: The given one.
            ConfigurationError: They are of different steps, or another rank's was refused.
        """
        latest, earliest, refused = self.largest(steps, -steps, error is not None)
        if error is not None:
            raise error
        if refused:
            raise ConfigurationError(
                "Another rank could not load its state, so none was loaded here. That rank says "
                "what is wrong; resume all of them from another checkpoint."
            )
        if latest != -earliest:
            raise ConfigurationError(
                f"Expected the ranks' states of the same optimizer step, got {-earliest} to "
                f"{latest}. Let a checkpoint count only once all ranks have saved theirs."
            )

    @contextmanager
    def refuse_together(self) -> Generator[None]:
        """Let a saved state that the block refuses on this rank be refused on all of them.

        Without an error nothing is sent: `require_agreement` comes later.
        """
        try:
            yield
        except Exception as error:
            self.require_agreement(0, error)
            raise

    def require_same(self, **numbers: int | str | None) -> None:
        """Refuse a training for which the ranks were told different numbers: one all-reduce.

        They would make different steps, and some wait for the others without an end.

        Raises:
            ConfigurationError: On every rank, if one of them differs.
        """
        told = [int(n) if isinstance(n, int) else -1 for n in numbers.values()]
        found = self.largest(*told, *(-number for number in told))
        for place, name in enumerate(numbers):
            high, low = found[place], -found[len(told) + place]
            if low != high:
                raise ConfigurationError(
                    f"Expected the same {name} on every rank, got {low} to {high} (-1: none). Make "
                    "model, data and controller alike on all ranks; the controller's loader deals "
                    "out the samples."
                )

    def average_gradients(self, model: nn.Module) -> None:
        """Average the gradients over ranks, in place; a parameter without one counts as zero."""
        if self.world_size == 1:
            return
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.div_(self.world_size)
        under_way: list[Any] = [
            torch.distributed.all_reduce(p.grad, async_op=True) for p in trained
        ]
        for work in under_way:
            work.wait()

    def mean(self, values: Array) -> Array:
        """Return the mean over ranks of equally long arrays: one all-reduce."""
        if self.world_size == 1 or not len(values):
            return values
        # Accelerators that have no float64 get float32.
        kind = torch.float64 if self.device.type in ("cpu", "cuda") else torch.float32
        shared = torch.as_tensor(values, dtype=kind).to(self.device)
        self._sent.append(shared)
        torch.distributed.all_reduce(shared)
        return cast("Array", (shared / self.world_size).cpu().double().numpy())

    def share(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Return a loader of the whole data in an order that all ranks have in common.

        A `DistributedSampler` is replaced by the whole of what it gives all ranks together, and an
        unseeded `RandomSampler` by a `ShuffledSampler` with a seed of rank 0.
        """
        if self.world_size == 1:
            return loader
        sampler: Any = loader.sampler
        if isinstance(sampler, DistributedSampler):
            sampler = WholeOrder(cast("DistributedSampler[Any]", sampler))
        elif type(sampler) is RandomSampler and sampler.generator is None:
            if sampler.replacement or len(sampler) != len(sampler.data_source):
                return loader  # refused with the remedy where the batches are made
            seed = self.agree(int(torch.randint(2**31, ()).item()))
            sampler = ShuffledSampler(len(sampler), seed)
        else:
            return loader
        return DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=sampler,
            drop_last=loader.drop_last,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )


class WholeOrder(Sampler[int]):
    """What a `DistributedSampler` gives all ranks together, without the samples that fill up.

    `set_epoch` of either is heard.
    """

    def __init__(self, part: DistributedSampler[Any]) -> None:
        """Take the sampler of one rank's part."""
        self._part = part
        self._whole = DistributedSampler[Any](
            part.dataset, num_replicas=1, rank=0, shuffle=part.shuffle, seed=part.seed
        )

    @property
    def epoch(self) -> int:
        """Epoch of the next iteration."""
        return self._part.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration."""
        self._part.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        self._whole.set_epoch(self._part.epoch)
        return iter(cast("Any", self._whole))

    def __len__(self) -> int:
        return len(self._whole)


def without_sync(model: nn.Module, until_last: bool) -> AbstractContextManager[Any]:
    """Return the block of a micro-batch's forward and backward pass.

    Args:
        model: A `DistributedDataParallel` averages gradients over ranks in the last pass only.
        until_last: Whether there are more passes of the step to come.
    """
    if until_last and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return nullcontext()
