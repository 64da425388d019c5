"""An episode log as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlbatch.errors import MissingExtraError
from rlbatch.inspect.summary import summarize
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import Episode

try:
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise MissingExtraError("rich", "cli") from error

_COLUMNS = ("#", "event", "step", "samples", "cost", "loss", "batch size", "asked", "P", "why")
_RIGHT = frozenset(("#", "step", "samples", "cost", "loss", "asked", "P"))


def render_decisions(episode: Episode, *, limit: int | None = None) -> Table:
    """Return a table with one row a decision.

    "asked" is the requested change of log2(batch size); "P" is the probability that the policy
    gave to it, known where `run.json` names the `action_grid`.

    Args:
        episode: What `read_episode` returned.
        limit: Show only this many of the last rows; None for all.
    """
    left_out = 0 if limit is None else max(0, len(episode.records) - limit)
    table = Table(
        title=_title(episode),
        caption=_caption(left_out, episode.torn),
        title_justify="left",
        caption_justify="left",
    )
    for name in _COLUMNS:
        wraps = name == "why"
        justify = "right" if name in _RIGHT else "left"
        table.add_column(name, justify=justify, no_wrap=not wraps)
    grid = _action_grid(episode)
    for record in episode.records[left_out:]:
        style = None if record.event in ("decision", "end") else "yellow"
        # Text, not str: a reason in square brackets would be taken for markup.
        table.add_row(*(Text(cell) for cell in _row(record, grid)), style=style)
    return table


def render_summary(episode: Episode) -> Table:
    """Return the numbers of `summarize` that a reader wants first, one a row."""
    summary = summarize(episode)
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    first, final = summary["batch_size_first"], summary["batch_size_final"]
    events: dict[str, int] = summary["events"]
    unusual = [f"{count} {name}" for name, count in events.items() if name != "decision"]
    shares: dict[str, float] = summary["cost_share"]
    rows = {
        "batch size": "-" if first is None else _arrow(first, final),
        "range": "-"
        if first is None
        else f"{summary['batch_size_min']:,} .. {summary['batch_size_max']:,}",
        "changes": f"{summary['changes']} in {events.get('decision', 0)} decisions",
        "held back": f"{summary['held_back']} (applied differs from asked)",
        "other events": ", ".join(unusual) or "none",
        "cost": _number(summary["cost"]),
        "samples": f"{summary['samples']:,} in {summary['steps']:,} steps",
        "loss": f"train {_number(summary['train_loss'])}, val {_number(summary['val_loss'])}",
        "cost share": ", ".join(f"{int(b):,}: {share:.0%}" for b, share in shares.items()) or "-",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _row(record: DecisionRecord, grid: Sequence[float] | None) -> tuple[str, ...]:
    loss = record.signals.get("train_loss")
    chosen = chosen_probability(record, grid)
    return (
        str(record.index),
        record.event.replace("_", " "),
        f"{record.step:,}",
        f"{record.samples_seen:,}",
        _number(record.cost),
        _number(loss if isinstance(loss, float) else None),
        _arrow(record.batch_size_before, record.batch_size),
        f"{record.requested_log2_change:+.2f}".replace("+0.00", "0"),
        "-" if chosen is None else f"{chosen:.2f}",
        "; ".join(record.reasons),
    )


def chosen_probability(record: DecisionRecord, grid: Sequence[float] | None) -> float | None:
    """Return the probability of the requested change, or None where it cannot be told."""
    probabilities = record.probabilities
    if grid is None or probabilities is None or len(grid) != len(probabilities):
        return None
    for change, probability in zip(grid, probabilities, strict=True):
        if math.isclose(change, record.requested_log2_change, abs_tol=1e-6):
            return probability
    return None


def _action_grid(episode: Episode) -> list[float] | None:
    """Return the policy's actions if `run.json` tells them."""
    grid: Any = episode.run.get("action_grid")
    try:
        return None if grid is None else [float(change) for change in grid]
    except (TypeError, ValueError):
        return None


def _title(episode: Episode) -> Text:
    run = episode.run
    parts = [f"{key} {run[key]}" for key in ("task", "policy", "seed") if key in run]
    return Text(", ".join(parts) or "decisions")


def _caption(left_out: int, torn: bool) -> Text | None:
    notes = [f"{left_out} earlier rows left out"] if left_out else []
    if torn:
        notes.append("the last line is incomplete: the run is writing, or was killed")
    return Text(". ".join(notes)) if notes else None


def _arrow(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _number(value: float | None) -> str:
    """Four significant digits; a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4g}" if abs(value) < 1e4 or math.isinf(value) else f"{value:,.0f}"
