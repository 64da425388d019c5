"""The situations of one process, shared by two ranks under DistributedDataParallel and FSDP2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rlbatch
from rlbatch.errors import DeliveryError
from rlbatch.testing import ScriptedPolicy
from tests.contract.programs import BASE, Rows, error, flat, gradient_of_all, network
from tests.contract.test_divided_losses import (
    class_weights,
    masked_mean,
    tokens_that_count,
    weight_of_classes,
)
from tests.rlbatch.control.rank_runs import leave, meet, spawn, whole

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
RANKS = 2
PROGRAMS: dict[str, tuple[Any, Any]] = {
    "classes": (class_weights, weight_of_classes),
    "tokens": (masked_mean, tokens_that_count),
}


def finite_tokens(model: nn.Module, batch: Any) -> Tensor:
    """As with a mask, and 0 where there is nothing to learn: sharded ranks must all be finite."""
    if not int(tokens_that_count(batch)):
        return model(batch[1]).sum() * 0.0
    return masked_mean(model, batch)


def gather(values: list[int]) -> list[int]:
    rows: list[Any] = [None] * RANKS
    torch.distributed.all_gather_object(rows, values)
    return [index for row in rows for index in row]


def weighted(rank: int, folder: str, kind: str) -> None:
    """Compare each step's gradient with that of all ranks' samples, in one process."""
    meet(rank, RANKS, Path(folder))
    errors = {
        (name, limit): largest(rank, kind, name, limit) for name in PROGRAMS for limit in (None, 3)
    }
    torch.save(errors, Path(folder) / f"{rank}.pt")
    leave()


def largest(rank: int, kind: str, name: str, limit: int | None) -> float:
    """Return a program's largest relative error of a step's gradient."""
    loss, weight = PROGRAMS[name]
    if kind == "fsdp" and name == "tokens":
        loss = finite_tokens
    reference, rows = network(), Rows()
    model: nn.Module = network()
    if kind == "ddp":
        model = DistributedDataParallel(model)
    else:
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    controller = rlbatch.BatchController(
        model, optimizer, batch_size=BASE, policy=ScriptedPolicy((2.0,)), cost="samples",
        micro_batch_size=limit, lr_coupling="none",
    )  # fmt: skip
    sampler = DistributedSampler(rows, RANKS, rank)
    loader = controller.loader(DataLoader(rows, BASE // RANKS, sampler=sampler))
    errors: list[float] = []
    step: list[int] = []
    for _ in range(2):
        for batch in loader:
            step += batch[0].tolist()
            controller.backward(loss(model, batch), weight=weight(batch))
            if controller.batch_complete:
                found = torch.cat([whole(p.grad) for p in model.parameters()])
                everything = rows.batch(gather(step))
                if int(tokens_that_count(everything)) or name == "classes":
                    errors.append(error(found, gradient_of_all(reference, loss, everything)))
            if controller.step():
                step = []
    assert len(errors) > 5
    return max(errors)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_weights_are_those_of_all_ranks_together(tmp_path: Path, kind: str) -> None:
    spawn(weighted, (str(tmp_path), kind), nprocs=RANKS)
    for rank in range(RANKS):
        errors: dict[Any, float] = torch.load(tmp_path / f"{rank}.pt")
        assert len(errors) == 4
        assert max(errors.values()) < 1e-12


def touched(rank: int, folder: str) -> None:
    meet(rank, RANKS, Path(folder))
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    controller = rlbatch.BatchController(
        model, optimizer, batch_size=BASE, policy="fixed", micro_batch_size=2
    )
    rows = Rows()
    loader = controller.loader(DataLoader(rows, BASE // RANKS, sampler=DistributedSampler(rows)))

    def program() -> None:
        for batch in loader:
            optimizer.zero_grad()
            controller.backward(class_weights(model, batch))
            controller.step()

    with pytest.raises(DeliveryError, match="vanished"):
        program()
    leave()


def test_a_gradient_that_vanished_between_parts_is_noticed_on_every_rank(tmp_path: Path) -> None:
    spawn(touched, (str(tmp_path),), nprocs=RANKS)


def normalised(rank: int, folder: str) -> None:
    """35 samples at 16 a rank: batch normalisation, a bad batch that all leave out, a schedule."""
    meet(rank, RANKS, Path(folder))
    torch.manual_seed(0)
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    controller = rlbatch.BatchController(model, optimizer, batch_size=32, policy="fixed")
    data = TensorDataset(torch.randn(35, 3), torch.arange(35))
    loader = controller.loader(DataLoader(data, 16, sampler=DistributedSampler(data)))
    schedule = controller.schedule(scheduler)
    seen: list[list[int]] = []
    for epoch in range(3):
        for x, rows in loader:
            seen.append(rows.tolist())
            if epoch == 1:
                controller.skip()
                continue
            controller.backward(model(x).square().mean())
            controller.step()
            schedule.step()
    weights = flat(list(model.parameters()))
    torch.save((seen, weights, scheduler.last_epoch, controller.steps), Path(folder) / f"{rank}.pt")
    leave()


def test_no_rank_is_left_with_a_single_sample_and_all_leave_out_together(tmp_path: Path) -> None:
    spawn(normalised, (str(tmp_path),), nprocs=RANKS)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for epoch in range(3):
        assert sorted(found[0][0][epoch] + found[1][0][epoch]) == list(range(35))
    assert min(len(part) for seen, *_ in found for part in seen) > 1
    assert torch.equal(found[0][1], found[1][1])
    assert [row[2:] for row in found] == [(4, 2)] * RANKS  # two plain steps in each epoch trained
