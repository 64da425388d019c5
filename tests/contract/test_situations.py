"""The situations of a plain loop: in one process, under DistributedDataParallel and FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import rlbatch
from rlbatch.control.settings import make_config
from rlbatch.control.users_parts import in_users_parts
from tests.contract import situations
from tests.contract.programs import error, network
from tests.contract.situations import Host, Rows, Run, failures, plain_mean, sgd
from tests.rlbatch.control.rank_runs import leave, meet, spawn, whole

RANKS = 2


class Alone(Host):
    """One process on torch alone; most of its situations have tests of their own."""

    def control(self, model: Any, optimizer: Any, **settings: Any) -> Any:
        return rlbatch.BatchController(model, optimizer, **settings)


@pytest.mark.parametrize(
    "name",
    [
        "a_chained_schedule",
        "a_dataset_that_grows",
        "a_sum_that_grows",
        "gradients_left_over",
        "statistics_in_parts",
    ],
)
def test_one_process(name: str) -> None:
    getattr(situations, name)(Alone())


def test_passes_of_the_users_own_are_not_smaller_for_accumulating() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    config = make_config(None, {})
    with situations.silence():
        assert in_users_parts(config, model, 8, accumulates=False) == config
        own = in_users_parts(config, model, 8, accumulates=True)
        assert own.limits.micro_batch_size == 8
        assert in_users_parts(own, model, 8, accumulates=True) == own
    with pytest.warns(RuntimeWarning, match="batch normalisation then goes over 4"):
        in_users_parts(config.in_parts_of(4), model, 8, accumulates=True)


class OnRanks(Host):
    """Two processes with gloo."""

    world_size = RANKS

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def prepare(self, model: nn.Module, make: Callable[[Any], Any]) -> tuple[Any, Any]:
        if self.kind == "ddp":
            model = DistributedDataParallel(model)
        else:
            fully_shard(model)
        return model, make(model)

    def control(self, model: Any, optimizer: Any, **settings: Any) -> Any:
        return rlbatch.BatchController(model, optimizer, **settings)

    def source(self, data: Any, batch_size: int, sampler: Any = None) -> DataLoader[Any]:
        sampler = DistributedSampler(data, shuffle=False) if sampler is None else sampler
        return DataLoader(data, batch_size // RANKS, sampler=sampler)

    def gather(self, values: Any) -> list[Any]:
        found: list[Any] = [None] * RANKS
        torch.distributed.all_gather_object(found, values)
        return found

    def whole(self, tensor: Any) -> Tensor:
        return whole(tensor)


def on_ranks(rank: int, folder: str, kind: str) -> None:
    meet(rank, RANKS, Path(folder))
    host = OnRanks(kind)
    found = failures(host)
    if kind == "ddp":
        found |= failures(host, (the_plain_loop,))
    torch.save(found, Path(folder) / f"{rank}.pt")
    leave()


def the_plain_loop(host: Host) -> None:
    """DistributedDataParallel and DistributedSampler alone, where ranks have equal parts."""
    run = Run(host, samples=80).train(epochs=2)
    model = DistributedDataParallel(network())
    optimizer, rows = sgd(model), Rows(80)
    loader = DataLoader(rows, 4, sampler=DistributedSampler(rows, shuffle=False))
    for _ in range(2):
        for batch in loader:
            plain_mean(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert error(run.weights, torch.cat([whole(p) for p in model.parameters()])) < 1e-12


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_ranks_are_in_no_situation_worse_than_one_process(tmp_path: Path, kind: str) -> None:
    spawn(on_ranks, (str(tmp_path), kind), nprocs=RANKS)
    for rank in range(RANKS):
        found: dict[str, str] = torch.load(tmp_path / f"{rank}.pt")
        assert not found, "\n".join(found.values())
