"""How the controller's cost is measured: what is counted and summed, and that nothing waits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from rlbatch.agents.evaluate import overhead, overhead_turns
from rlbatch.agents.evaluate.overhead import (
    OverheadRow,
    OverheadSettings,
    measure_overhead,
    part_configs,
    run_shares,
)
from rlbatch.agents.evaluate.overhead_turns import Times, median_interval
from rlbatch.agents.evaluate.overhead_workloads import (
    MODELS,
    Workload,
    advance,
    controlled,
    counted_waits,
    host_reads,
    plain,
)
from rlbatch.controller import BatchController
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.log.episode_log import read_episode
from rlbatch.policy.base import Policy
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.monitor import ChunkMonitor
from rlbatch.testing import ScriptedPolicy, random_policy

CPU = torch.device("cpu")
STEPS = 6


def policies() -> list[Policy]:
    return [
        resolve_policy("fixed"),
        resolve_policy("goodput"),
        random_policy(np.random.default_rng(0)),
    ]


@pytest.mark.parametrize("count", [6, 9, 25])
def test_the_interval_covers_the_median_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(0)
    draws = rng.lognormal(size=(4000, count))  # of median 1
    intervals = np.array([median_interval(draw.tolist()) for draw in draws])
    covered = np.mean((intervals[:, 0] <= 1.0) & (intervals[:, 1] >= 1.0))
    assert covered > 0.94
    narrower = np.array([_one_narrower(draw) for draw in draws])
    assert np.mean((narrower[:, 0] <= 1.0) & (narrower[:, 1] >= 1.0)) < 0.95


def _one_narrower(draw: Any) -> tuple[float, float]:
    values = sorted(draw.tolist())
    low, high = median_interval(values)
    return values[values.index(low) + 1], values[values.index(high) - 1]


def test_few_values_give_their_range() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


@pytest.mark.parametrize("index", range(3))
def test_the_shares_are_those_of_a_real_run(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, batch_size, steps = policies()[index], 4, 90
    measured = count_measured(monkeypatch)
    model = nn.Linear(3, 1)
    controller = BatchController(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        batch_size=batch_size,
        policy=policy,
        shadow=True,
        log_dir=tmp_path / "log",
    )
    data = TensorDataset(torch.randn(batch_size * steps, 3))
    for (x,) in controller.loader(DataLoader(data, batch_size=batch_size)):
        controller.backward(model(x).square().mean())
        controller.step()
    controller.close()
    records = read_episode(tmp_path / "log").records
    decisions = sum(record.event == "decision" for record in records)

    shares = run_shares(policy, steps)
    assert shares.pop("step") == 1.0
    assert shares.pop("decision") == decisions / steps
    assert shares.pop("measured", 0.0) == sum(measured) / steps
    assert not shares


def reads(part: str, policy: Policy, model: str = "cnn", batch_size: int = 4) -> float:
    """Return the host's reads a step, beyond those of the plain loop."""
    workload = Workload(model, batch_size, CPU)
    arm, base = controlled(workload, policy, part_configs(policy)[part]), plain(workload)
    for each in (arm, base):
        advance(each, 2)
    return host_reads(arm, CPU, STEPS) - host_reads(base, CPU, STEPS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("index", range(3))
def test_nothing_is_read_from_the_device_within_a_chunk(model: str, index: int) -> None:
    assert reads("step", policies()[index], model) == 0


def test_nothing_is_read_from_the_device_where_noise_is_measured() -> None:
    assert reads("measured", resolve_policy("goodput")) == 0


def test_reads_are_counted() -> None:
    def reading() -> Iterator[float]:
        value = torch.ones(2)
        while True:
            yield float(value.sum()) + value.tolist()[0] + bool(value[0] > 0)

    arm: Any = reading()
    assert host_reads(arm, CPU, STEPS) >= 2


def test_only_waits_are_counted_of_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []

    def set_mode(mode: Any) -> None:
        modes.append(mode)
        warnings.warn("prototype, does not yet detect all synchronizing operations", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with counted_waits() as waits:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert waits.reads == 3
    assert modes == ["warn", 0]


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("part", ["step", "measured"])
def test_the_host_does_not_wait_for_a_gpu_within_a_chunk(model: str, part: str) -> None:
    device, policy = torch.device("cuda"), resolve_policy("goodput")
    workload = Workload(model, 8, device)
    arm = controlled(workload, policy, part_configs(policy)[part])
    decisions = controlled(workload, policy, part_configs(policy)["decision"])
    for each in (arm, decisions):
        advance(each, 3)
    assert host_reads(arm, device, STEPS) == 0
    assert host_reads(decisions, device, STEPS) >= 1


def rows(**settings: Any) -> list[OverheadRow]:
    return list(measure_overhead(OverheadSettings(devices=("cpu",), **settings)))


def test_rows_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead_turns, "TURN_SECONDS", 0.0)
    found = rows(models=("mlp",), batch_sizes=(4,), policies=("fixed", "goodput"), rounds=6)
    assert [(row.policy, row.part) for row in found] == [
        ("", "nothing"),
        ("", "snapshot"),
        *(("fixed", part) for part in ("step", "decision", "run")),
        *(("goodput", part) for part in ("step", "decision", "measured", "run")),
    ]
    for row in found:
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.plain_microseconds > 0
        assert (row.device, row.model, row.batch_size, row.rounds) == ("cpu", "mlp", 4, 6)
        assert (row.own_microseconds is None) == (row.part == "measured")
    within = [row.host_reads for row in found if row.part in ("nothing", "snapshot", "step")]
    assert within == [0.0] * len(within)


def test_a_run_is_the_sum_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain steps of 10 ms, and costs that every round sees the same."""
    whole = {"plain": 10.0, "nothing": 10.0, "snapshot": 10.0, "measured": 18.0}
    own = {"plain": 0.5, "step": 0.6, "decision": 2.1}

    def turns(arms: Any, *_: Any, rounds: int, **__: Any) -> dict[Any, Times]:
        return {
            key: Times(
                [0.001 * whole.get(key[1], 11.0)] * rounds, [0.001 * own.get(key[1], 0.5)] * rounds
            )
            for key in arms
        }

    monkeypatch.setattr(overhead, "take_turns", turns)
    found = rows(models=("mlp",), batch_sizes=(4,), policies=("goodput",), rounds=6, run_steps=500)
    share = {row.part: row.run_share for row in found}
    run = found[-1]
    # own time of steps and decisions; of a measured step all that it takes more than another
    more = 0.1 + share["decision"] * 1.5 + share["measured"] * (18.0 - 11.0)
    assert run.part == "run"
    assert run.ratio == pytest.approx(1 + more / 10.0)
    assert run.microseconds == pytest.approx(1000 * more)
    assert run.host_reads is None


def count_measured(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note of every step whether its gradient noise is measured."""
    steps: list[bool] = []
    begin = ChunkMonitor.begin_step

    def noting(self: ChunkMonitor, sizes: Sequence[int], *, measured: bool = False) -> None:
        steps.append(measured)
        begin(self, sizes, measured=measured)

    monkeypatch.setattr(ChunkMonitor, "begin_step", noting)
    return steps


def test_every_step_or_none_pays_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings under which a part is measured, seen from outside."""
    measured = count_measured(monkeypatch)
    policy = resolve_policy("goodput")
    workload = Workload("mlp", 8, CPU)
    configs = part_configs(policy)
    for part, config in configs.items():
        assert config.shadow
        assert (
            config.cadence.chunk_steps(0)
            == config.cadence.chunk_steps(10**6)
            == (1 if part == "decision" else 10**9)
        )
    passes, noisy = {part: 0 for part in configs}, {part: 0 for part in configs}
    for part, config in configs.items():
        arm = controlled(workload, policy, config)
        advance(arm, 4)
        measured.clear()
        with _CountBackward() as counter:
            advance(arm, STEPS)
        passes[part], noisy[part] = counter.passes, sum(measured)
    assert passes == {"step": STEPS, "decision": STEPS, "measured": STEPS}  # none is divided
    assert noisy == {"step": 0, "decision": 0, "measured": STEPS}


class _CountBackward(TorchDispatchMode):
    passes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.passes += func is torch.ops.aten.nll_loss_backward.default
        return func(*args, **(kwargs or {}))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="cnn"):
        rows(models=("resnet",))
    with pytest.raises(UnknownNameError):
        rows(policies=("nobody",))
    with pytest.raises(ConfigurationError, match="6 rounds"):
        OverheadSettings(rounds=5)


def test_a_policy_may_be_anything_of_the_protocol() -> None:
    shares = run_shares(ScriptedPolicy(()), 100)
    assert set(shares) == {"step", "decision"}
    assert all(0 < share <= 1 and math.isfinite(share) for share in shares.values())
