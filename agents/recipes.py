"""What a training consists of: frozen, hashable, and saved beside its result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.envs.tasks.random_job import LONG, RANDOM
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.network import ACTIVATIONS

COUPLINGS = ("none", "sqrt", "linear", "adascale")
"""Which random runs have."""

SMALL_TASKS = (
    "digits-mlp",
    "digits-mlp-sgd",
    "tabular-regression",
    "tabular-regression-sgd",
    "tabular-classification",
    "tabular-classification-sgd",
    "teacher-student",
    "teacher-student-sgd",
)
"""Built-in tasks whose runs take a second or two."""

TRAINING_TASKS = (*SMALL_TASKS, RANDOM)
"""What real episodes are drawn from, the random ones with the share of
`rlbatch.envs.tasks.random_job.KINDS`. Not from random transformers: three in a hundred take half of
the time."""


@dataclass(frozen=True)
class Stage:
    """One stage of a training.

    Attributes:
        timesteps: Environment steps of PPO; 0 for regression alone.
        simulated: Simulated runs side by side.
        real: Real runs side by side, in one process a core.
        rollout_steps: Steps of each run between two updates.
        minibatch: Transitions in a minibatch.
        epochs: Passes over a rollout.
        learning_rate: Of PPO's Adam; falls linearly to a twentieth in the stage.
        entropy: Weight of the entropy bonus.
        clip: Clip range of the policy ratio.
        regret_weight: Weight, in PPO's loss, of the auxiliary regret: what the policy's actions are
            expected to cost more than the best fixed size (`rlbatch.envs.privileged.regrets`). It
            falls linearly to nothing in the stage. Needs the recipe's `privileged_critic`.
        imitation: Environment steps before these, from which the actor learns by regression what
            every action would cost, see `rlbatch.agents.imitation`. Needs the same.
        held_share: Share of a known plan in which none of the runs that the regression is recorded
            from goes above the user's batch size; 0 holds none. A policy that does not go there
            either (`Recipe.near_base`) then learns from runs like its own.
    """

    timesteps: int
    simulated: int
    real: int
    rollout_steps: int = 64
    minibatch: int = 4096
    epochs: int = 6
    learning_rate: float = 3e-4
    entropy: float = 0.003
    clip: float = 0.2
    regret_weight: float = 0.0
    imitation: int = 0
    held_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a stage without runs, and negative weights."""
        if self.simulated + self.real < 1 or self.timesteps < (0 if self.imitation > 0 else 1):
            raise ConfigurationError(
                f"A stage needs runs and timesteps, got simulated={self.simulated}, "
                f"real={self.real}, timesteps={self.timesteps}."
            )
        for name in ("imitation", "entropy", "regret_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.held_share <= 1:
            raise ConfigurationError(f"held_share is from 0 to 1, got {self.held_share}.")


@dataclass(frozen=True)
class Recipe:
    """A whole training.

    Attributes:
        name: How the command line calls it.
        stages: In order.
        members: Networks of the policy. Each goes through the last stage by itself, with other runs
            and from where the stages before have ended, all at the same time; the policy decides by
            their mean probabilities.
        tasks: Real tasks to draw from.
        pool_size: Simulated tasks to draw from.
        seed: Of everything.
        actions: Changes of log2(batch size).
        noise_rate: How densely the gradient noise is measured, see
            `rlbatch.signals.cadence.measured_among`.
        policy_layers: Hidden units of the policy network.
        value_layers: Hidden units of the value network.
        activation: Between them, one of `rlbatch.policy.network.ACTIVATIONS`.
        privileged_critic: Show the value network what is hidden from the policy.
        hidden: Groups of observations (`rlbatch.observation.GROUPS`) that neither network is shown.
        known_share: Share of the real runs in which the policy is told what a step costs at every
            size, as by a device profile; in the others it learns that as from the clock on the
            wall.
        budget_share: Share of the real runs that have a budget instead of a target.
        mixed_share: Share of them whose cost is in joules or a mix. Neither is for `epochs`.
        plan_shares: Shares of the real runs, with a schedule and without one, whose policy is told
            how long they were planned to be, see `rlbatch.envs.settings.SettingSampler`.
        user_share: Share of the real runs whose batch size is one that a user might have chosen,
            see there.
        goodput_slack: Of the deployed policy, see `rlbatch.policy.learned.LearnedPolicy`; training
            goes without.
        noise_ceiling: Likewise.
        keeps_steps: Likewise.
        near_base: Likewise.
        objective: `target` (and budgets), or `epochs` for runs of so many samples, all real.
    """

    name: str
    stages: tuple[Stage, ...]
    members: int = 1
    tasks: tuple[str, ...] = TRAINING_TASKS
    pool_size: int = 25_000
    seed: int = 0
    actions: tuple[float, ...] = DEFAULT_ACTIONS
    noise_rate: float = 0.15
    policy_layers: tuple[int, ...] = (256, 256)
    value_layers: tuple[int, ...] = (256, 256)
    activation: str = "relu"
    privileged_critic: bool = True
    hidden: tuple[str, ...] = ()
    known_share: float = 0.5
    budget_share: float = 0.15
    mixed_share: float = 0.15
    plan_shares: tuple[float, float] = (0.8, 0.0)
    user_share: float = 0.0
    goodput_slack: float | None = 1.0
    noise_ceiling: float | None = 2.0
    keeps_steps: bool = True
    near_base: bool = True
    objective: str = "target"

    def __post_init__(self) -> None:
        """Refuse no networks, regrets that nobody knows, and simulated runs of so many epochs."""
        if self.members < 1:
            raise ConfigurationError(f"A recipe needs members, got {self.members}.")
        if self.members > 1 and len(self.stages) < 2:
            raise ConfigurationError(
                f"Members begin where the stages before the last have ended, got "
                f"members={self.members} and one stage. Use one member or two stages."
            )
        if self.activation not in ACTIVATIONS:
            raise UnknownNameError("activation", self.activation, ACTIVATIONS)
        if not self.privileged_critic and any(
            stage.regret_weight or stage.imitation for stage in self.stages
        ):
            raise ConfigurationError(
                "Guidance and imitation come with what the privileged critic is shown. Set "
                "privileged_critic=True, or the stages' regret_weight and imitation to zero."
            )
        if self.objective not in ("target", "epochs"):
            raise ConfigurationError(f"A recipe is for target or epochs, got {self.objective!r}.")
        if self.objective == "epochs" and any(stage.simulated for stage in self.stages):
            raise ConfigurationError("The simulator has no objective `epochs`: use real runs.")

    @property
    def has_real_runs(self) -> bool:
        """Whether it trains on real tasks, and needs their learning curves."""
        return any(stage.real for stage in self.stages)

    @property
    def objectives(self) -> tuple[str, ...]:
        """What the policy is for: `target`, `budget` or `epochs`."""
        if self.objective == "epochs":
            return ("epochs",)
        budgets = self.budget_share > 0.0 and self.has_real_runs
        return ("target", "budget") if budgets else ("target",)

    @property
    def limits(self) -> dict[str, Any]:
        """What limits a policy of the recipe beside its network, by the names of its file."""
        names = ("goodput_slack", "noise_ceiling", "keeps_steps", "near_base")
        return {name: getattr(self, name) for name in names}

    def card(self, couplings: tuple[str, ...] = COUPLINGS) -> PolicyCard:
        """Return the card of a policy that was trained so, with these couplings."""
        return PolicyCard(
            objectives=self.objectives,
            couplings=couplings,
            noise_rate=self.noise_rate,
            recipe=self.name,
            recipe_hash=self.digest(),
        )

    def digest(self) -> str:
        """Hash of everything that the recipe says."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


_SIMULATED = Stage(
    timesteps=20_000_000, simulated=512, real=0, minibatch=2048, epochs=3, learning_rate=1e-3
)
# More updates for each of the dear steps of real runs. Where every action's regret is told, few of
# them are enough; as many again without it made the policy better in simulated runs and worse on
# tasks that it never saw. Simulated runs cost next to nothing, and with fewer of them than real
# ones the actor forgets what it knew of them.
_REAL = Stage(
    timesteps=1_000_000,
    simulated=512,
    real=128,
    rollout_steps=48,
    minibatch=2048,
    epochs=8,
    learning_rate=5e-4,
    entropy=0.002,
    regret_weight=4.0,
    imitation=860_000,
)
# Begins with the default policy (`--start-from`), which knows what noise and progress look like.
_EPOCHS = replace(
    _REAL,
    timesteps=1_300_000,
    simulated=0,
    minibatch=1024,
    learning_rate=2.5e-4,
    entropy=0.003,
    clip=0.15,
    regret_weight=0.0,
    imitation=0,
)

# Goes on from a network of the recipe `default` (`--start-from`) to runs of ordinary length.
_ORDINARY = replace(_REAL, timesteps=0, simulated=32, real=96, imitation=136_000, held_share=0.05)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("default", (_SIMULATED, _REAL), members=3),
        Recipe(
            "ordinary",
            (_ORDINARY,),
            tasks=(*TRAINING_TASKS, LONG),
            known_share=0.4,
            plan_shares=(0.9, 0.5),
            user_share=0.8,
        ),
        Recipe("simulated", (_SIMULATED,)),
        Recipe(
            "epochs",
            (_EPOCHS,),
            known_share=0.25,
            goodput_slack=None,
            noise_ceiling=None,
            keeps_steps=False,  # it and the next one act on the way to a target only
            near_base=False,
            objective="epochs",
        ),
        Recipe(
            "smoke",
            (Stage(timesteps=4096, simulated=64, real=0, rollout_steps=32, minibatch=512),),
            pool_size=256,
        ),
    )
}


def resolve_recipe(name: str) -> Recipe:
    """Return a recipe by name."""
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return RECIPES[name]
