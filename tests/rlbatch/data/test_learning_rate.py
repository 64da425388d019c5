import math
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from rlbatch.data.learning_rate import LearningRateCoupling, coupling_factor
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.signals.noise_scale import adascale_gain
from rlbatch.signals.record import Coupling


def parameter() -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    made.grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    return made


def test_the_rules_in_closed_form() -> None:
    assert coupling_factor("none", 256, 32) == 1.0
    assert coupling_factor("sqrt", 128, 32) == 2.0
    assert coupling_factor("linear", 8, 32) == 0.25
    assert coupling_factor(Coupling.LINEAR, 96, 32) == 3.0
    variance, squared, scale = 6.0, 2.0, 4.0  # r = 8 / 3.5
    gain = float(adascale_gain(squared, variance * 32, 32, 32 * scale))
    assert gain == pytest.approx(8 / 3.5)
    assert coupling_factor("adascale", 128, 32, gain) == gain
    assert coupling_factor("adascale", 128, 32, gain, adaptive=True) == math.sqrt(gain)


def test_an_adascale_gain_stays_within_the_formula() -> None:
    assert coupling_factor("adascale", 128, 32, 9.0) == 4.0
    assert coupling_factor("adascale", 128, 32, 0.3) == 1.0
    assert coupling_factor("adascale", 16, 32, 0.3) == 0.5
    assert coupling_factor("adascale", 128, 32) == 1.0
    assert coupling_factor("adascale", 128, 32, math.nan) == 1.0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="'linear'"):
        coupling_factor("liner", 32, 32)
    for size in (0, -1, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match="positive batch_size"):
            coupling_factor("linear", size, 32)


SCHEDULERS: dict[str, Any] = {
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 17),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.93),
    "one_cycle": lambda o: schedulers.OneCycleLR(o, 0.7, total_steps=60, cycle_momentum=False),
    "chained": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o), schedulers.StepLR(o, 5)], [9]
    ),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 6),
}


@pytest.mark.parametrize("use_hooks", [False, True])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_never_see_the_coupling(name: str, as_tensor: bool, use_hooks: bool) -> None:
    def trajectory(coupled: bool) -> tuple[list[float], list[float]]:
        rate: Any = torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1
        weight = parameter()
        optimizer = torch.optim.SGD([weight], lr=rate, foreach=False)
        scheduler = SCHEDULERS[name](optimizer)
        coupling = LearningRateCoupling(optimizer, "linear", 32)
        detach = coupling.attach() if coupled and use_hooks else lambda: None
        rates: list[float] = []
        moved: list[float] = []
        for step in range(40):
            before = weight.detach().clone()
            factor = coupling.set_batch_size(7 * step + 1) if coupled else 1.0
            if coupled and not use_hooks:
                with coupling.applied():
                    optimizer.step()
            else:
                optimizer.step()
            moved.append(float((before - weight.detach())[0]) / factor)
            scheduler.step()
            rates.append(float(optimizer.param_groups[0]["lr"]))
        detach()
        return rates, moved

    plain_rates, plain_moves = trajectory(coupled=False)
    rates, moves = trajectory(coupled=True)
    assert rates == plain_rates  # bit for bit
    assert moves == pytest.approx(plain_moves, rel=1e-9, abs=1e-12)


def test_tensor_rates_stay_the_same_object() -> None:
    rate = torch.tensor(0.3)
    optimizer = torch.optim.Adam([{"params": [parameter()], "lr": rate}, {"params": [parameter()]}])
    coupling = LearningRateCoupling(optimizer, "sqrt", 32)
    coupling.set_batch_size(100)
    held = optimizer.param_groups[0]["lr"]
    before = held.clone()
    with coupling.applied() as factor:
        assert factor == math.sqrt(100 / 32)
        assert optimizer.param_groups[0]["lr"] is held
        assert torch.equal(held, before * factor)
        assert optimizer.param_groups[1]["lr"] == 1e-3 * factor
    assert optimizer.param_groups[0]["lr"] is held
    assert torch.equal(held, before)
    assert optimizer.param_groups[1]["lr"] == 1e-3


def test_groups_added_later_are_scaled_too() -> None:
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    coupling = LearningRateCoupling(optimizer, "linear", 8)
    coupling.set_batch_size(24)
    optimizer.add_param_group({"params": [parameter()], "lr": 0.7})
    with coupling.applied():
        assert [g["lr"] for g in optimizer.param_groups] == [0.1 * 3, 0.7 * 3]
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.7]


def test_a_failing_step_leaves_the_rate_as_it_was() -> None:
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    coupling = LearningRateCoupling(optimizer, "linear", 8)
    coupling.set_batch_size(24)
    with pytest.raises(RuntimeError, match="lost"), coupling.applied():
        raise RuntimeError("lost")
    assert optimizer.param_groups[0]["lr"] == 0.1
    with coupling.applied():
        assert optimizer.param_groups[0]["lr"] == 0.1 * 3


def test_a_detached_coupling_does_nothing() -> None:
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    coupling = LearningRateCoupling(optimizer, "linear", 8)
    coupling.set_batch_size(24)
    coupling.attach()()
    weight = optimizer.param_groups[0]["params"][0]
    optimizer.step()
    assert float(weight.detach()[0]) == 1.0 - 0.1


def test_misuse_is_refused() -> None:
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    scheduler = schedulers.ExponentialLR(optimizer, 0.5)
    coupling = LearningRateCoupling(optimizer, "linear", 8)
    coupling.set_batch_size(16)
    optimizer.step()
    with pytest.raises(ConfigurationError, match="after the block"), coupling.applied():
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    with (
        pytest.raises(ConfigurationError, match="nested"),
        coupling.applied(),
        coupling.applied(),
    ):
        pass
    assert optimizer.param_groups[0]["lr"] == 0.1
    with pytest.raises(UnknownNameError, match="cubic"):
        LearningRateCoupling(optimizer, "cubic", 8)


def test_adam_type_optimizers_are_known() -> None:
    plain = torch.optim.SGD([parameter()], lr=0.1, momentum=0.9)
    assert LearningRateCoupling(plain, "adascale", 8).set_batch_size(32, gain=4.0) == 4.0
    coupling = LearningRateCoupling(torch.optim.Adam([parameter()]), "adascale", 8)
    assert coupling.set_batch_size(32, gain=4.0) == 2.0
