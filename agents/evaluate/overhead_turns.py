"""Trainings that take turns, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from rlbatch.agents.evaluate.overhead_workloads import Arm, advance

WARM_UP = 3  # untimed steps at the start of each turn: the caches are another training's
TURN_SECONDS = 0.03  # that a turn lasts at least
CONFIDENCE = 0.95

Key = TypeVar("Key")


@dataclass
class Times:
    """Seconds a step of one training, one entry a round."""

    whole: list[float] = field(default_factory=list[float])
    own: list[float] = field(default_factory=list[float])


def take_turns(
    arms: Mapping[Key, Arm], base: Key, device: torch.device, *, rounds: int, seed: int
) -> dict[Key, Times]:
    """Let trainings do some steps each, in random order, round after round.

    Args:
        arms: The trainings.
        base: The one by which the length of a turn is chosen.
        device: Where they train.
        rounds: How often.
        seed: Of the order.
    """
    steps = 4
    while (spent := _turn(arms[base], device, steps)[0]) * steps < TURN_SECONDS:
        steps = max(steps + 1, min(math.ceil(TURN_SECONDS / max(spent, 1e-9)), 4 * steps))
    order = random.Random(seed)
    names = list(arms)
    times = {name: Times() for name in names}
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            whole, own = _turn(arms[name], device, steps)
            times[name].whole.append(whole)
            times[name].own.append(own)
    return times


def _turn(arm: Arm, device: torch.device, steps: int) -> tuple[float, float]:
    """Return the mean seconds of a step, and the median of its own."""
    on_device = device.type == "cuda"
    now = time.perf_counter if on_device else time.process_time
    advance(arm, WARM_UP)
    if on_device:
        torch.cuda.synchronize(device)
    began = now()
    own = advance(arm, steps)
    if on_device:
        torch.cuda.synchronize(device)
    return (now() - began) / steps, statistics.median(own)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return two of the values, between which the median lies with CONFIDENCE.

    That holds for any distribution. Of fewer than six values it is the smallest and the largest.
    """
    ordered, count = sorted(values), len(values)
    outside, rank = 0.0, 0
    while rank < count // 2:
        outside += 2.0 * math.comb(count, rank) * 0.5**count
        if outside > 1.0 - CONFIDENCE:
            break
        rank += 1
    lowest = max(rank - 1, 0)
    return ordered[lowest], ordered[count - 1 - lowest]
