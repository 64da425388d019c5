"""Makes the parts of a controller from its settings."""

from __future__ import annotations

import math
import os
from dataclasses import fields, replace
from typing import Any, cast

from rlbatch.control.config import AUTO, ControllerConfig
from rlbatch.control.control_loop import ControlLoop
from rlbatch.control.decision_logger import context_values
from rlbatch.control.engine import DecisionEngine, EngineConfig
from rlbatch.control.few_sizes import PowersOfTwo, Rounded
from rlbatch.control.ranks import Ranks
from rlbatch.control.training_parts import TrainingParts
from rlbatch.errors import ConfigurationError
from rlbatch.policy.base import Policy
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.recurrent import RecurrentPolicy
from rlbatch.policy.registry import DEFAULT, FOR_EPOCHS, policy_for, resolve_policy
from rlbatch.signals.assemble import run_context
from rlbatch.signals.record import Coupling

WITHOUT_PLAN = "fixed"
"""What `default` stands for in a run that has no target, no budget and no known number of epochs.

The policy `default` is trained to reach a target soon, and the rule for epochs wants to know how
much of the run is over. Who trains on without either wants no worse a loss, and a run that stays at
the user's size loses nothing: not a step, and no time for measuring gradient noise. Growing where
the noise scale is large saved nothing on small tasks and harmed some runs (docs/decisions.md).
"""

FALLBACK = FOR_EPOCHS
"""Decides where an observation is strange to a learned policy.

The best rule for runs of a known length (docs/field-suite.md); in all others it stays.
"""


def choose_policy(policy: str, config: ControllerConfig) -> str:
    """Return the policy that a name stands for under these settings.

    `default` is the policy of that name for a run with a target or a budget, the rule
    `rlbatch.policy.registry.FOR_EPOCHS` for one that is to save seconds in so many epochs, and else
    `WITHOUT_PLAN`.
    """
    if policy != DEFAULT or config.has_aim:
        return policy
    saves_time = config.epochs is not None and config.cost == "seconds"
    return policy_for(policy, "epochs") if saves_time else WITHOUT_PLAN


def named_policy(policy: Policy | str, config: ControllerConfig) -> tuple[Policy, str]:
    """Return the policy that decides under these settings, and what to call it.

    Raises:
        UnknownNameError: There is no policy of that name.
        ConfigurationError: It is no policy.
    """
    if isinstance(policy, os.PathLike):
        policy = os.fspath(cast("os.PathLike[str]", policy))
    if not isinstance(policy, str):
        if isinstance(policy, type) or not callable(getattr(policy, "decide", None)):
            raise ConfigurationError(
                "Expected the name of a policy, a policy file or a policy, got "
                f"{getattr(policy, '__name__', type(policy).__name__)}. `rlbatch policies` lists "
                "names; a class has to be called first."
            )
        return policy, type(policy).__name__
    name = choose_policy(policy, config)
    return resolve_policy(name), name


def fallback_for(policy: Policy, name: str | None = AUTO) -> Policy | None:
    """Return what decides where an observation is strange to a policy; None for nobody.

    Args:
        policy: The policy that normally decides.
        name: Of the fallback; None for none. `auto` stands for `FALLBACK` behind a learned policy:
            a rule has seen no training that anything could be strange to.

    Raises:
        UnknownNameError: There is no policy of that name.
    """
    if name == AUTO:
        name = FALLBACK if isinstance(policy, LearnedPolicy | RecurrentPolicy) else None
    return None if name is None else resolve_policy(name)


def make_engine(
    policy: Policy, config: ControllerConfig, few_sizes: PowersOfTwo | None = None
) -> DecisionEngine:
    """Return the decision engine with the wrappers that the settings ask for.

    A learned policy estimates the return only for a log or a tracker to show.

    Args:
        policy: Decides.
        config: The settings.
        few_sizes: The batch sizes that are allowed; None for any within the limits.
    """
    shown = config.log_dir is not None or bool(config.trackers)
    if isinstance(policy, LearnedPolicy) and not shown:
        policy = replace(policy, values=False)
    wrappers = EngineConfig(
        max_log2_change=config.max_log2_change,
        cooldown=config.cooldown,
        fallback=fallback_for(policy, config.fallback),
        shadow=config.shadow,
    )
    engine = DecisionEngine(policy, wrappers)
    if few_sizes is not None:
        engine.policy = Rounded(engine.policy, few_sizes.allowed)
    return engine


def make_control_loop(
    parts: TrainingParts,
    config: ControllerConfig,
    engine: DecisionEngine,
    *,
    base_batch_size: int,
    dataset_size: int,
    ranks: Ranks | None = None,
) -> ControlLoop:
    """Return the control loop of a run that is about to begin.

    Args:
        parts: The training, as its framework shows it.
        config: The settings.
        engine: Decides.
        base_batch_size: The user's batch size.
        dataset_size: Samples of an epoch.
        ranks: The processes that train together; None for this one alone.

    Raises:
        ConfigurationError: The user's batch size lies outside of the limits.
    """
    world_size = 1 if ranks is None else ranks.world_size
    low, high = config.bounds(base_batch_size, dataset_size, world_size)
    by_samples = config.cost == "samples"
    planned = _planned_samples(parts, config, base_batch_size, dataset_size)
    context = run_context(
        parts.rate,
        Coupling(config.lr_coupling),
        base_batch_size=base_batch_size,
        min_batch_size=low,
        max_batch_size=high,
        dataset_size=dataset_size,
        target_loss=config.target_loss,
        budget=config.budget,
        weights=(float(not by_samples), float(by_samples), 0.0),
        planned_samples=planned,
    )
    return ControlLoop(parts, engine, context, config, ranks)


def _planned_samples(
    parts: TrainingParts, config: ControllerConfig, base_batch_size: int, dataset_size: int
) -> float | None:
    """Return for how many samples the run is planned; beside an aim its schedule has to be known.

    Without an aim only the user's own word counts: the run ends there.
    """
    if config.epochs is not None:
        follows = parts.rate.is_scheduled or not config.has_aim
        return config.epochs * dataset_size if follows else None
    if not config.has_aim:
        return None
    epoch_steps = math.ceil(dataset_size / base_batch_size)
    steps = parts.rate.scheduled_steps(epoch_steps)
    return None if steps is None else steps / epoch_steps * dataset_size


def require_within(policy: Policy, low: int, high: int) -> None:
    """Refuse a policy that names a batch size which the limits exclude."""
    size = getattr(policy, "batch_size", None)
    if isinstance(size, int) and not low <= size <= high:
        raise ConfigurationError(
            f"The policy wants batch size {size}, and sizes from {low} to {high} are allowed. "
            "Set min_batch_size or max_batch_size, or name another size."
        )


def run_info(
    policy: Policy, policy_name: str, parts: TrainingParts, control_loop: ControlLoop
) -> dict[str, Any]:
    """Return what the head of the log says about a run."""
    config = control_loop.config
    settings = [field.name for field in fields(config) if field.name != "trackers"]  # objects
    return {
        "policy": policy_name,
        "model": parts.model,
        "optimizer": parts.optimizer,
        "config": {name: str(getattr(config, name)) for name in settings},
        "context": context_values(control_loop.context),
        "action_grid": getattr(policy, "action_grid", None),
    }


def keeps_size(policy_name: str, config: ControllerConfig) -> bool:
    """Return whether no batch size is ever changed: the run is the plain one."""
    return config.shadow or policy_name.lower() == "fixed"
