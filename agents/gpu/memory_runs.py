"""`micro_batch_size="auto"` against real memory: a limit that is told, one that is met, all."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from rlbatch.agents.gpu.report import PartSettings, Report, wait
from rlbatch.controller import BatchController
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals

BASE = 16
_DEPTH = 24
_GB = 1 << 30


@dataclass(frozen=True)
class Doubling(tools.Stateless):
    """Doubles the batch size with each decision, up to the run's limit."""

    needs_gradient_noise = False

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return one doubling."""
        wanted = np.minimum(2.0 * signals.batch_size, signals.context.max_batch_size)
        return tools.decision(tools.change_to(wanted, signals.batch_size), "doubling"), state


class Hungry(nn.Module):
    """Keeps so many numbers a sample for the backward pass, at little computation."""

    def __init__(self, numbers: int) -> None:
        """Make a model.

        Args:
            numbers: Of each of its layers, a sample.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 1.0, numbers))

    def forward(self, x: Tensor) -> Tensor:
        """Return one number a sample, shape (samples,), of inputs (samples, 1)."""
        y = x * self.weight
        for _ in range(_DEPTH):
            y = torch.sin(y)
        return y.mean(1)


def run_memory(settings: PartSettings, report: Report) -> None:
    """Let batches grow past what fits: told, met as an error, and up to the whole memory."""
    device = settings.device
    if not settings.on_cuda:
        run = lambda: _grow("limit told", 4_000, 1 << 20, settings, report)  # noqa: E731
        report.experiment("auto: limit told", run)
        for name in ("memory used up for real", "all memory"):
            report.check(f"auto: {name}", None)
        return
    numbers = 1 << 20
    told: Callable[[], None] = lambda: _grow("limit told", numbers, 4 * _GB, settings, report)  # noqa: E731
    report.experiment("auto: limit told", told)

    def met() -> None:
        with most_memory(device, 6 * _GB):
            _grow("memory used up for real", numbers, None, settings, report)

    report.experiment("auto: memory used up for real", met)
    whole: Callable[[], None] = lambda: _grow("all memory", numbers, None, settings, report)  # noqa: E731
    report.experiment("auto: all memory", whole)
    torch.cuda.empty_cache()


@contextmanager
def most_memory(device: torch.device, limit: int) -> Generator[None]:
    """Let torch's allocator refuse, with its own error, what goes beyond a number of bytes."""
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(limit / whole, 1.0), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)
        torch.cuda.empty_cache()


def _grow(
    name: str, numbers: int, limit: int | None, settings: PartSettings, report: Report
) -> None:
    """Double the batch until it does not fit, and check that every sample came."""
    device = settings.device
    doublings = 4 if settings.tiny else 6
    largest = int(1.4 * BASE * 2**doublings)
    samples = 6 * largest
    model = Hungry(numbers).to(device)
    data = TensorDataset(torch.rand(samples, 1))
    controller = _doubling_controller(model, limit, largest)
    if settings.on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if settings.on_cuda else 0
    began = time.perf_counter()
    parts, stepped, failures = _train(model, controller, data, device)
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) - before if settings.on_cuda else None
    row: dict[str, Any] = {"memory": name, "largest batch": max(stepped), "largest part": parts}
    row |= {"ran out": failures, "samples": sum(stepped), "seconds": seconds}
    row["peak GB"] = None if peak is None else peak / 1e9
    report.add("micro_batch_size='auto'", row)
    fine = sum(stepped) == samples and max(stepped) == largest
    if limit is not None:
        fine = fine and failures == 0 and parts < largest and (peak is None or peak <= limit)
    elif name.startswith("memory used up"):
        fine = fine and failures > 0 and parts < largest
    detail = f"{failures} failed passes, parts of at most {parts} of {max(stepped)} samples"
    report.check(f"auto: {name}", fine if settings.on_cuda else None, detail)
    if sum(stepped) != samples:
        raise RuntimeError(f"{sum(stepped)} of {samples} samples came")


def _doubling_controller(model: nn.Module, limit: int | None, largest: int) -> BatchController:
    return BatchController(
        model,
        SGD(model.parameters(), lr=1e-3),
        batch_size=BASE,
        policy=Doubling(),
        micro_batch_size="auto",
        memory_limit=limit,
        max_batch_size=largest,
        guard=None,
        lr_coupling="none",
        first_chunk_steps=1,
        min_chunk_steps=1,
        max_chunk_steps=1,
        on_error="raise",
    )


def _train(
    model: nn.Module, controller: BatchController, data: Any, device: torch.device
) -> tuple[int, list[int], int]:
    """Return the largest part that went through, the samples of each step, and failures."""
    parts = [0]
    stepped: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for (x,) in controller.loader(DataLoader(data, BASE)):
            with controller.within_memory():
                controller.backward(model(x.to(device, non_blocking=True)).square().mean())
                parts.append(len(x))
            if samples := controller.step():
                stepped.append(samples)
    wait(device)
    controller.close()
    failures = sum("out of memory" in str(warning.message) for warning in caught)
    return max(parts), stepped, failures
