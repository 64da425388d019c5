"""What experiment trackers are told of a run: values and texts by name, over samples seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from rlbatch.log.decision_record import DecisionRecord
from rlbatch.noise_average import NoiseAverage
from rlbatch.text import escaped

Values = Mapping[str, float]
Texts = Mapping[str, str]


@runtime_checkable
class Tracker(Protocol):
    """Where a run's values go besides its log: TensorBoard, MLflow, Weights & Biases ..."""

    def begin(self, run: Mapping[str, Any]) -> None:
        """Take what `run.json` says of the run, before the first `log` (of each `fit` of Keras)."""
        ...

    def log(self, samples: int, values: Values, texts: Texts) -> None:
        """Take what one line of the log says.

        Args:
            samples: That went into optimizer steps so far: the x axis.
            values: Finite numbers by name, see `DESCRIPTIONS`.
            texts: `decision/why`, and `decision/event` where it is no plain decision.
        """
        ...


DESCRIPTIONS: Mapping[str, str] = {
    "loss/training": "Mean training loss of the chunk.",
    "loss/validation": "Validation loss, where one was made.",
    "batch_size/applied": "Global batch size in force from here on, in samples.",
    "batch_size/asked": "Batch size that the policy asked for, in samples.",
    "noise/noise_scale": "Gradient noise scale tr(Sigma) / |G|^2, a mean over chunks, in samples.",
    "noise/standard_error": "Standard error of the noise scale, in samples.",
    "noise/efficiency": "Statistical efficiency: noise scale / (noise scale + batch size).",
    "learning_rate/rate": "Learning rate in force from here on: base x coupling x schedule.",
    "learning_rate/coupling": "Factor of the coupling.",
    "learning_rate/schedule": "Factor of the schedule.",
    "cost/total": "Spent so far, in the objective's unit.",
    "cost/throughput": "Samples per cost in the chunk.",
    "progress/step": "Optimizer steps done.",
    "progress/epoch": "Epochs done.",
    "decision/change": "Applied change of log2(batch size).",
    "decision/probability": "Largest probability of an action: how sure the policy was.",
    "decision/value": "The policy's estimate of the return.",
}
"""The values by name. Raw signals follow as `signals/NAME`."""

LAYOUT: Mapping[str, tuple[str, ...]] = {
    "loss": ("loss/training", "loss/validation"),
    "batch size and noise scale (samples)": (
        "batch_size/applied",
        "batch_size/asked",
        "noise/noise_scale",
    ),
    "learning rate": ("learning_rate/rate",),
    "statistical efficiency": ("noise/efficiency",),
}
"""Values that belong on one chart."""


class RecordValues:
    """Turns a run's records into what trackers are told."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        """Begin before the first record of a run, of which `run.json` says this."""
        self._noise = NoiseAverage()
        context: Any = run.get("context")
        rate = cast("dict[str, Any]", context).get("learning_rate") if context else None
        self._rate = float(rate) if isinstance(rate, int | float) else math.nan

    def of(self, record: DecisionRecord) -> tuple[dict[str, float], dict[str, str]]:
        """Return the finite values and the texts of one more record."""
        scale, before = self._noise.add(record), float(record.batch_size_before)
        schedule = _signal(record, "schedule_factor")
        cost, steps = _signal(record, "chunk_cost"), _signal(record, "steps")
        change = record.requested_log2_change
        values = {
            "loss/training": _signal(record, "train_loss"),
            "loss/validation": _signal(record, "val_loss"),
            "batch_size/applied": float(record.batch_size),
            "batch_size/asked": before * 2.0**change if abs(change) < 64 else math.nan,
            "noise/noise_scale": scale.value,
            "noise/standard_error": scale.error,
            "noise/efficiency": scale.value / (scale.value + before),
            "learning_rate/rate": self._rate * record.learning_rate_factor * schedule,
            "learning_rate/coupling": record.learning_rate_factor,
            "learning_rate/schedule": schedule,
            "cost/total": record.cost,
            "cost/throughput": before * steps / cost if cost > 0 else math.nan,
            "progress/step": float(record.step),
            "progress/epoch": record.epoch,
            "decision/change": record.applied_log2_change,
            "decision/probability": max(record.probabilities or (math.nan,)),
            "decision/value": math.nan if record.value is None else record.value,
        }
        signals = {f"signals/{escaped(name)}": _signal(record, name) for name in record.signals}
        finite = {k: v for k, v in {**values, **signals}.items() if math.isfinite(v)}
        texts = {"decision/why": "; ".join(record.reasons)} if record.reasons else {}
        if record.event != "decision":
            texts["decision/event"] = record.event
        return finite, texts


def flat(run: Mapping[str, Any], prefix: str = "") -> dict[str, str | float]:
    """Return what `run.json` says as one level of names: `context/base_batch_size`."""
    found: dict[str, str | float] = {}
    for name, value in run.items():
        if isinstance(value, Mapping):
            found.update(flat(cast("Mapping[str, Any]", value), f"{prefix}{name}/"))
        elif isinstance(value, bool | str):
            found[f"{prefix}{name}"] = str(value)
        elif isinstance(value, int | float):
            found[f"{prefix}{name}"] = float(value)
        elif isinstance(value, Sequence):
            found[f"{prefix}{name}"] = str(list(cast("Sequence[Any]", value)))
    return found


def _signal(record: DecisionRecord, name: str) -> float:
    value = record.signals.get(name)
    return value if isinstance(value, float) else math.nan
