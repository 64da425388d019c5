"""What an environment tells about its run besides the observation, and how it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlbatch.errors import ConfigurationError, MissingExtraError
from rlbatch.signals.record import Signals


def noise_scale(signals: Signals) -> NDArray[np.float64]:
    """Return the gradient noise scale tr(Sigma) / |G|^2 in samples; NaN where not measured.

    McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", equation 2.8. NaN, too,
    where noise makes the estimate of |G|^2 negative.
    """
    trace = np.asarray(signals.noise_trace, dtype=np.float64)
    squared = np.asarray(signals.grad_sqr, dtype=np.float64)
    known = squared > 0.0
    return np.where(known, trace / np.where(known, squared, 1.0), np.nan)


def known(value: ArrayLike, default: float | None = None) -> float | None:
    """Return a number, or the default where it is NaN."""
    number = np.asarray(value, dtype=np.float64).item()
    return default if math.isnan(number) else number


@dataclass
class History:
    """The chunks of one run so far, one entry each.

    Attributes:
        samples: Samples at the end of the chunk.
        batch_size: In force at the end of the chunk.
        val_loss: Of the latest validation; NaN before the first.
        latest: What the last chunk told: `train_loss`, `val_loss`, `noise_scale`, each of the
            latest chunk that showed it, None before, and `cost`.
    """

    samples: list[float] = field(default_factory=list[float])
    batch_size: list[float] = field(default_factory=list[float])
    val_loss: list[float] = field(default_factory=list[float])
    latest: dict[str, Any] = field(default_factory=dict[str, Any])

    def note(self, signals: Signals, batch_size: float) -> None:
        """Take a chunk; signals of one run."""
        before = self.latest
        self.latest = {
            "train_loss": known(signals.train_loss, before.get("train_loss")),
            "val_loss": known(signals.val_loss, before.get("val_loss")),
            "noise_scale": known(noise_scale(signals), before.get("noise_scale")),
            "cost": np.asarray(signals.total_cost, dtype=np.float64).item(),
        }
        self.samples.append(np.asarray(signals.total_samples, dtype=np.float64).item())
        self.batch_size.append(float(batch_size))
        loss = self.latest["val_loss"]
        self.val_loss.append(math.nan if loss is None else loss)


def render(history: History, info: dict[str, Any], mode: str | None) -> Any:
    """Return a run so far as a line of text (`ansi`) or as a figure (`rgb_array`); None for None.

    The figure is an array of shape (400, 600, 3), uint8.

    Raises:
        ConfigurationError: No run has begun.
        MissingExtraError: The figure needs matplotlib.
    """
    if mode is None:
        return None
    if not history.samples:
        raise ConfigurationError("No run is in progress. Call reset() first.")
    return _line(info) if mode == "ansi" else _figure(history, info)


def _line(info: dict[str, Any]) -> str:
    loss = info["val_loss"]
    where = f"step {info['steps']}  samples {info['samples_seen']}"
    shown = "unknown" if loss is None else f"{loss:.4g}"
    return f"{where}  batch size {info['batch_size']}  loss {shown}  ratio {info['ratio']:.3g}"


def _figure(history: History, info: dict[str, Any]) -> NDArray[np.uint8]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    size, loss = figure.subplots(2, 1, sharex=True)
    size.step(history.samples, history.batch_size, where="pre", marker=".")
    size.set_yscale("log", base=2)
    size.set_ylabel("batch size")
    size.set_title(f"cost {info['ratio']:.2f} of the reference's")
    loss.plot(history.samples, history.val_loss, marker=".")
    loss.set_ylabel("validation loss")
    loss.set_xlabel("samples")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
