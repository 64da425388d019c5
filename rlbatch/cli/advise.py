"""`rlbatch advise`: a batch size after less than a minute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.agents.evaluate.clocks import CostClock
    from rlbatch.agents.search.advice import Advice
    from rlbatch.agents.search.goal import Goal
    from rlbatch.agents.search.probe import Probe
    from rlbatch.envs.task import Task


@dataclass(frozen=True)
class Command:
    """Advise a batch size for a task after a short probe.

    Trains for some steps at the task's own size to measure the gradient noise, times steps where no
    device profile says what they cost, and weighs the sizes by both. How good such advice is stands
    in docs/search.md.

    For example: rlbatch advise --task digits-mlp --profile accelerator-512
    """

    task: str
    """Name of a task, or file.py:function."""
    steps: int = 100
    """Optimizer steps of the probe."""
    profile: str = "wall"
    """Clock that counts: a device profile, `samples`, or `wall` to time this machine."""
    objective: str = "target"
    """`target`, or `epochs=N`."""
    efficiency: float | None = None
    """With epochs=N: from 0, quality only (default), to 1, cost only."""
    lr_coupling: _shared.CouplingName = "sqrt"
    """How the learning rate follows the batch size."""
    max_seconds: float = 40.0
    """The probe ends after this time; timing steps takes a few seconds more."""
    seed: int = 0
    """Of the probe."""
    json: bool = False
    """Print the advice as JSON."""

    def run(self) -> int:
        """Probe, and print the advice."""
        from rlbatch.agents.evaluate.clocks import resolve_clock
        from rlbatch.agents.search.advice import advise
        from rlbatch.agents.search.probe import probe
        from rlbatch.envs.task import resolve_task
        from rlbatch.envs.threads import one_thread

        goal = self._goal()
        clock, task = resolve_clock(self.profile), resolve_task(self.task)
        with one_thread():
            seen = probe(
                task,
                seed=self.seed,
                coupling=self.lr_coupling,
                steps=self.steps,
                max_seconds=self.max_seconds,
                planned_steps=self._planned(task, goal),
            )
        timed = clock if clock.profile is not None else timed_clock(task)
        advice = advise(task, seen, timed, goal)
        rate = self._rate(task, advice)
        if self.json:
            _shared.print_json(self._content(seen, advice, rate))
        else:
            self._print(seen, advice, rate)
        return 0

    def _goal(self) -> Goal:
        from rlbatch.agents.search.goal import parse_goal
        from rlbatch.errors import ConfigurationError

        if self.steps < 1 or not self.max_seconds > 0 or not 0 <= self.seed < 2**32:
            raise ConfigurationError(
                "steps and max_seconds must be positive and seed between 0 and 2**32 - 1, got "
                f"{self.steps}, {self.max_seconds}, {self.seed}."
            )
        goal = parse_goal(self.objective, self.efficiency)
        if goal.kind == "budget":
            raise ConfigurationError(
                "An advice is for --objective target or epochs=N, got a budget. To spend one well, "
                "take the size of the target."
            )
        return goal

    def _planned(self, task: Task, goal: Goal) -> int | None:
        """Return the length of the schedule; of a run to a target, ten times the probe's."""
        import math

        if task.scheduler is None:
            return None
        if goal.kind != "epochs":
            return 10 * self.steps
        size: int = len(task.train_set)  # pyright: ignore[reportArgumentType]
        return math.ceil(goal.amount * size / task.batch_size)

    def _rate(self, task: Task, advice: Advice) -> float | None:
        from rlbatch.agents.search.result import base_rate
        from rlbatch.data.learning_rate import coupling_factor

        if self.lr_coupling == "adascale":
            return None
        return base_rate(task) * coupling_factor(
            self.lr_coupling, advice.batch_size, task.batch_size
        )

    def _content(self, seen: Probe, advice: Advice, rate: float | None) -> dict[str, Any]:
        from dataclasses import asdict

        return {
            "task": self.task,
            "profile": self.profile,
            "objective": self.objective,
            **asdict(advice),
            "leave": advice.leave,
            "learning_rate": rate,
            "probe_steps": seen.steps,
            "probe_seconds": seen.seconds,
        }

    def _print(self, seen: Probe, advice: Advice, rate: float | None) -> None:
        cells = [
            [f"{size:,}", f"{cost:.2f}", _mark(size, advice)]
            for size, cost in zip(advice.sizes, advice.costs, strict=True)
            if cost < 8.0
        ]
        columns = ["batch size", "expected / as it is", ""]
        _shared.print_table(f"{self.task}, {self.profile} clock", columns, cells, text=[""])
        scale = advice.noise_scale
        print(
            f"Probe: {seen.steps} steps at {seen.batch_size}, {seen.seconds:.1f} s; noise scale "
            f"{scale.value:,.0f} [{scale.low:,.0f}, {scale.high:,.0f}] samples."
        )
        print(sentence(advice, rate))


def sentence(advice: Advice, rate: float | None) -> str:
    """Return the advice in words."""
    at = "" if rate is None else f" with a learning rate of {rate:.3g}"
    if advice.leave:
        first = f"Leave it as it is, at {advice.default:,}: no other size promises 5% or more."
    else:
        first = (
            f"Take batch size {advice.batch_size:,}{at}: it is expected to save {advice.gain} "
            f"over {advice.default:,}."
        )
    ramp = (
        f"Following the noise with a controller or a ramp may save {advice.ramp_gain} more, at most"
    )
    if advice.ramp_gain.value < 0.02:
        ramp = f"A controller or a ramp has little to add ({advice.ramp_gain})"
    return f"{first} The largest useful size is {advice.largest_useful:,}. {ramp}."


def timed_clock(task: Task) -> CostClock:
    """Return the clock of this machine, from timings of some seconds."""
    from rlbatch.agents.evaluate.clocks import CostClock
    from rlbatch.agents.search.profiling import measure
    from rlbatch.envs.profiles import CostWeights

    size: int = len(task.train_set)  # pyright: ignore[reportArgumentType]
    most = min(max(16 * task.batch_size, 4), max(size, 4))
    measured = measure(task, "wall", most=most, rounds=3, max_seconds=0.5)
    return CostClock("wall", measured.fitted.profile, CostWeights())


def _mark(size: int, advice: Advice) -> str:
    marks = {
        "as it is": advice.default,
        "advised": advice.batch_size,
        "largest useful": advice.largest_useful,
    }
    return ", ".join(text for text, marked in marks.items() if marked == size)
