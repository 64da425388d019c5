"""What TensorBoard's own readers see of a log."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from rlbatch.inspect.series import points
from rlbatch.log.episode_log import read_episode
from rlbatch.tracking import DESCRIPTIONS, LAYOUT
from tests.rlbatch.inspect.made import EXAMPLE, make_record

pytest.importorskip("tensorboard")

from rlbatch.log.tensorboard_events import TensorBoardEvents

EVIL = "<script>alert(1)</script> **bold** [x](javascript:y) \x1b[2J"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the accumulator of TensorBoard's server, with the example in it."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    folder = tmp_path_factory.mktemp("events")
    episode = read_episode(EXAMPLE)
    TensorBoardEvents(folder, episode.records, episode.run).close()
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    return found


def scalars(seen: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, float(event.tensor_proto.float_val[0])) for event in seen.Tensors(tag)]


def test_curves_are_the_logs_over_samples(seen: Any) -> None:
    episode = read_episode(EXAMPLE)
    found = points(episode)

    assert scalars(seen, "batch_size/applied") == [
        (r.samples_seen, float(r.batch_size)) for r in episode.records
    ]
    for tag, expected in {
        "loss/validation": [p.record.signals["val_loss"] for p in found],
        "learning_rate/rate": [p.learning_rate for p in found],
        "batch_size/asked": [p.asked for p in found],
        "noise/noise_scale": [p.noise.value for p in found if p.noise.value > 0],
        "noise/efficiency": [p.efficiency for p in found if p.efficiency > 0],
    }.items():
        assert [y for _, y in scalars(seen, tag)] == pytest.approx(expected, rel=1e-6)


def test_every_curve_says_what_it_is_and_what_x_is(seen: Any) -> None:
    tags = seen.PluginTagToContent("scalars")

    assert set(DESCRIPTIONS) <= set(tags)
    for tag in tags:
        assert (
            "samples that went into optimizer steps"
            in seen.SummaryMetadata(tag).summary_description
        )


def test_reasons_are_text(seen: Any) -> None:
    why = seen.Tensors("decision/why")

    assert why[0].tensor_proto.string_val[0].decode() == "learned: x8 \\(p=0.97\\)"
    assert [event.step for event in why][:2] == [4, 36]
    assert seen.Tensors("decision/event")[0].tensor_proto.string_val == [b"end"]


def test_charts_that_belong_together_are_laid_out(seen: Any) -> None:
    layout: Any = importlib.import_module("tensorboard.plugins.custom_scalar.layout_pb2")
    (event,) = seen.Tensors("custom_scalars__config__")
    (category,) = layout.Layout.FromString(event.tensor_proto.string_val[0]).category

    assert [chart.title for chart in category.chart] == list(LAYOUT)
    assert category.chart[0].multiline.tag[0] == "^loss/training$"


def test_hyperparameters_are_those_of_the_run(seen: Any) -> None:
    from tensorboard.plugins.hparams import metadata

    (content,) = seen.PluginTagToContent("hparams").values()
    given = metadata.parse_session_start_info_plugin_data(content).hparams

    assert given["policy"].string_value == "default"
    assert given["context/base_batch_size"].number_value == 32.0


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
def test_markup_and_escapes_in_reasons_are_text(tmp_path: Path) -> None:
    import numpy as np
    from tensorboard.plugins.text.text_plugin import text_array_to_html

    TensorBoardEvents(tmp_path, [make_record(0, reasons=[EVIL])]).close()
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path))
    found.Reload()
    text = found.Tensors("decision/why")[0].tensor_proto.string_val[0]
    shown = str(text_array_to_html(np.array(text), enable_markdown=True))

    assert "\x1b" not in shown
    for tag in ("<script", "<strong", "<a "):
        assert tag not in shown
    assert "**bold**" in shown
