"""MLflow and Weights & Biases get what the episode log gets, over samples seen.

    controller = rlbatch.BatchController(..., trackers=[MlflowTracker()])

Both write into the run that the training has started (`mlflow.start_run`, `wandb.init`), under
`rlbatch/`. Any class with the two methods of `rlbatch.tracking.Tracker` serves as well.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from rlbatch.errors import ConfigurationError, MissingExtraError
from rlbatch.tracking import Texts, Values, flat

_PREFIX = "rlbatch/"
_LONGEST = 500  # characters of a parameter's value, which MLflow limits


class MlflowTracker:
    """Logs into an MLflow run: values as metrics by samples, the head as parameters.

    The latest reason is the tag `rlbatch/decision/why`: MLflow has no texts over steps.
    """

    def __init__(self, run_id: str | None = None) -> None:
        """Log into a run.

        Args:
            run_id: Which; None for the active one.

        Raises:
            MissingExtraError: MLflow is not installed.
            ConfigurationError: There is no active run.
        """
        mlflow = _package("mlflow")
        active = mlflow.active_run()
        if run_id is None and active is None:
            raise ConfigurationError(
                "There is no active MLflow run. Call mlflow.start_run() first, or name one: "
                "MlflowTracker(run_id=...)."
            )
        self._client: Any = mlflow.MlflowClient()
        self._entities: Any = importlib.import_module("mlflow.entities")
        self.run_id = run_id if run_id is not None else active.info.run_id

    def begin(self, run: Mapping[str, Any]) -> None:
        """Log the run's head as parameters."""
        param = self._entities.Param
        given = [param(_PREFIX + key, str(value)[:_LONGEST]) for key, value in flat(run).items()]
        self._client.log_batch(self.run_id, params=given[:100])

    def log(self, samples: int, values: Values, texts: Texts) -> None:
        """Log one line."""
        now = _milliseconds()
        metric, tag = self._entities.Metric, self._entities.RunTag
        self._client.log_batch(
            self.run_id,
            metrics=[metric(_PREFIX + name, value, now, samples) for name, value in values.items()],
            tags=[tag(_PREFIX + name, text[:_LONGEST]) for name, text in texts.items()],
        )


class WandbTracker:
    """Logs into a Weights & Biases run; the x axis of its charts is `rlbatch/samples`."""

    def __init__(self, run: Any = None) -> None:
        """Log into a run.

        Args:
            run: What `wandb.init` returned; None for the active one.

        Raises:
            MissingExtraError: wandb is not installed.
            ConfigurationError: There is no active run.
        """
        active = _package("wandb").run if run is None else run
        if active is None:
            raise ConfigurationError(
                "There is no active Weights & Biases run. Call wandb.init() first, or give its "
                "result: WandbTracker(run)."
            )
        self._run: Any = active

    def begin(self, run: Mapping[str, Any]) -> None:
        """Add the run's head to the configuration, and set the x axis."""
        self._run.config.update(
            {_PREFIX + k: v for k, v in flat(run).items()}, allow_val_change=True
        )
        self._run.define_metric(f"{_PREFIX}*", step_metric=f"{_PREFIX}samples")

    def log(self, samples: int, values: Values, texts: Texts) -> None:
        """Log one line."""
        named = {_PREFIX + name: value for name, value in {**values, **texts}.items()}
        self._run.log({f"{_PREFIX}samples": samples, **named})


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, "trackers") from error


def _milliseconds() -> int:
    import time

    return int(time.time() * 1000)
