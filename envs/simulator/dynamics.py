"""Exact k-step dynamics of the noisy quadratic model, for arrays of runs and curvature bins.

The model (Zhang et al. 2019, "Which algorithmic choices matter at which batch sizes?", section 3):
the loss is a sum over eigen-directions of the Hessian with curvature h, the gradient of a batch of
B samples is h x plus Gaussian noise of covariance C / B. Only second moments matter, so a run is
its expected loss per bin of directions of like curvature,

    l_i = 1/2 sum_{j in bin i} h_j E[x_j^2].

With heavy-ball momentum m, step size a and y = a h, the error along one direction contracts by the
larger root of z^2 - (1 + m - y) z + m a step, and its variance settles where injected noise and
contraction balance. Both are closed forms; the transient of the velocity, which lasts about 1 / (1
- m) steps, is left out.
"""

from __future__ import annotations

import numpy as np

from rlbatch.envs.simulator.arrays import Array

_LARGEST_EXPONENT = 60.0  # e^60: far beyond any loss that is still called a loss


def contraction(y: Array, momentum: Array) -> Array:
    """Squared spectral radius of one heavy-ball step along a direction.

    y is the step size times the curvature.

    For `(1 - sqrt(m))^2 < y < (1 + sqrt(m))^2` the roots are complex and the value is m; it exceeds
    1 (divergence) exactly for `y > 2 (1 + m)`.
    """
    half_trace = 0.5 * (1.0 + momentum - y)
    discriminant = np.square(half_trace) - momentum
    real = np.square(np.abs(half_trace) + np.sqrt(np.maximum(discriminant, 0.0)))
    return np.where(discriminant > 0.0, real, momentum)


def stationary_loss(y: Array, momentum: Array, noise: Array) -> Array:
    """Loss at which a direction settles under gradient noise.

    The heavy-ball stationary variance is `a^2 c (1 + m) / ((1 - m) y (2 (1 + m) - y))` for
    gradient-noise variance c; here `noise = a^2 h c / 2` is the loss that one step's noise adds.
    Only valid in the stable range `y < 2 (1 + m)`.
    """
    return noise * (1.0 + momentum) / ((1.0 - momentum) * y * (2.0 * (1.0 + momentum) - y))


def advance(loss: Array, y: Array, momentum: Array, noise: Array, steps: Array) -> Array:
    """Expected loss per bin after `steps` steps with constant step size and noise.

    Args:
        loss: Loss per bin, shape (..., bins).
        y: Step size x curvature, shape (..., bins), in the stable range.
        momentum: Heavy-ball momentum, broadcastable to `loss`.
        noise: Loss that one step's gradient noise adds to each bin, shape (..., bins).
        steps: Number of steps, broadcastable to `loss`.
    """
    kept, added = _parts(loss, y, momentum, noise, steps)
    return kept + added


def advance_sampled(
    loss: Array,
    y: Array,
    momentum: Array,
    noise: Array,
    steps: Array,
    directions: Array,
    rng: np.random.Generator,
) -> Array:
    """One run's loss per bin after `steps` steps, whose mean over runs `advance` returns.

    A bin is n directions of the same curvature. What is left of their errors is fixed, what the
    gradient noise has added to each is Gaussian; so with D and N for the two terms of `advance` the
    loss is N / n times a noncentral chi-square of n degrees of freedom and noncentrality n D / N.

    Args:
        loss: As for `advance`.
        y: As for `advance`.
        momentum: As for `advance`.
        noise: As for `advance`.
        steps: As for `advance`.
        directions: n, at least 1, broadcastable to `loss`; infinite for the mean.
        rng: Source of the noise.
    """
    kept, added = _parts(loss, y, momentum, noise, steps)
    share = np.maximum(added, 0.0) / directions
    along = np.sqrt(np.maximum(kept, 0.0)) + np.sqrt(share) * rng.standard_normal(loss.shape)
    are_finite = np.isfinite(directions)
    finite = np.where(are_finite, directions, 1.0)
    across = 2.0 * rng.standard_gamma(np.broadcast_to(0.5 * (finite - 1.0), loss.shape))
    sampled = np.square(along) + share * across
    return sampled if are_finite.all() else np.where(are_finite, sampled, kept + added)


def _parts(
    loss: Array, y: Array, momentum: Array, noise: Array, steps: Array
) -> tuple[Array, Array]:
    """Return what is left of the loss, and what noise adds to it."""
    settled = stationary_loss(y, momentum, noise)
    exponent = np.minimum(steps * np.log(contraction(y, momentum)), _LARGEST_EXPONENT)
    left = np.exp(exponent)
    return left * loss, (1.0 - left) * settled


def stability_limit(momentum: Array) -> Array:
    """Largest stable `y`: 2 (1 + m)."""
    return 2.0 * (1.0 + momentum)
