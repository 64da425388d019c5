"""A TensorBoard event file made from decision records; the x axis is samples."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlbatch.log.decision_record import DecisionRecord
from rlbatch.text import escaped

_SUFFIX = ".rlbatch"  # marks the files that are ours to replace


class TensorBoardEvents:
    """Writes one point of each curve a record.

    It uses TensorBoard's record writer and messages directly: `torch.utils.tensorboard` imports
    TensorFlow where that is installed, which takes many seconds.

    Args:
        folder: Where the event file goes. Earlier files of this class in it are replaced: after a
            resume the curves are those of the log, without the points of decisions that were cut
            off.
        records: What the log already holds.

    Raises:
        ImportError: tensorboard is not installed.
        OSError: The file cannot be written.
    """

    def __init__(self, folder: Path, records: Iterable[DecisionRecord] = ()) -> None:
        # Imported by name: TensorBoard has neither annotations nor stubs.
        proto, writer = "tensorboard.compat.proto", "tensorboard.summary.writer.record_writer"
        self._event: Any = importlib.import_module(f"{proto}.event_pb2").Event
        self._summary: Any = importlib.import_module(f"{proto}.summary_pb2").Summary
        record_writer: Any = importlib.import_module(writer).RecordWriter
        for old in folder.glob(f"events.out.tfevents.*{_SUFFIX}"):
            old.unlink(missing_ok=True)
        path = folder / f"events.out.tfevents.{time.time_ns()}{_SUFFIX}"
        self._writer: Any = record_writer(path.open("wb"))
        self._put(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        for record in records:
            self.write(record)

    def write(self, record: DecisionRecord) -> None:
        """Append the record's curves and flush."""
        values = [self._summary.Value(tag=tag, simple_value=y) for tag, y in _scalars(record)]
        event = self._event(
            wall_time=time.time(),
            step=record.samples_seen,
            summary=self._summary(value=values),
        )
        self._put(event)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _put(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def _scalars(record: DecisionRecord) -> Iterator[tuple[str, float]]:
    """Yield (tag, y) of every finite number worth a curve."""
    yield "batch_size", float(record.batch_size)
    yield "learning_rate_factor", record.learning_rate_factor
    yield "progress/cost", record.cost
    yield "progress/step", float(record.step)
    yield "progress/epoch", record.epoch
    yield "decision/requested_log2_change", record.requested_log2_change
    yield "decision/applied_log2_change", record.applied_log2_change
    if record.value is not None:
        yield "decision/value", record.value
    for name, value in record.signals.items():
        if isinstance(value, float) and math.isfinite(value):
            yield f"signals/{escaped(name)}", value  # a log that goes on may be from elsewhere
