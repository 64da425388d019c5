"""The picture of a device profile: seconds and bytes of a step against the micro-batch size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlbatch.agents.evaluate.figures import figure
from rlbatch.agents.search.largest import Largest
from rlbatch.agents.search.profile_fit import FittedProfile
from rlbatch.agents.search.step_costs import StepCost


def draw_profile(
    fitted: FittedProfile, measured: Sequence[StepCost], largest: Largest, path: Path
) -> Path:
    """Draw timings with the fitted curve, samples a second, and memory with its limit.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    fig, axes = figure(1, 3, 13.0, 4.0)
    left, middle, right = axes[0]
    sizes = np.array([cost.size for cost in measured])
    seconds = np.array([cost.seconds + np.median(cost.update_seconds) for cost in measured])
    curve = fitted.profile.step_seconds(fitted.sizes)
    left.plot(sizes, seconds, "o", label="measured, median")
    left.plot(fitted.sizes, curve, label="fitted")
    left.fill_between(fitted.sizes, fitted.low, fitted.high, alpha=0.3, label="95%")
    left.set_ylabel("seconds of a step")
    left.set_yscale("log")
    middle.plot(sizes, sizes / seconds, "o")
    middle.plot(fitted.sizes, fitted.sizes / curve)
    middle.fill_between(
        fitted.sizes, fitted.sizes / fitted.high, fitted.sizes / fitted.low, alpha=0.3
    )
    middle.set_ylabel("samples a second")
    passes = [(size, needed) for size, needed in largest.passes if needed is not None]
    right.plot([size for size, _ in passes], [needed / 1e6 for _, needed in passes], "o-")
    right.axhline(largest.limit / 1e6, color="0.4", linestyle="--", label="limit")
    right.axvline(largest.size, color="C1", label=f"largest, {largest.margin:.0%} left free")
    right.set_yscale("log")
    right.set_ylabel("megabytes of a pass")
    for ax in (left, middle, right):
        ax.set_xscale("log", base=2)
        ax.set_xlabel("micro-batch size")
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    fig.suptitle(fitted.profile.name, fontsize=10)
    fig.savefig(path, dpi=120)
    return path
