"""Pictures of a benchmark: ratios with intervals, share of runs within a ratio, batch sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlbatch.agents.evaluate.rows import CELL_FIELDS, Row
from rlbatch.agents.evaluate.summary import summarize_by
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.errors import MissingExtraError

_PANELS = 6  # of trajectories: more than that nobody looks at


def draw_figures(
    rows: Sequence[Row], trajectories: Sequence[dict[str, Any]], folder: Path
) -> list[Path]:
    """Draw what there is to draw and return the files.

    Args:
        rows: Results.
        trajectories: Of the real runs among them, see `bench`.
        folder: Where `ratios.png`, `reached.png` and `batch_sizes.png` go.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    if not rows:
        return []
    paths = [_ratios(rows, folder / "ratios.png"), _reached(rows, folder / "reached.png")]
    if trajectories:
        paths.append(_batch_sizes(rows, trajectories, folder / "batch_sizes.png"))
    return paths


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """Return a figure with a grid of axes, drawn without a display.

    Args:
        rows: Of axes.
        columns: Of axes.
        width: Of the figure, inches.
        height: Likewise.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    made = Figure(figsize=(width, height), layout="constrained")  # no pyplot: no global state
    return made, made.subplots(rows, columns, squeeze=False)


def colors(policies: Sequence[str]) -> dict[str, str]:
    """Return a colour for each policy."""
    return {policy: f"C{index % 10}" for index, policy in enumerate(sorted(set(policies)))}


def _short(name: str) -> str:
    """Return a name without the folder of its file: a long path leaves a figure no room."""
    return name.replace("\\", "/").rpartition("/")[2]


def _ratios(rows: Sequence[Row], path: Path) -> Path:
    by_task = summarize_by(rows, "task")
    policies = sorted({row["policy"] for row in rows})
    color = colors(policies)
    height = 1.2 + 0.22 * len(by_task) * (len(policies) + 1)
    fig, axes = figure(1, 1, 8, height)
    ax = axes[0][0]
    for place, (_, found) in enumerate(by_task.items()):
        for summary in found:
            offset = (policies.index(summary.policy) + 1) / (len(policies) + 1) - 0.5
            mean = summary.ratio
            low = mean.value if mean.low is None else mean.low
            high = mean.value if mean.high is None else mean.high
            error = [[mean.value - low], [high - mean.value]]
            label = _short(summary.policy) if place == 0 else None
            dot = {"fmt": "o", "markersize": 4, "color": color[summary.policy], "label": label}
            ax.errorbar(mean.value, place + offset, xerr=error, **dot)
        ax.axhline(place + 0.5, color="0.9", linewidth=0.8)
    ax.axvline(1.0, color="0.4", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(by_task)), list(map(_short, by_task)))
    ax.invert_yaxis()
    ax.set_xlabel("cost / cost of the best fixed batch size in hindsight (dashed: equal)")
    _log_ratio_axis(ax)
    # Labels of the first task in the order of its summaries; sorted as everywhere else.
    handles, labels = ax.get_legend_handles_labels()
    pairs = sorted(zip(labels, handles, strict=True), key=lambda pair: pair[0])
    ax.legend(
        [h for _, h in pairs], [text for text, _ in pairs], fontsize=8, loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )  # fmt: skip
    fig.savefig(path, dpi=120)
    return path


def _log_ratio_axis(ax: Any) -> None:
    ax.set_xscale("log")
    ticks = [0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 0.9), max(high, 1.1))


def _reached(rows: Sequence[Row], path: Path) -> Path:
    policies = sorted({row["policy"] for row in rows})
    color = colors(policies)
    fig, axes = figure(1, 1, 7, 4.5)
    ax = axes[0][0]
    for policy in policies:
        mine = [row for row in rows if row["policy"] == policy]
        ratios = sorted(row["ratio"] for row in mine if row["reached"])
        share = np.arange(1, len(ratios) + 1) / len(mine)
        ends = [*ratios, UNREACHED_RATIO]
        shares, name = [*share, share[-1] if len(share) else 0.0], _short(policy)
        ax.step(ends, shares, where="post", label=name, color=color[policy])
    cells = _one_policy(rows)
    fixed = sorted(row["default_cost"] / row["reference_cost"] for row in cells)
    reached = [ratio for ratio in fixed if ratio < UNREACHED_RATIO]
    share = np.arange(1, len(reached) + 1) / len(cells)
    ax.step(reached, share, where="post", color="0.5", linestyle=":", label="default size, fixed")
    ax.axvline(1.0, color="0.4", linestyle="--", linewidth=1)
    ax.set_xlabel("cost to target / cost of the best fixed batch size in hindsight")
    ax.set_ylabel("share of runs that reached the target")
    ax.set_ylim(0, 1.02)
    _log_ratio_axis(ax)
    ax.legend(fontsize=8)
    fig.savefig(path, dpi=120)
    return path


def _one_policy(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one policy: each cell of the others once."""
    return [row for row in rows if row["policy"] == rows[0]["policy"]]


def _batch_sizes(rows: Sequence[Row], trajectories: Sequence[dict[str, Any]], path: Path) -> Path:
    by_cell = {tuple(row[name] for name in CELL_FIELDS): row for row in rows}
    shapes = {tuple(shape["cell"]): shape for shape in trajectories}
    known = [cell for cell in by_cell if cell in shapes]
    panels = list(dict.fromkeys((c[0], c[2], c[3]) for c in known))[:_PANELS]
    color = colors([row["policy"] for row in rows])
    columns = min(len(panels), 3)
    lines = math.ceil(len(panels) / columns)
    fig, axes = figure(lines, columns, 4.6 * columns, 3.4 * lines)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    labelled: set[str] = set()
    for ax, panel in zip(axes.flat, panels, strict=False):
        for cell in known:
            if (cell[0], cell[2], cell[3]) != panel:
                continue
            row, points = by_cell[cell], shapes[cell]["batch_sizes"]
            cost = [point[0] / row["reference_cost"] for point in points]
            cost.append(row["cost"] / row["reference_cost"])
            sizes = [point[1] for point in points]
            label = None if cell[1] in labelled else _short(cell[1])
            labelled.add(cell[1])
            ax.step(cost, [*sizes, sizes[-1]], where="post", color=color[cell[1]], alpha=0.6,
                    linewidth=1.0, label=label)  # fmt: skip
            ax.plot(1.0, row["reference_batch_size"], "k*", markersize=5, zorder=3)
        ax.set_yscale("log", base=2)
        ax.set_title(f"{_short(panel[0])}, {panel[1]}, {panel[2]}", fontsize=9)
        ax.set_xlabel("cost / cost of the best fixed size (star)", fontsize=8)
        ax.set_ylabel("batch size", fontsize=8)
    fig.legend(fontsize=8, loc="outside lower center", ncols=4)
    fig.savefig(path, dpi=120)
    return path
