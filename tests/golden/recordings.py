"""Record signals of live, simulated and random runs, and what encoder and policies make of them.

    python -m tests.golden.recordings record    # new signals, then what is made of them
    python -m tests.golden.recordings decide    # only what is made of the signals that are there

`tests/golden/test_golden.py` holds the code to these files. Write them anew only where an
observation or a policy is meant to change, and say so in the changelog.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from rlbatch import observation
from rlbatch.agents.evaluate.run import controlled_run
from rlbatch.control.engine import DecisionEngine
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Objective
from rlbatch.envs.profiles import resolve_profile
from rlbatch.envs.simulator.episodes import QuadraticEpisodes
from rlbatch.envs.simulator.pool import make_pool
from rlbatch.envs.task import resolve_task
from rlbatch.policy.base import Policy
from rlbatch.policy.registry import BUILT_IN, PRETRAINED, resolve_policy
from rlbatch.signals.record import Coupling, RunContext, Signals
from rlbatch.testing.generators import random_run

DATA = Path(__file__).parent / "data"
# Without a run to copy `branches` does nothing.
POLICIES = (*PRETRAINED, *sorted(BUILT_IN.keys() - {"branches"}))
_LIVE = (  # task, policy, coupling, profile, start, epochs
    ("digits-mlp", "default", Coupling.SQRT, "accelerator-512", 0.125, None),
    ("tabular-regression-sgd", "default", Coupling.LINEAR, "cpu", 8.0, None),
    ("digits-mlp-sgd", "epochs", Coupling.SQRT, "accelerator-4096", 1.0, 6),
)


def _save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez_compressed(path, **arrays)


def stack(signals: list[Signals]) -> dict[str, np.ndarray]:
    """Return a sequence of signals as arrays whose first axis is the chunk."""
    names = [field.name for field in fields(Signals) if field.name != "context"]
    stacked = {name: np.stack([np.asarray(getattr(s, name)) for s in signals]) for name in names}
    for field in fields(RunContext):
        values = [np.asarray(getattr(s.context, field.name), dtype=np.float64) for s in signals]
        stacked[f"context.{field.name}"] = np.stack(values)
    return stacked


def unstack(stacked: dict[str, np.ndarray]) -> list[Signals]:
    """Return the sequence that `stack` was given."""
    chunks = len(stacked["batch_size"])

    def at(name: str, chunk: int) -> Any:
        value = stacked[name][chunk]
        return value if value.ndim else value.item()

    names = [name for name in stacked if not name.startswith("context.")]
    constants = [name for name in stacked if name.startswith("context.")]
    return [
        Signals(
            context=RunContext(**{name.partition(".")[2]: at(name, i) for name in constants}),
            **{name: at(name, i) for name in names},
        )
        for i in range(chunks)
    ]


def observations(signals: list[Signals]) -> np.ndarray:
    """Return what the encoder makes of a sequence, shape (chunks, ..., features)."""
    state = observation.initial_state(np.shape(signals[0].batch_size))
    seen = []
    for chunk in signals:
        vector, state = observation.encode(chunk, state)
        seen.append(vector)
    return np.stack(seen)


def changes(policy: Policy, signals: list[Signals], seen: np.ndarray) -> np.ndarray:
    """Return the changes of log2(batch size) that a policy asks for, shape (chunks, ...)."""
    shape = np.shape(signals[0].batch_size)
    state, made = policy.initial_state(shape), []
    for chunk, vector in zip(signals, seen, strict=True):
        decision, state = policy.decide(vector, chunk, state)
        made.append(np.broadcast_to(np.asarray(decision.log2_change, dtype=np.float64), shape))
    return np.stack(made)


def applied_sizes(policy: Policy, signals: list[Signals]) -> np.ndarray:
    """Return the batch sizes that the engine applies in one run, shape (chunks,)."""
    engine = DecisionEngine(policy)
    return np.asarray([engine.decide(chunk).batch_size for chunk in signals])


def decide(path: Path) -> None:
    """Write what is made of one file's signals beside it."""
    signals = unstack(dict(np.load(path)))
    seen = observations(signals)
    made: dict[str, np.ndarray] = {"observations": seen}
    made["names"] = np.asarray(observation.OBSERVATION_NAMES)
    for name in POLICIES:
        made[f"change.{name}"] = changes(resolve_policy(name), signals, seen)
        if seen.ndim == 2:
            made[f"size.{name}"] = applied_sizes(resolve_policy(name), signals)
    _save(path.with_name(path.name.replace("signals-", "decided-")), made)


def record_live() -> None:
    """Record the chunks of real runs."""
    for number, (task_name, policy, coupling, profile, start, epochs) in enumerate(_LIVE):
        task, seen = resolve_task(task_name), list[Signals]()
        size: int = len(task.train_set)  # pyright: ignore[reportArgumentType]
        objective = Objective(planned_samples=epochs * size) if epochs else None
        advance = LiveRun.advance

        def noting(
            self: LiveRun, batch_size: int, seen: list[Signals] = seen, advance: Any = advance
        ) -> Signals:
            signals = advance(self, batch_size)
            seen.append(signals)
            return signals

        LiveRun.advance = noting
        try:
            controlled_run(
                task,
                resolve_policy(policy),
                seed=number,
                coupling=coupling,
                profile=resolve_profile(profile),
                objective=objective or Objective(target_loss=task.target),
                start_factor=start,
            )
        finally:
            LiveRun.advance = advance
        _save(DATA / f"signals-live-{number}.npz", stack(seen))


def record_simulated() -> None:
    """Record simulated runs side by side, decided by the default policy."""
    runs, chunks = 8, 48
    pool = make_pool(runs, 11)
    episodes = QuadraticEpisodes(pool, runs, np.random.default_rng(5))
    episodes.begin(np.arange(runs), np.arange(runs))
    policy, change, seen = resolve_policy("default"), None, list[Signals]()
    state = policy.initial_state((runs,))
    while len(seen) < chunks:
        moved = episodes.step(change)
        ended = np.flatnonzero(moved.ended)
        if len(ended):
            episodes.begin(ended, ended)
        if episodes.signals is None:
            continue
        seen.append(episodes.signals)
        decision, state = policy.decide(moved.observation, episodes.signals, state)
        change = np.asarray(decision.log2_change)
    _save(DATA / "signals-simulated.npz", stack(seen))


def record_random() -> None:
    """Record signals as wild as they may be."""
    run = random_run((6,), np.random.default_rng(3), 40)
    _save(DATA / "signals-random.npz", stack([chunk for _, chunk in run]))


def main() -> None:
    """Do what the first argument says."""
    action = sys.argv[1] if len(sys.argv) == 2 else ""
    if action not in ("record", "decide"):
        sys.exit(__doc__)
    DATA.mkdir(parents=True, exist_ok=True)
    if action == "record":
        record_live()
        record_simulated()
        record_random()
    for path in sorted(DATA.glob("signals-*.npz")):
        decide(path)
        print(path.name)


if __name__ == "__main__":
    main()
