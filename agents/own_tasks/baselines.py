"""Policies that nothing is learned for: what a learned one is to be better than."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlbatch.agents.evaluate.curve_files import file_name
from rlbatch.agents.own_tasks.fixed_costs import TaskCosts
from rlbatch.agents.own_tasks.rule_networks import goodput_policy, size_policy
from rlbatch.agents.own_tasks.validation import Candidate
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.file import save_policy
from rlbatch.policy.registry import DEFAULT
from rlbatch.signals.cadence import NOISE_RATE

SHIPPED = Candidate("shipped policy", DEFAULT, "shipped")
STAYING = Candidate("staying", "fixed", "rule", file=False)
RULES = ("goodput", "noise-scale", "norm-test", "cabs")


def candidate_file(folder: Path, name: str) -> Path:
    """Return the policy file of a candidate of that name."""
    return folder / f"{file_name(name)}.safetensors"


def baselines(
    folder: Path, actions: Sequence[float], card: PolicyCard, shifts: Sequence[int]
) -> list[Candidate]:
    """Return the candidates that nothing is learned for, written as files where they can be.

    Args:
        folder: Of their files.
        actions: Changes of log2(batch size).
        card: Of the policies.
        shifts: log2 of the fixed sizes over the task's.
    """
    found: list[Candidate] = []
    for shift in shifts:
        path = candidate_file(folder, f"size x{2.0**shift:g}")
        save_policy(path, size_policy(shift, actions, card))
        found.append(Candidate(f"size x{2.0**shift:g}", str(path), "size"))
    path = candidate_file(folder, "goodput network")
    save_policy(path, goodput_policy(actions, replace(card, noise_rate=NOISE_RATE)))
    found.append(Candidate("goodput network", str(path), "rule"))
    return [*found, *(Candidate(name, name, "rule", file=False) for name in RULES)]


def best_shifts(costs: Sequence[TaskCosts]) -> list[int]:
    """Return log2 of multiples of the tasks' batch sizes, the cheapest for all tasks first."""
    relative: dict[int, list[float]] = {}
    for own in costs:
        for size, cost in own.costs.items():
            shift = round(float(np.log2(size / own.task.batch_size)))
            relative.setdefault(shift, []).append(min(cost / own.reference, 4.0))
    means = {
        shift: float(np.log(found + [4.0] * (len(costs) - len(found))).mean())
        for shift, found in relative.items()
    }
    return sorted(means, key=lambda shift: (means[shift], abs(shift)))
