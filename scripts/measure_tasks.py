"""Measure the built-in tasks: steps, samples and seconds to the target at fixed batch sizes.

    python scripts/measure_tasks.py                       # all tasks
    python scripts/measure_tasks.py --task char-lm --seeds 5

Runs use one thread. A dash stands for a target not reached within the cap on steps or seconds.
Seconds are those of the training steps; an evaluation's time is given once a task.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from rlbatch.envs.task import Task, collate_samples, resolve_task, task_names
from rlbatch.envs.threads import use_one_thread
from rlbatch.envs.validator import Validator

FACTORS = (0.125, 0.5, 1.0, 2.0, 8.0)  # of the task's batch size
COUPLING_EXPONENTS = {"none": 0.0, "sqrt": 0.5}  # learning rate ~ batch size to this power
MAX_STEPS = 4_000
EVALUATION_INTERVAL = 4  # default batches between evaluations, counted in samples
DIVERGED = 10.0  # times the loss at the start


@dataclass(frozen=True)
class Outcome:
    """What one run took to its target; `reached` is False when a cap came first."""

    reached: bool
    steps: int
    samples: int
    seconds: float


def run(task: Task, batch_size: int, exponent: float, seed: int, max_seconds: float) -> Outcome:
    """Train at one batch size until the target, checking as often in samples whatever the size."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] *= (batch_size / task.batch_size) ** exponent
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    interval = max(
        1, round(EVALUATION_INTERVAL * task.batch_size / batch_size)
    )  # steps between evaluations
    ceiling = DIVERGED * Validator(task).loss(model)
    seconds, step = 0.0, 0
    for step in range(1, MAX_STEPS + 1):
        started = time.perf_counter()
        if len(order) < batch_size:
            order = torch.randperm(size(task.train_set), generator=generator).tolist()
        indices, order = order[:batch_size], order[batch_size:]
        optimizer.zero_grad()
        task.loss(model, collate_samples(task.train_set, indices, task.collate)).backward()
        optimizer.step()
        seconds += time.perf_counter() - started
        if step % interval == 0:
            loss = Validator(task).loss(model)
            if loss <= task.target:
                return Outcome(True, step, step * batch_size, seconds)
            if not math.isfinite(loss) or loss > ceiling:
                break
        if seconds > max_seconds:
            break
    return Outcome(False, step, step * batch_size, seconds)


def size(dataset: Any) -> int:
    """Return the number of samples."""
    return len(dataset)


def describe(task: Task) -> str:
    """Return one line on the task's sizes and on what an evaluation takes."""
    model = task.model()
    Validator(task).loss(model)
    started = time.perf_counter()
    Validator(task).loss(model)
    milliseconds = 1e3 * (time.perf_counter() - started)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{task.name}: {parameters:,} parameters, {size(task.train_set):,} train, "
        f"{size(task.val_set):,} val, batch size {task.batch_size} (max {task.max_batch_size}), "
        f"target {task.target}, evaluation {milliseconds:.1f} ms"
    )


def measure(task: Task, seeds: int, max_seconds: float) -> None:
    """Print the table of one task."""
    print(describe(task), flush=True)
    for coupling, exponent in COUPLING_EXPONENTS.items():
        for factor in FACTORS:
            batch_size = max(1, round(task.batch_size * factor))
            if batch_size > (task.max_batch_size or size(task.train_set)):
                continue
            if factor == 1.0 and exponent:
                continue  # the same runs as with no coupling
            outcomes = [run(task, batch_size, exponent, s, max_seconds) for s in range(seeds)]
            cells = [
                f"{o.steps:>6} {o.samples:>7} {o.seconds:>6.2f}s" if o.reached else f"{'-':>22}"
                for o in outcomes
            ]
            print(f"  {coupling:<5} B={batch_size:<5}" + " |".join(cells), flush=True)


def main() -> None:
    """Measure the chosen tasks."""
    parser = argparse.ArgumentParser(description="Measure the built-in tasks.")
    parser.add_argument("--task", nargs="+", default=task_names(), help="names or file.py:function")
    parser.add_argument("--seeds", type=int, default=2, help="runs a cell")
    parser.add_argument("--max-seconds", type=float, default=15.0, help="cap on one run")
    arguments = parser.parse_args()
    use_one_thread()
    for spec in arguments.task:
        measure(resolve_task(spec), arguments.seeds, arguments.max_seconds)


if __name__ == "__main__":
    main()
