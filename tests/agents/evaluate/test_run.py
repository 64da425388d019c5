from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlbatch.agents.evaluate import run as run_module
from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.run import controlled_run, start_size
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.profiles import CostWeights
from rlbatch.envs.task import Task
from rlbatch.errors import EpisodeLogError
from rlbatch.log.episode_log import read_episode
from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.policy.registry import resolve_policy
from rlbatch.policy.shadow import Shadow
from rlbatch.signals.record import Coupling, RunContext, Signals
from rlbatch.testing.generators import random_policy
from rlbatch.testing.scripted import ScriptedPolicy

CPU = resolve_clock("cpu")


def run(task: Task, policy: Policy, **changes: Any) -> run_module.RunResult:
    arguments: dict[str, Any] = {
        "seed": 0,
        "coupling": Coupling.SQRT,
        "profile": CPU.profile,
        "objective": Objective(task.target),
        "cadence": Cadence(first=4),  # chunks of four steps from the beginning
    }
    return controlled_run(task, policy, **{**arguments, **changes})


def test_staying_at_a_size_is_the_fixed_run(cheap_task: Task) -> None:
    curve = fixed_run_curve(cheap_task, 16, seed=0, coupling=Coupling.SQRT, target_loss=0.3)

    result = run(cheap_task, resolve_policy("fixed"), start_factor=2.0)

    assert result.reached
    assert [v.loss for v in result.validations] == list(curve.val_loss)
    assert [v.steps for v in result.validations] == list(curve.steps)
    assert result.cost == pytest.approx(float(CPU.run_cost(curve.steps[-1], 16, 50, 8)))
    assert (result.batch_size_min, result.batch_size_max, result.start_batch_size) == (16, 16, 16)
    assert result.final_val_loss == curve.val_loss[-1] <= 0.3


def test_decisions_are_applied_from_the_second_chunk_on_within_the_limits(cheap_task: Task) -> None:
    result = run(cheap_task, ScriptedPolicy((1.0, 9.0, -20.0)))

    assert [size for _, size in result.trajectory][:5] == [8, 16, 40, 1, 1]
    assert (result.batch_size_min, result.batch_size_max) == (1, 40)
    assert result.decisions == len(result.trajectory) - 1
    costs = [cost for cost, _ in result.trajectory]
    assert costs[0] == 0.0
    assert costs == sorted(costs)
    # 4 steps of a chunk; the 50 samples end in the second one: 8 8 8 8, 16 2 16 16, ...
    assert costs[1] == pytest.approx(float(CPU.run_cost(4, 8, 50, 8)))


@pytest.mark.parametrize(("factor", "size"), [(0.01, 1), (0.5, 4), (1.0, 8), (1.3, 10), (99, 40)])
def test_the_start_is_clipped_to_what_is_possible(
    cheap_task: Task, factor: float, size: int
) -> None:
    assert start_size(cheap_task, factor) == size


def test_equal_arguments_give_equal_runs(cheap_task: Task) -> None:
    first, second = (run(cheap_task, resolve_policy("goodput"), seed=4) for _ in range(2))

    assert first.trajectory == second.trajectory
    assert first.validations == second.validations
    assert first.trajectory != run(cheap_task, resolve_policy("goodput"), seed=5).trajectory


def test_a_run_is_given_up_between_chunks_beyond_the_largest_cost(hopeless_task: Task) -> None:
    result = run(hopeless_task, resolve_policy("fixed"), max_cost=0.1)

    assert not result.reached
    assert result.cost > 0.1 >= result.trajectory[-1][0]


def test_a_target_met_beyond_the_largest_cost_does_not_count(cheap_task: Task) -> None:
    full = run(cheap_task, resolve_policy("fixed"))

    late = run(cheap_task, resolve_policy("fixed"), max_cost=full.cost * 0.999)

    assert full.reached
    assert late.cost == full.cost
    assert not late.reached


def test_a_run_ends_after_its_largest_number_of_steps(hopeless_task: Task) -> None:
    assert run(hopeless_task, resolve_policy("fixed"), max_steps=33).steps == 33


def test_a_budget_run_ends_with_its_budget(cheap_task: Task) -> None:
    result = run(cheap_task, resolve_policy("fixed"), objective=Objective(None, 0.1))

    assert result.reached
    assert result.cost == pytest.approx(0.1, abs=2e-3)  # to within a step


@dataclass(frozen=True)
class Watching:
    """Stays, and keeps what it is shown."""

    seen: list[RunContext] = field(default_factory=list[RunContext])
    needs_gradient_noise = False

    def initial_state(self, shape: tuple[int, ...] = ()) -> tuple[()]:
        return ()

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        self.seen.append(signals.context)
        return Decision(0.0), state


def test_the_policy_does_not_see_the_largest_cost(cheap_task: Task) -> None:
    policy = Watching()
    run(cheap_task, policy, max_cost=1.0)

    assert policy.seen
    assert all(math.isnan(float(context.budget)) for context in policy.seen)


@pytest.mark.parametrize(
    ("profile", "weights", "per_decision"),
    [
        (None, CostWeights(), 1.0),  # the wall clock pays for deciding
        (None, CostWeights(seconds=0.0, samples=1.0), 0.0),
        (CPU.profile, CostWeights(), 0.0),
    ],
)
def test_seconds_of_deciding_are_part_of_the_cost_on_the_wall_clock_only(
    cheap_task: Task,
    monkeypatch: pytest.MonkeyPatch,
    profile: Any,
    weights: CostWeights,
    per_decision: float,
) -> None:
    ticks = itertools.count()  # one second a look: a decision takes exactly one
    fake = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(run_module, "time", fake)

    result = run(
        cheap_task,
        resolve_policy("fixed"),
        profile=profile,
        objective=Objective(0.3, None, weights),
        max_steps=40,
    )

    assert result.decisions > 3
    assert result.decision_seconds == result.decisions
    if per_decision:
        # Before the n-th chunk at least n - 1 decisions have been paid for; training is far less.
        paid = [math.floor(cost) for cost, _ in result.trajectory]
        assert paid == list(range(result.decisions + 1))
    elif profile is None:
        assert result.cost == result.samples
    else:
        assert result.cost == pytest.approx(float(CPU.run_cost(result.steps, 8, 50, 8)))


def test_the_log_holds_what_happened(cheap_task: Task, tmp_path: Path) -> None:
    result = run(
        cheap_task,
        ScriptedPolicy((1.0, 0.0, -1.0)),
        log_dir=tmp_path / "log",
        run_info={"policy": "script"},
    )

    episode = read_episode(tmp_path / "log")
    decisions = [record for record in episode.records if record.event == "decision"]
    assert episode.run["task"] == "cheap"
    assert episode.run["policy"] == "script"
    assert [8, *(record.batch_size for record in decisions)] == [s for _, s in result.trajectory]
    assert [record.cost for record in decisions] == [cost for cost, _ in result.trajectory][1:]
    assert decisions[0].requested_log2_change == decisions[0].applied_log2_change == 1.0
    assert decisions[0].learning_rate_factor == pytest.approx(math.sqrt(2))
    assert np.isfinite(decisions[0].signals["train_loss"])
    assert all(record.effective_step == record.step for record in decisions)
    end = episode.records[-1]
    assert end.event == "end"
    assert (end.step, end.samples_seen, end.cost) == (result.steps, result.samples, result.cost)
    assert end.reasons == ("target 0.3 reached",)


def test_a_log_is_not_overwritten(cheap_task: Task, tmp_path: Path) -> None:
    run(cheap_task, resolve_policy("fixed"), log_dir=tmp_path / "log")
    before = (tmp_path / "log" / "decisions.jsonl").read_bytes()

    with pytest.raises(EpisodeLogError, match="never overwritten"):
        run(cheap_task, resolve_policy("fixed"), log_dir=tmp_path / "log")
    assert (tmp_path / "log" / "decisions.jsonl").read_bytes() == before


def test_a_rollback_has_a_line_of_its_own(cheap_task: Task, tmp_path: Path) -> None:
    # Linear coupling: at 40 samples the learning rate is five times 0.25, which diverges.
    hot = replace(cheap_task, optimizer=lambda p: torch.optim.SGD(p, lr=0.25))
    result = run(
        replace(hot, target=0.01),
        ScriptedPolicy((9.0,)),
        coupling=Coupling.LINEAR,
        log_dir=tmp_path / "log",
        max_steps=60,
    )

    records = read_episode(tmp_path / "log").records
    undone = [index for index, record in enumerate(records) if record.event == "rollback"]
    assert undone
    first = records[undone[0]]
    assert (first.batch_size_before, first.batch_size) == (40, 8)
    after = records[undone[0] + 1]
    assert (after.event, after.batch_size_before) == ("decision", 8)
    assert [size for _, size in result.trajectory][:3] == [8, 40, 8]


def test_a_released_run_goes_on_at_the_tasks_size_without_decisions(
    cheap_task: Task, tmp_path: Path
) -> None:
    # Up again, once the chunk after each roll-back has shown that the size was to blame.
    hot = replace(cheap_task, optimizer=lambda p: torch.optim.SGD(p, lr=0.25))
    result = run(
        replace(hot, target=1e-3),
        ScriptedPolicy((9.0,) * 50),
        coupling=Coupling.LINEAR,
        log_dir=tmp_path / "log",
        max_steps=60,
    )

    records = read_episode(tmp_path / "log").records
    events = [record.event for record in records]
    off = events.index("off")
    assert events[off - 1] == "rollback"
    assert events[off:] == ["off", "end"]
    assert records[off].batch_size == cheap_task.batch_size
    sizes = [size for _, size in result.trajectory]
    asked = result.decisions
    assert asked == events.count("decision")
    assert 40 in sizes[:3]
    assert sizes[asked] == 40  # which releases it
    assert set(sizes[asked + 1 :]) == {8}
    assert len(sizes) > asked + 2
    held = [record for record in records if any("stays" in reason for reason in record.reasons)]
    assert held
    assert all(record.batch_size == 8 for record in held)
    assert not result.diverged


@pytest.mark.parametrize("shadowed", [False, True])
def test_the_log_says_which_actions_the_probabilities_are_of(
    shadowed: bool, cheap_task: Task, tmp_path: Path
) -> None:
    learned = random_policy(np.random.default_rng(0), action_grid=(-1.5, 0, 0.5, 2))
    run(cheap_task, Shadow(learned) if shadowed else learned, log_dir=tmp_path / "learned")
    run(cheap_task, resolve_policy("fixed"), log_dir=tmp_path / "rule")

    episode = read_episode(tmp_path / "learned")
    assert episode.run["action_grid"] == [-1.5, 0.0, 0.5, 2.0]
    chances = [r.probabilities for r in episode.records if r.event == "decision"]
    assert chances
    assert all(row is not None and len(row) == 4 for row in chances)
    assert read_episode(tmp_path / "rule").run["action_grid"] is None


@pytest.mark.parametrize("told", [True, False])
def test_a_policy_sees_the_costs_that_it_is_told(cheap_task: Task, told: bool) -> None:
    seen: list[float] = []

    class Watching:
        needs_gradient_noise = False

        def initial_state(self, shape: tuple[int, ...] = ()) -> tuple[()]:
            return ()

        def decide(
            self, observation: Observation, signals: Signals, state: Any
        ) -> tuple[Decision, Any]:
            seen.append(float(signals.step_cost_known))
            return Decision(0.0), state

    run(cheap_task, Watching(), curve_known=told)

    assert (min(seen) == 1.0) == told
