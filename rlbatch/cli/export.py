"""`rlbatch export`: a policy file from a model of stable-baselines3."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlbatch.cli import _shared


@dataclass(frozen=True)
class Command:
    """Make a policy file from a model that stable-baselines3 trained.

    PPO, A2C and DQN with MlpPolicy, and RecurrentPPO with MlpLstmPolicy, of any size; the
    checkpoint.zip of rlbatch train as well. The file is compared with the model on 10,000
    observations, and refused where it decides otherwise.

    Loading such a zip with stable-baselines3 runs the code in it. This command does not: of the
    settings it reads names and numbers only, and of the weights tensors only. A model that was
    trained on normalised observations (VecNormalize with norm_obs=True) is refused: what they were
    divided by is not in the zip.

    For example: rlbatch export model.zip -o policy.safetensors
    """

    model: Annotated[Path, tyro.conf.Positional]
    """The zip that model.save wrote."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The policy file to write (.safetensors)."""
    actions: tuple[float, ...] | None = None
    """The environment's changes of log2(batch size), in the order of its actions; those that the
    model was saved with if unset, or the default ones where it has none."""
    limits: bool = False
    """For a checkpoint of rlbatch train: add the limits of its recipe, as the training does at its
    end."""

    def run(self) -> int:
        """Write the file."""
        from rlbatch.envs.processes import keep_tensorflow_out
        from rlbatch.errors import MissingExtraError

        keep_tensorflow_out()
        _shared.require_new_policy_file(self.out)
        try:
            from rlbatch.agents.export import export_model
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "stable-baselines3", "train") from error
        policy = export_model(self.model, self.out, actions=self.actions, limits=self.limits)
        grid = ", ".join(f"{change:+g}" if change else "0" for change in policy.action_grid)
        _shared.note(f"Changes of log2(batch size) among which it chooses: {grid}.")
        print(self.out)
        return 0
