"""The reward: sums that telescope, and the same for a real episode as for a simulated one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlbatch.envs.episode import LiveEpisode
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.reward import planned_reward, ratio_reward
from rlbatch.envs.simulator.episodes import QuadraticEpisodes
from rlbatch.envs.simulator.pool import make_pool


class CostedRun:
    """A live run that costs, and ends, as it is said."""

    def __init__(self, cost: float) -> None:
        self.cost, self.reached, self.exhausted, self.diverged = cost, False, False, False
        self.ahead: tuple[float, bool, bool, bool] = (cost, False, False, False)

    @property
    def finished(self) -> bool:
        return self.reached or self.exhausted or self.diverged

    def sizes_after(self, change: float) -> float:
        return 1.0 + change

    def advance(self, size: int) -> None:
        del size
        self.cost, self.reached, self.exhausted, self.diverged = self.ahead


def live_episode(reference: float, cost: float) -> Any:
    episode = object.__new__(LiveEpisode)
    episode.setting = SimpleNamespace(reference_cost=reference)  # pyright: ignore[reportAttributeAccessIssue]
    episode.run = CostedRun(cost)  # pyright: ignore[reportAttributeAccessIssue]
    return episode


def test_a_live_episode_is_rewarded_as_a_simulated_one_of_equal_costs() -> None:
    pool = make_pool(60, seed=5)
    rng = np.random.default_rng(2)
    episodes = QuadraticEpisodes(pool, len(pool), rng)
    episodes.begin(np.arange(len(pool)), np.arange(len(pool)))
    first = episodes.step(None)
    episodes.runs.tasks.catapult[:8] = 1e-6  # every step is fatal to these
    costs, reference = episodes.runs.cost.copy(), pool.reference_cost
    live = [live_episode(float(r), float(c)) for r, c in zip(reference, costs, strict=True)]
    over, ends = first.ended.copy(), {"reached": 0, "diverged": 0, "exhausted": 0}
    for _ in range(300):
        moved = episodes.step(rng.choice([-2.0, 0.0, 1.0, 2.0], size=len(pool)))
        for i in np.flatnonzero(~over):
            reached = bool(moved.reached[i])
            diverged = bool(moved.ended[i] and episodes.runs.diverged[i])
            exhausted = bool(moved.ended[i] and not reached and not diverged)
            spent = moved.ratio[i] * reference[i] if reached else episodes.runs.cost[i]
            live[i].run.ahead = (float(spent), reached, exhausted, diverged)
            step = live[i].step(0.0)
            assert step.reward == pytest.approx(moved.reward[i], rel=1e-9, abs=1e-12)
            assert (step.terminated or step.truncated) == moved.ended[i]
            for name, happened in zip(ends, (reached, diverged, exhausted), strict=True):
                ends[name] += happened
        over |= moved.ended
        if over.all():
            break
    assert over.all()
    assert min(ends.values()) > 0, ends


def test_rewards_of_a_ratio_add_up_to_what_its_end_counts() -> None:
    rng = np.random.default_rng(0)
    ratios = np.cumsum(rng.uniform(0.0, 0.4, (20, 50)), axis=0)
    total = ratio_reward(ratios[:-1], ratios[1:]).sum(axis=0)

    def counted(ratio: np.ndarray) -> np.ndarray:
        return np.where(ratio <= 1.0, ratio, 1.0 + np.log(ratio))

    np.testing.assert_allclose(total, counted(ratios[0]) - counted(ratios[-1]))
    lost = ratio_reward(np.full(3, 0.5), np.array([0.6, 2.0, 9.0]), lost=np.full(3, True))
    np.testing.assert_allclose(lost, 0.5 - (1.0 + math.log(UNREACHED_RATIO)))


def test_a_planned_run_pays_for_its_cost_and_at_the_end_for_its_loss() -> None:
    assert planned_reward(0.25, 0.5, 1.0) == pytest.approx(-0.25)
    worse, better = planned_reward(0.5, 0.5, math.exp(0.01)), planned_reward(0.5, 0.5, 0.99)
    assert worse == pytest.approx(-0.08)
    assert better == pytest.approx(-4.0 * math.log(0.99))
    assert planned_reward(0.5, 0.5, math.inf) == pytest.approx(-8.0 * math.log(2.0))
