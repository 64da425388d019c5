"""Which real run an episode trains: one fixed setting, or a random one with a stored reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlbatch.envs.curves import CurveTable
from rlbatch.envs.objectives import Cadence
from rlbatch.envs.profiles import CostWeights, DeviceProfile, resolve_profile
from rlbatch.envs.setting_draws import (
    draw_cadence,
    draw_mix,
    draw_profile,
    draw_rate,
    draw_target,
    start_size,
    user_shift,
    with_watts,
)
from rlbatch.envs.task import Task, resolve_task
from rlbatch.envs.tasks.random_job import KINDS
from rlbatch.errors import ConfigurationError
from rlbatch.signals.cadence import NOISE_RATE
from rlbatch.signals.record import Coupling

_FULL = resolve_profile("cpu")
_MOST_DRAWS = 10_000  # a table in which one draw in a thousand is of use is still one


@dataclass(frozen=True)
class EpisodeSetting:
    """Everything that defines one episode of real training.

    Attributes:
        task: A task, its name, or `file.py:function`.
        seed: Of the run.
        coupling: How the learning rate follows the batch size.
        profile: Whose clock counts; None for the wall clock.
        target_loss: Validation loss that ends the run.
        start_batch_size: First batch size.
        reference_cost: What costs are divided by in the reward.
        learning_rate_scale: Multiplies the task's learning rate.
        weights: What counts as cost.
        cadence: Spacing of decisions and validations.
        planned_steps: Steps at the task's batch size for which the run, and its schedule if it has
            one, were planned; None for no plan.
        fixed_costs: Cost of reaching the target at each fixed batch size, where that is known.
        curve_known: What a step costs at every size is known from the start.
        plan_known: The policy is told `planned_steps`.
        noise_rate: See `rlbatch.signals.cadence.is_measured`; 0 for a policy that wants none.
        guard: Damaged chunks are rolled back.
    """

    task: str | Task
    seed: int
    coupling: Coupling
    profile: DeviceProfile | None
    target_loss: float
    start_batch_size: int
    reference_cost: float
    learning_rate_scale: float = 1.0
    weights: CostWeights = field(default_factory=CostWeights)
    cadence: Cadence = field(default_factory=Cadence)
    planned_steps: int | None = None
    fixed_costs: Mapping[int, float] = field(default_factory=dict[int, float])
    curve_known: bool = True
    plan_known: bool = True
    noise_rate: float = NOISE_RATE
    guard: bool = True

    @property
    def task_name(self) -> str:
        """How logs call the task."""
        return self.task if isinstance(self.task, str) else self.task.name


@dataclass(frozen=True, kw_only=True)
class BudgetSetting(EpisodeSetting):
    """As its base, but the run ends when `reference_cost` is spent, and its target is not told.

    Attributes:
        cost_of_loss: Returns what the best fixed batch size costs to a validation loss.
    """

    cost_of_loss: Callable[[float], float]


NAMED_SHARE = 0.5
"""Weight of all named tasks together."""


class SettingSampler:
    """Draws learning rate, coupling, profile, target and start of runs of real tasks.

    The reference costs come from stored learning curves.

    The first draws of a generator repeat for the same generator state, so an environment's seed
    fixes its episodes.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[str],
        *,
        log2_start: tuple[int, int] = (-4, 4),
        known_share: float = 1.0,
        budget_share: float = 0.0,
        mixed_share: float = 0.0,
        plan_shares: tuple[float, float] = (1.0, 0.0),
        user_share: float = 0.0,
    ) -> None:
        """Load the curve tables of these tasks from a folder that rlbatch curves made.

        Args:
            folder: One `<task>.npz` a task.
            tasks: Names of built-in tasks; a kind in `KINDS` stands for all its tables, as
                `random-0012.npz`. They have that weight among the draws, all named tasks together
                `NAMED_SHARE`.
            log2_start: Range of log2(start batch size / the task's), both ends included.
            known_share: Share of the settings whose `curve_known` is True.
            budget_share: Share of the settings that are `BudgetSetting`s.
            mixed_share: Share of the settings whose cost is in joules or a mix; of the others a
                tenth is in samples and the rest in seconds.
            plan_shares: Shares of the settings with a schedule, and of those without one, whose
                policy is told for how many steps the run was planned. A run without a schedule gets
                a plan drawn for it, to which its learning rate pays no heed.
            user_share: Share of the settings whose task has a batch size as its user might have
                chosen it: near the one that is cheapest on a device that is always full, with the
                learning rate that belongs to it. The sizes of random tasks say nothing by
                themselves; those of people's jobs do.

        Raises:
            ConfigurationError: There is no task or no table, or a table is of another task.
        """
        if not tasks:
            raise ConfigurationError("At least one task is needed to draw settings from, got none.")
        names = [name for name in tasks if name not in KINDS]
        named = [_load(folder / f"{name}.npz", name) for name in names]
        self._groups = [
            (KINDS[kind].share, _load_kind(folder, kind)) for kind in tasks if kind in KINDS
        ]
        if named:
            self._groups.append((NAMED_SHARE, named))
        self._names = tuple(tasks)
        self._log2_start, self._known_share = log2_start, known_share
        self._budget_share, self._mixed_share = budget_share, mixed_share
        self._plan_shares, self._user_share = plan_shares, user_share

    def __call__(self, rng: np.random.Generator) -> EpisodeSetting:
        """Draw one setting whose target a default run reaches.

        Raises:
            ConfigurationError: There is hardly one in the tables.
        """
        for _ in range(_MOST_DRAWS):
            setting = self._draw(self._draw_table(rng), rng)
            if setting is not None:
                return setting
        raise ConfigurationError(
            f"In the learning curves of {', '.join(self._names)} the default batch size reached "
            f"none of {_MOST_DRAWS} drawn targets. Make curves of longer runs with "
            "rlbatch curves, or choose easier targets."
        )

    def _draw_table(self, rng: np.random.Generator) -> CurveTable:
        shares = np.cumsum([share for share, _ in self._groups])
        group = int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
        tables = self._groups[group][1]
        return tables[int(rng.integers(len(tables)))]

    def _draw(self, table: CurveTable, rng: np.random.Generator) -> EpisodeSetting | None:
        drawn = draw_rate(table, rng)
        if drawn is None:
            return None
        (rate_shift, coupling), task = drawn, resolve_task(table.task)
        profile, weights, as_user = self._draw_costs(rng)
        target = draw_target(table, task, rng)
        default = table.row(0, rate_shift)
        steps = np.inf if default is None else table.steps_to(default, target)
        if not np.isfinite(steps):
            return None
        conditions = rate_shift, coupling, profile, weights, task.batch_size  # the table's
        costs = table.costs(target, *conditions)
        shift = self._draw_shift(rng)
        planned, plan_known = self._plan(table, steps, rng)
        moved = 0
        if as_user:
            full = table.costs(target, rate_shift, coupling, _FULL, CostWeights(), task.batch_size)
            moved = user_shift(full, task.batch_size, rng)
            task = replace(task, batch_size=round(task.batch_size * 2.0**moved))
            planned = None if planned is None else max(round(planned / 2.0**moved), 1)
        setting = EpisodeSetting(
            task=task if moved else table.task,
            seed=int(rng.integers(2**31)),
            coupling=coupling,
            profile=profile,
            target_loss=target,
            start_batch_size=start_size(task, shift),
            reference_cost=min(costs.values()),
            learning_rate_scale=2.0 ** (rate_shift / 2 + coupling.exponent * moved),
            weights=weights,
            cadence=draw_cadence(rng),
            planned_steps=planned,
            plan_known=plan_known,
            fixed_costs=costs,
            curve_known=self._known_share >= 1.0 or bool(rng.random() < self._known_share),
        )
        if self._budget_share and rng.random() < self._budget_share:
            return _with_budget(setting, partial(_least_cost, table, *conditions))
        return setting

    def _draw_costs(self, rng: np.random.Generator) -> tuple[DeviceProfile, CostWeights, bool]:
        """Return whose costs count, and whether the batch size is one of a user."""
        profile = draw_profile(rng)
        weights = CostWeights() if rng.random() < 0.9 else CostWeights(seconds=0.0, samples=1.0)
        as_user = self._user_share > 0.0 and bool(rng.random() < self._user_share)
        if not as_user and self._mixed_share and rng.random() < self._mixed_share:
            return with_watts(profile, rng), draw_mix(rng), as_user
        return profile, weights, as_user

    def _draw_shift(self, rng: np.random.Generator) -> int:
        """Return log2 of the first batch size over the task's; in about a third of the cases 0."""
        low, high = self._log2_start
        return 0 if rng.random() < 0.35 else int(rng.integers(low, high + 1))

    def _plan(
        self, table: CurveTable, default_steps: float, rng: np.random.Generator
    ) -> tuple[int | None, bool]:
        """The steps for which the run is planned, and whether that is told."""
        scheduled, constant = self._plan_shares
        if table.planned_steps is not None:
            return table.planned_steps, scheduled >= 1.0 or bool(rng.random() < scheduled)
        if not constant or rng.random() >= constant:
            return None, True
        drawn = default_steps * 2.0 ** rng.uniform(-1.0, 2.0)
        return max(round(drawn), 1), True


def _with_budget(setting: EpisodeSetting, cost_of_loss: Callable[[float], float]) -> BudgetSetting:
    values = {field.name: getattr(setting, field.name) for field in fields(setting)}
    return BudgetSetting(**values, cost_of_loss=cost_of_loss)


def _least_cost(table: CurveTable, *conditions_and_loss: Any) -> float:
    *conditions, loss = conditions_and_loss
    return min(table.costs(loss, *conditions).values())


def _load(path: Path, name: str) -> CurveTable:
    table = CurveTable.load(path)
    if table.task != name:
        raise ConfigurationError(
            f"{path} holds the learning curves of {table.task!r}, expected {name!r}. Make them "
            "again with rlbatch curves."
        )
    return table


def _load_kind(folder: Path, kind: str) -> list[CurveTable]:
    tables = [CurveTable.load(path) for path in sorted(folder.glob(f"{kind}-[0-9]*.npz"))]
    if not tables:
        raise ConfigurationError(
            f"No learning curves of {kind} tasks in {folder}. Make them with rlbatch curves."
        )
    return tables
