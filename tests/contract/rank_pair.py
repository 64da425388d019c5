"""Two ranks that stay and run one situation after another, none of which can hang the tests.

Each situation has a process group of its own with a short timeout. A rank reports how it ended and
stays in the group until the other has, too, as a process does that catches an error: where one
refuses alone, the other waits for it in a collective, which its report then shows.
"""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import rlbatch
from tests.contract.situations import Host, silence

RANKS = 2
TIMEOUT = 30.0  # seconds that a rank waits for the other; where it has not ended by twice that
# after the other, it is killed
LIMIT = 180.0  # seconds of a situation


class OnRanks(Host):
    """This rank of several, under DistributedDataParallel or FSDP2."""

    def __init__(self, rank: int, kind: str, world_size: int = RANKS) -> None:
        super().__init__()
        self.rank, self.kind, self.world_size = rank, kind, world_size

    def prepare(self, model: nn.Module, make: Callable[[Any], Any]) -> tuple[Any, Any]:
        if self.kind == "ddp":
            model = DistributedDataParallel(model)
        else:
            fully_shard(model)
        return model, make(model)

    def control(self, model: Any, optimizer: Any, **settings: Any) -> Any:
        return rlbatch.BatchController(model, optimizer, **settings)

    def source(self, data: Any, batch_size: int, sampler: Any = None) -> DataLoader[Any]:
        if sampler is None:
            sampler = DistributedSampler(data, self.world_size, self.rank, shuffle=False)
        return super().source(data, batch_size, sampler)

    @contextmanager
    def warns_once(self, match: str) -> Iterator[None]:
        with super().warns_once(match) if self.rank == 0 else silence():
            yield

    @property
    def last(self) -> bool:
        return self.rank == self.world_size - 1

    def gather(self, values: Any) -> list[Any]:
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, values)
        return found

    def whole(self, tensor: Any) -> Tensor:
        return super().whole(tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor)

    def own(self, tensor: Any) -> Tensor:
        return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@dataclass(frozen=True)
class Outcome:
    """How a situation ended on a rank.

    Attributes:
        error: The traceback; empty if all is as promised.
        said: What was refused meanwhile, as it was meant to be.
        hung: The rank waited for the other in vain, and was killed where there is no traceback.
    """

    error: str = ""
    said: tuple[str, ...] = ()
    hung: bool = False


KILLED = Outcome("has died, or did not end and was killed", hung=True)


def serve(rank: int, world_size: int, folder: Path, pipe: Any) -> None:
    """Run situations until there are no more; of each, tell the outcome and wait for the others."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while (order := pipe.recv()) is not None:
        number, situation, kind, timeout = order
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meet{number}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        pipe.send(_run(situation, OnRanks(rank, kind, world_size)))
        pipe.recv()
        gc.collect()
        torch.distributed.destroy_process_group()
    os._exit(0)  # see `rank_runs.leave`


def _run(situation: Callable[[Host], None], host: OnRanks) -> Outcome:
    error, hung = "", False
    try:
        with silence():
            torch.manual_seed(0)
            torch.distributed.barrier()
            situation(host)
            torch.distributed.barrier()
    except BaseException as failure:  # also what pytest raises where a warning did not come
        error = traceback.format_exc(limit=-6)
        hung = "Timed out" in str(failure) or "imeout" in str(failure)
    return Outcome(error, tuple(host.said), hung)


class Pair:
    """The ranks, as the tests see them."""

    def __init__(self, folder: Path, world_size: int = RANKS) -> None:
        """Prepare to start them.

        Args:
            folder: Where they meet.
            world_size: How many.
        """
        self._folder, self._world_size = folder, world_size
        self._number = 0
        self._ranks: list[tuple[Any, Any]] = []

    def run(
        self, situation: Callable[[Host], None], kind: str, timeout: float = TIMEOUT
    ) -> list[Outcome]:
        """Run a situation on all ranks.

        Args:
            situation: A function of a module.
            kind: `ddp` or `fsdp`.
            timeout: Seconds that a rank waits for another.
        """
        if not self._ranks:
            self._start()
        self._number += 1
        for _, pipe in self._ranks:
            pipe.send((self._number, situation, kind, timeout))
        found = self._wait(2.0 * timeout)
        if KILLED in found:
            self.close(at_once=True)
        else:
            for _, pipe in self._ranks:
                pipe.send("all have ended")
        return found

    def close(self, *, at_once: bool = False) -> None:
        """End the ranks."""
        for process, pipe in self._ranks:
            if at_once:
                process.kill()
            else:
                pipe.send(None)
            process.join()
        self._ranks = []

    def _start(self) -> None:
        context = get_context("forkserver")  # torch is imported once, not by each process
        context.set_forkserver_preload([__name__])
        for rank in range(self._world_size):
            here, there = context.Pipe()
            arguments = rank, self._world_size, self._folder, there
            process = context.Process(target=serve, args=arguments)
            process.start()
            there.close()
            self._ranks.append((process, here))

    def _wait(self, grace: float) -> list[Outcome]:
        found: dict[int, Outcome] = {}
        ends = time.monotonic() + LIMIT
        while len(found) < self._world_size and time.monotonic() < ends:
            for rank, (process, pipe) in enumerate(self._ranks):
                if rank in found or not (pipe.poll(0.005) or not process.is_alive()):
                    continue
                try:
                    found[rank] = pipe.recv()
                except EOFError:
                    found[rank] = KILLED
                ends = min(ends, time.monotonic() + grace)
        return [found.get(rank, KILLED) for rank in range(self._world_size)]


def check(found: list[Outcome]) -> None:
    """Require that all ranks ended as promised, and refused the same in the same words."""
    told = [
        f"rank {rank}{' HUNG' * outcome.hung}: {outcome.error or 'as promised'}; said: "
        f"{outcome.said}"
        for rank, outcome in enumerate(found)
    ]
    assert not any(outcome.error for outcome in found), "\n".join(told)
    assert len({outcome.said for outcome in found}) == 1, "\n".join(told)
