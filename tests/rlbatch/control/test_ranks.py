"""Trainings that several real processes share, against the plain loop of one."""

from __future__ import annotations

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import rlbatch
from rlbatch.control.rank_monitor import RankMonitor
from rlbatch.control.ranks import Ranks, WholeOrder
from rlbatch.errors import ConfigurationError
from rlbatch.log.episode_reader import read_episode
from tests.helpers import tanh_network
from tests.rlbatch.control.rank_runs import Measuring, leave, meet, spawn

ROWS, BASE, EPOCHS = 98, 16, 4  # neither is a multiple of the other: each epoch ends with a rest


def test_another_ranks_state_within_a_chunk_is_warned_of_and_ones_own_is_not() -> None:
    """The documented way to go on with rank 0's state on every rank."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = (RankMonitor(model.parameters(), optimizer, Ranks(i, 2)) for i in (0, 1))
    between = first.state_dict()
    for monitor, loss in ((first, 1.0), (second, 3.0)):
        monitor.begin_step([8], measured=False)
        monitor.after_backward(torch.tensor(loss))
    states = [monitor.state_dict() for monitor in (first, second)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rank, own in enumerate(states):
            monitor = RankMonitor(model.parameters(), optimizer, Ranks(rank, 2))
            monitor.load_state_dict(own)
            assert monitor.state_dict()["losses"] == [1.0 + 2.0 * rank]
        second.load_state_dict(between)  # between two chunks nothing is lost
    with pytest.warns(RuntimeWarning, match=r"rank 1 resumes .* state of rank 0.*first 1 steps"):
        second.load_state_dict(states[0])
    assert second.state_dict()["losses"] == [1.0]


class Rows(Dataset[tuple[Tensor, Tensor, int]]):
    """Inputs, values and the number of the row."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)
        self.y = self.x.sin().sum(dim=1, keepdim=True)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.x[index], self.y[index], index


def network() -> nn.Module:
    return tanh_network(5, 8, 1, seed=1).double()


def test_what_was_sent_outlives_its_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    # A thread of gloo that is the last to hold a tensor aborts a process that ends meanwhile.
    sent: list[weakref.ref[Tensor]] = []
    for collective in ("broadcast", "all_reduce"):
        monkeypatch.setattr(
            torch.distributed, collective, lambda shared, *_, **__: sent.append(weakref.ref(shared))
        )
    ranks = Ranks(0, 2)
    assert ranks.agree(3) == 3
    assert ranks.largest(1, 2) == (1, 2)
    assert ranks.mean(np.array([4.0])) == 2.0  # of two ranks, of which one sends nothing here
    gc.collect()
    assert len(sent) == 3
    assert all(reference() is not None for reference in sent)
    del ranks
    gc.collect()
    assert not any(reference() is not None for reference in sent)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def train(rank: int, world_size: int, folder: str, options: dict[str, Any]) -> None:
    """One rank's training: the loop of the README, with DDP around the model."""
    meet(rank, world_size, Path(folder))
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = Rows()
    kind = options.pop("kind")
    sampler = None
    if kind == "distributed":
        sampler = DistributedSampler(data, world_size, rank, seed=5)
    torch.manual_seed(100 + rank)  # a rank's own random numbers
    shares = DataLoader(data, BASE // world_size, shuffle=sampler is None or None, sampler=sampler)
    script = options.pop("script")
    controller = rlbatch.BatchController(
        model,
        optimizer,
        batch_size=BASE,
        policy="fixed" if script is None else Measuring(script),
        cost="samples",
        log_dir=Path(folder) / "log",
        **options,
    )
    loader = controller.loader(shares)
    losses = nn.MSELoss()
    seen: list[list[int]] = []
    sizes: list[int] = []
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        seen.append([])
        for x, y, rows in loader:
            seen[-1] += rows.tolist()
            controller.backward(losses(model(x), y))
            samples = controller.step()
            if samples:
                sizes.append(samples)
    controller.close()
    result = {"weights": flat(model), "seen": seen, "sizes": sizes, "last": controller.batch_size}
    torch.save(result, Path(folder) / f"{rank}.pt")
    leave()


def run(folder: Path, world_size: int, **options: Any) -> list[dict[str, Any]]:
    spawn(train, (world_size, str(folder), options), nprocs=world_size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def plain(order: list[list[int]], sizes: list[int]) -> Tensor:
    """Train one process on these samples, in batches of these sizes."""
    model, data, losses = network(), Rows(), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rest = iter(sizes)
    for epoch in order:
        start = 0
        while start < len(epoch):
            batch = epoch[start : start + next(rest)]
            start += len(batch)
            optimizer.zero_grad()
            losses(model(data.x[batch]), data.y[batch]).backward()
            optimizer.step()
    return flat(model)


def whole_order(seed: int) -> list[list[int]]:
    """What a DistributedSampler of this seed gives all ranks together, by torch's own code."""
    sampler = DistributedSampler(Rows(), num_replicas=1, rank=0, seed=seed)
    orders: list[list[int]] = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(2, None), (2, 3), (4, 2)])
def test_every_rank_trains_the_same_large_batches(
    tmp_path: Path, world_size: int, micro_batch_size: int | None
) -> None:
    script = (0.0, 1.0, 1.0, -2.0, 0.5, -1.0, 0.0, 1.0)
    results = run(
        tmp_path,
        world_size,
        kind="distributed",
        script=script,
        micro_batch_size=micro_batch_size,
        lr_coupling="none",
    )
    first = results[0]
    for other in results[1:]:
        assert torch.equal(other["weights"], first["weights"])
        assert (other["sizes"], other["last"]) == (first["sizes"], first["last"])
    for epoch in range(EPOCHS):
        together = sorted(row for result in results for row in result["seen"][epoch])
        assert together == list(range(ROWS))
    assert len(set(first["sizes"])) > 3
    expected = plain(whole_order(seed=5), first["sizes"])
    torch.testing.assert_close(first["weights"], expected, rtol=1e-9, atol=1e-12)
    decisions = [r for r in read_episode(tmp_path / "log").records if r.event == "decision"]
    assert len(decisions) >= 5
    assert any(r.signals["noise_trace"] is not None for r in decisions)


@pytest.mark.slow
@pytest.mark.distributed
def test_the_ranks_agree_on_an_order_that_nobody_seeded(tmp_path: Path) -> None:
    results = run(tmp_path, 2, kind="shuffled", script=None, lr_coupling="sqrt")
    for epoch in range(EPOCHS):
        together = sorted(row for result in results for row in result["seen"][epoch])
        assert together == list(range(ROWS))
    assert torch.equal(results[0]["weights"], results[1]["weights"])
    assert results[0]["seen"][0] != results[0]["seen"][1]


def test_one_process_is_alone() -> None:
    ranks = Ranks.of(network())
    assert (ranks.rank, ranks.world_size, ranks.is_main) == (0, 1, True)
    assert ranks.agree(7) == 7
    loader = DataLoader(Rows(), 4)
    assert ranks.share(loader) is loader


def test_the_whole_order_follows_the_epochs_of_its_part() -> None:
    part = DistributedSampler(Rows(), 2, 1, seed=5)
    order = WholeOrder(part)
    found: list[list[int]] = []
    for epoch in range(EPOCHS):
        part.set_epoch(epoch)
        found.append(list(order))
    assert found == whole_order(seed=5)


def _without_ddp(rank: int, folder: str) -> None:
    meet(rank, 2, Path(folder))
    with pytest.raises(ConfigurationError, match="DistributedDataParallel"):
        Ranks.of(network())
    leave()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_model_that_nobody_averages_is_refused(tmp_path: Path) -> None:
    spawn(_without_ddp, (str(tmp_path),), nprocs=2)
