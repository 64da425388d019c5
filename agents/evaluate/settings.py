"""What a benchmark runs: its settings, their check, and the cells of the matrix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rlbatch
from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.run import start_size
from rlbatch.agents.search.searcher_names import parse_searcher
from rlbatch.envs.objectives import Cadence
from rlbatch.envs.task import Task, resolve_task
from rlbatch.envs.task_files import file_digests
from rlbatch.envs.tasks.field import PREFIX, field_job
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.policy.registry import PRETRAINED, pretrained_file, resolve_policy
from rlbatch.signals.record import Coupling

SIMULATED = "simulated:"
TARGET, BUDGET, EPOCHS = "target", "budget=", "epochs="


@dataclass(frozen=True)
class BenchSettings:
    """A benchmark: every combination of these is run.

    Attributes:
        tasks: Names, `file.py:function`, or `simulated:N` for N simulated tasks.
        policies: As `rlbatch.load_policy` takes them.
        couplings: How the learning rate follows the batch size.
        profiles: Clocks, see `resolve_clock`.
        starts: First batch sizes relative to the task's.
        seeds: Number of seeds; seeds are 0, 1, 2 ...
        objective: `target`, `budget=COST` in the profile's unit, or `epochs=N`.
        cadence: Spacing of decisions and validations.
        narrow: The best fixed size is sought among fewer, see `find_references`.
    """

    tasks: tuple[str, ...]
    policies: tuple[str, ...]
    couplings: tuple[str, ...] = ("sqrt",)
    profiles: tuple[str, ...] = ("cpu",)
    starts: tuple[float, ...] = (1.0,)
    seeds: int = 5
    objective: str = TARGET
    cadence: Cadence = field(default_factory=Cadence)
    narrow: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty or repeated axis, and names that nothing has.

        Raises:
            ConfigurationError: A setting is out of range, or a name is unknown.
        """
        for name in ("tasks", "policies", "couplings", "profiles", "starts"):
            values: tuple[object, ...] = getattr(self, name)
            if not values:
                raise ConfigurationError(f"A benchmark needs at least one of {name}, got none.")
            if len(set(values)) != len(values):
                raise ConfigurationError(f"{name} must differ from each other, got {values}.")
        if self.seeds < 1:
            raise ConfigurationError(f"seeds must be at least 1, got {self.seeds}.")
        if not all(0 < factor < float("inf") for factor in self.starts):
            raise ConfigurationError(
                f"Starts are positive multiples of the task's batch size, got {self.starts}."
            )
        parse_couplings(self.couplings)
        for name in self.profiles:
            resolve_clock(name)
        self._check_objective()
        self._require_policies()
        for name in self.tasks:
            if name.startswith(SIMULATED):
                simulated_count(name)
            else:
                resolve_task(name)

    def _check_objective(self) -> None:
        """Refuse an unknown one, and `epochs` without a frontier: on the wall clock, simulated."""
        if parse_epochs(self.objective) is None:
            parse_objective(self.objective)
            return
        timed = [name for name in self.profiles if resolve_clock(name).profile is None]
        simulated = [name for name in self.tasks if name.startswith(SIMULATED)]
        if timed or simulated:
            raise ConfigurationError(
                f"{self.objective} is held against fixed runs of real tasks on a computed clock, "
                f"got {', '.join(timed + simulated)}. Name device profiles and real tasks."
            )

    def _require_policies(self) -> None:
        for name in self.policies:
            if parse_searcher(name) is None:
                resolve_policy(name)
            else:
                self._require_real_target(name)

    def _require_real_target(self, name: str) -> None:
        """Refuse a search where nothing is trained, or where cost is not what differs."""
        simulated = [task for task in self.tasks if task.startswith(SIMULATED)]
        if simulated:
            raise ConfigurationError(
                f"{name} searches with real trainings, and {simulated[0]} has none. Leave one of "
                "the two out."
            )
        if self.objective != TARGET:
            raise ConfigurationError(
                f"{name} is compared by what its trials cost to a target, got --objective "
                f"{self.objective}. Leave {name} out or take --objective {TARGET}; the best size "
                "for a number of epochs is found by `rlbatch sweep --objective epochs=N`."
            )

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for results to be comparable, files by their content.

        Of a task from a file, that are the file and all that it imports which is neither Python's
        nor an installed package's, see `rlbatch.envs.task_files`.
        """
        content = asdict(self)
        if not self.narrow:
            del content["narrow"]  # as in folders of benchmarks that did not know it
        files = {
            name: digest for name in self.policies if (digest := _policy_digest(name)) is not None
        }
        for name in self.tasks:
            files |= file_digests(name)
        content["files"] = files
        return json.loads(json.dumps(content))  # tuples become lists, as in the file it is kept in


@dataclass(frozen=True)
class Group:
    """Cells that share their fixed runs: one task, coupling and seed."""

    task: str
    coupling: str
    seed: int


def groups(settings: BenchSettings) -> list[Group]:
    """Return the groups of real tasks, seeds outermost, so that early results are of every kind."""
    return [
        Group(task, coupling, seed)
        for seed in range(settings.seeds)
        for task in settings.tasks
        if not task.startswith(SIMULATED)
        for coupling in settings.couplings
    ]


def start_factors(settings: BenchSettings, task: Task) -> dict[int, float]:
    """Return the start sizes with their factors; factors that clip to one size count once."""
    sizes: dict[int, float] = {}
    for factor in settings.starts:
        sizes.setdefault(start_size(task, factor), factor)
    return sizes


def cells(settings: BenchSettings, group: Group, task: Task) -> Iterator[tuple[str, int, str]]:
    """Yield (profile, start batch size, policy) of every run of a group."""
    for profile in settings.profiles:
        for size in start_factors(settings, task):
            for policy in settings.policies:
                yield profile, size, policy


def parse_objective(text: str) -> float | None:
    """Return the budget of `budget=COST`, None for `target`.

    Raises:
        ConfigurationError: The text is neither.
    """
    if text == TARGET:
        return None
    if text.startswith(BUDGET):
        try:
            budget = float(text.removeprefix(BUDGET))
        except ValueError:
            budget = float("nan")
        if 0 < budget < float("inf"):
            return budget
    raise ConfigurationError(
        f"An objective is 'target' or 'budget=COST' with a positive cost, got {text!r}."
    )


def parse_epochs(text: str) -> float | None:
    """Return the epochs of `epochs=N`, None for another objective.

    Raises:
        ConfigurationError: N is no positive number.
    """
    if not text.startswith(EPOCHS):
        return None
    try:
        epochs = float(text.removeprefix(EPOCHS))
    except ValueError:
        epochs = float("nan")
    if not 0 < epochs < float("inf"):
        raise ConfigurationError(f"epochs=N takes a positive number of epochs, got {text!r}.")
    return epochs


def parse_couplings(names: Sequence[str]) -> list[Coupling]:
    """Return the couplings of these names.

    Raises:
        UnknownNameError: There is no such coupling.
    """
    known = [coupling.value for coupling in Coupling]
    for name in names:
        if name not in known:
            raise UnknownNameError("LR coupling", name, known)
    return [Coupling(name) for name in names]


def simulated_count(name: str) -> int:
    """Return the number of tasks that `simulated:N` asks for.

    Raises:
        ConfigurationError: N is no positive number.
    """
    text = name.removeprefix(SIMULATED)
    if not text.isdigit() or int(text) < 1:
        raise ConfigurationError(
            f"Simulated tasks are given as simulated:N with N of at least 1, got {name!r}."
        )
    return int(text)


def task_identity(name: str, task: Task) -> str:
    """Return a text that differs when a task's name, files, version or main settings do."""
    files = file_digests(name)
    alone = next(iter(files.values())) if len(files) == 1 else sorted(files.items())
    digest = alone or rlbatch.__version__
    if name.startswith(PREFIX):
        digest = field_job(name).fingerprint()
    parts = (digest, task.batch_size, task.target, task.max_batch_size)
    return f"{name}#{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"


def _policy_digest(name: str) -> str | None:
    """Return the hash of the file that a policy's name stands for, if it is one."""
    path = pretrained_file(name) if name in PRETRAINED else Path(name)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None
