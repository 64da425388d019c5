"""One episode of a real run with a budget: the lowest loss that its cost can buy."""

from __future__ import annotations

import numpy as np

from rlbatch.envs.episode import LiveEpisode
from rlbatch.envs.objectives import BUDGET_REACH, UNREACHED_RATIO, Objective
from rlbatch.envs.settings import BudgetSetting, EpisodeSetting


class BudgetEpisode(LiveEpisode):
    """A run until its budget is spent; it counts at what cost the best fixed size is as far."""

    def __init__(self, setting: BudgetSetting) -> None:
        """Build the run and train its first chunk, as the base does."""
        self._cost_of_loss = setting.cost_of_loss
        super().__init__(setting)

    def _objective(self) -> Objective:
        return Objective(None, self.setting.reference_cost, self.setting.weights)

    @property
    def ratio(self) -> float:
        """Cost so far over what the best fixed batch size costs to the lowest loss so far.

        As `bench` counts it: 1 for a run that equals the best fixed size; at least half of what is
        spent, as if no fixed size came further than with twice the budget. 1 before a validation.
        """
        if not self.run.validations:
            return 1.0
        lowest = min(validation.loss for validation in self.run.validations)
        least = min(self._cost_of_loss(lowest), BUDGET_REACH * self.setting.reference_cost)
        return float(np.clip(self.run.cost / least, 1.0 / UNREACHED_RATIO, UNREACHED_RATIO))

    @property
    def lost(self) -> bool:
        """The run has diverged for good."""
        return self.run.diverged

    @property
    def reached(self) -> bool:
        """The budget is spent; nothing else is asked for."""
        return self.run.exhausted and not self.run.diverged

    @property
    def cut_off(self) -> bool:
        """Never: spending the budget is what the run is for."""
        return False


def begin_episode(setting: EpisodeSetting) -> LiveEpisode:
    """Begin the episode that a setting is for."""
    if isinstance(setting, BudgetSetting):
        return BudgetEpisode(setting)
    return LiveEpisode(setting)
