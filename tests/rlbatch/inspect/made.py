"""Logs made for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlbatch.inspect.reading import RunLog
from rlbatch.log.decision_record import DecisionRecord, dumps

EXAMPLE = Path(__file__).parents[3] / "docs" / "example-log"
LOGS = Path(__file__).parent / "logs"

CONTEXT = {
    "base_batch_size": 32.0,
    "min_batch_size": 2.0,
    "max_batch_size": 1024.0,
    "dataset_size": 1000.0,
    "learning_rate": 0.1,
    "target_loss": 0.5,
    "weight_seconds": 1.0,
    "weight_samples": 0.0,
    "weight_joules": 0.0,
    "planned_samples": "NaN",
}
# A step costs 1 second up to a size of 16, and as its size from there on.
CURVE = [float(max(place - 4, 0)) for place in range(17)]


def make_record(index: int, **changes: Any) -> DecisionRecord:
    values: dict[str, Any] = {
        "index": index,
        "event": "decision",
        "step": 10 * index,
        "effective_step": 10 * index,
        "epoch": index / 4,
        "samples_seen": 640 * index,
        "cost": 0.5 * index,
        "batch_size_before": 64,
        "batch_size": 64,
    }
    return DecisionRecord(**{**values, **changes})


def make_log(*records: DecisionRecord, name: str = "run", **run: Any) -> RunLog:
    return RunLog({"context": CONTEXT, **run}, records, False, name)


def write_log(folder: Path, records: list[DecisionRecord], **run: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    head = {"format": "rlbatch.episode", "schema_version": 1, "context": CONTEXT, **run}
    (folder / "run.json").write_text(json.dumps(head))
    lines = "".join(f"{dumps(vars(record))}\n" for record in records)
    (folder / "decisions.jsonl").write_text(lines)
    return folder
