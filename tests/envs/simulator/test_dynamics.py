"""The closed forms against eigenvalues, a brute-force recursion and a Monte-Carlo run."""

import numpy as np
import pytest

from rlbatch.envs.simulator import dynamics


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_contraction_is_the_squared_spectral_radius_of_the_step_matrix(momentum: float) -> None:
    for y in np.linspace(1e-3, 2 * (1 + momentum) + 1.0, 200):
        step = np.array([[1 + momentum - y, -momentum], [1.0, 0.0]])
        expected = np.abs(np.linalg.eigvals(step)).max() ** 2
        assert dynamics.contraction(np.array(y), np.array(momentum)) == pytest.approx(
            expected, rel=1e-6
        )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_contraction_exceeds_one_exactly_beyond_the_stability_limit(momentum: float) -> None:
    limit = dynamics.stability_limit(np.array(momentum))
    assert dynamics.contraction(limit * 0.999, np.array(momentum)) < 1
    assert dynamics.contraction(limit * 1.001, np.array(momentum)) > 1


def test_plain_sgd_equals_the_exact_second_moment_recursion() -> None:
    step_size, curvature, noise_variance, batch_size, steps = 0.3, 0.7, 5.0, 8, 23
    moment = 1.0
    for _ in range(steps):
        moment = (
            1 - step_size * curvature
        ) ** 2 * moment + step_size**2 * noise_variance / batch_size
    injected = 0.5 * curvature * step_size**2 * noise_variance / batch_size
    loss = dynamics.advance(
        np.array([0.5 * curvature]),
        np.array([step_size * curvature]),
        np.zeros(1),
        np.array([injected]),
        np.array([steps]),
    )
    assert loss[0] == pytest.approx(0.5 * curvature * moment, rel=1e-10)


@pytest.mark.parametrize("y", [0.05, 0.5, 1.5])
def test_heavy_ball_settles_where_a_monte_carlo_run_settles(y: float) -> None:
    rng = np.random.default_rng(0)
    curvature, momentum, deviation = 1.0, 0.9, 0.3
    position, velocity = np.zeros(4000), np.zeros(4000)
    losses = []
    for step in range(900):
        gradient = curvature * position + deviation * rng.standard_normal(4000)
        velocity = momentum * velocity - y / curvature * gradient
        position = position + velocity
        if step >= 300:
            losses.append(0.5 * curvature * np.mean(position**2))
    injected = 0.5 * curvature * (y / curvature) ** 2 * deviation**2
    settled = dynamics.stationary_loss(np.array(y), np.array(momentum), np.array(injected))
    assert settled == pytest.approx(np.mean(losses), rel=0.03)


@pytest.mark.parametrize("directions", [1, 3, 40])
def test_a_sampled_loss_is_distributed_as_that_of_runs_in_so_many_directions(
    directions: int,
) -> None:
    rng = np.random.default_rng(1)
    step_size, curvature, deviation, steps, count = 0.3, 0.7, 0.8, 9, 40_000
    position = np.full((count, directions), 1.0 / np.sqrt(directions))
    for _ in range(steps):
        gradient = curvature * position + deviation * rng.standard_normal((count, directions))
        position = position - step_size * gradient
    simulated = 0.5 * curvature * np.square(position).sum(axis=1)
    injected = 0.5 * curvature * step_size**2 * deviation**2 * directions
    arguments = (
        np.full(count, 0.5 * curvature),
        np.full(count, step_size * curvature),
        np.zeros(count),
        np.full(count, injected),
        np.full(count, steps),
    )
    sampled = dynamics.advance_sampled(*arguments, np.full(count, float(directions)), rng)
    assert sampled.mean() == pytest.approx(simulated.mean(), rel=0.03)
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        found, expected = np.quantile(sampled, quantile), np.quantile(simulated, quantile)
        assert found == pytest.approx(expected, rel=0.03, abs=0.01 * simulated.mean())
    mean = dynamics.advance_sampled(*arguments, np.full(count, np.inf), rng)
    np.testing.assert_allclose(mean, dynamics.advance(*arguments))
