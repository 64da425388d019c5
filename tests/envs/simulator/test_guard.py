"""The simulator's guard does what the guard of a live run does, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import Optimizer

from rlbatch.control.guard import ChunkLoss, GuardConfig, GuardState, judge
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.profiles import CostWeights
from rlbatch.envs.simulator import runs
from rlbatch.envs.simulator.arrays import Array
from rlbatch.envs.simulator.guard import ChunkLosses, initial_states, judge_all
from rlbatch.envs.simulator.runs import QuadraticRuns
from rlbatch.envs.simulator.tasks import draw_tasks
from rlbatch.envs.task import resolve_task
from rlbatch.signals.monitor import ChunkMeasurement
from rlbatch.signals.record import Coupling

UNKNOWN = ("grad_sqr", "grad_sqr_se", "noise_trace", "noise_trace_se", "gradient_cosine")
CONFIGS = (GuardConfig(), GuardConfig(1.5, 0.0, 1), GuardConfig(6.0, 1.0, 9))


def random_chunks(
    chunks: int, runs: int, rng: np.random.Generator, jumps: float = 0.25
) -> list[ChunkLosses]:
    """Losses that wander, jump, stay, and now and then are not finite."""
    level = 2.0 ** rng.uniform(-3, 3, runs)
    drawn = []
    for _ in range(chunks):
        level = level * np.exp(rng.normal(-0.1, 0.3, runs))
        jump = rng.random(runs) < jumps
        exploded = rng.random(runs) < 0.4 * jumps
        mean = np.where(jump, level * 2.0 ** rng.uniform(0, 6, runs), level)
        mean = np.where(rng.random(runs) < 0.02, -mean, mean)
        drawn.append(
            ChunkLosses(
                batch_size=np.round(2.0 ** rng.uniform(0, 12, runs)),
                steps=rng.integers(1, 30, runs).astype(float),
                mean=np.where(exploded & (rng.random(runs) < 0.5), np.nan, mean),
                std=mean * rng.uniform(0, 2, runs),
                exploded=exploded,
                changed=rng.random(runs) < 0.5,
            )
        )
    return drawn


@pytest.mark.parametrize("config", CONFIGS)
def test_the_rule_for_many_runs_is_the_rule_for_one(config: GuardConfig) -> None:
    runs = 200
    alone, together = [GuardState()] * runs, initial_states(runs)
    undone = given_up = 0
    for chunk in random_chunks(60, runs, np.random.default_rng(3)):
        damaged, together = judge_all(together, config, chunk)
        for i in range(runs):
            loss = ChunkLoss(
                int(chunk.batch_size[i]),
                int(chunk.steps[i]),
                float(chunk.mean[i]),
                float(chunk.std[i]),
                int(chunk.exploded[i]),
                changed=bool(chunk.changed[i]),
            )
            expected, alone[i] = judge(alone[i], config, loss)
            assert damaged[i] == expected
            np.testing.assert_allclose(together[i].tolist(), astuple(alone[i]), rtol=1e-12)
        undone, given_up = undone + damaged.sum(), given_up + together["diverged"].sum()
    assert undone > 500
    assert given_up > 50


class ScriptedBackend:
    """Trains nothing; its losses come from a script."""

    def __init__(self, script: list[tuple[float, float, bool]]) -> None:
        self.optimizer: Optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        self._script, self._steps = iter(script), 0

    def chunk(self) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self, indices: Sequence[int], measured: bool, applied: Any) -> None:
        del indices, measured, applied
        self._steps += 1

    def finish(self) -> ChunkMeasurement:
        mean, std, exploded = next(self._script)
        steps, self._steps = self._steps, 0
        return ChunkMeasurement(
            steps=steps,
            train_loss=mean,
            train_loss_std=std,
            **dict.fromkeys(UNKNOWN, math.nan),
            nonfinite_losses=exploded,
            nonfinite_steps=exploded,
        )

    def remember(self) -> None:
        pass

    def restore(self) -> None:
        pass

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def validation_loss(self) -> float:
        return 1.0


def scripted_backend(script: list[tuple[float, float, bool]], *_: Any) -> ScriptedBackend:
    return ScriptedBackend(script)


class ScriptedRuns(QuadraticRuns):
    """Simulated runs whose losses are given."""

    script: ChunkLosses


def scripted_losses(
    runs: ScriptedRuns, batch_size: Array, steps: Array, *others: Array
) -> ChunkLosses:
    del others
    changed = batch_size != runs.batch_size
    return replace(runs.script, batch_size=batch_size, steps=steps, changed=changed)


def test_simulated_runs_are_undone_released_and_lost_when_live_ones_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Equal losses and decisions: the same sizes in force, and the same ends."""
    monkeypatch.setattr(runs, "training_losses", scripted_losses)
    count, chunks = 40, 40
    task, rng = resolve_task("teacher-student"), np.random.default_rng(0)
    low, base, high = 1.0, float(task.batch_size), 512.0
    tasks = draw_tasks(count, rng)
    limits = {"min_batch_size": low, "base_batch_size": base, "max_batch_size": high}
    tasks = replace(tasks, **{name: np.full(count, value) for name, value in limits.items()})
    tasks = replace(
        tasks,
        start_batch_size=np.full(count, 2 * base),
        chunk_minimum=np.full(count, 4.0),
        chunk_growth=np.full(count, 0.0),
    )
    script = random_chunks(chunks, count, rng, jumps=0.6)
    sizes = np.round(base * 2.0 ** rng.integers(-1, 2, (chunks, count)))
    sizes[0] = 2 * base
    simulated = ScriptedRuns(tasks, rng)
    rows = [list(zip(c.mean, c.std, c.exploded, strict=True)) for c in script]
    live = [
        LiveRun(
            task,
            seed=0,
            coupling=Coupling.NONE,
            profile=None,
            objective=Objective(budget=1e12, weights=CostWeights(0.0, 1.0, 0.0)),
            start_batch_size=2 * int(base),
            max_batch_size=int(high),
            cadence=Cadence(growth=0.0),
            noise_rate=0.0,
            backend=partial(scripted_backend, [row[i] for row in rows]),
        )
        for i in range(count)
    ]
    undone = 0
    for chunk in range(chunks):
        simulated.script = script[chunk]
        over = simulated.diverged.copy()
        outcome = simulated.advance(sizes[chunk])
        for i, run in enumerate(live):
            if run.finished:
                assert over[i]
                simulated.diverged[i] = True  # a run that is lost is not advanced any more
                continue
            signals = run.advance(int(sizes[chunk, i]))
            assert signals.rolled_back == outcome.rolled_back[i]
            assert run.batch_size == simulated.batch_size[i]
            assert run.released == simulated.released[i]
            assert run.diverged == simulated.diverged[i]
            undone += signals.rolled_back
    assert undone > 50
    assert sum(run.released for run in live) > 10
    assert sum(run.diverged for run in live) > 5
