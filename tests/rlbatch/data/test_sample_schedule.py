import random
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from rlbatch.data.sample_schedule import SampleSchedule, horizon_of
from rlbatch.errors import ConfigurationError


def optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)


def cosine(opt: torch.optim.SGD) -> Any:
    scheduler = schedulers.CosineAnnealingLR(opt, 40)
    opt.step()  # schedulers warn when they are stepped before it
    return scheduler


def inverse() -> Any:
    opt = optimizer()
    scheduler = schedulers.LambdaLR(opt, lambda step: 1 / (1 + step))
    opt.step()
    return scheduler


def test_after_as_many_samples_the_rate_is_the_plain_one() -> None:
    plain, elastic = optimizer(), optimizer()
    reference, schedule = cosine(plain), SampleSchedule(cosine(elastic), 8)
    rates = [0.1]
    for _ in range(40):
        reference.step()
        rates.append(plain.param_groups[0]["lr"])
    draw = random.Random(0)
    samples = made = 0
    while samples < 300:
        size = draw.randint(1, 30)
        samples += size
        made += schedule.step(size)
        assert made == samples // 8
        assert elastic.param_groups[0]["lr"] == rates[made]
        assert schedule.get_last_lr() == [rates[made]]


def test_a_resumed_schedule_keeps_the_carry() -> None:
    whole, part = SampleSchedule(inverse(), 8), SampleSchedule(inverse(), 8)
    for schedule in (whole, part):
        schedule.step(13)
    resumed = SampleSchedule(inverse(), 8)
    resumed.load_state_dict(part.state_dict())
    for schedule in (whole, resumed):
        assert schedule.step(3) == 1
    assert whole.get_last_lr() == resumed.get_last_lr()
    assert whole.state_dict()["carry"] == resumed.state_dict()["carry"] == 0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="metric"):
        SampleSchedule(schedulers.ReduceLROnPlateau(optimizer()), 8)
    with pytest.raises(ConfigurationError, match="base_batch_size"):
        SampleSchedule(cosine(optimizer()), 0)
    with pytest.raises(ConfigurationError, match="difference"):
        SampleSchedule(cosine(optimizer()), 8).step(-1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (cosine, "T_max=40"),
        (lambda o: schedulers.StepLR(o, 7), "step_size=7"),
        (lambda o: schedulers.MultiStepLR(o, [3, 9]), "milestones=[3, 9]"),
        (lambda o: schedulers.LinearLR(o, total_iters=5), "total_iters=5"),
        (lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=50), "total_steps=50"),
        (lambda o: schedulers.CosineAnnealingWarmRestarts(o, 6), "T_0=6"),
        (lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=4), "total_size=8.0"),
        (lambda o: schedulers.ExponentialLR(o, 0.9), "a factor a step"),
        (lambda o: schedulers.LambdaLR(o, lambda n: 1 / (n + 1)), "a function of the step"),
        (
            lambda o: schedulers.SequentialLR(
                o, [schedulers.ConstantLR(o), schedulers.StepLR(o, 3)], [12]
            ),
            "milestones=[12]; total_iters=5; step_size=3",
        ),
        (
            lambda o: schedulers.ChainedScheduler([schedulers.ExponentialLR(o, 0.9)], o),
            "a factor a step",
        ),
    ],
)
def test_a_horizon_that_is_counted_in_steps_is_named(make: Any, named: str) -> None:
    assert horizon_of(make(optimizer())) == named
