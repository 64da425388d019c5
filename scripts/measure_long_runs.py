"""Runs of a hundred thousand steps: what the controller does with them, beside staying.

    python scripts/measure_long_runs.py [--steps 100000] [--task teacher words] [--out long.jsonl]

The target of a seed is what staying at the user's size has reached after `--share` of its steps, so
that both runs are held against the same loss and the same random numbers. Costs are those of device
profiles and are not told to the controller.
"""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, TensorDataset

from rlbatch.agents.evaluate.run import RunResult, controlled_run
from rlbatch.envs.objectives import UNREACHED_RATIO, Objective
from rlbatch.envs.profiles import resolve_profile
from rlbatch.envs.task import Task
from rlbatch.envs.threads import use_one_thread
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Coupling

WARM_UP = 0.02
CONTEXT = 8  # characters


def main() -> None:
    """Run every task and profile, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--share", type=float, nargs="+", default=[0.9])
    parser.add_argument("--policy", nargs="+", default=["default"])
    parser.add_argument("--profile", nargs="+", default=["cpu", "accelerator-512"])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="append one JSON object a run to this file")
    arguments = parser.parse_args()
    use_one_thread()
    for name, seed in product(arguments.task, arguments.seed):
        task = TASKS[name](arguments.steps)
        run = partial(_run, steps=arguments.steps, seed=seed)
        whole = run(replace(task, target=1e-9), "fixed", "cpu", most=arguments.steps)
        for share, profile in product(arguments.share, arguments.profile):
            aimed = replace(task, target=_reached_by(whole, share))
            stays = run(aimed, "fixed", profile)
            for policy in arguments.policy:
                row = {"task": name, "steps": arguments.steps, "seed": seed, "share": share}
                row |= {"profile": profile, "policy": policy}
                row |= _row(run(aimed, policy, profile), stays, aimed.target)
                print(json.dumps(row), flush=True)
                if arguments.out is not None:
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")


def _run(
    task: Task, policy: str, profile: str, *, steps: int, seed: int, most: int | None = None
) -> tuple[RunResult, float]:
    began = time.process_time()
    result = controlled_run(
        task,
        resolve_policy(policy),
        seed=seed,
        coupling=Coupling.SQRT,
        profile=resolve_profile(profile),
        objective=Objective(task.target),
        max_steps=most or 4 * steps,
        planned_steps=steps,
        curve_known=False,
    )
    return result, time.process_time() - began


def _reached_by(staying: tuple[RunResult, float], share: float) -> float:
    """Return the least validation loss within a share of a run's cost."""
    result, _ = staying
    return min(v.loss for v in result.validations if v.cost <= share * result.cost)


def _row(
    run: tuple[RunResult, float], staying: tuple[RunResult, float], target: float
) -> dict[str, Any]:
    (result, seconds), (stays, its_seconds) = run, staying
    ratio = result.cost / stays.cost if result.reached else UNREACHED_RATIO
    sizes = [(size, len(list(group))) for size, group in groupby(s for _, s in result.trajectory)]
    return {
        "over_staying": round(ratio, 4),
        "reached": result.reached,
        "missed_by": round(max(min(v.loss for v in result.validations) / target - 1.0, 0.0), 5),
        "decisions": result.decisions,
        "changes": len(sizes) - 1,
        "sizes": sizes,
        "cpu_seconds": round(seconds, 1),
        "cpu_seconds_staying": round(its_seconds, 1),
    }


def _cosine(steps: int, done: int) -> float:
    """Return the rate after so many steps, of its peak: warm-up, then a cosine to nothing."""
    rise = WARM_UP * steps
    if done < rise:
        return (done + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (done - rise) / (steps - rise))))


def teacher(steps: int) -> Task:
    """A million noisy outputs of a random network, for a smaller one."""
    g = torch.Generator().manual_seed(301)
    x = torch.randn(1_010_000, 16, generator=g)
    y = x
    for width in (64, 64, 1):
        y = torch.tanh(y) if y is not x else y
        y = y @ torch.randn(y.shape[1], width, generator=g) * (2.0 / y.shape[1]) ** 0.5
    y = y + 0.3 * torch.randn(y.shape, generator=g)
    return _task("teacher", x, y, partial(_layers, 16, 1), _squares, batch_size=32, steps=steps)


def words(steps: int) -> Task:
    """The next character of Python's sources after eight others."""
    text = "".join(_sources())[:1_200_000]
    code = torch.tensor([min(ord(letter), 127) for letter in text])
    windows = code.unfold(0, CONTEXT + 1, 1)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(302))
    windows = windows[order[:1_010_000]]
    x, y = windows[:, :-1].contiguous(), windows[:, -1].contiguous()
    return _task("words", x, y, Letters, _classes, batch_size=32, steps=steps)


@cache
def _sources() -> tuple[str, ...]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return tuple(path.read_text(errors="ignore") for path in sorted(folder.glob("*.py")))


def _task(
    name: str,
    x: torch.Tensor,
    y: torch.Tensor,
    model: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Any], torch.Tensor],
    *,
    batch_size: int,
    steps: int,
) -> Task:
    train: Dataset[Any] = TensorDataset(x[:-10_000], y[:-10_000])
    return Task(
        name=f"long-{name}",
        model=model,
        train_set=train,
        val_set=TensorDataset(x[-2_000:], y[-2_000:]),
        loss=loss,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        scheduler=lambda optimizer, count: LambdaLR(optimizer, partial(_cosine, count)),
        epochs=steps * batch_size / 1_000_000,
        batch_size=batch_size,
        target=1.0,
    )


def _layers(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))
    )


class Letters(nn.Module):
    """Embeddings of the last characters, side by side, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, 16)
        self.head = nn.Sequential(nn.Linear(16 * CONTEXT, 128), nn.ReLU(), nn.Linear(128, 128))

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next character."""
        return self.head(self.embed(letters).flatten(1))


def _squares(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def _classes(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


TASKS: dict[str, Callable[[int], Task]] = {"teacher": teacher, "words": words}


if __name__ == "__main__":
    main()
