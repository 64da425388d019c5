"""The picture of a search: score, loss and cost against the size, and the front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlbatch.agents.evaluate.figures import figure
from rlbatch.agents.search.result import Result
from rlbatch.agents.search.summary import Estimate, Point


def draw(result: Result, path: Path) -> Path | None:
    """Draw a search's result; None where there is nothing to draw.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    good = [point for point in result.points if point.fits and point.complete]
    if not good:
        return None
    fig, axes = figure(1, 3, 13.0, 4.0)
    left, middle, right = axes[0]
    _against_size(left, good, lambda point: point.loss, "final validation loss", result.recommended)
    _against_size(middle, good, lambda point: point.cost, "cost of a run", result.recommended)
    _front(right, good, result)
    fig.suptitle(f"{result.task}, {result.objective}, {result.method}", fontsize=10)
    fig.savefig(path, dpi=120)
    return path


def _against_size(
    ax: Any,
    good: Sequence[Point],
    value: Callable[[Point], Estimate],
    label: str,
    chosen: Point | None,
) -> None:
    """Draw the best rate of each size as a line, all others as dots."""
    best: dict[int, Point] = {}
    for point in sorted(good, key=lambda p: p.score.value, reverse=True):
        best[point.batch_size] = point
    line = [best[size] for size in sorted(best)]
    means = [value(point) for point in line]
    sizes = [point.batch_size for point in line]
    values = [mean.value for mean in means]
    low = [mean.value - (mean.value if mean.low is None else mean.low) for mean in means]
    high = [(mean.value if mean.high is None else mean.high) - mean.value for mean in means]
    others = [point for point in good if point not in line]
    dots = [value(point).value for point in others]
    if others:
        ax.plot([p.batch_size for p in others], dots, ".", color="0.75", label="other rates")
    ax.errorbar(sizes, values, yerr=[low, high], fmt="o-", capsize=3, label="mean, 95%")
    if chosen is not None:
        ax.plot(chosen.batch_size, value(chosen).value, "k*", markersize=13, label="recommended")
    ax.set_xscale("log", base=2)
    _scale(ax, "y", values + dots)
    top, bottom = max(values + dots), min(values + dots)
    ends = [end for mean in means for end in (mean.low, mean.high) if end is not None]
    low_end, high_end = min([bottom, *ends]), max([top, *ends])
    # Intervals of two runs can be endless.
    ax.set_ylim(max(low_end, bottom / 2) / 1.05, min(high_end, top * 2) * 1.05)
    ax.set_xlabel("batch size")
    ax.set_ylabel(label)
    ax.legend(fontsize=7)


def _front(ax: Any, good: Sequence[Point], result: Result) -> None:
    """Draw cost against loss with the front and the chosen point on it."""
    for point in good:
        ax.plot(point.cost.value, point.loss.value, ".", color="0.6")
        at, beside = (point.cost.value, point.loss.value), (8, 5)  # not under the star
        ax.annotate(
            str(point.batch_size), at, xytext=beside, textcoords="offset points", fontsize=6
        )
    keys = set(result.front)
    line = sorted((p for p in good if p.key in keys), key=lambda p: p.cost.value)
    if line:
        ax.plot([p.cost.value for p in line], [p.loss.value for p in line], "o-", label="front")
    if result.recommended is not None:
        chosen = result.recommended
        ax.plot(chosen.cost.value, chosen.loss.value, "k*", markersize=13,
                label=f"efficiency {result.efficiency:g}")  # fmt: skip
    _scale(ax, "x", [point.cost.value for point in good])
    ax.set_xlabel("cost of a run")
    ax.set_ylabel("final validation loss")
    ax.legend(fontsize=7)


def _scale(ax: Any, axis: str, values: Sequence[float]) -> None:
    """Use logarithms where values differ by much: labels of a short logarithmic axis collide."""
    if max(values) / min(values) > 5.0:
        getattr(ax, f"set_{axis}scale")("log")
