"""What the batch size does, measured: gradient noise, steps to a target, generalisation.

    python scripts/measure_batch_size.py --out out/batch-size [--task char-lm translation]

Writes rows.jsonl (what is in there is not measured again), batch_size.png and tables in Markdown.

Noise: the mean squared distance of a batch's gradient from that of all samples, at the weights
after some steps, over the squared norm of the latter; drawn with replacement, where the law is
tr(Sigma) / B. Steps: to the task's target, the learning rate coupled by the square root.
Generalisation: mean losses over the training and the validation set after the same samples.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlbatch.agents.evaluate.curve_store import append_line, read_lines
from rlbatch.agents.evaluate.figures import figure
from rlbatch.envs.backend import TorchBackend
from rlbatch.envs.conditions import RunConditions
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.profiles import CostWeights
from rlbatch.envs.task import Task, collate_samples, resolve_task
from rlbatch.envs.threads import use_one_thread
from rlbatch.envs.validator import Validator
from rlbatch.signals.record import Array, Coupling

TASKS = ["digits-cnn", "char-lm", "translation"]
NOISE_STEPS = 40  # of training before the noise is measured
Row = dict[str, Any]


def main() -> None:
    """Measure what is missing, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", default=TASKS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--draws", type=int, default=16, help="batches of each size (noise)")
    parser.add_argument("--max-samples", type=int, default=60_000, help="of a run to a target")
    parser.add_argument("--epochs", type=float, default=8.0, help="of the generalisation")
    parser.add_argument("--smallest", type=int, default=1, help="batch size of text to begin with")
    parser.add_argument("--draw-only", action="store_true", help="measure nothing more")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path, help="where to draw; batch_size.png in --out")
    arguments = parser.parse_args()
    use_one_thread()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rows.jsonl"
    known = {key(row): row for row in (read_lines(path) if path.exists() else [])}
    for wanted, work in () if arguments.draw_only else plan(arguments):
        if not answers(known.get(key(wanted)), arguments.max_samples):
            row = {**wanted, **work()}
            append_line(path, row)
            known[key(row)] = row
            print(json.dumps(row), flush=True)
    rows = [row for row in known.values() if row["task"] in arguments.task]
    draw(rows, arguments.figure or arguments.out / "batch_size.png")
    tables(rows)


def key(row: Row) -> tuple[Any, ...]:
    """Return what tells measurements apart."""
    return row["part"], row["task"], row["size"], row["seed"]


def answers(row: Row | None, max_samples: int) -> bool:
    """Return whether a row says what is asked: a run that did not arrive had as many samples."""
    if row is None or row["part"] != "steps" or row["samples"] is not None:
        return row is not None
    return row.get("max_samples", 0) >= max_samples


def plan(arguments: argparse.Namespace) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """Yield every measurement and what makes it, the quickest first."""
    for name in arguments.task:
        task = resolve_task(name)
        total = count(task.train_set)
        smallest = 1 if name.startswith("digits") else arguments.smallest
        noise = Noise(task, arguments.draws)
        for size in ladder(1, min(total, 1024), 4):
            yield row("noise", name, size, 0), lambda n=noise, s=size: n.at(s)
        for size in [*ladder(smallest, total // 2, 4), total]:
            for seed in range(arguments.seeds):
                yield (
                    row("steps", name, size, seed),
                    lambda t=task, s=size, r=seed: steps(t, s, r, arguments.max_samples),
                )
        for size in [*ladder(max(8, smallest), total // 2, 4), total]:
            for seed in range(arguments.seeds):
                yield (
                    row("gap", name, size, seed),
                    lambda t=task, s=size, r=seed: gap(t, s, r, arguments.epochs),
                )


def row(part: str, task: str, size: int, seed: int) -> Row:
    """Return the head of a row."""
    return {"part": part, "task": task, "size": size, "seed": seed}


def count(dataset: Any) -> int:
    """Return the samples of a data set."""
    return len(dataset)


def ladder(first: int, last: int, factor: int) -> list[int]:
    """Return sizes from the first one up to the last."""
    return [first * factor**k for k in range(40) if first * factor**k <= last]


class Noise:
    """Gradients of batches against the gradient of all samples, at the same weights."""

    def __init__(self, task: Task, draws: int) -> None:
        """Compute nothing before it is asked for."""
        self._task, self._draws = task, draws
        self._trained: tuple[torch.nn.Module, Array] | None = None

    def at(self, size: int) -> Row:
        """Return the mean squared distance at a size, over the squared norm of the gradient."""
        model, whole = self._model()
        rng = np.random.default_rng(size)
        total = count(self._task.train_set)
        draws = self._draws * max(1, 64 // size)  # small batches vary most and cost least
        distances = [
            float(((self._gradient(model, rng.integers(total, size=size)) - whole) ** 2).sum())
            for _ in range(draws)
        ]
        norm = float((whole**2).sum())
        error = float(np.std(distances, ddof=1)) / math.sqrt(draws)
        return {"noise": float(np.mean(distances)) / norm, "error": error / norm}

    def _model(self) -> tuple[torch.nn.Module, Array]:
        if self._trained is None:
            run = live(self._task, self._task.batch_size, 0, steps=NOISE_STEPS)
            model = torch_model(run)
            model.eval()  # the gradient of a sample is then the same in every batch
            total = count(self._task.train_set)
            self._trained = model, self._gradient(model, np.arange(total))
        return self._trained

    def _gradient(self, model: torch.nn.Module, indices: Any) -> Array:
        model.zero_grad()
        for start in range(0, len(indices), 512):
            part = indices[start : start + 512].tolist()
            batch = collate_samples(self._task.train_set, part, self._task.collate)
            (self._task.loss(model, batch) * (len(part) / len(indices))).backward()
        parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat(parts).double().numpy()


def live(task: Task, size: int, seed: int, *, steps: int = 0, epochs: float = 0.0) -> LiveRun:
    """Return a finished run of so many steps or epochs."""
    samples = CostWeights(seconds=0.0, samples=1.0)
    planned = epochs * count(task.train_set) if epochs else None
    budget = None if planned else math.nextafter(math.inf, 0)
    conditions = RunConditions(
        seed=seed,
        coupling=Coupling.SQRT,
        profile=None,
        objective=Objective(None, budget, samples, planned),
        start_batch_size=size,
        max_batch_size=count(task.train_set),
        cadence=Cadence(validation_growth=0.3),
        max_steps=steps or None,
    )
    run = LiveRun(task, conditions.unwatched())
    while not run.finished:
        run.advance(size)
    return run


def torch_model(run: LiveRun) -> torch.nn.Module:
    """Return the network of a run."""
    if not isinstance(run.backend, TorchBackend):
        raise TypeError(f"Expected a run by PyTorch, got {type(run.backend).__name__}.")
    return run.backend.model


def steps(task: Task, size: int, seed: int, max_samples: int) -> Row:
    """Return steps and samples to the target; None where it is not reached."""
    curve = fixed_run_curve(
        replace(task, max_batch_size=count(task.train_set)),
        size,
        seed=seed,
        coupling=Coupling.SQRT,
        max_samples=max_samples,
        target_loss=task.target,
        cadence=Cadence(validation_growth=0.1),
    )
    if not curve.reached:
        return {"steps": None, "samples": None, "max_samples": max_samples}
    return {"steps": int(curve.steps[-1]), "samples": int(curve.samples[-1])}


def gap(task: Task, size: int, seed: int, epochs: float) -> Row:
    """Return the losses over both sets after so many epochs."""
    run = live(task, size, seed, epochs=epochs)
    model = torch_model(run)
    seen = Validator(replace(task, val_set=task.train_set)).loss(model)
    lowest = min(v.loss for v in run.validations)
    return {"train": seen, "val": run.val_loss, "lowest_val": lowest, "epochs": epochs}


def mean(rows: Sequence[Row], part: str, task: str, field: str) -> dict[int, float]:
    """Return geometric means over the seeds of every size that has the field in all of them."""
    found: dict[int, list[float | None]] = {}
    for one in rows:
        if (one["part"], one["task"]) == (part, task):
            found.setdefault(one["size"], []).append(one[field])
    return {
        size: float(np.exp(np.mean(np.log([v for v in values if v is not None]))))
        for size, values in sorted(found.items())
        if None not in values
    }


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the four panels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fig, axes = figure(2, 2, 10.0, 7.5)
    noise, step, sample, loss = axes.flat
    for index, task in enumerate(dict.fromkeys(one["task"] for one in rows)):
        color = f"C{index}"
        law = mean(rows, "noise", task, "noise")
        if law:
            noise.plot(list(law), list(law.values()), "o", color=color, label=task)
            level = float(np.exp(np.mean(np.log([v * b for b, v in law.items()]))))
            noise.plot(list(law), [level / b for b in law], color=color, linewidth=1)
        for ax, field in ((step, "steps"), (sample, "samples")):
            found = mean(rows, "steps", task, field)
            ax.plot(list(found), list(found.values()), "o-", color=color, label=task)
        for field, style in (("train", "o:"), ("val", "o-")):
            found = mean(rows, "gap", task, field)
            label = f"{task}, {'training' if field == 'train' else 'validation'}"
            loss.plot(list(found), list(found.values()), style, color=color, label=label)
    noise.set_ylabel("|g - G|^2 / |G|^2 (line: 1/B)")
    step.set_ylabel("optimizer steps to the target")
    sample.set_ylabel("samples to the target")
    loss.set_ylabel("loss after the same samples")
    for ax in axes.flat:
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xlabel("batch size")
        ax.legend(fontsize=7)
    fig.savefig(path, dpi=120)


def tables(rows: Sequence[Row]) -> None:
    """Print a table a task, in Markdown."""
    for task in dict.fromkeys(one["task"] for one in rows):
        parts = {
            "noise x size": {b: v * b for b, v in mean(rows, "noise", task, "noise").items()},
            "steps": mean(rows, "steps", task, "steps"),
            "samples": mean(rows, "steps", task, "samples"),
            "training loss": mean(rows, "gap", task, "train"),
            "validation loss": mean(rows, "gap", task, "val"),
        }
        missed = {
            one["size"]: one["max_samples"]
            for one in rows
            if one["task"] == task and one.get("samples", 0) is None and "max_samples" in one
        }
        sizes = sorted({one["size"] for one in rows if one["task"] == task})
        print(f"\n{task}\n\n| batch size | {' | '.join(parts)} |\n|{'---|' * (len(parts) + 1)}")
        for size in sizes:
            cells = [f"{found[size]:.3g}" if size in found else "" for found in parts.values()]
            if size in missed:
                cells[2] = f"not in {missed[size]:,}"
            print(f"| {size} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
