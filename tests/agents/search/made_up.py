"""Outcomes made up without any training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlbatch.agents.search.trials import Outcome, Stop, TrialSpec


def outcome(cost: float, loss: float = 1.0, **changes: object) -> Outcome:
    values: dict[str, object] = {
        "complete": True,
        "stopped": False,
        "diverged": False,
        "cost": cost,
        "loss": loss,
        "steps": 10,
        "samples": 100,
        "seconds": 0.0,
        "curve": ((50.0, cost / 2, 2 * loss), (100.0, cost, loss)),
    }
    return Outcome(**{**values, **changes})  # type: ignore[arg-type]


class Table:
    """Evaluates trials by a function, and notes which it was asked for."""

    def __init__(self, function: Callable[[TrialSpec, Stop], Outcome]) -> None:
        self.asked: list[TrialSpec] = []
        self.known: dict[TrialSpec, Outcome] = {}
        self._function = function

    def __call__(self, work: Sequence[tuple[TrialSpec, Stop]]) -> dict[TrialSpec, Outcome]:
        for spec, stop in work:
            if spec not in self.known:
                self.asked.append(spec)
                self.known[spec] = self._function(spec, stop)
        return {spec: self.known[spec] for spec, _ in work}
