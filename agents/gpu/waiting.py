"""Whether the host waits for the device within a chunk, with the controller and without it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from rlbatch.agents.evaluate.overhead import part_configs
from rlbatch.agents.evaluate.overhead_workloads import (
    MODELS,
    Arm,
    ReadCounter,
    Workload,
    advance,
    controlled,
    counted_waits,
    host_reads,
    plain,
)
from rlbatch.agents.gpu.report import PartSettings, Report, wait
from rlbatch.controller import BatchController
from rlbatch.policy.registry import resolve_policy

_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_READS = ("aten::_local_scalar_dense", "aten::item")
_POLICY = "goodput"  # has the gradient noise measured


def run(settings: PartSettings, report: Report) -> None:
    """Count waits a step of each kind, by torch's own record and by the profiler."""
    models = MODELS[:1] if settings.tiny else MODELS
    for model in models:
        report.experiment(f"{model}: a run", lambda m=model: _whole_run(m, settings, report))
    report.experiment(
        f"{models[0]}: divided steps", lambda: _whole_run(models[0], settings, report, divided=True)
    )
    for model in models:
        report.experiment(f"{model}: parts", lambda m=model: _parts(m, settings, report))
    for model in models:
        report.experiment(f"{model}: profiler", lambda m=model: _profiled(m, settings, report))


def _whole_run(
    model: str, settings: PartSettings, report: Report, *, divided: bool = False
) -> None:
    """Look at each step of a run with default settings: only a chunk's last one may wait."""
    steps = 20 if settings.tiny else 60
    limit = 16 if divided else None
    waits, ends = waits_of_steps(Workload(model, 64, settings.device), steps, limit)
    name = f"{model}, divided" if divided else model
    within = sum(count for count, end in zip(waits, ends, strict=True) if not end)
    at_ends = [count for count, end in zip(waits, ends, strict=True) if end]
    row = {"model": name, "passes": steps, "chunk ends": len(at_ends), "waits within": within}
    report.add("waits of a run", {**row, "waits at ends": sum(at_ends)})
    seen = bool(at_ends) and min(at_ends) > 0  # or else nothing is counted at all
    detail = f"{within} waits in {steps - len(at_ends)} passes; at ends {sorted(set(at_ends))}"
    report.check(
        f"{name}: the host waits at the ends of chunks only",
        (within == 0 and seen) if settings.on_cuda else None,
        detail,
    )


def waits_of_steps(
    workload: Workload, steps: int, limit: int | None = None
) -> tuple[list[int], list[bool]]:
    """Return how often the host waits in each pass of a run, and whether a chunk ends there.

    Args:
        workload: What is trained.
        steps: Passes that are looked at, behind some first ones.
        limit: Samples of a pass; None: of a whole step.
    """
    model, optimizer, loader = workload.parts()
    controller = BatchController(
        model,
        optimizer,
        batch_size=workload.batch_size,
        policy=_POLICY,
        shadow=True,
        micro_batch_size=limit,
    )
    batches = controller.loader(loader)
    waits: list[int] = []
    ends: list[bool] = []
    # The first steps make what later ones use, and the losses of the first four divided ones are
    # looked at.
    warm_up = 3 if limit is None else 5 * -(-workload.batch_size // limit)
    while len(waits) < steps + warm_up:
        source = iter(batches)
        while len(waits) < steps + warm_up:
            with _counting(workload.device) as count:
                batch = next(source, None)
                stepped = 0
                if batch is not None:
                    controller.backward(nn.functional.cross_entropy(model(batch[0]), batch[1]))
                    stepped = controller.step()
            if batch is None:
                break
            waits.append(count())
            ends.append(stepped > 0 and controller.components["chunk"] == (0, 0))
    controller.close()
    return waits[warm_up:], ends[warm_up:]


class _counting:  # noqa: N801 - a context manager, named as one
    """Counts the waits within a block; on a CPU, the reads of a tensor's value."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inner: Any = counted_waits() if device.type == "cuda" else ReadCounter()

    def __enter__(self) -> Callable[[], int]:
        entered = self._inner.__enter__()
        return lambda: int(entered.reads)

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)


def _arms(model: str, device: torch.device) -> dict[str, Arm]:
    workload, policy = Workload(model, 64, device), resolve_policy(_POLICY)
    arms = {"plain": plain(workload)}
    for part, config in part_configs(policy).items():
        arms[part] = controlled(workload, policy, config)
    return arms


def _parts(model: str, settings: PartSettings, report: Report) -> None:
    """Count the waits of steps that all pay the same part."""
    reads: dict[str, float] = {}
    for part, arm in _arms(model, settings.device).items():
        advance(arm, 6)
        reads[part] = host_reads(arm, settings.device, 4 if settings.tiny else 16)
    report.add("waits a step", {"model": model, **reads})
    within = {part: reads[part] - reads["plain"] for part in ("step", "measured")}
    report.check(
        f"{model}: no wait in a step, measured or not, beyond the plain loop's",
        not any(within.values()) and reads["decision"] >= 1 if settings.on_cuda else None,
        f"beyond the plain loop: {within}; in a decision {reads['decision']:g}",
    )


def _profiled(model: str, settings: PartSettings, report: Report) -> None:
    """Count calls that wait, and reads, as the profiler sees them."""
    steps = 4 if settings.tiny else 16
    for part, arm in _arms(model, settings.device).items():
        advance(arm, 6)
        counts = profiled_calls(arm, settings.device, steps)
        row: dict[str, Any] = {"model": model, "loop": part, "steps": steps}
        row |= {name: counts[name] / steps for name in (*_WAITS, *_READS)}
        report.add("calls a step, by the profiler", row)


def profiled_calls(arm: Arm, device: torch.device, steps: int) -> Counter[str]:
    """Return how often each operation and runtime call was made in some steps."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    wait(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=activities) as profiler:
            advance(arm, steps)
        return Counter({event.key: event.count for event in profiler.key_averages()})
