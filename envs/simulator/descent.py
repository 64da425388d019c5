"""How the losses of simulated runs move in a chunk: steps, momentum, and the edge of stability."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlbatch.envs.simulator import dynamics
from rlbatch.envs.simulator.arrays import Array
from rlbatch.envs.simulator.tasks import ADAM_BETA2

if TYPE_CHECKING:
    from rlbatch.envs.simulator.runs import QuadraticRuns

_TINY = 1e-30
_EDGE = 0.75  # of the stability limit


def precondition_of(runs: QuadraticRuns, batch_size: Array, steps: Array) -> Array | float:
    """Return the weights of the squared gradients in Adam's metric, its second moments moved on.

    They are 1 for SGD.
    """
    t = runs.tasks
    if not t.adaptive.any():
        return 1.0
    decay = ADAM_BETA2**steps
    weight = decay * runs.second_moment_weight + (1.0 - decay)
    runs.second_moment *= decay[:, None]
    runs.second_moment += (1.0 - decay)[:, None] * runs.squared_gradient(
        batch_size, runs.liveliness()
    )
    runs.second_moment_weight = weight
    adam = 1.0 / np.sqrt(runs.second_moment / weight[:, None] + _TINY)
    return np.where(t.adaptive[:, None] > 0, adam, 1.0)


def velocity(runs: QuadraticRuns, steps: Array) -> Array:
    """Mean over the coming steps of what heavy-ball's velocity has gathered, 1 - m^t.

    Without it the first steps of a run would move as far as those of a run under way. Adam's
    first moment is corrected for its start.
    """
    t = runs.tasks
    momentum = np.where(t.adaptive > 0, 0.0, t.momentum)
    missing = momentum ** (runs.steps + 1.0) * (1.0 - momentum**steps) / (1.0 - momentum)
    return 1.0 - missing / steps


def descend(
    runs: QuadraticRuns, batch_size: Array, steps: Array, rate: Array, precondition: Array | float
) -> tuple[Array, Array]:
    """Apply the steps; return where they are fatal, and the mean training loss."""
    t = runs.tasks
    progress = np.minimum(runs.samples / (t.base_batch_size * t.horizon), 2.0)
    sharpening = 1.0 + (t.sharpening - 1.0) * (1.0 - np.exp(-3.0 * progress))
    # Sharp directions sharpen most: h -> h s^h (h = 1 is the sharpest).
    curvature = t.curvature * np.exp(np.log(sharpening)[:, None] * t.curvature)
    momentum = t.momentum[:, None]
    limit = dynamics.stability_limit(t.momentum)
    scale = runs.step_size * rate * runs.inertia() * runs.liveliness() * velocity(runs, steps)
    step = scale[:, None] * precondition
    y = step * curvature
    # Progressive sharpening stops by itself at the edge of stability; only a step size above
    # what the *unsharpened* curvature bears by the factor `catapult` is fatal (Cohen et al.
    # 2021; Lewkowycz et al. 2020).
    ratio = y.max(axis=1) / limit
    flat_ratio = (flat := step * t.curvature).max(axis=1) / limit
    fatal = flat_ratio > t.catapult
    # A rise of the step size beyond the edge throws the run back; what it lost it has to learn
    # again.
    raised = rate > runs.previous_rate * 1.0001
    excess = np.clip(np.minimum(ratio, flat_ratio * 2.0) - 1.0, 0.0, 2.0) * np.where(
        raised, 1.0, 0.1
    )
    damaged = runs.loss * (1.0 + t.damage * excess)[:, None]
    # At the edge the motion is bounded by the loss's higher-order terms, not by the quadratic
    # one; a y close to the limit would instead amplify noise without bound. Sharpening is a
    # property of the large directions of the noise-free motion, so that it does not raise the
    # injected noise either.
    y = np.minimum(y, _EDGE * limit[:, None])
    flat = np.minimum(flat, y)
    noise = np.square(flat) * t.noise * (runs.noise_level() / batch_size)[:, None]
    moved = damaged, y, momentum, noise, steps[:, None]
    if runs.exact:
        runs.loss = dynamics.advance(*moved)
    else:
        runs.loss = dynamics.advance_sampled(*moved, t.directions[:, None], runs.rng)
    level = t.irreducible + 0.5 * (damaged.sum(axis=1) + runs.loss.sum(axis=1))
    return fatal | ~np.isfinite(level), level
