"""`rlbatch train`: a controller of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zipfile import is_zipfile

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.agents.own_tasks.plan import Plan
    from rlbatch.agents.recipes import Recipe

_BEGINNINGS = ("pool.npz", "stage0")
"""What a training that was killed before its first checkpoint leaves behind."""

_OWN_ONLY = ("minutes", "seeds", "start", "profile", "lr_coupling", "from_scratch", "jobs")
_RECIPE_ONLY = ("recipe", "curves", "device")


@dataclass(frozen=True)
class Command:
    """Train a controller, on tasks of your own or by a recipe.

    With --task everything is done: the cost of fixed sizes, learning, choosing and a test on fresh
    seeds. The result is policy.safetensors in the output folder, to be named wherever a policy is
    asked for, and policy.md, which says what it is. A stopped training goes on with --resume.

    For example: rlbatch train --task my_task.py:make --out controllers/mine
    """

    out: Path
    """Folder for all that is written, the policy file among it."""
    task: tuple[str, ...] = ()
    """Tasks to train on: names, or file.py:function."""
    minutes: float = 15.0
    """With --task: the time for everything. What cannot be left out takes longer if it must."""
    seeds: int = 4
    """With --task: runs of every fixed size, and seeds of the test; fewer where time is short."""
    start: tuple[float, ...] = (0.125, 1.0, 8.0)
    """With --task: first batch sizes relative to the task's."""
    profile: str = "cpu"
    """With --task: whose seconds count, a device profile or the JSON file of one."""
    lr_coupling: Literal["none", "sqrt", "linear"] = "sqrt"
    """With --task: how the learning rate follows the batch size."""
    from_scratch: bool = False
    """With --task: begin with random weights, not with those of the shipped policy."""
    jobs: int | None = None
    """With --task: processes; one a core if unset."""
    cluster: str | None = None
    """Address of a Ray cluster (HOST:PORT, or `auto` on one of its machines) for the runs; --jobs
    then limits how many it has at the same time. Needs rlbatch[ray], and task files at the same
    paths, on every node."""
    recipe: str | None = None
    """Without --task: `default` (how the shipped policy begins), `ordinary` (on from one of
    its networks to runs of ordinary length, with --start-from), `simulated` (the simulator only),
    `epochs` (for runs of so many epochs) or `smoke` (seconds). `default` if unset."""
    resume: bool = False
    """Go on with the training in the output folder."""
    curves: Path | None = None
    """Learning curves of a recipe's real tasks, by rlbatch curves; recipes with real runs need
    them."""
    start_from: Path | None = None
    """Policy file (or a recipe's checkpoint) whose weights to begin with."""
    device: str = "auto"
    """Without --task: where the controller's networks are trained, `cpu`, `cuda`, or `auto`, a GPU
    if there is one."""

    def run(self) -> int:
        """Train."""
        if self.task or (self.resume and (self.out / "training.json").is_file()):
            return self._run_own()
        return self._run_recipe()

    def _run_own(self) -> int:
        """Train on the user's own tasks."""
        from rlbatch.cli import _own_tasks
        from rlbatch.envs.processes import keep_tensorflow_out
        from rlbatch.extras import needs_extra

        self._check_own()
        keep_tensorflow_out()
        _shared.note(f"About {self.minutes:g} min, longer where a part that is needed takes it.")
        with needs_extra("train", "stable-baselines3"):
            import_module("rlbatch.agents.own_tasks.training")  # all that is imported later
            from rlbatch.agents.own_tasks.plan import absolute
        with _own_tasks.write_no_bytecode():
            tasks = tuple(absolute(name) for name in self.task)
            out = self.out.resolve()
            plan = _own_tasks.prepare(self._plan(tasks), out, self.resume, tasks)
            self._check_plan(plan)
            outcome = _own_tasks.run(plan, out, self.minutes, self.jobs, self.cluster)
        _own_tasks.print_outcome(plan, outcome)
        return 0

    def _plan(self, tasks: tuple[str, ...]) -> Plan | None:
        """Return what is asked for; None where the folder's own is to go on."""
        from rlbatch.agents.own_tasks.plan import Plan
        from rlbatch.policy.registry import DEFAULT, pretrained_file

        if self.resume:
            return None
        source = self.start_from or pretrained_file(DEFAULT)
        return Plan(
            tasks=tasks,
            profile=self.profile,
            coupling=self.lr_coupling,
            starts=self.start,
            seeds=self.seeds,
            start_from=None if self.from_scratch else str(source.resolve()),
        )

    def _check_own(self) -> None:
        """Refuse what goes with a recipe only, and numbers out of range."""
        from rlbatch.errors import ConfigurationError
        from rlbatch.policy.file import load_policy

        for name in self._given(_RECIPE_ONLY):
            raise ConfigurationError(
                f"{_option(name)} is for a training by a recipe, and --task for one of your own. "
                "Leave one of the two out."
            )
        if self.from_scratch and self.start_from is not None:
            raise ConfigurationError(
                "--from-scratch begins with random weights and --start-from with a file's. Leave "
                "one of the two out."
            )
        if not 0 < self.minutes < float("inf") or (self.jobs is not None and self.jobs < 1):
            raise ConfigurationError(
                f"Expected positive --minutes and --jobs, got {self.minutes} and {self.jobs}."
            )
        if self.start_from is not None:
            load_policy(self.start_from)
        _shared.require_possible_folder(self.out)

    def _check_plan(self, plan: Plan) -> None:
        """Refuse to go on with a training for which something else was asked than now."""
        from rlbatch.errors import ConfigurationError

        known = {
            "seeds": plan.seeds,
            "start": plan.starts,
            "profile": plan.profile,
            "lr_coupling": plan.coupling,
            "from_scratch": plan.start_from is None,
            "start_from": None if plan.start_from is None else Path(plan.start_from),
        }
        now = {name: getattr(self, name) for name in self._given(tuple(known))}
        if "start_from" in now:
            now["start_from"] = now["start_from"].resolve()
        for name, value in now.items():
            if value != known[name]:
                raise ConfigurationError(
                    f"{self.out} holds a training for which {_option(name)} was another: "
                    f"{known[name]}, not {value}. Leave it out, or train in another folder."
                )

    def _given(self, names: Sequence[str]) -> list[str]:
        """Return those of some options that are not what they are unless they are given."""
        defaults = {field.name: field.default for field in fields(self)}
        return [name for name in names if getattr(self, name) != defaults[name]]

    def _run_recipe(self) -> int:
        """Train by a recipe."""
        from rlbatch.agents.recipes import resolve_recipe
        from rlbatch.envs.processes import keep_tensorflow_out
        from rlbatch.errors import ConfigurationError
        from rlbatch.extras import needs_extra

        for name in self._given(_OWN_ONLY):
            raise ConfigurationError(
                f"{_option(name)} is for a training on tasks of your own, not for one by a recipe. "
                "Name the tasks with --task, or leave it out."
            )
        recipe = resolve_recipe(self.recipe or "default")
        self._check_files(recipe)
        keep_tensorflow_out()
        with needs_extra("train", "stable-baselines3"):
            from rlbatch.agents.ppo import train
        self._check_curves(recipe)
        stages = [f"{stage.timesteps:,}" for stage in recipe.stages]
        members = f", the last for {recipe.members} networks" if recipe.members > 1 else ""
        _shared.note(f"Recipe {recipe.name}: {' and '.join(stages)} steps{members}.")
        path = train(
            recipe,
            self.out,
            resume=self.resume,
            curves=self.curves,
            start_from=self.start_from,
            report=_report,
            device=self.device,
            cluster=self.cluster,
        )
        _shared.say(str(path))
        return 0

    def _check_files(self, recipe: Recipe) -> None:
        """Refuse now what would fail after hours, and before anything is written."""
        from rlbatch.errors import ConfigurationError
        from rlbatch.policy.file import load_policy

        if not self.resume:
            self._check_folder()
        elif not (self.out / "progress.json").is_file():
            raise ConfigurationError(
                f"There is nothing to resume in {self.out}. Name the folder of a training that was "
                "stopped, or train without --resume."
            )
        elif not is_zipfile(self.out / "checkpoint.zip"):
            raise ConfigurationError(
                f"{self.out / 'checkpoint.zip'} is missing or damaged, and the training cannot be "
                "resumed. Train in another folder."
            )
        if self.curves is None and recipe.has_real_runs:
            raise ConfigurationError(
                f"The recipe {recipe.name!r} trains on real tasks and needs their learning curves. "
                "Make them with rlbatch curves --out DIR and pass --curves DIR."
            )
        if self.start_from is None:
            return
        if not self.start_from.is_file():
            raise ConfigurationError(
                f"There is no policy file or checkpoint {self.start_from}. Check the path."
            )
        if self.start_from.suffix == ".safetensors":
            load_policy(self.start_from)
        elif not is_zipfile(self.start_from):
            raise ConfigurationError(
                f"{self.start_from} is neither a policy file (.safetensors) nor the checkpoint.zip "
                "of a training, or only a part of one. Name another file with --start-from."
            )

    def _check_folder(self) -> None:
        from rlbatch.errors import ConfigurationError

        if (self.out / "progress.json").is_file():
            raise ConfigurationError(
                f"{self.out} already holds a training. Go on with it by adding --resume, or name "
                "a new folder with --out; nothing is overwritten."
            )
        _shared.require_new_folder(self.out, but=_BEGINNINGS)

    def _check_curves(self, recipe: Recipe) -> None:
        from rlbatch.envs.settings import SettingSampler

        if self.curves is not None and recipe.has_real_runs:
            SettingSampler(self.curves, recipe.tasks)


def _option(name: str) -> str:
    """Return how the command line calls a field."""
    return f"--{name.replace('_', '-')}"


def _report(figures: dict[str, float]) -> None:
    _shared.note("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
