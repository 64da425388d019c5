"""What the controller costs an optimizer step: trainings with and without it, side by side.

All trainings of a cell (device, model, batch size) live in one process and take turns: a round lets
each do a few steps, in random order. A round's ratio to the plain loop is one pair; reported are
the median over rounds and a distribution-free interval of it. On a CPU the time is that of the
process, so that waiting for other programs does not count; on CUDA it is the wall's, with the
device waited for at the ends of a turn.

On a CPU that others use too, whole steps vary by more than a cost of a percent. So the host's time
outside of fetching, forward and backward passes and the optimizer is taken apart in each step:
`own` is that of the controlled loop less that of the plain one, again paired by rounds.

Three costs are told apart, since a run has many, few and fewer of them:

    step       a step without measurement, the batch size unchanged: what every step pays
    measured   a step in which the gradient noise is measured
    decision   the end of a chunk: device read, observation, policy

and beside them

    nothing    the plain loop against itself: what this method cannot tell from zero
    snapshot   a copy of weights and optimizer state, as the guard makes it before a chunk
    run        all of them in a run of so many steps, as often as the default settings have them;
               on a CPU from the own time of steps and decisions and the whole time of measured ones
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlbatch.agents.evaluate.overhead_turns import WARM_UP, Times, median_interval, take_turns
from rlbatch.agents.evaluate.overhead_workloads import (
    MODELS,
    Workload,
    advance,
    controlled,
    host_reads,
    plain,
)
from rlbatch.control.config import ControllerConfig
from rlbatch.control.snapshot import Snapshot
from rlbatch.envs.threads import one_thread
from rlbatch.errors import ConfigurationError
from rlbatch.policy.base import Policy, noise_rate_of
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.cadence import Cadence, is_measured

_NEVER = 10**9
_Key = tuple[str, str]
_PLAIN: _Key = ("", "plain")


@dataclass(frozen=True)
class OverheadSettings:
    """What is measured.

    Attributes:
        models: Names out of `MODELS`.
        batch_sizes: Samples of a step.
        policies: Names of policies.
        devices: Torch devices; empty takes the CPU and, where there is one, CUDA.
        rounds: Pairs of turns, at least 6 for an interval.
        run_steps: Optimizer steps of the run for which the parts are summed.
        seed: Of the order of turns.
    """

    models: tuple[str, ...] = MODELS
    batch_sizes: tuple[int, ...] = (16, 64, 256)
    policies: tuple[str, ...] = ("fixed", "default", "goodput")
    devices: tuple[str, ...] = ()
    rounds: int = 25
    run_steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers from which nothing could be computed."""
        if self.rounds < 6 or self.run_steps < 1 or min(self.batch_sizes, default=0) < 2:
            raise ConfigurationError(
                "Expected at least 6 rounds, 1 step of a run and batch sizes of at least 2, got "
                f"{self.rounds}, {self.run_steps} and {self.batch_sizes}."
            )


@dataclass(frozen=True)
class OverheadRow:
    """One cost in one cell.

    Attributes:
        device: Where it trained.
        model: Its name.
        batch_size: Samples of a step.
        policy: Its name; empty where none takes part.
        part: See the top of this module.
        ratio: Median over rounds of time / time of the plain loop. `measured` and `decision`: of a
            run in which each step is one.
        ratio_low: Lower end of its interval.
        ratio_high: Upper end.
        microseconds: Median of what a step takes more than a plain one.
        own_microseconds: Median of its own time; null for `measured`, which is in its passes, and
            where the host waits for a device.
        own_low: Lower end of its interval.
        own_high: Upper end.
        plain_microseconds: Median of a plain step.
        rounds: Pairs.
        run_share: How often the part occurs in a run, a step.
        host_reads: Reads of a tensor's value by the host in a step, beyond those of the plain
            loop; null for `run`.
    """

    device: str
    model: str
    batch_size: int
    policy: str
    part: str
    ratio: float
    ratio_low: float
    ratio_high: float
    microseconds: float
    own_microseconds: float | None
    own_low: float | None
    own_high: float | None
    plain_microseconds: float
    rounds: int
    run_share: float
    host_reads: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def measure_overhead(
    settings: OverheadSettings, on_progress: Callable[[int, int], None] | None = None
) -> Iterator[OverheadRow]:
    """Measure cell by cell, with one thread, and yield the rows of each as it is done.

    Args:
        settings: What.
        on_progress: Called with the cells that are done and their number.

    Raises:
        UnknownNameError: There is no such model or policy.
    """
    cells = [
        Workload(model, batch_size, torch.device(device))
        for device in settings.devices or _devices()
        for model in settings.models
        for batch_size in settings.batch_sizes
    ]
    policies = {name: resolve_policy(name) for name in settings.policies}
    with one_thread():
        for done, cell in enumerate(cells):
            if on_progress is not None:
                on_progress(done, len(cells))
            yield from _measure_cell(cell, policies, settings).rows(policies, settings.run_steps)


def part_configs(policy: Policy) -> dict[str, ControllerConfig]:
    """Return settings under which every step, or none, pays a part; the batch size stays."""
    never, always = (Cadence(first=n, minimum=n, maximum=n) for n in (_NEVER, 1))
    step = ControllerConfig(shadow=True, noise_rate=0.0, cadence=never)
    parts = {"step": step, "decision": replace(step, cadence=always)}
    if policy.needs_gradient_noise:
        parts["measured"] = replace(step, noise_rate=math.inf)
    return parts


def run_shares(policy: Policy, steps: int) -> dict[str, float]:
    """Return how often a run of so many steps pays each part, a step, with default settings."""
    config = ControllerConfig()
    decisions, done = 0, 0
    while (done := done + config.cadence.chunk_steps(done)) <= steps:
        decisions += 1
    measured = sum(is_measured(step, noise_rate_of(policy)) for step in range(steps))
    shares = {"step": 1.0, "decision": decisions / steps, "measured": measured / steps}
    return {part: shares[part] for part in part_configs(policy)}


@dataclass(frozen=True)
class _Cell:
    """What was measured of one device, model and batch size; keys are policy and part."""

    workload: Workload
    times: dict[_Key, Times]
    reads: dict[_Key, float]

    def rows(self, policies: dict[str, Policy], run_steps: int) -> Iterator[OverheadRow]:
        for part in ("nothing", "snapshot"):
            yield self._row(("", part), 0.0)
        for name, policy in policies.items():
            shares = run_shares(policy, run_steps)
            for part, share in shares.items():
                yield self._row((name, part), share)
            self.times[name, "run"] = self._run(name, shares)
            yield self._row((name, "run"), 1.0)

    def _run(self, policy: str, shares: dict[str, float]) -> Times:
        """Return the mean step of a run: the plain one, and each part as often as it occurs."""
        plain = self.times[_PLAIN]
        step = self.times[policy, "step"]
        run = Times([0.0] * len(plain.whole), [0.0] * len(plain.whole))
        for part, share in shares.items():
            times = self.times[policy, part]
            own = self._tells_own(part)
            for index, before in enumerate((plain if part == "step" else step).whole):
                more = times.whole[index] - before
                if own:
                    more = times.own[index] - (plain if part == "step" else step).own[index]
                run.own[index] += share * more
        run.whole = [sum(pair) for pair in zip(plain.whole, run.own, strict=True)]
        run.own = [sum(pair) for pair in zip(plain.own, run.own, strict=True)]
        return run

    def _tells_own(self, part: str) -> bool:
        return part != "measured" and self.workload.device.type == "cpu"

    def _row(self, key: _Key, share: float) -> OverheadRow:
        times, base = self.times[key], self.times[_PLAIN]
        pairs = list(zip(times.whole, base.whole, strict=True))
        ratios = [time / plain for time, plain in pairs]
        low, high = median_interval(ratios)
        own = own_low = own_high = None
        if self._tells_own(key[1]):
            more = [1e6 * (a - b) for a, b in zip(times.own, base.own, strict=True)]
            own, (own_low, own_high) = statistics.median(more), median_interval(more)
        return OverheadRow(
            device=str(self.workload.device),
            model=self.workload.name,
            batch_size=self.workload.batch_size,
            policy=key[0],
            part=key[1],
            ratio=statistics.median(ratios),
            ratio_low=low,
            ratio_high=high,
            microseconds=1e6 * statistics.median(time - plain for time, plain in pairs),
            own_microseconds=own,
            own_low=own_low,
            own_high=own_high,
            plain_microseconds=1e6 * statistics.median(base.whole),
            rounds=len(pairs),
            run_share=share,
            host_reads=self.reads[key] - self.reads[_PLAIN] if key in self.reads else None,
        )


def _measure_cell(
    workload: Workload, policies: dict[str, Policy], settings: OverheadSettings
) -> _Cell:
    arms = {
        _PLAIN: plain(workload),
        ("", "nothing"): plain(workload),
        ("", "snapshot"): plain(workload, _snapshots),
    }
    for name, policy in policies.items():
        for part, config in part_configs(policy).items():
            arms[name, part] = controlled(workload, policy, config)
    reads: dict[_Key, float] = {}
    for key, arm in arms.items():
        advance(arm, 2 * WARM_UP)
        reads[key] = host_reads(arm, workload.device)
    times = take_turns(arms, _PLAIN, workload.device, rounds=settings.rounds, seed=settings.seed)
    return _Cell(workload, times, reads)


def _snapshots(model: nn.Module, optimizer: Optimizer) -> Callable[[Tensor], object]:
    """Copy weights and optimizer state after each step, as the guard does a chunk."""
    copy = Snapshot(model, optimizer)
    return lambda loss: copy.take()


def _devices() -> tuple[str, ...]:
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
