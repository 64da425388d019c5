"""`rlbatch train`: a controller of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlbatch.cli import _shared


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

    def run(self) -> int:
        """Train."""
        from rlbatch.agents.recipes import resolve_recipe
        from rlbatch.errors import MissingExtraError

        recipe = resolve_recipe(self.recipe)
        if not self.resume:
            _shared.require_new_folder(self.out)
        try:
            from rlbatch.agents.ppo import train
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "stable-baselines3", "train") from error
        total = sum(stage.timesteps for stage in recipe.stages)
        _shared.note(f"Recipe {recipe.name}: {total:,} steps in {len(recipe.stages)} stages.")
        path = train(
            recipe,
            self.out,
            resume=self.resume,
            curves=self.curves,
            start_from=self.start_from,
            report=_report,
        )
        print(path)
        return 0


def _report(figures: dict[str, float]) -> None:
    _shared.note("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
