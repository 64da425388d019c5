"""What a step costs at each batch size: profiles named after the card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from rlbatch.agents.evaluate.overhead_larger import LARGER
from rlbatch.agents.evaluate.overhead_workloads import Batches
from rlbatch.agents.gpu.report import PartSettings, Report, device_name
from rlbatch.agents.search.energy import find_meter
from rlbatch.agents.search.profiling import Measured, measure
from rlbatch.envs.task import Task

_POOL = 256  # different samples; a batch takes them over and over


def run(settings: PartSettings, report: Report) -> None:
    """Measure the steps of the three larger models and fit a profile to each."""
    if settings.on_cuda and find_meter(settings.device) is None:
        report.note("No energy counter was found: powers of the profiles are assumed.")
    for name in list(LARGER)[:1] if settings.tiny else LARGER:
        report.experiment(name, lambda n=name: _one(n, settings, report))


def _one(model: str, settings: PartSettings, report: Report) -> None:
    name = f"{slug(device_name(settings.device))}-{model}"
    # A rehearsal has few sizes, however slow a busy machine is.
    limits: dict[str, Any] = {"most": 16, "rounds": 2, "max_seconds": 60.0}
    if not settings.tiny:
        # Half a second a pass: the curve has long been a straight line there.
        limits = {"most": 4096, "rounds": 5, "max_seconds": 0.5}
    found = measure(task_of(model), name, device=settings.device, **limits)
    report.keep(name, found.to_json())
    _show(model, found, report)
    if settings.on_cuda:
        torch.cuda.empty_cache()


def _show(model: str, found: Measured, report: Report) -> None:
    profile = found.fitted.profile
    for step in found.steps:
        update = sorted(step.update_seconds)[len(step.update_seconds) // 2]
        row = {
            "model": model,
            "batch size": step.size,
            "pass, ms": 1e3 * step.seconds,
            "update, ms": 1e3 * update,
            "fitted step, ms": 1e3 * float(profile.step_seconds(step.size)),
            "samples/s": step.size / (step.seconds + update),
            "MB of a pass": None if step.bytes is None else step.bytes / 1e6,
            "J a step": step.joules,
        }
        report.add("steps", row)
    knee = profile.launch_seconds / profile.sample_seconds
    fields = asdict(profile)
    keys = ("name", "launch_seconds", "sample_seconds", "update_seconds", "sharpness")
    row = {key: fields[key] for key in keys}
    row |= {"knee": knee, "error": found.fitted.error, "largest": found.largest.size}
    row |= {"idle_watts": profile.idle_watts, "busy_watts": profile.busy_watts}
    report.add("profiles", row | {"energy": found.meter or "assumed"})


def slug(text: str) -> str:
    """Return a name for files and the command line."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def task_of(name: str) -> Task:
    """Return a larger model with random samples as a task."""
    make_model, make_inputs, make_optimizer = LARGER[name]
    torch.manual_seed(0)
    data = Batches(make_inputs(_POOL), torch.randint(0, 10, (_POOL,)))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return Task(
        name=name,
        model=make_model,
        train_set=data,
        val_set=data,
        loss=loss,
        optimizer=lambda parameters: make_optimizer(nn.ParameterList(parameters)),
        batch_size=64,
        target=1.0,
        collate=_as_it_is,
    )


def _as_it_is(batch: Sequence[Tensor]) -> Sequence[Tensor]:
    return batch
