"""The picture of the demonstration: batch sizes over time, a panel for each start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlbatch.agents.evaluate.demo import RULE, Demo, Start, stays, trajectories
from rlbatch.agents.evaluate.figures import figure
from rlbatch.agents.evaluate.rows import Row, cell_key

PICTURE = "demo.png"
_BEST, _STAYING, _RULE, _OURS = "C2", "0.7", "C0", "C1"
# The first drawn are the widest: where runs take the same size, all of their lines can be seen.
_WIDTHS = {_STAYING: 7.0, _RULE: 4.5, _OURS: 2.5, _BEST: 1.5}


def draw_demo(demo: Demo, out: Path) -> Path:
    """Draw the first seed and return the picture's path.

    Args:
        demo: What was measured.
        out: The folder it was measured in; `demo.png` goes there.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    count = len(demo.starts)
    fig, axes = figure(1, count, max(4.2 * count, 9), 4.8)
    shapes, seed = trajectories(out), min(row["seed"] for row in demo.rows)
    for ax, start in zip(axes[0], demo.starts, strict=True):
        rows = [
            row
            for row in demo.rows
            if row["seed"] == seed and row["start_batch_size"] == start.batch_size
        ]
        if ax is not axes[0][0]:  # before drawing: the limits follow all panels then
            ax.sharex(axes[0][0])
            ax.sharey(axes[0][0])
        _draw_start(ax, rows, shapes, demo.policy, start)
    axes[0][0].set_ylabel("batch size")
    fig.suptitle(
        f"Batch size while {demo.task} trains to its target loss\n"
        "A line ends in a dot where the target is reached (cross: given up). Further left is better"
    )
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    path = out / PICTURE
    fig.savefig(path, dpi=120)
    return path


def _draw_start(
    ax: Any,
    rows: Sequence[Row],
    shapes: dict[tuple[object, ...], list[tuple[float, int]]],
    policy: str,
    start: Start,
) -> None:
    by_policy = {row["policy"]: row for row in rows}
    ours = by_policy[policy]
    size, best = start.batch_size, ours["reference_batch_size"]
    cost, reached = ours["reference_cost"], ours["reference_reached"]
    spent = ours["start_cost"]
    _line(ax, [(0, size), (spent, size)], stays(ours), "staying at the start", _STAYING)
    for name, row, color in (
        ("goodput rule", by_policy[RULE], _RULE),
        (f"controller ({policy})", ours, _OURS),
    ):
        points = [*shapes[cell_key(row)]]
        points.append((row["cost"], points[-1][1]))
        _line(ax, points, row["reached"], name, color)
    name = "best fixed size, known afterwards"
    _line(ax, [(0, best), (cost, best)], reached, name, _BEST)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter("{x:.0f}")
    ax.margins(x=0.03)  # a change in the first chunk is not hidden by the frame
    ax.set_xlabel(f"seconds ({ours['profile']})")
    ax.set_title(f"start: {size}, {start.name}")


def _line(
    ax: Any,
    points: Sequence[tuple[float, int]],
    reached: bool,
    label: str,
    color: str,
) -> None:
    """Draw a run's sizes; a cross ends one that was given up."""
    width = _WIDTHS[color]
    look = {"color": color, "label": label, "linewidth": width}
    ax.step(*zip(*points, strict=True), where="post", **look)
    ax.plot(*points[-1], marker="o" if reached else "X", markersize=4 + 1.5 * width, color=color)
