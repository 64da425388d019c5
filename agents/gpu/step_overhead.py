"""What the controller costs a step: training with and without it in turns, on one device."""

from __future__ import annotations

from dataclasses import replace

import torch

from rlbatch.agents.evaluate.overhead import OverheadRow, OverheadSettings, measure_overhead
from rlbatch.agents.evaluate.overhead_larger import LARGER
from rlbatch.agents.evaluate.overhead_workloads import MODELS
from rlbatch.agents.gpu.report import PartSettings, Report

POLICY = "goodput"  # has the gradient noise measured, so that all parts occur
_RUN_STEPS = 1000


def run(settings: PartSettings, report: Report) -> None:
    """Measure models of ordinary size first, then the small ones of `rlbatch bench overhead`."""
    report.note(
        f"Trainings in turns, policy {POLICY}; `run` adds the parts up as often as they occur in "
        f"{_RUN_STEPS} steps: every step, some measured ones, decisions. Float32, with torch's "
        "own settings: TF32 in convolutions only."
    )
    base = OverheadSettings(
        policies=(POLICY,),
        devices=(str(settings.device),),
        rounds=6 if settings.tiny else 15,
        run_steps=_RUN_STEPS,
    )
    cells = [(model, 64) for model in LARGER] + [(model, 64) for model in MODELS]
    cells += [(model, 512) for model in MODELS]
    for model, batch_size in [("mlp", 16)] if settings.tiny else cells:
        one = replace(base, models=(model,), batch_sizes=(batch_size,))
        with report.going_on(f"{model}, batch size {batch_size}"):
            for row in measure_overhead(one):
                report.add("overhead", shown_row(row))
        if settings.on_cuda:
            torch.cuda.empty_cache()


def shown_row(row: OverheadRow) -> dict[str, object]:
    """Return a row in the units of a page: milliseconds and percent."""
    return {
        "model": row.model,
        "batch size": row.batch_size,
        "part": row.part,
        "plain step, ms": row.plain_microseconds / 1e3,
        "more, ms": row.microseconds / 1e3,
        "more, %": 100.0 * (row.ratio - 1.0),
        "from, %": 100.0 * (row.ratio_low - 1.0),
        "to, %": 100.0 * (row.ratio_high - 1.0),
        "a step of a run": row.run_share,
        "waits a step": row.host_reads,
    }
