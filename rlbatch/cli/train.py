"""`rlbatch train`: a controller of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import is_zipfile

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.agents.recipes import Recipe

_BEGINNINGS = ("pool.npz", "stage0")
"""What a training that was killed before its first checkpoint leaves behind."""


@dataclass(frozen=True)
class Command:
    """Train a controller with reinforcement learning.

    The result is policy.safetensors in the output folder, to be named wherever a policy is asked
    for. A stopped training goes on with --resume.

    For example: rlbatch train --recipe smoke --out controllers/first
    """

    out: Path
    """Folder for checkpoints, curves and the policy file."""
    recipe: str = "default"
    """What to do: `default`, `simulated` (the simulator only) or `smoke` (seconds)."""
    resume: bool = False
    """Go on with the training in the output folder."""
    curves: Path | None = None
    """Learning curves of the real tasks, by scripts/make_curves.py; recipes with real runs need
    them."""
    start_from: Path | None = None
    """Policy file (or checkpoint) whose weights to begin with."""
    device: str = "auto"
    """Where the controller's networks are trained: `cpu`, `cuda`, or `auto`, a GPU if there is
    one."""

    def run(self) -> int:
        """Train."""
        from rlbatch.agents.recipes import resolve_recipe
        from rlbatch.envs.processes import keep_tensorflow_out
        from rlbatch.extras import needs_extra

        recipe = resolve_recipe(self.recipe)
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
                "Make them with scripts/make_curves.py --out DIR and pass --curves DIR."
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


def _report(figures: dict[str, float]) -> None:
    _shared.note("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
