"""What a training on one's own tasks is asked for: frozen, and kept beside its result."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlbatch.agents.evaluate.clocks import CostClock, resolve_clock
from rlbatch.agents.evaluate.settings import task_identity
from rlbatch.envs.task import resolve_task
from rlbatch.envs.task_files import task_file
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.files import write_atomically
from rlbatch.signals.record import Coupling

CURVE_SEED, VALIDATION_SEED, TRAINING_SEED = 10_000, 20_000, 1_000_000
"""First seeds of the fixed runs, of those that choose among policies, and of those that are learned
from. The evaluation's begin at zero, as in any benchmark."""

PLAN_FILE = "training.json"


@dataclass(frozen=True)
class Plan:
    """A training on one's own tasks.

    Attributes:
        tasks: Names, or `file.py:function` with the whole path.
        profile: Device profile whose seconds count, see `resolve_clock`.
        coupling: How the learning rate follows the batch size.
        starts: First batch sizes, relative to the task's, that are validated and evaluated; what is
            learned from starts between the smallest and the largest.
        seeds: Runs of every fixed size, and of each start in the evaluation.
        start_from: Policy file whose (first) network to begin with; None takes random weights.
        seed: Of the weights and the draws.
    """

    tasks: tuple[str, ...]
    profile: str = "cpu"
    coupling: str = "sqrt"
    starts: tuple[float, ...] = (0.125, 1.0, 8.0)
    seeds: int = 4
    start_from: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ConfigurationError(f"Expected different tasks, at least one, got {self.tasks}.")
        if self.seeds < 1:
            raise ConfigurationError(f"seeds must be at least 1, got {self.seeds}.")
        if not self.starts or not all(0 < start < math.inf for start in self.starts):
            raise ConfigurationError(
                f"Starts are positive multiples of the task's batch size, got {self.starts}."
            )
        known = [coupling.value for coupling in Coupling if coupling is not Coupling.ADASCALE]
        if self.coupling not in known:
            raise UnknownNameError("LR coupling for a training", self.coupling, known)
        if self.clock.profile is None:
            raise ConfigurationError(
                "A training runs many runs side by side, which disturb each other's clock. Measure "
                "this machine with `rlbatch profile` first, and name its file with --profile."
            )

    @property
    def clock(self) -> CostClock:
        """What counts as cost."""
        return resolve_clock(self.profile)

    @property
    def shifts(self) -> tuple[int, int]:
        """Least and greatest whole log2 of the starts that are learned from."""
        logs = [math.log2(start) for start in self.starts]
        return math.floor(min(logs)), math.ceil(max(logs))

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a training to go on, files by their content."""
        tasks = {name: task_identity(name, resolve_task(name)) for name in self.tasks}
        return json.loads(json.dumps({**asdict(self), "identities": tasks}))


def absolute(spec: str) -> str:
    """Return a task's name with the whole path of its file, so that it holds in any folder."""
    path = task_file(spec)
    return spec if path is None else f"{path}:{spec.rpartition(':')[2]}"


def save_plan(plan: Plan, out: Path) -> None:
    """Write the plan into its folder."""
    write_atomically(out / PLAN_FILE, json.dumps(plan.identity(), indent=2) + "\n")


def load_plan(out: Path, tasks: Sequence[str] = ()) -> Plan:
    """Return the plan of a folder's training.

    Args:
        out: The folder.
        tasks: Those that are named now; none if it goes without saying.

    Raises:
        ConfigurationError: There is none, it is damaged, or a task is not what it was.
    """
    path = out / PLAN_FILE
    if not path.is_file():
        raise ConfigurationError(
            f"There is nothing to resume in {out}: it holds no {PLAN_FILE}. Name the folder of a "
            "training that was stopped, or train without --resume."
        )
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8")))
        identities = known.pop("identities")
        lists = {name: tuple(known.pop(name)) for name in ("tasks", "starts")}
        plan = Plan(**lists, **known)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is damaged ({type(error).__name__}: {error}). Train in another folder."
        ) from error
    if tasks and tuple(tasks) != plan.tasks:
        raise ConfigurationError(
            f"{out} holds a training on {', '.join(plan.tasks)}. Resume it without --task, or train"
            " in another folder."
        )
    changed = [
        name for name, now in plan.identity()["identities"].items() if now != identities[name]
    ]
    if changed:
        raise ConfigurationError(
            f"{', '.join(changed)} changed since the training in {out} began. Train in another "
            "folder, or undo the change."
        )
    return plan
