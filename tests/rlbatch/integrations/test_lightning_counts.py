"""What a Lightning Trainer counts in steps goes by samples."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch import Callback

from rlbatch.testing import ScriptedPolicy
from tests.rlbatch.integrations.lightning_runs import (
    GROW,
    MARKS,
    Net,
    Rates,
    Run,
    cosine,
    powers,
    schedules,
)

pytestmark = MARKS


@pytest.mark.parametrize("frequency", [1, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_schedule_by_steps_stands_where_the_samples_are(
    frequency: int, accumulation: int
) -> None:
    """At each place that the plain run has too, the rate is the plain run's."""

    def run(policy: Any) -> dict[int, float]:
        rates = Rates()
        net = Net(powers(frequency=frequency))
        Run(policy, net=net, callbacks=(rates,), accumulation=accumulation, max_epochs=4)
        return rates.rates

    plain, controlled = run(None), run(ScriptedPolicy((1.0, 0.0, -1.0, 2.0)))
    common = [seen for seen in plain if seen in controlled]
    assert len(common) > 6
    assert [controlled[seen] for seen in common] == [plain[seen] for seen in common]
    assert len(controlled) != len(plain)


@pytest.mark.parametrize("policy", ["fixed", GROW, ScriptedPolicy((-3.0,))])
def test_a_cosine_over_the_estimated_steps_ends_where_the_run_ends(policy: Any) -> None:
    run = Run(policy, net=Net(cosine))
    assert run.rate == pytest.approx(0.0, abs=1e-12)


def test_a_schedule_by_epochs_makes_one_step_an_epoch() -> None:
    run = Run(GROW, net=Net(schedules("epoch")))
    assert run.rate == pytest.approx(3e-3 / 8)


@pytest.mark.parametrize("policy", [GROW, ScriptedPolicy((2.0,)), ScriptedPolicy((-3.0,))])
@pytest.mark.parametrize("steps", [1, 7, 10, 23])
def test_max_steps_counts_steps_of_the_users_batch_size(policy: Any, steps: int) -> None:
    def samples(policy: Any) -> int:
        return sum(len(part) for *_, part in Run(policy, max_steps=steps).net.parts)

    assert samples(policy) == samples(None)


def test_min_steps_counts_steps_of_the_users_batch_size() -> None:
    """The plain run stops with the epoch in which it has made twelve steps."""
    for policy in ("fixed", ScriptedPolicy((3.0,)), ScriptedPolicy((-3.0,))):
        run = Run(policy, min_steps=12, max_epochs=9, callbacks=(Stop(),))
        assert run.trainer.current_epoch == 2, policy


class Stop(Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 0.3},
        {"val_check_interval": 4},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"val_check_interval": 1.0},
    ],
)
@pytest.mark.parametrize("policy", [GROW, ScriptedPolicy((-3.0,))])
def test_validations_stay_at_their_samples(options: dict[str, Any], policy: Any) -> None:
    """Each is made with the first step at or behind the place of the plain run's."""
    plain, run = Run(None, **options).net, Run(policy, **options).net
    places, seen = [], 0
    for size in run.sizes:
        seen += size
        places.append(seen)
    expected = sorted({min(p for p in places if p >= at) for at in plain.validated_at})
    assert run.validated_at == expected


def test_a_validation_by_the_clock_stays() -> None:
    run = Run(GROW, val_check_interval={"seconds": 0}, check_val_every_n_epoch=None)
    assert run.net.validated_at == torch.tensor(run.net.sizes).cumsum(0).tolist()


def test_limited_epochs_hold_their_samples() -> None:
    run = Run(GROW, limit_train_batches=5)
    assert [sum(map(len, batches)) for batches in run.net.batches.values()] == [40, 40, 40]
    orders = [sorted(chain(*batches)) for batches in run.net.batches.values()]
    assert orders[0] != orders[1]  # of a new shuffle each
