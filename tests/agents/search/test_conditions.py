from __future__ import annotations

import math

import pytest

from rlbatch.agents.evaluate.clocks import resolve_clock
from rlbatch.agents.evaluate.fixed_curves import FixedSetting
from rlbatch.agents.evaluate.reference import find_references
from rlbatch.agents.search.conditions import Conditions, TrialRunner
from rlbatch.agents.search.goal import parse_goal
from rlbatch.agents.search.trials import Stop, TrialSpec
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.task import resolve_task
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.signals.record import Coupling


@pytest.mark.parametrize("size", [4, 8, 32])
def test_a_trial_costs_what_the_reference_says(cheap: str, size: int) -> None:
    setting = FixedSetting(resolve_task(cheap), cheap, 3, Coupling.SQRT)
    reference = find_references(setting, [resolve_clock("cpu")], start_sizes=[size])["cpu"]

    trial = TrialRunner(Conditions(cheap, parse_goal("target"))).run(
        TrialSpec(size, 0.0, 3), Stop()
    )

    assert trial.complete == (size in reference.costs)
    if trial.complete:
        assert trial.cost == pytest.approx(reference.costs[size])


def test_a_trial_of_epochs_is_the_plain_run_of_that_many_samples(cheap: str) -> None:
    task = resolve_task(cheap)
    plain = fixed_run_curve(
        task, 8, seed=1, coupling=Coupling.LINEAR, max_samples=100, learning_rate_scale=0.5
    )
    conditions = Conditions(cheap, parse_goal("epochs=2"), "linear", "samples")

    trial = TrialRunner(conditions).run(TrialSpec(8, -1.0, 1), Stop())

    assert trial.complete
    assert (trial.samples, trial.cost, trial.steps) == (100, 100.0, int(plain.steps[-1]))
    assert trial.loss == pytest.approx(plain.val_loss[-1])
    assert trial.curve[-1] == (100.0, 100.0, trial.loss)


def test_a_budget_is_spent(cheap: str) -> None:
    conditions = Conditions(cheap, parse_goal("budget=64"), profile="samples")

    trial = TrialRunner(conditions).run(TrialSpec(16, 0.0, 0), Stop())

    assert trial.complete
    assert 64.0 <= trial.cost < 64.0 + 16


def test_a_run_to_a_target_is_given_up_at_its_limit(cheap: str) -> None:
    runner = TrialRunner(Conditions(cheap, parse_goal("target"), profile="samples"))
    whole = runner.run(TrialSpec(8, 0.0, 0), Stop())
    cut = runner.run(TrialSpec(8, 0.0, 0), Stop(max_cost=whole.cost / 2))

    assert whole.complete
    assert not whole.stopped
    assert (cut.complete, cut.stopped) == (False, True)
    assert whole.cost / 2 <= cut.cost < whole.cost / 2 + 8
    assert cut.score(parse_goal("target")) == math.inf


def test_a_pass_that_does_not_fit_is_not_run(cheap: str) -> None:
    # A linear layer saves its input, 6 floats a sample, and the loss the differences.
    free = TrialRunner(Conditions(cheap, parse_goal("target"), memory_limit=10**6))
    needed = free.run(TrialSpec(8, 0.0, 0), Stop()).memory
    tight = TrialRunner(Conditions(cheap, parse_goal("target"), memory_limit=needed))

    assert needed > 8 * 6 * 4
    assert tight.run(TrialSpec(8, 0.0, 0), Stop()).fits
    beyond = tight.run(TrialSpec(16, 0.0, 0), Stop())
    assert (beyond.fits, beyond.complete, beyond.cost) == (False, False, 0.0)


def test_a_schedule_is_made_for_the_epochs(cheap: str) -> None:
    scheduled = cheap.replace(":make", ":scheduled")
    plain = fixed_run_curve(
        resolve_task(scheduled), 8, seed=0, coupling=Coupling.SQRT, max_samples=200,
        planned_steps=25,
    )  # fmt: skip

    trial = TrialRunner(Conditions(scheduled, parse_goal("epochs=4"))).run(
        TrialSpec(8, 0.0, 0), Stop()
    )

    assert trial.loss == pytest.approx(plain.val_loss[-1])


def test_names_are_checked_at_once(cheap: str) -> None:
    goal = parse_goal("target")
    for arguments in (("no-task",), (cheap, goal, "cubic"), (cheap, goal, "sqrt", "abacus")):
        task, *rest = arguments
        with pytest.raises(UnknownNameError):
            Conditions(task, *(rest or [goal]))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="memory limit"):
        Conditions(cheap, goal, memory_limit=0)
