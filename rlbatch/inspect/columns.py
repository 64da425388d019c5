"""The columns of a log as a table: name, unit, meaning and value, in one place.

`rlbatch inspect --csv` and `--parquet`, `rlbatch.inspect.load` and `docs/log-format.md` show these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rlbatch.inspect.reading import RunLog
from rlbatch.inspect.series import Point, cost_unit, run_text, step_cost_at, step_cost_curve
from rlbatch.inspect.text import signal

COST = "run's unit"
"""Seconds, samples or joules, as the run's weights say: the column `cost_unit` names it."""

Kind = Literal["int", "float", "text", "bool"]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: In tables.
        kind: `int`, `float` (NaN where unknown), `text` or `bool`.
        unit: Of its numbers; `1` for ratios and counts without one.
        meaning: In a sentence.
        value: From a run and a line.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    value: Callable[[RunLog, Point], Any]


def _field(name: str) -> Callable[[RunLog, Point], Any]:
    return lambda _, point: getattr(point.record, name)


def _signal(name: str) -> Callable[[RunLog, Point], Any]:
    return lambda _, point: signal(point.record, name)


def _point(name: str) -> Callable[[RunLog, Point], Any]:
    return lambda _, point: getattr(point, name)


def _step_cost(_: RunLog, point: Point) -> float:
    return step_cost_at(step_cost_curve(point.record), float(point.record.batch_size_before))


COLUMNS: tuple[Column, ...] = (
    Column("run", "text", "", "Name of the run's folder.", lambda log, _: log.name),
    Column("policy", "text", "", "What decided.", lambda log, _: run_text(log.run, "policy") or ""),
    Column("index", "int", "1", "Number of the line, from 0.", _field("index")),
    Column(
        "event",
        "text",
        "",
        "`decision`, `rollback`, `fallback`, `off`, `out_of_memory` or `end`.",
        _field("event"),
    ),
    Column("step", "int", "steps", "Optimizer steps done.", _field("step")),
    Column(
        "effective_step",
        "float",
        "steps",
        "First step, from 0, that uses the new size; NaN where none does or it is unknown.",
        lambda _, p: math.nan if p.record.effective_step is None else p.record.effective_step,
    ),
    Column(
        "samples", "int", "samples", "Samples that went into steps so far.", _field("samples_seen")
    ),
    Column("epochs", "float", "epochs", "Epochs done.", _field("epoch")),
    Column("cost", "float", COST, "Spent so far.", _field("cost")),
    Column("cost_unit", "text", "", "Unit of the costs.", lambda log, _: cost_unit(log.run)),
    Column("chunk_steps", "float", "steps", "Steps of the chunk that ended.", _signal("steps")),
    Column("chunk_cost", "float", COST, "What the chunk cost.", _signal("chunk_cost")),
    Column(
        "train_loss", "float", "loss", "Mean training loss of the chunk.", _signal("train_loss")
    ),
    Column(
        "train_loss_std",
        "float",
        "loss",
        "Standard deviation of the steps' losses in the chunk.",
        _signal("train_loss_std"),
    ),
    Column(
        "val_loss", "float", "loss", "Validation loss, where one was made.", _signal("val_loss")
    ),
    Column(
        "noise_scale",
        "float",
        "samples",
        "Gradient noise scale tr(Sigma) / |G|^2 known by then, averaged over chunks; a lower bound "
        "where `noise_scale_is_bound`.",
        lambda _, p: p.noise.value,
    ),
    Column(
        "noise_scale_se",
        "float",
        "samples",
        "Its standard error to first order.",
        lambda _, p: p.noise.error,
    ),
    Column(
        "noise_scale_is_bound",
        "bool",
        "",
        "|G|^2 is smaller than its own error.",
        lambda _, p: p.noise.is_bound,
    ),
    Column(
        "chunk_noise_scale",
        "float",
        "samples",
        "What this chunk alone says of it.",
        lambda _, p: p.chunk_noise.value,
    ),
    Column(
        "grad_sqr", "float", "gradient^2", "Estimate of |G|^2 in the chunk.", _signal("grad_sqr")
    ),
    Column("grad_sqr_se", "float", "gradient^2", "Its standard error.", _signal("grad_sqr_se")),
    Column(
        "noise_trace",
        "float",
        "gradient^2 x samples",
        "Estimate of tr(Sigma), the variance of one sample's gradient.",
        _signal("noise_trace"),
    ),
    Column(
        "noise_trace_se",
        "float",
        "gradient^2 x samples",
        "Its standard error.",
        _signal("noise_trace_se"),
    ),
    Column(
        "efficiency",
        "float",
        "1",
        "Statistical efficiency at the chunk's size: noise scale / (noise scale + size).",
        _point("efficiency"),
    ),
    Column(
        "throughput",
        "float",
        "samples / run's unit",
        "Samples per cost at the chunk's size.",
        _point("throughput"),
    ),
    Column("step_cost", "float", COST, "Cost of one step at the chunk's size.", _step_cost),
    Column(
        "batch_size_before",
        "int",
        "samples",
        "Global batch size of the chunk.",
        _field("batch_size_before"),
    ),
    Column("batch_size_asked", "float", "samples", "What the policy asked for.", _point("asked")),
    Column("batch_size", "int", "samples", "What was applied.", _field("batch_size")),
    Column(
        "requested_log2_change",
        "float",
        "log2(samples)",
        "Change that the policy asked for.",
        _field("requested_log2_change"),
    ),
    Column(
        "applied_log2_change",
        "float",
        "log2(samples)",
        "Change that was applied.",
        _field("applied_log2_change"),
    ),
    Column(
        "learning_rate",
        "float",
        "loss-dependent",
        "Learning rate in force after the decision: base rate x coupling x schedule.",
        _point("learning_rate"),
    ),
    Column(
        "learning_rate_factor",
        "float",
        "1",
        "Factor of the coupling at the new size.",
        _field("learning_rate_factor"),
    ),
    Column(
        "schedule_factor",
        "float",
        "1",
        "Factor of the user's schedule.",
        _signal("schedule_factor"),
    ),
    Column(
        "probability",
        "float",
        "1",
        "Probability that the policy gave to its request; NaN for rules.",
        _point("probability"),
    ),
    Column(
        "value",
        "float",
        "1",
        "The policy's estimate of the return; NaN for rules.",
        lambda _, p: math.nan if p.record.value is None else p.record.value,
    ),
    Column(
        "nonfinite_steps",
        "float",
        "steps",
        "Steps without a finite loss or gradient.",
        _signal("nonfinite_steps"),
    ),
    Column("reasons", "text", "", "Why, in words.", lambda _, p: "; ".join(p.record.reasons)),
)


def field_table() -> str:
    """Return the columns as a Markdown table, for the documentation."""
    lines = ["| column | unit | meaning |", "|---|---|---|"]
    lines += [
        f"| `{c.name}` | {c.unit or '-'} | {c.meaning.replace('|', chr(92) + '|')} |"
        for c in COLUMNS
    ]
    return "\n".join(lines)
