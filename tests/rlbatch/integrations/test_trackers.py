"""MLflow on a local file store, Weights & Biases without a network: what they hold afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlbatch.errors import ConfigurationError
from rlbatch.integrations.trackers import MlflowTracker, WandbTracker
from rlbatch.log.episode_log import read_episode
from rlbatch.tracking import RecordValues, Tracker
from tests.rlbatch.inspect.made import EXAMPLE

EPISODE = read_episode(EXAMPLE)


def tell(tracker: Tracker) -> None:
    """Tell a tracker the example, as a controller does."""
    values = RecordValues(EPISODE.run)
    tracker.begin(EPISODE.run)
    for record in EPISODE.records:
        tracker.log(record.samples_seen, *values.of(record))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow itself
def test_mlflow_holds_curves_parameters_and_the_last_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    with pytest.raises(ConfigurationError, match="no active MLflow run"):
        MlflowTracker()
    with mlflow.start_run() as run:
        tell(MlflowTracker())

    client = mlflow.MlflowClient()
    history = client.get_metric_history(run.info.run_id, "rlbatch/batch_size/applied")
    assert [(point.step, point.value) for point in history] == [
        (record.samples_seen, record.batch_size) for record in EPISODE.records
    ]
    held = client.get_run(run.info.run_id).data
    assert held.params["rlbatch/policy"] == "default"
    assert held.params["rlbatch/context/base_batch_size"] == "32.0"
    assert held.tags["rlbatch/decision/why"] == "target 0.12 reached"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of wandb itself
def test_wandb_offline_holds_curves_and_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb: Any = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(ConfigurationError, match="no active Weights & Biases run"):
        WandbTracker()
    with wandb.init(mode="offline", dir=str(tmp_path), project="test") as run:
        tell(WandbTracker())
        assert run.config["rlbatch/policy"] == "default"
        last = dict(run.summary)

    assert last["rlbatch/samples"] == EPISODE.records[-1].samples_seen
    assert last["rlbatch/batch_size/applied"] == EPISODE.records[-1].batch_size
    assert last["rlbatch/decision/why"] == "target 0.12 reached"
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert file.stat().st_size > 1000


@pytest.mark.parametrize(
    ("package", "name"), [("mlflow", "MlflowTracker"), ("wandb", "WandbTracker")]
)
def test_a_missing_package_is_named_with_its_extra(package: str, name: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from rlbatch.integrations.trackers import {name}\n{name}()"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "pip install 'rlbatch[trackers]'" in done.stderr
