"""The plain loop, DistributedDataParallel and FSDP2 under the contract of all loops."""

from __future__ import annotations

import functools
import io
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.utils.data import DataLoader, DistributedSampler

from rlbatch import BatchController
from rlbatch.testing.actuator_contract import Job, LoopContract, Step
from rlbatch.testing.training_job import make_job
from tests.rlbatch.control.rank_runs import leave, meet, spawn

WORLD = 2


class Loop:
    """A user's loop on one rank, that can be saved after a step and made anew."""

    def __init__(self, kind: str, job: Job, rank: int = 0) -> None:
        self.job, self.kind = job, kind
        self.model: Any = job.model
        world = 1 if kind == "plain" else WORLD
        if kind == "ddp":
            self.model = DistributedDataParallel(job.model)
        elif kind == "fsdp":
            fully_shard(job.model)
        self.optimizer = SGD(self.model.parameters(), lr=job.learning_rate)
        self.sampler = None
        if world > 1:
            self.sampler = DistributedSampler(job.dataset, world, rank, seed=5)
        size = job.batch_size // world
        self.plain = DataLoader(
            job.dataset, size, shuffle=self.sampler is None, sampler=self.sampler
        )
        self.steps: list[Step] = []

    def parameters(self) -> list[Tensor]:
        return [
            getattr(p, "full_tensor", lambda p=p: p)().detach().clone()
            for p in self.job.model.parameters()
        ]

    def uncontrolled(self) -> list[list[Tensor]]:
        found: list[list[Tensor]] = []
        for epoch in range(self.job.epochs):
            if self.sampler is not None:
                self.sampler.set_epoch(epoch)
            for x, y, _ in self.plain:
                nn.functional.mse_loss(self.model(x), y).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                found.append(self.parameters())
        return found

    def control(self) -> Loop:
        self.controller = BatchController(
            self.model,
            self.optimizer,
            batch_size=self.job.batch_size,
            policy=self.job.policy,
            **self.job.settings,
        )
        self.loader = self.controller.loader(self.plain)
        return self

    def train(self, steps: int = 10**9) -> list[Step]:
        controller = self.controller
        while (epoch := self.loader.epoch) < self.job.epochs:
            self.loader.set_epoch(epoch)
            size, parts = controller.batch_size, []
            for x, y, index in self.loader:
                parts.append(index.tolist())
                controller.backward(nn.functional.mse_loss(self.model(x), y))
                if not controller.step():
                    continue
                seen = controller.samples_seen
                self.steps.append(Step(size, epoch, parts, self.parameters(), seen))
                size, parts = controller.batch_size, []
                if len(self.steps) == steps:
                    return self.steps
        return self.steps

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        if self.kind == "fsdp":
            model, optimizer = get_state_dict(self.model, self.optimizer)
        else:
            model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        torch.save([model, optimizer, self.controller.state_dict()], file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        model, optimizer, state = torch.load(file, weights_only=self.kind != "fsdp")
        if self.kind == "fsdp":
            set_state_dict(
                self.model,
                self.optimizer,
                model_state_dict=model,
                optim_state_dict=cast("Any", optimizer),
            )
        else:
            self.model.load_state_dict(model)
            self.optimizer.load_state_dict(optimizer)
        self.controller.load_state_dict(state)


def resumed(kind: str, job: Job, again: Job, after: int, rank: int = 0) -> list[Step]:
    first = Loop(kind, job, rank).control()
    steps = list(first.train(after))
    file = first.save()
    torch.manual_seed(99)
    second = Loop(kind, again, rank).control()
    second.load(file)
    return steps + second.train()


class TestPlain(LoopContract):
    def train(self, job: Job) -> list[Step]:
        return Loop("plain", job).control().train()

    def plain(self, job: Job) -> list[list[Tensor]]:
        return Loop("plain", job).uncontrolled()

    def resume(self, job: Job, after: int) -> list[Step]:
        return resumed("plain", job, self.job(0), after)


# -- several ranks: all runs of a kind in one pair of processes --

SIZE = 54


def ranked(seed: int | None, **changes: Any) -> Job:
    return replace(make_job(seed, SIZE, multiple=WORLD), **changes)


def run_all(rank: int, kind: str, folder: str) -> None:
    """Make every run that the contract asks for; each rank saves what it saw."""
    meet(rank, WORLD, Path(folder))
    found: dict[Any, Any] = {}
    for seed in (None, 0, 1, 2):
        found[seed] = Loop(kind, ranked(seed), rank).control().train()
    fixed = ranked(None, fixed=True, micro_batch_size=8)
    found["fixed"] = Loop(kind, fixed, rank).control().train()
    found["plain"] = Loop(kind, ranked(None), rank).uncontrolled()
    for after in (1, 6):
        found["resumed", after] = resumed(kind, ranked(0), ranked(0), after, rank)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    leave()


@functools.lru_cache
def all_runs(kind: str) -> dict[Any, Any]:
    """Return the runs of a kind, with what all ranks saw in each step."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        spawn(run_all, (kind, folder), nprocs=WORLD)
        ranks = [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(WORLD)]
    found = {"plain": ranks[0]["plain"]}
    for name in ranks[0]:
        if name != "plain":
            both = zip(ranks[0][name], ranks[1][name], strict=True)
            found[name] = [together(a, b) for a, b in both]
    return found


def together(a: Step, b: Step) -> Step:
    """Return a step of all ranks, which have to agree on it."""
    assert (a.batch_size, a.epoch, a.samples_seen) == (b.batch_size, b.epoch, b.samples_seen)
    assert len(a.micro_batches) == len(b.micro_batches)
    assert all(map(torch.equal, a.parameters, b.parameters))
    return replace(a, micro_batches=a.micro_batches + b.micro_batches)


class Ranked(LoopContract):
    kind = ""
    size, multiple = SIZE, WORLD
    bit_for_bit = False  # a DistributedSampler deals out samples one by one

    def train(self, job: Job) -> list[Step]:
        return all_runs(self.kind)["fixed" if job.fixed else job.seed]

    def plain(self, job: Job) -> list[list[Tensor]]:
        return all_runs(self.kind)["plain"]

    def resume(self, job: Job, after: int) -> list[Step]:
        return all_runs(self.kind)["resumed", after]


@pytest.mark.slow
class TestDistributedDataParallel(Ranked):
    kind = "ddp"


@pytest.mark.slow
class TestFsdp2(Ranked):
    kind = "fsdp"
