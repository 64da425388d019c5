"""`rlbatch run`: one training run under a policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.agents.evaluate.run import RunResult
    from rlbatch.policy.base import Policy


@dataclass(frozen=True)
class Command:
    """Train a task once under a policy, and keep the log.

    Ends with 1 if the target is not reached.

    For example: rlbatch run --task digits-mlp --policy goodput --out runs/first
    """

    task: str
    """Name of a task, or file.py:function."""
    out: Path
    """New folder for the episode log; `rlbatch inspect` reads it."""
    policy: str = "default"
    """What decides: `default`, a policy file, or a rule such as fixed:64."""
    lr_coupling: _shared.CouplingName = "sqrt"
    """How the learning rate follows the batch size."""
    profile: str = "cpu"
    """Clock that counts: a device profile, `samples`, or `wall` for this machine's."""
    objective: str = "target"
    """`target`, or `budget=COST` in the profile's unit."""
    start: float = 1.0
    """First batch size relative to the task's."""
    seed: int = 0
    """Of the weights and the order of the data."""
    max_steps: int = 100_000
    """Give up after this many optimizer steps."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Train, and print what it came to."""
        from rlbatch.agents.evaluate.settings import SIMULATED, BenchSettings
        from rlbatch.envs.threads import use_one_thread
        from rlbatch.errors import ConfigurationError

        if self.task.startswith(SIMULATED):
            raise ConfigurationError(
                f"{self.task!r} is for `rlbatch bench`; a single run trains a real task. "
                "`rlbatch tasks` lists some."
            )
        BenchSettings(  # checks every name and number before anything is written
            tasks=(self.task,),
            policies=(self.policy,),
            couplings=(self.lr_coupling,),
            profiles=(self.profile,),
            starts=(self.start,),
            objective=self.objective,
        )
        if self.max_steps < 1 or not 0 <= self.seed < 2**32:
            raise ConfigurationError(
                "max_steps must be at least 1 and seed between 0 and 2**32 - 1, got "
                f"max_steps={self.max_steps}, seed={self.seed}."
            )
        _shared.require_new_folder(self.out)
        use_one_thread()
        result = self._train()
        if self.json:
            _shared.print_json(self._content(result))
        else:
            self._print(result)
        return 0 if result.reached else 1

    def _train(self) -> RunResult:
        from rlbatch.agents.evaluate.clocks import resolve_clock
        from rlbatch.agents.evaluate.curve_store import CurveStore
        from rlbatch.agents.evaluate.fixed_curves import FixedSetting, planned_steps
        from rlbatch.agents.evaluate.reference import budget_planned_steps
        from rlbatch.agents.evaluate.run import controlled_run
        from rlbatch.agents.evaluate.settings import parse_objective
        from rlbatch.envs.objectives import Objective
        from rlbatch.envs.task import resolve_task
        from rlbatch.policy.registry import resolve_policy
        from rlbatch.signals.record import Coupling

        task, clock = resolve_task(self.task), resolve_clock(self.profile)
        budget, coupling = parse_objective(self.objective), Coupling(self.lr_coupling)
        setting = FixedSetting(task, self.task, self.seed, coupling)
        if budget is None:
            planned = planned_steps(setting, CurveStore())
        else:
            planned = budget_planned_steps(setting, clock, budget)
        policy = resolve_policy(self.policy)
        return controlled_run(
            task,
            policy,
            seed=self.seed,
            coupling=coupling,
            profile=clock.profile,
            objective=Objective(task.target if budget is None else None, budget, clock.weights),
            start_factor=self.start,
            log_dir=self.out,
            max_steps=self.max_steps,
            planned_steps=planned,
            run_info={"policy": self.policy, "lr_coupling": self.lr_coupling, **_grid(policy)},
        )

    def _content(self, result: RunResult) -> dict[str, Any]:
        import math

        loss = result.final_val_loss
        return {
            "task": self.task,
            "policy": self.policy,
            "lr_coupling": self.lr_coupling,
            "profile": self.profile,
            "objective": self.objective,
            "start_batch_size": result.start_batch_size,
            "seed": self.seed,
            "reached": result.reached,
            "diverged": result.diverged,
            "cost": result.cost,
            "steps": result.steps,
            "samples": result.samples,
            "final_val_loss": loss if math.isfinite(loss) else None,
            "batch_size_min": result.batch_size_min,
            "batch_size_max": result.batch_size_max,
            "decisions": result.decisions,
            "wall_seconds": result.wall_seconds,
            "decision_seconds": result.decision_seconds,
            "log": str(self.out),
        }

    def _print(self, result: RunResult) -> None:
        how = "reached the target" if result.reached else "did not reach the target"
        if self.objective != "target":
            how = "spent its budget" if result.reached else "diverged"
        unit = "samples" if self.profile == "samples" else f"{self.profile} clock"
        rows = [
            ["outcome", how],
            ["validation loss", f"{result.final_val_loss:.4g}"],
            ["cost", f"{result.cost:.4g} ({unit})"],
            ["steps", f"{result.steps:,}"],
            ["samples", f"{result.samples:,}"],
            ["batch size", f"{result.batch_size_min:,} .. {result.batch_size_max:,}"],
            ["decisions", f"{result.decisions:,}, {result.decision_seconds:.2g} s in all"],
            ["took", f"{result.wall_seconds:.1f} s"],
            ["log", f"{self.out} (rlbatch inspect {self.out})"],
        ]
        title = f"{self.task} under {self.policy}, seed {self.seed}"
        _shared.print_table(title, ["", "value"], rows, text=["", "value"])


def _grid(policy: Policy) -> dict[str, object]:
    """Return the actions of a learned policy, with which a log's probabilities can be read."""
    grid = getattr(policy, "action_grid", None)
    return {} if grid is None else {"action_grid": [float(change) for change in grid]}
