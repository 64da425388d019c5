"""With the policy `fixed`, a Lightning fit is the plain one, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler

pytest.importorskip("lightning")


from tests.rlbatch.integrations.lightning_runs import (
    BASE,
    MARKS,
    SAMPLES,
    Data,
    Net,
    Rows,
    Run,
    assert_same,
    cosine,
    schedules,
)

pytestmark = MARKS

PLAIN: dict[str, dict[str, Any]] = {
    "as it is": {},
    "accumulating": {"accumulation": 4, "samples": 64},
    "workers": {"workers": 2},
    "clipping": {"gradient_clip_val": 0.1},
    "clipping by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "bf16": {"precision": "bf16-mixed"},
    "true bf16": {"precision": "bf16-true"},
    "steps": {"max_steps": 17},
    "steps and epochs": {"max_steps": 100, "max_epochs": 2},
    "few steps": {"max_steps": 3},
    "validating often": {"val_check_interval": 0.3},
    "validating by batches": {"val_check_interval": 4},
    "validating across epochs": {"val_check_interval": 7, "check_val_every_n_epoch": None},
    "validating seldom": {"check_val_every_n_epoch": 2},
    "validating in an accumulation": {
        "val_check_interval": 8,
        "accumulation": 4,
        "samples": 96,
    },
    "no validation": {"val": False},
    "limited": {"limit_train_batches": 5},
    "limited in part": {"limit_train_batches": 0.5, "val_check_interval": 0.5},
    "a fast run": {"fast_dev_run": 2, "max_epochs": 5},
    "one batch an epoch": {"samples": 5},
    "at least some steps": {"min_steps": 12},
    "no inference mode": {"inference_mode": False},
}


@pytest.mark.parametrize("name", PLAIN)
def test_fixed_is_the_plain_fit(name: str) -> None:
    found = {}
    for policy in (None, "fixed"):
        run = Run(policy, net=Net(cosine), **PLAIN[name])
        found[policy] = run
    assert_same(found[None], found["fixed"])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["step", "every third", "epoch", "plateau"])
def test_fixed_keeps_schedules(kind: str, accumulation: int) -> None:
    def run(policy: Any) -> Run:
        net = Net(schedules(kind))
        return Run(policy, net=net, accumulation=accumulation, samples=72)

    plain, fixed = run(None), run("fixed")
    assert_same(plain, fixed)
    assert plain.rate < 3e-3


@pytest.mark.parametrize("samples", [64, 75])
def test_fixed_keeps_the_order_of_a_loader_with_a_generator(samples: int) -> None:
    def run(policy: Any) -> Run:
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(Rows(samples), BASE, shuffle=True, generator=generator)
        return Run(policy, loader=loader)

    assert_same(run(None), run("fixed"))


def test_fixed_keeps_a_weighted_order() -> None:
    def run(policy: Any) -> Run:
        sampler = WeightedRandomSampler([1.0 + i % 3 for i in range(SAMPLES)], 50)
        return Run(policy, loader=DataLoader(Rows(), BASE, sampler=sampler))

    assert_same(run(None), run("fixed"))


def test_fixed_is_the_plain_fit_of_a_data_module() -> None:
    assert_same(Run(None, data=Data()), Run("fixed", data=Data()))
