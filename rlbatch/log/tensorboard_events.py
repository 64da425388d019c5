"""A TensorBoard event file made from decision records; the x axis is samples."""

from __future__ import annotations

import html
import importlib
import math
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlbatch.log.decision_record import DecisionRecord
from rlbatch.tracking import DESCRIPTIONS, LAYOUT, RecordValues, flat

_SUFFIX = ".rlbatch"  # marks the files that are ours to replace
_X_AXIS = "The x axis (step) counts the samples that went into optimizer steps so far."
_HPARAMS = ("task", "policy", "seed", "lr_coupling", "model", "optimizer", "start_batch_size")


class TensorBoardEvents:
    """Writes one point of each curve a record, and the reasons as text.

    It uses TensorBoard's record writer and messages directly: `torch.utils.tensorboard` imports
    TensorFlow where that is installed, which takes many seconds.

    Args:
        folder: Where the event file goes. Earlier files of this class in it are replaced: after a
            resume the curves are those of the log, without the points of decisions that were cut
            off.
        records: What the log already holds.
        run: What `run.json` holds: the hyperparameters, and the base learning rate.

    Raises:
        ImportError: tensorboard is not installed.
        OSError: The file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        records: Iterable[DecisionRecord] = (),
        run: Mapping[str, Any] | None = None,
    ) -> None:
        # Imported by name: TensorBoard has neither annotations nor stubs.
        proto, writer = "tensorboard.compat.proto", "tensorboard.summary.writer.record_writer"
        self._event: Any = importlib.import_module(f"{proto}.event_pb2").Event
        summary: Any = importlib.import_module(f"{proto}.summary_pb2")
        self._summary, self._metadata = summary.Summary, summary.SummaryMetadata
        self._tensor: Any = importlib.import_module(f"{proto}.tensor_pb2").TensorProto
        self._types: Any = importlib.import_module(f"{proto}.types_pb2")
        record_writer: Any = importlib.import_module(writer).RecordWriter
        self._values, self._described = RecordValues(run or {}), set[str]()
        for old in folder.glob(f"events.out.tfevents.*{_SUFFIX}"):
            old.unlink(missing_ok=True)
        path = folder / f"events.out.tfevents.{time.time_ns()}{_SUFFIX}"
        self._writer: Any = record_writer(path.open("wb"))
        self._put(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        self._head(run or {})
        for record in records:
            self.write(record)

    def write(self, record: DecisionRecord) -> None:
        """Append the record's curves and flush."""
        values, texts = self._values.of(record)
        points = [self._scalar(tag, y) for tag, y in values.items() if math.isfinite(y)]
        self._add(record.samples_seen, points + [self._text(*item) for item in texts.items()])

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _head(self, run: Mapping[str, Any]) -> None:
        """Write the hyperparameters, the charts that belong together, and what the x axis is."""
        described = {
            name: value
            for name, value in flat(run).items()
            if name in _HPARAMS or name.startswith(("context/", "config/"))
        }
        values = [self._layout(), self._text("rlbatch/about", _X_AXIS)]
        self._add(0, [*values, self._hparams(described)] if described else values)

    def _scalar(self, tag: str, value: float) -> Any:
        if tag in self._described:
            return self._summary.Value(tag=tag, simple_value=value)
        self._described.add(tag)
        what = DESCRIPTIONS.get(tag, f"The chunk's signal {tag.partition('/')[2]}.")
        metadata = self._metadata(
            plugin_data=self._metadata.PluginData(plugin_name="scalars"),
            summary_description=_markdown(f"{what} {_X_AXIS}"),
        )
        return self._summary.Value(tag=tag, simple_value=value, metadata=metadata)

    def _text(self, tag: str, text: str) -> Any:
        content = self._tensor(
            dtype=self._types.DT_STRING, string_val=[_markdown(text).encode("utf-8", "replace")]
        )
        return self._plugin(tag, "text", content, b"")

    def _layout(self) -> Any:
        layout: Any = importlib.import_module("tensorboard.plugins.custom_scalar.layout_pb2")
        charts = [
            layout.Chart(
                title=title,
                multiline=layout.MultilineChartContent(tag=[f"^{re.escape(t)}$" for t in tags]),
            )
            for title, tags in LAYOUT.items()
        ]
        content = layout.Layout(category=[layout.Category(title="rlbatch", chart=charts)])
        tensor = self._tensor(dtype=self._types.DT_STRING, string_val=[content.SerializeToString()])
        return self._plugin("custom_scalars__config__", "custom_scalars", tensor, b"")

    def _hparams(self, described: Mapping[str, str | float]) -> Any:
        data: Any = importlib.import_module("tensorboard.plugins.hparams.plugin_data_pb2")
        start = data.SessionStartInfo(start_time_secs=time.time())
        for name, value in described.items():
            if isinstance(value, str):
                start.hparams[name].string_value = value
            else:
                start.hparams[name].number_value = value
        content = data.HParamsPluginData(session_start_info=start, version=0)
        empty = self._tensor(dtype=self._types.DT_FLOAT)
        empty.tensor_shape.dim.add(size=0)
        tag = "_hparams_/session_start_info"
        return self._plugin(tag, "hparams", empty, content.SerializeToString())

    def _plugin(self, tag: str, plugin: str, tensor: Any, content: bytes) -> Any:
        data = self._metadata.PluginData(plugin_name=plugin, content=content)
        return self._summary.Value(
            tag=tag, tensor=tensor, metadata=self._metadata(plugin_data=data)
        )

    def _add(self, samples: int, values: list[Any]) -> None:
        summary = self._summary(value=values)
        self._put(self._event(wall_time=time.time(), step=samples, summary=summary))

    def _put(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def _markdown(text: str) -> str:
    """Return a text that shows as it is where Markdown is rendered: no markup, no control."""
    plain = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(plain))
