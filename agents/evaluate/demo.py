"""The demonstration: one task at its default size, at every fixed size, and under a controller."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlbatch.agents.evaluate.bench import REFERENCES, run_bench
from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.curve_store import CurveStore, read_lines
from rlbatch.agents.evaluate.figures import figure
from rlbatch.agents.evaluate.fixed_curves import size_grid
from rlbatch.agents.evaluate.group import TRAJECTORIES_FILE
from rlbatch.agents.evaluate.rows import Row
from rlbatch.agents.evaluate.settings import BenchSettings
from rlbatch.agents.evaluate.summary import Summary, summarize
from rlbatch.envs.fixed_run import Curve
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.task import resolve_task

_CLOCK = "cpu"


@dataclass(frozen=True)
class FixedSize:
    """One fixed batch size over all seeds.

    Attributes:
        batch_size: The size.
        seconds: Mean cost to the target on the profile's clock; None unless every seed got there.
        samples: Mean samples to the target, likewise.
        reached: Seeds that got there within the cap times the best size's cost.
    """

    batch_size: int
    seconds: float | None
    samples: float | None
    reached: int


@dataclass(frozen=True)
class Demo:
    """What was measured.

    Attributes:
        rows: The controlled runs beside their references.
        summary: Of the controlled runs.
        sizes: Fixed sizes, smallest first.
        default: The default size's entry.
        best_samples: Mean samples of the best fixed size of each seed; None if there was none.
        sweep_seconds: Mean cost of the sweep that finds the best size, from the default outwards,
            each size stopped once it is dearer than the best before it.
    """

    rows: Sequence[Row]
    summary: Summary
    sizes: Sequence[FixedSize]
    default: FixedSize
    best_samples: float | None
    sweep_seconds: float


def run_demo(
    out: Path,
    *,
    task: str = "digits-mlp",
    policy: str = "default",
    coupling: str = "sqrt",
    seeds: int = 5,
    jobs: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Demo:
    """Measure, with episode logs under `out/runs`.

    Args:
        out: New folder, or that of the same demonstration to go on with.
        task: What is trained.
        policy: What decides.
        coupling: How the learning rate follows the batch size.
        seeds: Number of paired seeds.
        jobs: Processes.
        on_progress: Called with the seeds that are finished and their number.
    """
    settings = BenchSettings((task,), (policy,), (coupling,), (_CLOCK,), seeds=seeds)
    rows = run_bench(settings, out, jobs=jobs, logs=True, full_sweep=True, on_progress=on_progress)
    curves = _curves(out)
    default = rows[0]["default_batch_size"]
    sizes = [_fixed_size(size, curves, task) for size in sorted({size for _, size in curves})]
    best = [curves[row["seed"], row["reference_batch_size"]] for row in rows]
    return Demo(
        rows=rows,
        summary=summarize(rows)[0],
        sizes=sizes,
        default=next(size for size in sizes if size.batch_size == default),
        best_samples=_mean([c.samples[-1] for c in best]) if all(c.reached for c in best) else None,
        sweep_seconds=_mean([_sweep_cost(task, row["seed"], curves) for row in rows]),
    )


def draw_demo(demo: Demo, out: Path, task: str = "digits-mlp") -> Path:
    """Draw loss and batch size against cost and return the picture's path.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    curves, path = _curves(out), out / "demo.png"
    shapes = {shape["cell"][-1]: shape for shape in read_lines(out / TRAJECTORIES_FILE)}
    fig, axes = figure(2, 1, 8, 7)
    loss, sizes = axes[0][0], axes[1][0]
    for row in demo.rows:
        seed = row["seed"]
        first = seed == demo.rows[0]["seed"]
        look = {"linewidth": 2.0 if first else 0.8, "alpha": 1.0 if first else 0.35}
        for size, color, name in (
            (row["default_batch_size"], "C7", "default size"),
            (row["reference_batch_size"], "C2", "best fixed size in hindsight"),
        ):
            curve = curves[seed, size]
            cost = [_cost(task, size, steps) for steps in curve.steps]
            label = name if first else None
            loss.plot(cost, curve.val_loss, color=color, label=label, **look)
            sizes.plot([0, cost[-1]], [size, size], color=color, label=label, **look)
        _draw_controlled(loss, sizes, shapes[seed], row, look, first)
    loss.axhline(resolve_task(task).target, color="0.4", linestyle="--", linewidth=1)
    loss.set_yscale("log")
    loss.set_ylabel("validation loss (dashed: target)")
    loss.set_title(f"{task}, {len(demo.rows)} seeds (thick: seed 0)")
    loss.legend()
    sizes.set_yscale("log", base=2)
    sizes.set_ylabel("batch size")
    sizes.set_xlabel(f"seconds on the {_CLOCK} profile")
    sizes.sharex(loss)
    fig.savefig(path, dpi=120)
    return path


def _draw_controlled(
    loss: Any, sizes: Any, shape: dict[str, Any], row: Row, look: dict[str, float], first: bool
) -> None:
    label = f"controller ({row['policy']})" if first else None
    points = [(cost, value) for cost, value in shape["validations"] if value is not None]
    loss.plot(*zip(*points, strict=True), color="C1", label=label, **look)
    steps = [*shape["batch_sizes"], [row["cost"], shape["batch_sizes"][-1][1]]]
    sizes.step(*zip(*steps, strict=True), where="post", color="C1", **look)


def _curves(out: Path) -> dict[tuple[int, int], Curve]:
    """Return the fixed runs by seed and batch size."""
    found: dict[tuple[int, int], Curve] = {}
    for path in sorted((out / REFERENCES).glob("*.jsonl")):
        for key, curve in CurveStore(path).items():
            if curve.steps:
                found[key.seed, key.batch_size] = curve
    return found


def _fixed_size(size: int, curves: dict[tuple[int, int], Curve], task: str) -> FixedSize:
    mine = [curve for (_, other), curve in curves.items() if other == size]
    everywhere = all(curve.reached for curve in mine)
    return FixedSize(
        size,
        _mean([_cost(task, size, c.steps[-1]) for c in mine]) if everywhere else None,
        _mean([c.samples[-1] for c in mine]) if everywhere else None,
        sum(curve.reached for curve in mine),
    )


def _sweep_cost(task: str, seed: int, curves: dict[tuple[int, int], Curve]) -> float:
    best, total = math.inf, 0.0
    for size in size_grid(resolve_task(task)):
        curve = curves[seed, size]
        spent = _cost(task, size, curve.steps[-1])
        total += min(spent, best)
        best = min(best, spent if curve.reached else math.inf)
    return total


def _cost(task: str, size: int, steps: int) -> float:
    found = resolve_task(task)
    dataset: int = len(found.train_set)  # pyright: ignore[reportArgumentType]
    return float(resolve_clock(_CLOCK).run_cost(steps, size, dataset, found.batch_size))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def verdict(demo: Demo) -> str:
    """Return in words whether the controller paid off, by the intervals where there are any."""
    return (
        f"The controller cost {_judged(demo.summary.to_default.value)} the default size and "
        f"{_judged(demo.summary.ratio.value)} the best fixed size in hindsight "
        f"(95% intervals {_interval(demo.summary.to_default)} and "
        f"{_interval(demo.summary.ratio)}; unreached counts as {UNREACHED_RATIO:g})."
    )


def _judged(ratio: float) -> str:
    if math.isclose(ratio, 1.0, rel_tol=5e-3):
        return "as much as"
    change = abs(ratio - 1.0)
    return f"{change:.0%} {'less' if ratio < 1 else 'more'} than"


def _interval(mean: Any) -> str:
    return "unknown" if mean.low is None else f"{mean.low:.2f} to {mean.high:.2f}"
