"""Double when the loss stops falling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class Plateau:
    """Multiplies the batch size when the loss has not improved for some checks.

    The counterpart of `torch.optim.lr_scheduler.ReduceLROnPlateau` (`IncreaseBSOnPlateau` of the
    package bs-scheduler, whose constants these are; Smith et al. 2018 give the reason, "Don't decay
    the learning rate, increase the batch size"). A check counts as an improvement when the loss is
    below (1 - threshold) x the best so far.

    Per epoch in the source; here a check is a chunk. It looks at the validation loss in runs that
    have one, skipping the chunks without it, and at the mean training loss until then.

    Attributes:
        factor: Factor on the batch size.
        patience: Checks without improvement that are let pass; the next one acts.
        threshold: Relative improvement that counts.
    """

    factor: float = 2.0
    patience: int = 10
    threshold: float = 1e-4

    needs_gradient_noise = False

    def __post_init__(self) -> None:
        factor, threshold = self.factor, self.threshold
        tools.check(0 < factor < np.inf, "Plateau.factor must be above 0", factor)
        tools.check(self.patience >= 0, "Plateau.patience must not be negative", self.patience)
        tools.check(0 <= threshold < 1, "Plateau.threshold must be in [0, 1)", threshold)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return (best loss, checks without improvement, whether it is a validation loss)."""
        return np.full(shape, np.inf), np.zeros(shape, np.int64), np.zeros(shape, np.bool_)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the growth, or "stay"."""
        best, bad, validated = (np.asarray(part) for part in state)
        has_val = np.isfinite(signals.val_loss)
        first_val = has_val & ~validated
        validated = validated | has_val
        metric = np.where(validated, signals.val_loss, signals.train_loss)
        best, bad = np.where(first_val, np.inf, best), np.where(first_val, 0, bad)

        counts = np.isfinite(metric)
        # A loss may be negative; then "lower by a fraction" is a fraction of its size.
        margin = self.threshold * np.where(np.isfinite(best), np.abs(best), 0.0)
        better = counts & (np.where(counts, metric, np.inf) < best - margin)
        best = np.where(better, metric, best)
        bad = np.where(better, 0, bad + counts)
        acts = bad > self.patience
        change = np.where(acts, np.log2(self.factor), 0.0)
        made = tools.decision(change, "plateau", "{:.0f} checks without improvement", bad)
        return made, (best, np.where(acts, 0, bad), validated)
