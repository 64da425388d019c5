"""Trainings of models that `fully_shard` has divided among real processes, against one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlbatch.signals.cadence import is_measured
from rlbatch.signals.noise_scale import estimate
from tests.rlbatch.control.rank_runs import (
    BASE,
    Job,
    Window,
    decisions_of,
    flat,
    launch,
    losses,
    make_optimizer,
    network,
    results_of,
    rows,
    steps_of,
    train,
    whole_order,
)

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

NOISE_RATE = 3.0
SHORT_CHUNKS: dict[str, Any] = {"lr_coupling": "none", "min_chunk_steps": 2, "max_chunk_steps": 3}


def run(job: Job, world_size: int) -> list[dict[str, Any]]:
    assert launch(train, world_size, job) == [0] * world_size
    return results_of(job, world_size)


@dataclass
class Twin:
    """One process that trains the same batches and measures their gradient noise itself."""

    job: Job
    world_size: int

    def __post_init__(self) -> None:
        self.model = network()
        self.optimizer = make_optimizer(self.job.optimizer, self.model)
        self.x, self.y = rows()
        self.parameters = list(self.model.parameters())

    def gradient(self, indices: list[int]) -> Tensor:
        loss = losses(self.model(self.x[indices]), self.y[indices])
        parts = torch.autograd.grad(loss, self.parameters)
        return torch.cat([part.reshape(-1) for part in parts])

    def scales(self) -> Tensor | None:
        """Weights of the elements of a gradient by AdamW's second moment; None: none yet."""
        if self.job.optimizer == "sgd":
            return torch.ones_like(flat(self.model))
        states = [self.optimizer.state[p] for p in self.parameters]
        if not states[0] or states[0]["step"] < 2:
            return None
        beta, eps = 0.999, 1e-8
        return torch.cat(
            [
                1.0 / ((s["exp_avg_sq"] / (1 - beta ** s["step"])).sqrt() + eps).reshape(-1)
                for s in states
            ]
        )

    def noise(self, step: int, batch: Window) -> tuple[float, float] | None:
        """Return the estimates of |G|^2 and tr(Sigma) of one batch, if it was measured."""
        weights, samples = self.scales(), len(batch.rows)
        count = len(batch.parts[0])
        whole = self.job.kind == "ddp" and is_measured(step, NOISE_RATE)
        if (count == 1 and not whole) or weights is None:
            return None

        def squared(indices: list[int]) -> float:
            return float((self.gradient(indices).square() * weights).sum())

        if self.job.kind == "fsdp":  # all halves, each of all ranks
            parts = batch.micro_batches
            small = sum(len(part) / samples * squared(part) for part in parts)
            size = samples / count
        elif count == 1:  # each rank's share
            shares = [list(own[0]) for own in batch.parts]
            small = sum(len(share) / samples * squared(share) for share in shares)
            size = samples / self.world_size
        else:  # each rank's first micro-batch
            firsts = [list(own[0]) for own in batch.parts]
            small = sum(map(squared, firsts)) / self.world_size
            size = len(firsts[0])
            assert {len(first) for first in firsts} == {size}
        signal, trace = estimate(small, squared(batch.rows), size, samples)
        return float(signal), float(trace)

    def step(self, batch: Window) -> None:
        self.optimizer.zero_grad()
        losses(self.model(self.x[batch.rows]), self.y[batch.rows]).backward()
        if self.job.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.job.clip_norm)
        self.optimizer.step()

    def train(self, batches: list[Window]) -> Iterator[tuple[float, float] | None]:
        for step, batch in enumerate(batches):
            yield self.noise(step, batch)
            self.step(batch)


def check_like_one_process(job: Job, world_size: int, measured_chunks: int = 6) -> None:
    results = run(job, world_size)
    batches = steps_of(job, world_size)
    for other in results[1:]:
        assert torch.equal(other["weights"], results[0]["weights"])
        assert other["last"] == results[0]["last"]
    for epoch, order in enumerate(whole_order(job.epochs)):
        assert [row for w in batches if w.epoch == epoch for row in w.rows] == order
    assert len({len(batch.rows) for batch in batches}) > 5
    twin = Twin(job, world_size)
    measured = list(twin.train(batches))
    torch.testing.assert_close(results[0]["weights"], flat(twin.model), rtol=1e-8, atol=1e-11)
    before, compared = 0, 0
    for record in decisions_of(job):
        chunk = [pair for pair in measured[before : record.step] if pair is not None]
        before = record.step
        found = record.signals["grad_sqr"], record.signals["noise_trace"]
        if chunk:
            expected = [sum(values) / len(chunk) for values in zip(*chunk, strict=True)]
            assert found == pytest.approx(expected, rel=1e-6)
            compared += 1
        else:
            assert np.isnan(found).all()
    assert compared >= measured_chunks


@pytest.mark.parametrize(
    ("world_size", "kind", "optimizer", "micro_batch_size"),
    [
        (2, "fsdp", "sgd", 4),
        (2, "fsdp", "adamw", 3),
        (4, "fsdp", "adamw", 2),
        (2, "ddp", "sgd", None),
        (4, "ddp", "adamw", None),
        (2, "ddp", "adamw", 5),
    ],
)
def test_steps_and_noise_are_those_of_one_process(
    tmp_path: Path, world_size: int, kind: str, optimizer: str, micro_batch_size: int | None
) -> None:
    settings = SHORT_CHUNKS | {"micro_batch_size": micro_batch_size, "noise_rate": NOISE_RATE}
    job = Job(tmp_path, kind, optimizer, settings=tuple(settings.items()), clip_norm=0.5)
    check_like_one_process(job, world_size)


def test_ranks_with_shards_find_out_together_what_fits(tmp_path: Path) -> None:
    largest: list[int] = []
    for name, limit in (("free", 10**9), ("limited", 2_500)):
        settings = SHORT_CHUNKS | {"micro_batch_size": "auto", "memory_limit": limit}
        changes = (0.0, 1.0, 1.0, 0.5, -1.5, 0.2, -0.5, 1.0)
        job = Job(tmp_path / name, changes=changes * 4, settings=tuple(settings.items()), epochs=9)
        job.folder.mkdir()
        rate = ("noise_rate", NOISE_RATE)
        least = 0 if name == "free" else 6  # of shards that are not divided nothing is known
        check_like_one_process(replace(job, settings=(*job.settings, rate)), 2, least)
        parts = [len(part) for w in steps_of(job, 2) for own in w.parts for part in own]
        largest.append(max(parts))
    free, limited = largest
    assert free > 2 * limited
    assert limited > BASE // 2  # the user's own share, with which the ranks begin


def test_a_grad_scaler_changes_nothing(tmp_path: Path) -> None:
    settings = SHORT_CHUNKS | {"noise_rate": NOISE_RATE, "micro_batch_size": 3}
    job = Job(tmp_path, settings=tuple(settings.items()), clip_norm=0.5, scaler=True)
    check_like_one_process(job, 2)


@pytest.mark.parametrize(
    ("kind", "validates", "clocks"),
    [("fsdp", True, False), ("fsdp", False, True), ("ddp", False, True)],
)
def test_a_rolled_back_chunk_leaves_no_trace(
    tmp_path: Path, kind: str, validates: bool, clocks: bool
) -> None:
    settings = SHORT_CHUNKS | {"min_chunk_steps": 3, "first_chunk_steps": 3}
    job = Job(
        tmp_path,
        kind,
        "adamw",
        settings=tuple(settings.items()),
        validates=validates,
        clocks=clocks,
        spoilt=(13, 19),
        epochs=8,
    )
    results = run(job, 2)
    steps = [0, *(record.step for record in decisions_of(job))]
    undone = [i for i, record in enumerate(decisions_of(job)) if record.event == "rollback"]
    assert len(undone) == 2
    for result in results:
        for index in undone:
            for what in ("after", "state"):
                values = result[what]
                assert torch.equal(values[steps[index]], values[steps[index + 1]])
                assert not torch.equal(values[steps[index]], values[steps[index + 1] - 1])
        assert torch.equal(result["weights"], results[0]["weights"])
        assert result["weights"].isfinite().all()
