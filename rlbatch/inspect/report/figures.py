"""The page's charts as PNG and SVG files, for papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbatch.errors import MissingExtraError
from rlbatch.inspect.reading import RunLog
from rlbatch.inspect.series import Point, cost_unit, points
from rlbatch.inspect.text import compact, printable, signal

# Okabe and Ito's colours, which colour-blind eyes tell apart; line styles do so in print.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
_KINDS = ("png", "svg")


@dataclass(frozen=True)
class _Panel:
    """A chart: file name, label of the y axis, its values, and how it is drawn."""

    name: str
    label: str
    value: Callable[[Point], float]
    scale: str = "linear"
    stepped: bool = False


_PANELS = (
    _Panel("training_loss", "training loss", lambda p: signal(p.record, "train_loss"), "log"),
    _Panel("validation_loss", "validation loss", lambda p: signal(p.record, "val_loss"), "log"),
    _Panel("batch_size", "batch size", lambda p: float(p.record.batch_size), "log2", stepped=True),
    _Panel("noise_scale", "gradient noise scale", lambda p: p.noise.value, "log", stepped=True),
    _Panel("learning_rate", "learning rate", lambda p: p.learning_rate, "log", stepped=True),
    _Panel("cost", "cost", lambda p: p.record.cost),
    _Panel("efficiency", "statistical efficiency", lambda p: p.efficiency),
    _Panel("throughput", "throughput", lambda p: p.throughput, "log"),
)


def draw_figures(logs: Sequence[RunLog], folder: Path) -> list[Path]:
    """Draw each chart over samples, and all on one sheet, as PNG and SVG.

    Args:
        logs: Runs, drawn over each other.
        folder: Where the files go; earlier ones of the same names are replaced.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figure_class = _matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    found = [(log, points(log)) for log in logs]
    panels = [panel for panel in _PANELS if any(_line(panel, ps)[0] for _, ps in found)]
    paths: list[Path] = []
    for panel in panels:
        figure: Any = figure_class(figsize=(4.5, 3), layout="constrained")
        _draw(figure.subplots(), panel, found, legend=len(logs) > 1)
        paths += _saved(figure, folder / panel.name)
    if panels:
        rows = math.ceil(len(panels) / 2)
        sheet: Any = figure_class(figsize=(9, 2.6 * rows), layout="constrained")
        axes = sheet.subplots(rows, 2, squeeze=False).ravel()
        for place, axis in enumerate(axes):
            if place < len(panels):
                _draw(axis, panels[place], found, legend=place == 0 and len(logs) > 1)
            else:
                axis.set_visible(False)
        paths += _saved(sheet, folder / "all")
    return paths


def _matplotlib() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    return Figure  # no pyplot: no global state


def _draw(
    axis: Any, panel: _Panel, found: Sequence[tuple[RunLog, list[Point]]], *, legend: bool
) -> None:
    units = {cost_unit(log.run) for log, _ in found}
    for place, (log, lines) in enumerate(found):
        x, y = _line(panel, lines)
        style = {
            "color": _COLORS[place % len(_COLORS)],
            "linestyle": _STYLES[place % len(_STYLES)],
            "linewidth": 1.4,
            "label": _plain(printable(log.name, 40)),
        }
        if panel.stepped:
            axis.step(x, y, where="post", **style)
        else:
            axis.plot(x, y, **style)
        if panel.name == "noise_scale":
            _band(axis, lines, str(style["color"]))
    if panel.scale != "linear":
        axis.set_yscale("log", base=2 if panel.scale == "log2" else 10)
        _plain_ticks(axis, panel)
    axis.set_xlabel("samples")
    axis.set_ylabel(_labelled(panel, units))
    axis.grid(visible=True, color="0.9", linewidth=0.6)
    if legend:
        axis.legend(fontsize=8)


def _labelled(panel: _Panel, units: set[str]) -> str:
    """Return the label of a panel's y axis, with the unit of its costs if all runs share one."""
    if panel.name not in ("cost", "throughput"):
        return panel.label
    unit = _plain(next(iter(units))) if len(units) == 1 else "cost"
    if panel.name == "throughput":
        return f"{panel.label} (samples / {unit})"
    return panel.label if unit == "cost" else f"{panel.label} ({unit})"


def _plain_ticks(axis: Any, panel: _Panel) -> None:
    """Label a logarithmic axis with plain numbers: 32, not 2 to the 5; 1.5, not 1.5 x 10 to the 0.

    Where it spans less than a decade, multiples of the powers are labelled, too.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def label(value: float, _: int | None = None) -> str:
        return compact(value)

    low, high = axis.get_ylim()
    axis.yaxis.set_major_formatter(FuncFormatter(label))
    axis.yaxis.set_minor_formatter(NullFormatter())
    if panel.scale == "log2":
        axis.yaxis.set_major_locator(LogLocator(base=2))
    elif high < 10 * low:
        steps = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)
        axis.yaxis.set_major_locator(LogLocator(base=10, subs=steps, numticks=12))


def _band(axis: Any, lines: Sequence[Point], color: str) -> None:
    """Shade one standard error of the noise scale."""
    known = [p for p in lines if math.isfinite(p.noise.error) and p.noise.value > 0]
    if not known:
        return
    low = [max(p.noise.value - p.noise.error, p.noise.value / 100) for p in known]
    high = [p.noise.value + p.noise.error for p in known]
    samples = [p.record.samples_seen for p in known]
    axis.fill_between(samples, low, high, step="post", color=color, alpha=0.2, linewidth=0)


def _line(panel: _Panel, lines: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Return (samples, values) of what is known, and can be drawn on the scale."""
    pairs = [(float(p.record.samples_seen), panel.value(p)) for p in lines]
    usable = [
        (x, y)
        for x, y in pairs
        if math.isfinite(y) and abs(y) < 1e300 and (panel.scale == "linear" or y > 0)
    ]
    return [x for x, _ in usable], [y for _, y in usable]


def _plain(text: str) -> str:
    """Return a text that matplotlib does not take for a formula or for a hidden label."""
    return text.replace("$", r"\$").lstrip("_") or "run"


def _saved(figure: Any, path: Path) -> list[Path]:
    paths = [path.with_name(f"{path.name}.{kind}") for kind in _KINDS]
    for target in paths:
        figure.savefig(target, dpi=150, metadata={"Date": None} if target.suffix == ".svg" else {})
    return paths
