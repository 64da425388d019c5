"""Write into a policy file which observations its training has seen, for the fallback.

    python scripts/record_observations.py simulated small budget --runs 8 --out out/observations
    python scripts/measure_bounds.py agents/pretrained/default.safetensors \
        out/observations/simulated.npz out/observations/small.npz out/observations/budget.npz \
        --check out/other/small.npz out/observations/field.npz

`observation_low` and `observation_high` of the card become the quantiles of each feature at
`--tail` and one minus it; features without a weight may be anything. Prints for every file how many
decisions would be strange to the policy, and how many of its runs would be handed over.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlbatch.observation import OBSERVATION_NAMES
from rlbatch.policy.fallback import Fallback
from rlbatch.policy.file import load_policy, save_policy
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.registry import FOR_EPOCHS, resolve_policy


def main() -> None:
    """Measure, write and check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", type=Path)
    parser.add_argument("recorded", nargs="+", type=Path, help="files of record_observations.py")
    parser.add_argument("--check", nargs="+", type=Path, default=[], help="files of other runs")
    parser.add_argument("--tail", type=float, default=1e-4)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    policy = load_policy(arguments.policy)
    seen = np.concatenate([np.load(path)["observation"] for path in arguments.recorded])
    low, high = bounds(policy, seen, arguments.tail)
    card = replace(policy.card, observation_low=low, observation_high=high)
    if not arguments.dry_run:
        save_policy(arguments.policy, policy, card)
    fallback = Fallback(policy, resolve_policy(FOR_EPOCHS), low=low, high=high)
    for name, least, most in zip(OBSERVATION_NAMES, low, high, strict=True):
        if least > -1.0 or most < 1.0:
            print(f"{name:24} {least:6.3f} to {most:6.3f}")
    for path in (*arguments.recorded, *arguments.check):
        print(f"{path}: {firing(fallback, np.load(path))}")


def bounds(
    policy: LearnedPolicy, seen: np.ndarray, tail: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the least and the largest value of each feature, but for a share of `tail` each."""
    low, high = np.quantile(seen, tail, axis=0), np.quantile(seen, 1.0 - tail, axis=0)
    unread = np.all([(member.policy[0].weight == 0).all(axis=0) for member in policy.members], 0)
    low, high = np.where(unread, -1.0, low), np.where(unread, 1.0, high)
    return _rounded(np.floor(low * 1e3) / 1e3), _rounded(np.ceil(high * 1e3) / 1e3)


def _rounded(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 3) + 0.0 for value in values)


def firing(fallback: Fallback, recorded: np.lib.npyio.NpzFile) -> str:
    """Return how often observations are strange, and runs are handed over, in words."""
    outside = fallback.outside(recorded["observation"])
    strange = outside.sum(axis=-1) >= fallback.min_features
    runs = np.unique(recorded["run"])
    handed = sum(_longest(strange[recorded["run"] == run]) >= fallback.patience for run in runs)
    share = strange.mean() if len(strange) else 0.0
    counts = outside.sum(axis=0)
    most = [f"{OBSERVATION_NAMES[i]} {counts[i]}" for i in np.argsort(-counts)[:4] if counts[i]]
    return (
        f"{share:.3%} of {len(strange)} decisions strange, {handed} of {len(runs)} runs handed "
        f"over; outside: {', '.join(most) or 'none'}"
    )


def _longest(flags: np.ndarray) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


if __name__ == "__main__":
    main()
